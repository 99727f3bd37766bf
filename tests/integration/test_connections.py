"""What clients can take from a node by connections alone: whatever they do, others are served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import redis.asyncio

from gateway.drill.fleet import NodeProcess, ValkeyProcess

from .in_process import admin_port_of, node_in_process, port_of, readiness, until_status
from .load import SECONDS, until
from .raw import Raw

NewId = Callable[[], str]

ATTACKER, OTHER = "127.0.7.1", "127.0.7.2"  # no other test listens there
INFO = b"GET /websocket/info HTTP/1.1\r\nHost: gw\r\n\r\n"
LISTENING = "0A"


@contextlib.asynccontextmanager
async def connections(
    port: int, count: int, source: str, sent: bytes = b""
) -> AsyncIterator[list[socket.socket]]:
    """So many connections from one address, which are kept. With `sent`, each waits for the answer to it."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as opened:

        async def connect() -> socket.socket:
            connection = opened.enter_context(socket.socket())
            connection.setblocking(False)
            connection.bind((source, 0))
            with contextlib.suppress(ConnectionError):  # it may be refused
                await loop.sock_connect(connection, ("127.0.0.1", port))
                if sent:
                    await loop.sock_sendall(connection, sent)
                    await loop.sock_recv(connection, 4_096)
            return connection

        async with asyncio.timeout(SECONDS):
            yield [await connect() for _ in range(count)]


def sockets_of(port: int) -> list[tuple[str, int]]:
    """State and unsent bytes of the node's sockets, as in /proc/net/tcp, the listening ones left out."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        (row[3], int(row[4].partition(":")[0], 16))
        for row in rows
        if int(row[1].rpartition(":")[2], 16) == port and row[3] != LISTENING
    ]


async def test_silent_connections_of_one_address_leave_room_for_others(
    valkey: ValkeyProcess, new_id: NewId
) -> None:
    async with node_in_process(valkey.url, max_handshakes=60) as gateway:
        port = port_of(gateway)
        async with connections(port, 90, ATTACKER):
            rejected = gateway._acceptor.rejected
            await until(lambda: rejected == {"address_full": 60}, "what is above its share is rejected")
            assert gateway._acceptor.handshakes == 30, "as many as are left to others"
            for _ in range(20):
                async with Raw.registered(port, new_id()):
                    pass
            _, state = await readiness(admin_port_of(gateway))
            assert state["connections"]["handshake"] == 30
            assert state["rejected"] == {"address_full": 60}


@pytest.mark.real
@pytest.mark.parametrize("workers", [1, 2])
async def test_idle_connections_take_no_descriptors_from_browsers_and_redis(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, new_id: NewId, workers: int
) -> None:
    """Each waits between two requests, so it is neither a handshake nor a session."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (320, 320))"
    with NodeProcess(valkey.url, "--workers", str(workers), preface=limit) as node:
        async with contextlib.AsyncExitStack() as opened:
            for source in (ATTACKER, OTHER):
                await opened.enter_async_context(connections(node.port, 250 * workers, source, INFO))
            status, state = await readiness(node.admin_port)
            assert status == 200
            assert state["connections"]["idle"] > 100 * workers
            outages = state["redis"]["outages"]
            await backend.client_kill_filter(_type="pubsub")
            while True:  # it dials anew
                _, state = await readiness(node.admin_port)
                if state["redis"]["connected"] and state["redis"]["outages"] >= outages + workers:
                    break
                await asyncio.sleep(0.05)
            name = new_id()
            async with Raw.registered(node.port, name) as browser:
                assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 1
                assert (await browser.message())["authResult"] == "CONFIRMED"
        await until_status(
            node.admin_port,
            "each is counted off, by whichever worker",
            connections=dict.fromkeys(("handshake", "idle", "session", "closing", "request"), 0),
        )


async def unread(gateway_port: int, name: str, how: str, opened: contextlib.AsyncExitStack) -> None:
    """Register `name` with a client that then reads nothing."""
    if how == "websocket":
        await opened.enter_async_context(Raw.registered(gateway_port, name, receive_buffer=4_096))
        return
    client = await opened.enter_async_context(Raw.connected(gateway_port, receive_buffer=4_096))
    if how == "events":
        client.send(f"GET /events?webSocketId={name} HTTP/1.1\r\nHost: gw\r\n\r\n".encode())
        await client.until(b"true}\n\n")
        return
    path = f"/websocket/000/{name[-100:]}"
    client.send(f"POST {path}/xhr_streaming HTTP/1.1\r\nHost: gw\r\nContent-Length: 0\r\n\r\n".encode())
    await client.until(b"o\n")
    frames = (
        b"CONNECT\naccept-version:1.2\nhost:gw\n\n\0",
        b"SUBSCRIBE\nid:1\ndestination:/user/topic/authorization\n\n\0",
        b"SEND\ndestination:/app/registration\n\n" + json.dumps({"webSocketId": name}).encode() + b"\0",
    )
    body = json.dumps([frame.decode() for frame in frames])
    head = f"POST {path}/xhr_send HTTP/1.1\r\nHost: gw\r\nContent-Length: {len(body)}\r\n\r\n"
    sender = await opened.enter_async_context(Raw.connected(gateway_port))
    sender.send((head + body).encode())
    assert (await sender.answer())[0] == 204


@pytest.mark.parametrize("how", ["websocket", "events", "xhr_streaming"])
async def test_a_client_that_does_not_read_is_reset_and_leaves_nothing_in_the_kernel(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, new_id: NewId, how: str
) -> None:
    async with (
        node_in_process(valkey.url, close_timeout=0.3) as gateway,
        contextlib.AsyncExitStack() as opened,
    ):
        port, name = port_of(gateway), new_id()
        await unread(port, name, how, opened)
        result = json.dumps({"authResult": "CONFIRMED", "data": "x" * 8_000})
        held = 0
        for number in range(60):
            await backend.publish(f"websocket:{name}", result)
            if number % 10 == 9:
                held = max([held, *(unsent for _, unsent in sockets_of(port))])
        assert held < 32_768, "without a limit the kernel takes megabytes"
        await until(lambda: not gateway.sessions, "it is closed")
        reasons = {reason for _, reason in gateway._context.ended}
        assert reasons <= {"slow consumer"}, reasons
        await until(lambda: gateway._acceptor.ledger.connections.closing == 0, "nothing is left to send")
        await until(lambda: not [state for state, _ in sockets_of(port) if state == "04"], "no FIN-WAIT-1")


async def test_clients_that_stay_below_their_limit_are_bounded_together(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    async with (
        node_in_process(valkey.url, max_unread=1_048_576) as gateway,
        contextlib.AsyncExitStack() as opened,
    ):
        port, names, reader = port_of(gateway), [new_id() for _ in range(20)], new_id()
        browser = await opened.enter_async_context(Raw.registered(port, reader))
        for name in names:
            await unread(port, name, "websocket", opened)
        backlog, most = gateway._context.ledger.backlog, 0
        for _ in range(14):  # 112 KB for each: 2.2 MB in all
            for name in names:
                await backend.publish(
                    f"websocket:{name}", json.dumps({"authResult": "CONFIRMED", "data": "x" * 8_000})
                )
            most = max(most, backlog.unread)
        await backend.publish(f"websocket:{reader}", "DONE")
        assert (await browser.message())["authResult"] == "DONE"
        await until(lambda: backlog.unread <= 1_048_576 and backlog.dropped, "the worst are dropped")
        assert most <= 1_048_576
        assert 5 <= gateway.sessions < 21
        assert set(gateway._context.ended) == {(1006, "slow consumer")}
