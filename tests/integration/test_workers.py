"""A node of several workers: real processes, which are killed, frozen and told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families

from gateway.drill.fleet import NodeProcess, ValkeyProcess, free_port
from gateway.errors import EmbeddedError
from gateway.node import EXIT_DRAIN_CUT
from gateway.server.affinity import owner

from . import stomp
from .conftest import complaints
from .in_process import readiness
from .load import SECONDS, Backend, LoadClient, frame, load_clients, result_of, until, without_their_result
from .raw import Raw

COUNT = 3
BROWSERS = 60
SOON = 8.0  # seconds: what takes no time, on a machine that is very busy; a hang takes longer

EARLY_TO_GIVE_UP = "import gateway.workers.liveness as r; r.GIVEN_UP_AFTER = 3\n"

SLOW_TO_REPLACE = "import gateway.workers.liveness as r; r.FIRST_RESTART_DELAY = 4.0\n"

TOKEN = "a-token-that-is-long-enough"


@contextlib.contextmanager
def node_of(
    valkey: ValkeyProcess, *options: str, workers: int = COUNT, preface: str = ""
) -> Iterator[NodeProcess]:
    with NodeProcess(valkey.url, "--workers", str(workers), *options, preface=preface) as node:
        yield node


def pids(node: NodeProcess) -> list[int]:
    """The process of each worker; 0 where there is none."""
    body = node.readyz()
    assert body is not None
    return [worker["pid"] or 0 for worker in body["workers"]]


def lives(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def sends_heartbeats(pid: int) -> bool:
    """Whether a worker handles SIGTERM, as it does before it sends the first one."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def session_of(worker: int, count: int = COUNT) -> Iterator[str]:
    """Names of SockJS sessions that live in this worker."""
    names = (f"s{worker}-{time.monotonic_ns()}-{number}" for number in range(1_000_000))
    return (name for name in names if owner(request(name, "xhr"), ["/websocket"], count) == worker)


def request(session: str, transport: str, messages: Sequence[str] = ()) -> bytes:
    """A request of SockJS's as a browser sends it."""
    body = json.dumps(messages).encode() if messages else b""
    line = f"POST /websocket/000/{session}/{transport} HTTP/1.1\r\n"
    return f"{line}Host: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def frames_of(raw: Raw, session: str, transport: str, messages: Sequence[str] = ()) -> tuple[int, str]:
    """Status and body of the answer to one request."""
    raw.send(request(session, transport, messages))
    status, _, body = await raw.answer()
    return status, body.decode()


async def sessions(node: NodeProcess) -> list[int]:
    _, body = await readiness(node.admin_port)
    return [worker["state"]["sessions"] for worker in body["workers"]]


# Serving


async def test_browsers_are_spread_and_each_gets_its_result(
    valkey: ValkeyProcess, three_workers: NodeProcess
) -> None:
    names = [f"spread-{number}" for number in range(BROWSERS)]
    async with load_clients([three_workers.port], names) as browsers, Backend.on(valkey.url) as backend:
        held = await sessions(three_workers)
        assert sum(held) >= BROWSERS
        assert all(held), "each worker has a part"
        await backend.publish_once(names)
        await until(lambda: not without_their_result(browsers), "everybody has its result")


async def converse(raws: Sequence[Raw], session: str, name: str, backend: redis.asyncio.Redis) -> None:
    """Web Flow's conversation by polls, each request on the next of these connections."""
    turns = iter(range(1_000))

    async def say(transport: str, messages: Sequence[str] = ()) -> tuple[int, str]:
        return await frames_of(raws[next(turns) % len(raws)], session, transport, messages)

    async def hear(count: int) -> list[str]:
        heard: list[str] = []
        while len(heard) < count:
            status, text = await say("xhr")
            assert (status, text[0]) == (200, "a"), (status, text)
            heard += json.loads(text[1:])
        return heard

    assert await say("xhr") == (200, "o\n")
    assert await say("xhr_send", stomp.conversation(name)) == (204, "")
    assert stomp.message((await hear(2))[1]) == stomp.registered(name)
    await backend.publish(f"websocket:{name}", "CONFIRMED")
    assert [stomp.message(text) for text in await hear(1)] == [stomp.authorized(name, "CONFIRMED")]


