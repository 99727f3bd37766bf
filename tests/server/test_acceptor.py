"""A connection's first request, with the rest of the gateway played by the test."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.server.acceptor import KEEP_ALIVE_SECONDS, MAX_HEAD, Acceptor, PendingConnection
from gateway.server.dispatcher import Dispatcher
from gateway.wire.handshake import MALFORMED, ORIGIN, Handshake, Rejection

from ..fakes import Clock, Transport, virtual
from ..wire import strategies  # noqa: F401 - sets hypothesis up

HANDSHAKE = (
    b"GET /ws?x=1 HTTP/1.1\r\nHost: gw.example\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TIMEOUT = 5.0


class Server(asyncio.Protocol):
    """In aiohttp's place: keeps what it gets."""

    def __init__(self) -> None:
        self.data = b""
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data


class Scene:
    """An acceptor with one endpoint, /ws, that accepts every handshake unless there is a `rejection`."""

    def __init__(self, max_handshakes: int = 10) -> None:
        self.clock = Clock()
        self.entered: list[tuple[Handshake, asyncio.Transport, bytes]] = []
        self.served: list[Server] = []
        self.rejection: Rejection | None = None
        dispatcher = Dispatcher({"/ws": self._enter}.get, self._serve)
        self.acceptor = Acceptor(dispatcher.dispatch, max_handshakes, TIMEOUT, self.clock)

    def _enter(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> Rejection | None:
        self.entered.append((handshake, transport, rest))
        return self.rejection

    def _serve(self) -> Server:
        self.served.append(Server())
        return self.served[-1]

    def visit(self) -> tuple[PendingConnection, Transport]:
        visitor, transport = self.acceptor(), Transport()
        transport.protocol = visitor
        visitor.connection_made(transport)
        return visitor, transport

    def sweep(self) -> None:
        for visitor in self.acceptor.deadlines.expired(self.clock.now):
            visitor.deadline_passed()


@virtual
async def test_a_handshake_goes_to_its_endpoint() -> None:
    scene = Scene()
    visitor, transport = scene.visit()
    visitor.data_received(HANDSHAKE + b"rest")
    ((handshake, entered, rest),) = scene.entered
    assert entered is transport
    assert rest == b"rest"
    assert handshake.version == (1, 1)
    assert handshake.headers["host"] == "gw.example"
    assert handshake.peer == ""
    assert not transport.closing
    assert scene.served == []


@virtual
async def test_a_handshake_may_come_in_any_pieces() -> None:
    scene = Scene()
    visitor, _ = scene.visit()
    for i in range(len(HANDSHAKE)):
        assert scene.entered == []
        assert scene.acceptor.handshakes == 1
        visitor.data_received(HANDSHAKE[i : i + 1])
    assert len(scene.entered) == 1
    assert scene.acceptor.handshakes == 0


@virtual
async def test_a_rejection_is_sent_and_ends_the_connection() -> None:
    scene = Scene()
    scene.rejection = ORIGIN
    visitor, transport = scene.visit()
    visitor.data_received(HANDSHAKE)
    assert transport.output == ORIGIN.response
    assert transport.output.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert transport.closing


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: gw\r\n\r\n",
        HANDSHAKE.replace(b"/ws", b"/other"),
        HANDSHAKE.replace(b"GET", b"POST"),
        HANDSHAKE.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\nabc"),
        b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n" + HANDSHAKE,
    ],
)
def test_everything_else_goes_to_the_server_as_it_came(request_: bytes) -> None:
    @virtual
    async def served() -> None:
        scene = Scene()
        visitor, transport = scene.visit()
        visitor.data_received(request_[:7])
        visitor.data_received(request_[7:])
        (server,) = scene.served
        assert server.data == request_
        assert server.transport is transport
        assert transport.protocol is server
        assert scene.entered == []
        assert scene.acceptor.handshakes == 0
        scene.clock.now += 60
        scene.sweep()
        assert not transport.aborted

    served()


