"""The attacks. Each returns what it measured, or raises Fell if the node fell short."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

import redis.asyncio

from gateway.drill.connection import CLOSE, PING, TEXT, frame, text

from .target import MB, SECONDS, Connection, Target

MEMORY = 48 * MB
"""What any attack here may add to a node's memory. A pod has 384 MiB."""

SECRET = "Sk3-a-secret-that-nobody-may-see"

CROWD = tuple(f"127.0.1.{number}" for number in range(1, 4))
"""Three addresses, because limits per address hold one attacker, not three."""

FOREIGN = "rebound.example"
"""A name that an attacker's DNS server leads to this machine."""


class Fell(AssertionError):
    """The node fell short."""


class Attack(NamedTuple):
    name: str
    run: Callable[[Target], Awaitable[str]]

    @property
    def what(self) -> str:
        """What is done, and what is right."""
        return " ".join((self.run.__doc__ or "").split())


ATTACKS: list[Attack] = []


def attack(run: Callable[[Target], Awaitable[str]]) -> Callable[[Target], Awaitable[str]]:
    ATTACKS.append(Attack(run.__name__.replace("_", " "), run))
    return run


def check(right: object, what: str) -> None:
    if not right:
        raise Fell(what)


@contextlib.contextmanager
def memory_bounded(target: Target, most: int = MEMORY) -> Iterator[Callable[[], str]]:
    """The node must not need more than `most` bytes for the block. Yields what tells how many it was."""
    before = target.memory()

    def grown() -> str:
        now = target.memory()
        return "memory not known" if before is None or now is None else f"{(now - before) / MB:+.1f} MB"

    yield grown
    now = target.memory()
    check(before is None or now is None or now - before < most, f"the node's memory grew by {grown()}")


async def nobody_else_is_harmed(target: Target) -> None:
    check(await target.is_alive(), "/healthz does not answer")
    check(not (why := await target.serves_a_bystander()), why)


def post(path: str, length: int, *headers: str) -> str:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *headers]
    return "".join(f"{line}\r\n" for line in lines)


# Bodies


