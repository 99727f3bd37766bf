"""Connections between workers, here in one process, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway.server import handoff
from gateway.server.affinity import owner
from gateway.server.handoff import (
    BEGUN_REQUEST,
    MAX_PARCEL,
    NEW_CONNECTION,
    OVERSIZED,
    UNAVAILABLE,
    Handoff,
    Inbox,
    Siblings,
    reject_waiting,
)

SECONDS = 5.0
PREFIX = "/websocket"

Test = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run_on(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main)

    return run_on


def request_for(worker: int, workers: int = 2) -> bytes:
    """A request for a session of this worker."""
    heads = (f"POST /websocket/000/{number}/xhr HTTP/1.1\r\n\r\n".encode() for number in range(100))
    return next(head for head in heads if owner(head, [PREFIX], workers) == worker)


class Kept(asyncio.Protocol):
    """A connection at a worker."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.made = asyncio.Event()
        self.data = b""
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.made.set()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


class Sink:
    """A worker's acceptor: answers with how a connection was taken, and from then on echoes what comes."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []

    def accept(self, transport: asyncio.Transport, rest: bytes) -> None:
        self._take("accept", transport, rest)

    def take_over(self, transport: asyncio.Transport, rest: bytes) -> None:
        self._take("keep_alive", transport, rest)

    def let_go(self, transport: asyncio.Transport) -> None:
        transport.abort()

    def close_gracefully(self, transport: asyncio.Transport) -> None:
        transport.close()

    def _take(self, how: str, transport: asyncio.Transport, rest: bytes) -> None:
        self.taken.append((how, rest))
        transport.write(how.encode() + b"\n" + rest.partition(b"\r\n\r\n")[2])
        transport.set_protocol(Echo(transport))


class Echo(asyncio.Protocol):
    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def eof_received(self) -> None:
        """The transport closes itself."""
        self._transport.write(b"ended")


class Scene:
    """Two workers, and clients connected to the first."""

    def __init__(self) -> None:
        self.inboxes = [Inbox.new(), Inbox.new()]
        self.sinks = [Sink(), Sink()]
        self.workers = [
            Handoff(Siblings(number, self.inboxes), [PREFIX], sink)
            for number, sink in enumerate(self.sinks, 1)
        ]
        self._open = contextlib.ExitStack()

    @classmethod
    @contextlib.asynccontextmanager
    async def ready(cls) -> AsyncIterator[Scene]:
        scene = cls()
        try:
            yield scene
        finally:
            scene._open.close()
            for worker in scene.workers:
                worker.close()
            await asyncio.sleep(0.01)  # uvloop closes handles in a later turn
            for inbox in scene.inboxes:
                inbox.close()

    def fill(self, worker: int) -> None:
        """Put parcels into this worker's inbox until it takes no more."""
        for end in socket.socketpair():
            self._open.enter_context(end)
        while self.inboxes[worker - 1].put(BEGUN_REQUEST, b"x" * 30_000, end.fileno()):
            pass

    async def connection(self) -> tuple[Kept, socket.socket]:
        """A connection: the first worker's side of it and the client's."""
        loop = asyncio.get_running_loop()
        kept = Kept()
        server = await loop.create_server(lambda: kept, "127.0.0.1", 0)
        client = self._open.enter_context(socket.socket())
        client.setblocking(False)
        await loop.sock_connect(client, server.sockets[0].getsockname())
        async with asyncio.timeout(SECONDS):
            await kept.made.wait()
        server.close()
        return kept, client


async def heard(client: socket.socket, count: int) -> bytes:
    data = b""
    async with asyncio.timeout(SECONDS):
        while len(data) < count and (more := await asyncio.get_running_loop().sock_recv(client, 65536)):
            data += more
    return data