async def test_a_session_is_one_wherever_its_requests_arrive(
    three_workers: NodeProcess, backend: redis.asyncio.Redis
) -> None:
    async with contextlib.AsyncExitStack() as opened:
        raws = [await opened.enter_async_context(Raw.connected(three_workers.port)) for _ in range(12)]
        for worker in range(1, COUNT + 1):
            session = next(session_of(worker))
            await converse(raws, session, session, backend)


async def test_one_connection_serves_sessions_of_all_workers_in_turn(
    three_workers: NodeProcess, backend: redis.asyncio.Redis
) -> None:
    """As between a proxy and a node."""
    async with Raw.connected(three_workers.port) as raw:
        for worker in (1, 2, 3, 2, 1):
            session = next(session_of(worker))
            await converse([raw], session, session, backend)


async def test_control_without_handing_over_sessions_are_not_found(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis
) -> None:
    keep = "import gateway.server.handoff as h; h.owner = lambda *_: None\n"
    with node_of(valkey, preface=keep) as node:
        async with contextlib.AsyncExitStack() as opened:
            raws = [await opened.enter_async_context(Raw.connected(node.port)) for _ in range(12)]

            async def converse_four_times() -> None:
                """All connections of one conversation may have come to one worker, but hardly of four."""
                for first in range(0, 12, 3):
                    name = f"control-{first}"
                    await converse([*raws[first:], *raws[:first]], name, name, backend)

            with pytest.raises(AssertionError):
                await converse_four_times()


async def test_a_request_may_come_in_pieces(three_workers: NodeProcess) -> None:
    """A part of the body is read by the one worker, the rest by the other."""
    async with Raw.connected(three_workers.port) as raw:
        for worker in range(1, COUNT + 1):
            session = next(session_of(worker))
            assert await frames_of(raw, session, "xhr") == (200, "o\n")
            whole = request(session, "xhr_send", ["x" * 15_000] * 4)
            for part in (whole[:30], whole[30:5_000], whole[5_000:40_000], whole[40_000:]):
                raw.send(part)
                await asyncio.sleep(0)
            assert (await raw.answer())[0] == 204


@pytest.mark.parametrize("transport", ["xhr_streaming", "eventsource"])
async def test_streams_of_every_worker_on_any_connection(
    three_workers: NodeProcess, backend: redis.asyncio.Redis, transport: str
) -> None:
    method = "GET" if transport == "eventsource" else "POST"
    for worker in range(1, COUNT + 1):
        for session, _ in zip(session_of(worker), range(4), strict=False):
            async with Raw.connected(three_workers.port) as stream, Raw.connected(three_workers.port) as raw:
                line = f"{method} /websocket/000/{session}/{transport} HTTP/1.1\r\nHost: x\r\n\r\n"
                stream.send(line.encode())
                assert b" 200 " in await stream.head()
                assert await frames_of(raw, session, "xhr_send", stomp.conversation(session)) == (204, "")
                await stream.until(b"registrationSucceeded")
                await backend.publish(f"websocket:{session}", "CONFIRMED")
                await stream.until(b"CONFIRMED")