@attack
async def bodies_that_inflate(target: Target) -> str:
    """100 bodies of 16 KB that inflate to 16 MB, to both ports. Answered 415; memory does not grow."""
    bomb = zlib.compress(bytes(16 * MB), 9)
    statuses = set()
    with memory_bounded(target) as grown:
        for number in range(100):
            path = ("/websocket/0/bomb/xhr", "/ws", "/websocket/0/bomb/xhr_send", "/publish")[number % 4]
            coding = ("deflate", "gzip")[number // 4 % 2]
            head = post(path, len(bomb), f"Content-Encoding: {coding}")
            statuses.add((await target.request(head, bomb, admin=path == "/publish"))[0])
    await nobody_else_is_harmed(target)
    check(statuses == {415}, f"answered {sorted(statuses)}, not 415")
    return f"415 each, {grown()}"


@attack
async def bodies_that_are_too_large(target: Target) -> str:
    """200 bodies of 1 MB. Refused; memory does not grow, and no body outlives its request."""
    body = b"[" + b'"x",' * (MB // 4)
    with memory_bounded(target) as grown:
        statuses = {
            (await target.request(post("/websocket/0/large/xhr_send", len(body)), body))[0]
            for _ in range(200)
        }
    await nobody_else_is_harmed(target)
    # 0: the node has closed while the body was still being sent, and the reset was faster than the answer.
    check(statuses <= {413, 404, 0}, f"answered {sorted(statuses)}")
    return f"{', '.join(map(str, sorted(statuses)))}; {grown()}"


@attack
async def heads_and_bodies_that_never_end(target: Target) -> str:
    """Connections that send half a head, or a head and half a body, and stay. Dropped in time."""
    halves = (
        b"GET /ws HTTP/1.1\r\nHost: a\r\n",
        post("/websocket/0/half/xhr_send", 1000).encode() + b"\r\n[",
    )
    async with target.connections(40) as opened:
        for number, connection in enumerate(opened):
            connection.send(halves[number % 2])
        try:
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(*(connection.ended() for connection in opened))
        except TimeoutError:
            raise Fell("they are still there after 10 s") from None
        await nobody_else_is_harmed(target)
    return f"{len(opened)} dropped"


# Clients that do not read


@attack
async def receipts_that_nobody_reads(target: Target) -> str:
    """30 STOMP sessions that ask for long receipts and do not read. Closed; then no socket is left."""
    ask = frame(TEXT, f"UNSUBSCRIBE\nid:0\nreceipt:{'r' * 4_000}\n\n\0".encode() * 4)
    sockets = target.sockets()
    with memory_bounded(target) as grown:
        readers: list[Connection] = []
        try:
            for number in range(30):
                reader = await target.websocket(CROWD[number % 3], protocol="v12.stomp", narrow=True)
                readers.append(reader)
                reader.send(frame(TEXT, b"CONNECT\naccept-version:1.2\nhost:a\n\n\0"))
            most = 0
            for _ in range(18):
                for reader in readers:
                    reader.send(ask)
                await asyncio.sleep(0.05)
                most = max(most, target.unread())
            each = most / len(readers)
            check(each < 256_000, f"{each / 1000:.0f} KB in the kernel for each of them")
            await no_socket_is_left(target, sockets)
        finally:
            await asyncio.gather(*(reader.close() for reader in readers))
    await nobody_else_is_harmed(target)
    return f"{each / 1000:.0f} KB each in the kernel at most, {grown()}, no socket left"


@attack
async def answers_that_nobody_reads(target: Target) -> str:
    """30 connections that ask 2,000 times each and read nothing. Bounded; then no socket is left."""
    sockets = target.sockets()
    with memory_bounded(target) as grown:
        async with target.connections(30, CROWD, narrow=True) as opened:
            for connection in opened:
                connection.send(b"GET /websocket/info HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2_000)
            await no_socket_is_left(target, sockets)
    await nobody_else_is_harmed(target)
    return f"dropped, {grown()}"


async def no_socket_is_left(target: Target, before: Counter[str]) -> None:
    end = time.monotonic() + 2 * SECONDS
    while left := target.sockets() - before:
        check(time.monotonic() < end, f"sockets are left: {dict(left)}")
        await asyncio.sleep(0.1)


async def becomes_harmless(target: Target) -> None:
    """Somebody else is served again within seconds."""
    end = time.monotonic() + SECONDS
    while why := await target.serves_a_bystander():
        check(time.monotonic() < end, why)
        await asyncio.sleep(0.1)


# Connections


@attack
async def connections_that_are_kept(target: Target) -> str:
    """600 connections from one address ask for /websocket/info and stay. Others come in; Redis comes back."""
    async with target.connections(600) as opened:
        for connection in opened:
            connection.send(b"GET /websocket/info HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answers = [await connection.answer() for connection in opened]
        await nobody_else_is_harmed(target)
        if target.redis_url is not None:
            async with redis.asyncio.Redis.from_url(target.redis_url) as client:
                await client.client_kill_filter(_type="pubsub")
            await becomes_harmless(target)
    served = sum(status == 200 for status, _ in answers)
    return f"{served} served, {len(answers) - served} refused"


@attack
async def connections_that_say_nothing(target: Target) -> str:
    """400 silent connections from one address. It gets its share, and others come in."""
    async with target.connections(400) as opened:
        await nobody_else_is_harmed(target)
        return f"{len(opened)} opened; another browser is served"


@attack
async def one_id_for_many_sessions(target: Target) -> str:
    """250 sessions of one id from three addresses. There is a limit, and all leave at once without harm."""
    sessions: list[Connection] = []
    admitted = 0
    try:
        for number in range(250):
            session = await target.websocket(CROWD[number % 3])
            sessions.append(session)
            session.send(text({"webSocketId": "everybodys"}))
            with contextlib.suppress(EOFError):  # closed: it may try again
                answer = await session.message()
                check(answer["registrationSucceeded"], f"told that the login has failed: {answer}")
                admitted += 1
        check(admitted < len(sessions), "all were admitted")
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
    await nobody_else_is_harmed(target)
    return f"{admitted} admitted, {len(sessions) - admitted} sent away"


# Requests


@attack
async def paths_that_cost_much(target: Target) -> str:
    """40 paths with 8,000 slashes, to both ports. Refused at once; the event loop is not held up."""
    paths = ("/a" * 8_000, "/websocket" + "/." * 7_900, "/" * 16_000, "/" + "../" * 5_000)
    before = target.cpu_seconds()
    statuses = set()
    for number in range(40):
        head = f"GET {paths[number % 4]} HTTP/1.1\r\nHost: localhost\r\n"
        statuses.add((await target.request(head, admin=number >= 20))[0])
    after = target.cpu_seconds()
    await nobody_else_is_harmed(target)
    check(statuses == {414}, f"answered {sorted(statuses)}, not 414")
    cost = "" if before is None or after is None else f", {(after - before) / 40 * 1000:.1f} ms of CPU each"
    return f"414 each{cost}"


@attack
async def requests_that_wait_with_much_behind_them(target: Target) -> str:
    """An address uses up its budget. Then 400 of its requests wait, with 200 KB behind each. Memory stays."""
    ask = b"GET /websocket/info HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with target.connections(30, CROWD[:1]) as spent:
        for connection in spent:
            connection.send(ask * 100)
        for connection in spent:
            for _ in range(80):
                await connection.answer()
        with memory_bounded(target, 8 * MB) as grown:
            async with target.connections(400, CROWD[:1]) as opened:
                for connection in opened:
                    connection.send(ask + b"G" * 200_000)
                await nobody_else_is_harmed(target)
                measured = grown()
    return f"{len(opened)} opened, {measured}"


# Messages


@attack
async def messages_that_cost_much(target: Target) -> str:
    """Bodies of 61 KB full of lone surrogates. Never an error of the node's; their sender is closed."""
    body = b"[" + b'"\\ud800",' * 7_000 + b"1]"
    path = "/websocket/0/costly"
    status, _ = await target.request(post(f"{path}/xhr", 0))
    check(status == 200, f"the session was not opened: {status}")
    before = target.cpu_seconds()
    statuses = {(await target.request(post(f"{path}/xhr_send", len(body)), body))[0] for _ in range(60)}
    after = target.cpu_seconds()
    check(max(statuses) < 500, f"answered {max(statuses)}")
    _, frame_of_end = await target.request(post(f"{path}/xhr", 0))
    check(frame_of_end.startswith(b"c[1008"), f"the session goes on: {frame_of_end!r}")
    await nobody_else_is_harmed(target)
    cost = "" if before is None or after is None else f", {(after - before) / 60 * 1000:.1f} ms of CPU each"
    return f"closed{cost}"


@attack
async def frames_with_many_headers(target: Target) -> str:
    """64 STOMP frames with 31 headers in each message, as fast as they are taken. Their sender is closed."""
    one = "SEND\n" + "".join(f"header-{number}:value\n" for number in range(31)) + "\n\0"
    session = await target.websocket(protocol="v12.stomp")
    try:
        session.send(frame(TEXT, b"CONNECT\naccept-version:1.2\nhost:a\n\n\0"))
        before = target.cpu_seconds()
        message = frame(TEXT, (one * (16_000 // len(one))).encode())
        for _ in range(200):
            session.send(message)
        await session.ended()
        after = target.cpu_seconds()
    finally:
        await session.close()
    await nobody_else_is_harmed(target)
    return (
        "closed"
        if before is None or after is None
        else f"closed after {(after - before) * 1000:.0f} ms of CPU"
    )


@attack
async def floods_on_a_websocket(target: Target) -> str:
    """Pings, empty fragments, and unknown messages without end. Each sender is closed."""
    floods = {
        "pings": frame(PING, b"x" * 125),
        "fragments": frame(0, b"", first=0),
        "unknown messages": text({}),
    }
    for name, piece in floods.items():
        session = await target.websocket()
        try:
            session.send((frame(TEXT, b"", first=0) if name == "fragments" else b"") + piece * 5_000)
            await session.ended()
        except TimeoutError:
            raise Fell(f"{name}: still open") from None
        finally:
            await session.close()
    await nobody_else_is_harmed(target)
    return "each closed"


# What is said


@attack
async def close_codes_of_ones_own(target: Target) -> str:
    """300 sessions close with a code of their own each. /readyz and /metrics do not grow with them."""
    size = len((await target.admin("/readyz"))[1])
    for code in range(4_000, 4_300):
        session = await target.websocket()
        session.send(frame(CLOSE, code.to_bytes(2, "big")))
        await session.ended()
        await session.close()
    grown = len((await target.admin("/readyz"))[1]) - size
    check(grown < 2_000, f"/readyz grew by {grown} bytes")
    return f"/readyz {grown:+} bytes"


@attack
async def secrets_in_broken_requests(target: Target) -> str:
    """Requests with a secret that no parser accepts, first or later, to both ports. Nobody repeats it."""
    broken = (
        f"GET /{SECRET} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\r\r\n\r\n",
        f"{SECRET}\r\n\r\n",
        f"GET /{SECRET}\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        f"GET / HTTP/9{SECRET}\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {SECRET}\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n",
    )
    first = {target.port: "/websocket/info", target.admin_port: "/healthz"}
    for port, path in first.items():
        for lines in broken:
            for before in ("", f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"):
                connection = await target.connect(port=port)
                connection.send(before.encode())
                if before:
                    await connection.answer()
                connection.send(lines.encode("latin-1"))
                said = await connection.ended()
                await connection.close()
                check(SECRET.encode() not in said, f"port {port} repeats it: {said!r}")
                check(b"aiohttp" not in said.lower(), f"port {port} names its software: {said!r}")
    if target.logs is None:
        return "not repeated to the client; logs not known"
    told = [line for line in target.logs() if SECRET in json.dumps(line)]
    check(not told, f"it is in the log: {told[:1]}")
    wrong = [line for line in target.logs() if line.get("level") in ("error", "critical")]
    check(not wrong, f"a client's mistake is an error in the log: {wrong[:1]}")
    return "repeated nowhere"


@attack
async def names_that_lead_here(target: Target) -> str:
    """The admin port under another site's name, as after DNS rebinding. 421 on every path."""
    for path in ("/", "/readyz", "/metrics", "/healthz", "/publish"):
        status, _ = await target.request(f"GET {path} HTTP/1.1\r\nHost: {FOREIGN}:8081\r\n", admin=True)
        check(status == 421, f"{path} is answered {status}")
    return "421 on every path"


@attack
async def rejections_without_end(target: Target) -> str:
    """1,000 handshakes with hostile origins. Few lines are logged, without characters that fool terminals."""
    before = len(target.logs()) if target.logs is not None else 0
    hostile = "https://a\u0085\u009b2J.example"
    head = (
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Origin: {hostile}\r\n"
    )
    statuses = {(await target.request(head))[0] for _ in range(1_000)}
    await nobody_else_is_harmed(target)
    check(statuses <= {400, 403, 429, 503}, f"answered {sorted(statuses)}")
    if target.logs is None:
        return f"answered {sorted(statuses)}; logs not known"
    lines = target.logs()[before:]
    check(len(lines) < 200, f"{len(lines)} lines in the log")
    return f"answered {sorted(statuses)}, {len(lines)} lines in the log"