@virtual
async def test_a_connection_comes_back_for_its_next_request() -> None:
    scene = Scene()
    for request in (b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n", HANDSHAKE):
        transport = Transport()
        scene.acceptor.keep_alive(transport, request[:5])
        assert scene.acceptor.handshakes == 0, "it has sent a request before"
        transport.protocol.data_received(request[5:])
        assert list(scene.acceptor.deadlines) == []
    ((_, entered, _),) = scene.entered
    assert entered is transport
    assert [server.data[:6] for server in scene.served] == [b"GET / "]


@virtual
async def test_a_connection_that_comes_back_with_its_next_request_is_served_at_once() -> None:
    scene = Scene()
    scene.acceptor.keep_alive(Transport(), b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
    assert len(scene.served) == 1
    assert list(scene.acceptor.deadlines) == []


@virtual
async def test_a_connection_that_comes_back_for_nothing_is_dropped() -> None:
    scene = Scene(max_handshakes=0)
    transport, gone = Transport(), Transport()
    scene.acceptor.keep_alive(transport, b"")
    scene.acceptor.keep_alive(gone, b"GET")
    gone.lose()
    for seconds, aborted in ((KEEP_ALIVE_SECONDS - 1, False), (2, True)):
        scene.clock.now += seconds
        scene.sweep()
        assert transport.aborted is aborted
    assert not gone.aborted
    transport.lose()
    assert list(scene.acceptor.deadlines) == []


@virtual
async def test_a_connection_is_closed_gracefully() -> None:
    scene = Scene()
    reads, stuck = Transport(), Transport()
    for transport in (reads, stuck):
        scene.acceptor.close_gracefully(transport)
        transport.protocol.data_received(b"what comes now means nothing")
        assert transport.closing
    reads.lose()
    scene.clock.now += TIMEOUT + 0.5
    scene.sweep()
    assert stuck.aborted
    assert not reads.aborted
    stuck.lose()
    assert list(scene.acceptor.deadlines) == []


@virtual
async def test_too_many_handshakes_are_rejected() -> None:
    scene = Scene(max_handshakes=2)
    first, _ = scene.visit()
    scene.visit()
    late, transport = scene.visit()
    assert transport.output.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Retry-After: 1\r\n" in transport.output
    assert transport.closing
    assert (scene.acceptor.rejected, scene.acceptor.handshakes) == (1, 2)
    late.data_received(HANDSHAKE)
    late.connection_lost(None)
    assert scene.entered == []
    assert scene.acceptor.handshakes == 2
    first.data_received(HANDSHAKE)
    _, transport = scene.visit()
    assert not transport.closing


@virtual
async def test_a_slow_request_is_dropped() -> None:
    scene = Scene()
    visitor, transport = scene.visit()
    for _ in range(5):  # bytes alone buy no time
        scene.clock.now += TIMEOUT / 5
        scene.sweep()
        assert not transport.aborted
        visitor.data_received(b"x")
    scene.clock.now += 0.25
    scene.sweep()
    assert transport.aborted
    transport.lose()
    assert scene.acceptor.handshakes == 0


@virtual
async def test_a_lost_connection_is_uncounted_once() -> None:
    scene = Scene()
    visitor, transport = scene.visit()
    transport.lose()
    visitor.connection_lost(None)
    assert scene.acceptor.handshakes == 0
    assert list(scene.acceptor.deadlines) == []


@virtual
async def test_an_endless_head_is_rejected() -> None:
    scene = Scene()
    visitor, transport = scene.visit()
    visitor.data_received(b"GET /ws HTTP/1.1\r\nX: " + b"x" * MAX_HEAD)
    assert transport.output.startswith(b"HTTP/1.1 431 ")
    assert transport.closing
    visitor.data_received(b"\r\n\r\n")
    assert scene.served == []
    assert scene.acceptor.handshakes == 0


@virtual
async def test_blank_lines_are_no_request() -> None:
    """They may come before a request (RFC 9112 section 2.2), but do not make one."""
    scene = Scene()
    visitor, transport = scene.visit()
    visitor.data_received(b"\r\n\r\n")
    assert scene.acceptor.handshakes == 1
    scene.clock.now += TIMEOUT + 1
    scene.sweep()
    assert transport.aborted


@virtual
async def test_a_pending_connection_is_small() -> None:
    visitor, _ = Scene().visit()
    assert not hasattr(visitor, "__dict__")


damaged = st.tuples(st.integers(0, len(HANDSHAKE)), st.integers(0, 8), st.binary(max_size=8)).map(
    lambda cut: HANDSHAKE[: cut[0]] + cut[2] + HANDSHAKE[cut[0] + cut[1] :] + b"\r\n\r\n"
)


@virtual
@pytest.mark.parametrize("request_", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n"])
async def test_bytes_that_are_no_http_are_rejected(request_: bytes) -> None:
    scene = Scene()
    visitor, transport = scene.visit()
    visitor.data_received(request_)
    assert transport.output == MALFORMED.response
    assert transport.closing
    assert (scene.entered, scene.served) == ([], [])


@given(damaged | st.binary(max_size=100).map(lambda junk: junk + b"\r\n\r\n"))
def test_every_first_request_is_accepted_or_served_or_rejected(data: bytes) -> None:
    @virtual
    async def arrived() -> None:
        scene = Scene()
        visitor, transport = scene.visit()
        visitor.data_received(data)
        assert len(scene.entered) + len(scene.served) <= 1
        assert transport.closing == (transport.output == MALFORMED.response)
        transport.lose()
        assert scene.acceptor.handshakes == 0

    arrived()


@virtual
async def test_a_connection_that_another_process_has_accepted() -> None:
    for first in (b"", HANDSHAKE[:9]):
        scene = Scene()
        transport = Transport()
        scene.acceptor.accept(transport, first)
        assert scene.acceptor.handshakes == 1
        transport.protocol.data_received(HANDSHAKE[len(first) :])
        assert len(scene.entered) == 1
        assert scene.acceptor.handshakes == 0


@virtual
async def test_all_connections_are_dropped_at_the_end() -> None:
    scene = Scene()
    _, pending = scene.visit()
    kept, closing = Transport(), Transport()
    scene.acceptor.keep_alive(kept, b"")
    scene.acceptor.close_gracefully(closing)
    scene.acceptor.abort_all()
    assert [transport.aborted for transport in (pending, kept, closing)] == [True] * 3