async def test_results_come_in_by_http(valkey: ValkeyProcess) -> None:
    with node_of(valkey, "--publish-token", TOKEN) as node:
        async with Raw.registered(node.port, "by-http") as browser, aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{node.admin_port}/publish"
            body = {"webSocketId": "by-http", "authResult": "CONFIRMED"}
            async with http.post(url, json=body, headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
                assert answer.status == 200
                assert (await answer.json())["receivers"] == 1
            assert (await browser.message())["authResult"] == "CONFIRMED"


async def test_metrics_of_all_workers(valkey: ValkeyProcess) -> None:
    with node_of(valkey, "--publish-token", TOKEN) as node:
        async with (
            load_clients([node.port], [f"metrics-{number}" for number in range(30)]),
            aiohttp.ClientSession() as http,
        ):
            async with http.get(f"http://127.0.0.1:{node.admin_port}/metrics") as answer:
                families = {each.name: each for each in text_string_to_metric_families(await answer.text())}
            held = {sample.labels["worker"]: 0.0 for sample in families["gateway_sessions"].samples}
            for sample in families["gateway_sessions"].samples:
                held[sample.labels["worker"]] += sample.value
            assert list(held) == ["1", "2", "3"]
            assert sum(held.values()) == 30
            up = {sample.labels["worker"]: sample.value for sample in families["gateway_worker_up"].samples}
            assert up == dict.fromkeys("123", 1.0)


async def test_limits_are_parted(valkey: ValkeyProcess) -> None:
    with node_of(valkey, "--max-sessions", "3", workers=2) as node:
        async with contextlib.AsyncExitStack() as opened:
            refused = 0
            for number in range(30):
                raw = await opened.enter_async_context(Raw.connected(node.port))
                raw.send(HANDSHAKE_BYTES)
                refused += b" 503 " in await raw.head()
                assert sum(await sessions(node)) == number + 1 - refused
            assert await sessions(node) == [2, 2], "half of it, rounded up"


HANDSHAKE_BYTES = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


# Workers that end


async def test_a_worker_that_is_killed_is_replaced(valkey: ValkeyProcess) -> None:
    names = [f"killed-{number}" for number in range(BROWSERS)]
    with node_of(valkey) as node:
        async with load_clients([node.port], names) as browsers, Backend.on(valkey.url) as backend:
            before = pids(node)
            os.kill(before[1], signal.SIGKILL)
            await until(lambda: pids(node)[1] not in (0, before[1]), "there is another")
            lost = [browser for browser in browsers if browser.closed_at]
            assert 0 < len(lost) < BROWSERS, "only its own sessions"
            async with load_clients([node.port], [browser.name for browser in lost]) as back:
                await backend.publish_once(names)
                stayed = [browser for browser in browsers if browser not in lost]
                await until(lambda: not without_their_result([*stayed, *back]), "everybody has its result")
            assert [pid for pid in pids(node) if pid in before] == [before[0], before[2]]
        (ended,) = node.logged("worker ended")
        assert (ended["worker"], ended["signal"]) == (2, "SIGKILL")
        assert complaints(node.logs) == [ended]


@contextlib.asynccontextmanager
async def arrivals(node: NodeProcess, count: int) -> AsyncIterator[list[LoadClient]]:
    """Browsers that connect and may have to wait for their answer."""
    names = [f"arrival-{time.monotonic_ns()}-{number}" for number in range(count)]
    async with load_clients([node.port], names, registered=False) as browsers:
        yield browsers


@pytest.mark.parametrize("relieved", [True, False], ids=["", "control"])
async def test_others_take_what_comes_for_one_that_is_gone(valkey: ValkeyProcess, relieved: bool) -> None:
    never = "import gateway.workers.standby as p; p.StandbyAcceptor.adjust = lambda self: None\n"
    preface = SLOW_TO_REPLACE + ("" if relieved else never)
    with node_of(valkey, preface=preface) as node:
        await until(lambda: all(pids(node)), "all are there")
        os.kill(pids(node)[0], signal.SIGKILL)
        await until(lambda: node.logged("worker replaced"), "the parent knows")
        started = time.monotonic()
        async with arrivals(node, 30) as browsers:
            if not relieved:
                await until(lambda: sum(b.registered.is_set() for b in browsers) >= 10, "some are answered")
                await asyncio.sleep(0.5)
                assert not all(browser.registered.is_set() for browser in browsers)
                return
            await until(lambda: all(browser.registered.is_set() for browser in browsers), "all are answered")
            assert time.monotonic() - started < SOON
            async with Raw.connected(node.port) as raw:
                raw.send(request(next(session_of(1)), "xhr"))
                assert (await raw.answer())[0] == 503, "its sessions cannot be served"
            await until(lambda: all(pids(node)), "it is replaced")
            async with Raw.connected(node.port) as raw:
                assert await frames_of(raw, next(session_of(1)), "xhr") == (200, "o\n")


async def test_a_worker_that_hangs_is_relieved_and_then_replaced(valkey: ValkeyProcess) -> None:
    with node_of(valkey) as node:
        hung = pids(node)[0]
        await until(lambda: sends_heartbeats(hung), "the worker has sent one")
        started = time.monotonic()
        os.kill(hung, signal.SIGSTOP)
        async with arrivals(node, 30) as browsers:
            await until(lambda: all(browser.registered.is_set() for browser in browsers), "all are answered")
        await until(lambda: node.logged("worker killed"), "the parent has noticed")
        assert time.monotonic() - started < 3.0 + SOON, "3 s where the machine is not overloaded"
        await until(lambda: pids(node)[0] not in (0, hung), "there is another")
        assert not lives(hung)
        assert len(node.logged("worker ended")) == 1


async def test_a_worker_that_cannot_be_replaced_makes_the_node_ill(valkey: ValkeyProcess) -> None:
    with node_of(valkey, preface=EARLY_TO_GIVE_UP + SLOW_TO_REPLACE) as node:
        os.kill(pids(node)[2], signal.SIGKILL)
        async with aiohttp.ClientSession() as http:

            async def health() -> tuple[int, Any]:
                async with http.get(f"http://127.0.0.1:{node.admin_port}/healthz") as answer:
                    return answer.status, (await answer.json())["stuck"]

            assert await health() == (200, [])
            end = time.monotonic() + SECONDS
            while await health() != (503, [3]):
                assert time.monotonic() < end
            status, body = await readiness(node.admin_port)
            assert (status, body["ready"]) == (200, True), "the others serve"
            assert [worker["state"] is None for worker in body["workers"]] == [False, False, True]
            while await health() != (200, []):
                assert time.monotonic() < end


async def test_one_worker_can_be_told_to_leave(valkey: ValkeyProcess) -> None:
    names = [f"left-{number}" for number in range(BROWSERS)]
    with node_of(valkey) as node:
        async with load_clients([node.port], names) as browsers:
            before = pids(node)
            os.kill(before[0], signal.SIGTERM)
            await until(lambda: pids(node)[0] not in (0, before[0]), "there is another")
            closed = [browser.close_code for browser in browsers if browser.close_code]
            assert 0 < len(closed) < BROWSERS
            assert set(closed) == {1012}
        assert not complaints(node.logs)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_workers_end_with_their_parent(valkey: ValkeyProcess, number: signal.Signals) -> None:
    """Even one that hangs, for then the kernel sees to it."""
    with node_of(valkey) as node:
        workers = pids(node)
        if number is signal.SIGSTOP:
            os.kill(workers[0], number)
        node.kill()
        await until(lambda: not any(map(lives, workers)), "all are gone")


# Starting and stopping


def test_a_taken_port_is_complained_of(valkey: ValkeyProcess) -> None:
    """Although the sockets of both would share it."""
    with node_of(valkey) as node, pytest.raises(EmbeddedError, match="is taken"):
        NodeProcess(valkey.url, "--workers", "2", port=node.port)


def test_workers_that_cannot_start_end_the_node(valkey: ValkeyProcess) -> None:
    broken = "import gateway.node as a\nasync def fail(self): raise RuntimeError('no')\na.Node.start = fail\n"
    with pytest.raises(EmbeddedError, match="it ended with 1") as caught:
        NodeProcess(valkey.url, "--workers", "2", preface=broken)
    assert "worker replaced" not in str(caught.value)


async def test_as_many_workers_as_processors(valkey: ValkeyProcess) -> None:
    with NodeProcess(valkey.url, "--workers", "auto") as node:
        body = node.readyz()
        assert body is not None
        assert len(body.get("workers", [0])) == len(os.sched_getaffinity(0))


def test_workers_can_be_told_apart(three_workers: NodeProcess) -> None:
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids(three_workers)]
    assert names == ["gateway w1", "gateway w2", "gateway w3"]
    connected = {line["worker"] for line in three_workers.logged("redis connected")}
    assert connected == {1, 2, 3}