def test_a_connection_goes_to_its_owner_with_what_was_read(run: Callable[[Any], None]) -> None:
    async def scenario() -> None:
        async with Scene.ready() as scene:
            scene.workers[1].open()
            kept, client = await scene.connection()
            head = request_for(2) + b"x" * 70_000
            assert scene.workers[0].hand_off(kept.transport, head)
            assert await heard(client, 70_011) == b"keep_alive\n" + b"x" * 70_000
            assert scene.sinks[1].taken == [("keep_alive", head)]
            async with asyncio.timeout(SECONDS):
                await kept.lost.wait()
            client.send(b"and on it goes")
            assert await heard(client, 14) == b"and on it goes"
            assert kept.data == b"", "the first hears of it no more"

    run(scenario())


def test_a_client_that_has_closed_its_half_is_still_answered(run: Callable[[Any], None]) -> None:
    async def scenario() -> None:
        async with Scene.ready() as scene:
            kept, client = await scene.connection()
            assert scene.workers[0].hand_off(kept.transport, request_for(2) + b"body")
            client.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0)
            scene.workers[1].open()
            assert await heard(client, 65_536) == b"keep_alive\nbodyended"

    run(scenario())


def test_what_is_its_own_or_nobodys_stays(run: Callable[[Any], None]) -> None:
    async def scenario() -> None:
        async with Scene.ready() as scene:
            kept, _ = await scene.connection()
            assert not scene.workers[0].hand_off(kept.transport, request_for(1))
            assert not scene.workers[0].hand_off(kept.transport, b"GET / HTTP/1.1\r\n\r\n")
            assert not kept.transport.is_closing()

    run(scenario())


def test_a_fresh_connection_is_welcomed(run: Callable[[Any], None]) -> None:
    async def scenario() -> None:
        async with Scene.ready() as scene:
            here, there = socket.socketpair()
            with here, there:
                there.setblocking(False)
                assert scene.inboxes[0].put(NEW_CONNECTION, b"", here.fileno())
                here.close()
                scene.workers[0].open()
                assert await heard(there, 7) == b"accept\n"

    run(scenario())


def test_a_full_inbox_is_waited_for(run: Callable[[Any], None]) -> None:
    async def scenario() -> None:
        async with Scene.ready() as scene:
            scene.fill(2)
            kept, client = await scene.connection()
            assert scene.workers[0].hand_off(kept.transport, request_for(2))
            assert not kept.transport.is_closing()
            client.send(b"more")
            scene.workers[1].open()
            assert await heard(client, 15) == b"keep_alive\nmore"

    run(scenario())


def test_there_is_an_end_to_waiting(run: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handoff, "MAX_WAITING", 1)

    async def scenario() -> None:
        async with Scene.ready() as scene:
            scene.fill(2)
            waits, _ = await scene.connection()
            kept, client = await scene.connection()
            for each in (waits, kept):
                assert scene.workers[0].hand_off(each.transport, request_for(2))
            assert await heard(client, 65_536) == UNAVAILABLE.response
            assert scene.workers[0].rejected == 1
            assert not waits.transport.is_closing()

    run(scenario())


def test_too_much_at_once(run: Callable[[Any], None]) -> None:
    async def scenario() -> None:
        async with Scene.ready() as scene:
            kept, client = await scene.connection()
            assert scene.workers[0].hand_off(kept.transport, request_for(2) + bytes(MAX_PARCEL))
            assert await heard(client, 65_536) == OVERSIZED.response

    run(scenario())


def test_who_waits_for_one_that_is_gone_is_turned_away() -> None:
    inbox = Inbox.new()
    pairs = [socket.socketpair() for _ in range(3)]
    for ours, _ in pairs:
        assert inbox.put(BEGUN_REQUEST, b"POST", ours.fileno())
        ours.close()
    assert reject_waiting(inbox) == 3
    for _, client in pairs:
        with client:
            assert client.recv(65_536) == UNAVAILABLE.response
            assert client.recv(1) == b""
    assert reject_waiting(inbox) == 0
    inbox.close()