async def exit_of(node: NodeProcess) -> int:
    return await asyncio.to_thread(node.process.wait, SECONDS)


async def test_a_drain_covers_all_workers(valkey: ValkeyProcess) -> None:
    names = [f"drained-{number}" for number in range(BROWSERS)]
    delay, seconds = 1.0, 1.5
    with node_of(valkey, "--drain-delay", str(delay), "--drain-seconds", str(seconds)) as node:
        async with load_clients([node.port], names) as browsers, Backend.on(valkey.url) as backend:
            start = time.monotonic()
            node.signal(signal.SIGTERM)
            await until(lambda: len(node.logged("draining")) == COUNT + 1, "all have heard")
            status, body = await readiness(node.admin_port)
            assert (status, body["ready"], body["reasons"]) == (503, False, ["draining"])
            async with Raw.registered(node.port, "drained-late") as late:
                await backend.publish_once([*names, "drained-late"])
                assert (await late.message())["authResult"] == result_of("drained-late")
                await until(
                    lambda: not without_their_result(browsers), "results arrive while the node drains"
                )
                assert await late.closed() == (1012, "service restart")
                late.send(frame(8, b"\x03\xf4"))
            assert await exit_of(node) == 0
            await until(lambda: all(browser.closed_at for browser in browsers), "all connections have ended")
        assert {browser.close_code for browser in browsers} == {1012}
        closed = sorted(browser.closed_at - start for browser in browsers if browser.closed_at)
        for number, moment in enumerate(closed):  # each worker is even by itself, to one session
            assert moment >= delay + seconds * (number - COUNT) / BROWSERS - 0.15, f"{number} too soon"
        assert closed[-1] < delay + seconds + SOON
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", node.port)
    assert not complaints(node.logs)


@pytest.mark.parametrize("also_workers", [False, True], ids=["", "to all processes"])
async def test_a_second_sigterm_ends_all_at_once(valkey: ValkeyProcess, also_workers: bool) -> None:
    """Service managers send the first to every process of a service; it counts once."""
    with node_of(valkey, "--drain-delay", "30", "--drain-seconds", "30") as node:
        workers = pids(node)
        async with Raw.registered(node.port, "twice") as browser:
            for pid in [*(workers if also_workers else []), node.process.pid]:
                os.kill(pid, signal.SIGTERM)
            await until(lambda: len(node.logged("draining")) == COUNT + 1, "all have heard")
            assert all(map(lives, workers))
            start = time.monotonic()
            node.signal(signal.SIGTERM)
            assert await exit_of(node) == 0
            assert time.monotonic() - start < SOON
            assert await browser.rest() == b""
    assert not complaints(node.logs)


async def test_ctrl_c_ends_all_without_a_word_too_many(valkey: ValkeyProcess) -> None:
    """A terminal sends it to all processes."""
    with node_of(valkey, "--drain-delay", "30", "--drain-seconds", "30") as node:
        async with Raw.registered(node.port, "interrupted") as browser:
            os.killpg(node.process.pid, signal.SIGINT)
            assert await browser.closed() == (1012, "service restart")
            browser.send(frame(8, b"\x03\xf4"))
            assert await exit_of(node) == 0
        node._reader.join(SECONDS)
    assert not [line for line in node.logs if line["event"] == "not JSON"]
    assert not complaints(node.logs)


async def test_a_worker_that_hangs_does_not_hold_the_end_up(valkey: ValkeyProcess) -> None:
    with node_of(valkey, "--close-timeout", "0.5") as node:
        os.kill(pids(node)[0], signal.SIGSTOP)
        start = time.monotonic()
        node.signal(signal.SIGTERM)
        assert await exit_of(node) == EXIT_DRAIN_CUT
        assert time.monotonic() - start < 0.5 + 1.0 + 5.0 + SOON


async def test_a_worker_that_is_killed_amid_the_drain_is_told_by_the_exit_code(valkey: ValkeyProcess) -> None:
    with node_of(valkey, "--drain-delay", "0", "--drain-seconds", "3") as node:
        async with load_clients([node.port], [f"cut-{number}" for number in range(BROWSERS)]) as browsers:
            killed = pids(node)[0]
            node.signal(signal.SIGTERM)
            await until(lambda: any(browser.close_code == 1012 for browser in browsers), "it drains")
            os.kill(killed, signal.SIGKILL)
            assert await exit_of(node) == EXIT_DRAIN_CUT
        ended = [line for line in node.logged("worker ended") if line["level"] == "error"]
        assert [(line["worker"], line["signal"]) for line in ended] == [(1, "SIGKILL")]


async def test_a_sigterm_that_comes_before_a_worker_can_handle_it_waits(valkey: ValkeyProcess) -> None:
    slow = "import time, gateway.workers.worker as w\nb = w.build\n"
    slow += "async def build(*a, **k):\n time.sleep(1)\n return await b(*a, **k)\nw.build = build\n"
    with node_of(valkey, workers=2, preface=slow) as node:
        # The node listens because all have started. This one is started later, and gets the signal at once.
        os.kill(pids(node)[0], signal.SIGKILL)
        await until(lambda: len(node.logged("worker started")) == 3, "there is another")
        pid = node.logged("worker started")[2]["pid"]
        os.kill(pid, signal.SIGTERM)
        await until(lambda: node.logged("worker draining"), "the worker asks its parent")
        assert node.logged("worker draining")[0]["pid"] == pid


@pytest.mark.parametrize("workers", [1, 2], ids=["one process", "two workers"])
async def test_signals_that_end_no_node(valkey: ValkeyProcess, workers: int) -> None:
    """Sent to all processes, as a service manager or a closed terminal does."""
    with node_of(valkey, workers=workers) as node:
        async with Raw.registered(node.port, f"signal-{workers}") as browser:
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                os.killpg(node.process.pid, number)
                await until(lambda: node.logged("files read again"), "the first has a meaning")
            await until(lambda: len(node.logged("signal ignored")) == 2, "the others have none")
            await browser.register(f"signal-{workers}")
            if workers > 1:
                assert all(map(lives, pids(node)))
    assert not complaints(node.logs)


@pytest.mark.parametrize("workers", [1, 2], ids=["one process", "two workers"])
async def test_sighup_has_the_token_read_again(valkey: ValkeyProcess, tmp_path: Path, workers: int) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with node_of(valkey, "--publish-token-file", str(token), workers=workers) as node:
        body = {"webSocketId": "rotated", "authResult": "CONFIRMED"}

        async def status(with_token: str) -> int:
            async with (
                aiohttp.ClientSession() as http,
                http.post(
                    f"http://127.0.0.1:{node.admin_port}/publish",
                    json=body,
                    headers={"Authorization": f"Bearer {with_token}"},
                ) as answer,
            ):
                return answer.status

        assert await status(TOKEN) == 200
        other = TOKEN[::-1]
        token.write_text(other + "\r\n")
        node.signal(signal.SIGHUP)
        await until(lambda: node.logged("files read again"), "it has been read")
        assert (await status(TOKEN), await status(other)) == (401, 200)
        token.write_text("short")
        node.signal(signal.SIGHUP)
        await until(lambda: node.logged("files not read again"), "the node complains")
        assert await status(other) == 200, "the last good one stays"


def test_a_free_port_is_picked_for_zero(valkey: ValkeyProcess) -> None:
    with NodeProcess(valkey.url, "--workers", "2", "--port", "0", port=free_port()) as node:
        assert node.logged("listening")[0]["port"] == node.port
        assert node.readyz() is not None
