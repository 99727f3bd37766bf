"""A connection's first request, with the rest of the gateway played by the test."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import NamedTuple

import pytest
from aiohttp.http import RawRequestMessage
from hypothesis import given
from hypothesis import strategies as st

from gateway.server.acceptor import MAX_HEAD, Acceptor, PendingConnection
from gateway.server.dispatcher import Dispatcher
from gateway.server.rejections import Rejections
from gateway.wire.handshake import MALFORMED, ORIGIN, Handshake, Rejection

from ..fakes import Clock, Transport, virtual
from ..wire import strategies  # noqa: F401 - sets hypothesis up

HANDSHAKE = (
    b"GET /ws?x=1 HTTP/1.1\r\nHost: gw.example\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
TIMEOUT = 5.0
KEEP_ALIVE = 75.0


class Request(NamedTuple):
    """What the server got."""

    transport: asyncio.Transport
    message: RawRequestMessage
    body: bytes | None
    rest: bytes


class Scene:
    """An acceptor with one endpoint, /ws, that accepts every handshake unless there is a `rejection`."""

    def __init__(self, max_handshakes: int = 10) -> None:
        self.clock = Clock()
        self.entered: list[tuple[Handshake, asyncio.Transport, bytes]] = []
        self.served: list[Request] = []
        self.rejection: Rejection | None = None
        self.rejected: Counter[str] = Counter()
        self.acceptor = Acceptor(self._dispatch, max_handshakes, TIMEOUT, KEEP_ALIVE, self.clock)
        self.dispatcher = Dispatcher(self.acceptor, self, Rejections(self.rejected), {"/ws": self._enter}.get)

    # A server, in aiohttp's place

    max_body = 1_000

    def serve(
        self, transport: asyncio.Transport, message: RawRequestMessage, body: bytes | None, rest: bytes
    ) -> None:
        self.served.append(Request(transport, message, body, rest))

    def _dispatch(self, transport: asyncio.Transport, data: bytes) -> None:
        self.dispatcher.dispatch(transport, data)

    def _enter(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> Rejection | None:
        self.entered.append((handshake, transport, rest))
        return self.rejection

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
    assert transport.eof


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n",
        HANDSHAKE.replace(b"/ws", b"/other"),
        HANDSHAKE.replace(b"GET", b"POST"),
        GET + HANDSHAKE,
    ],
)
def test_everything_else_goes_to_the_server(request_: bytes) -> None:
    @virtual
    async def served() -> None:
        scene = Scene()
        visitor, transport = scene.visit()
        visitor.data_received(request_[:7])
        visitor.data_received(request_[7:])
        (request,) = scene.served
        assert request.transport is transport
        assert request.body == b""
        assert request_.endswith(b"\r\n\r\n" + request.rest)
        assert scene.entered == []
        assert scene.acceptor.handshakes == 0
        scene.clock.now += 60
        scene.sweep()
        assert not transport.aborted

    served()


@virtual
async def test_a_connection_comes_back_for_its_next_request() -> None:
    scene = Scene()
    for request in (GET, HANDSHAKE):
        transport = Transport()
        scene.acceptor.keep_alive(transport, request[:5])
        assert scene.acceptor.handshakes == 0, "it has sent a request before"
        transport.protocol.data_received(request[5:])
        assert list(scene.acceptor.deadlines) == []
    ((_, entered, _),) = scene.entered
    assert entered is transport
    assert [request.message.path for request in scene.served] == ["/"]


@virtual
async def test_a_connection_that_comes_back_with_its_next_request_is_served_at_once() -> None:
    scene = Scene()
    scene.acceptor.keep_alive(Transport(), GET)
    assert len(scene.served) == 1
    assert list(scene.acceptor.deadlines) == []


@virtual
async def test_a_connection_that_comes_back_for_nothing_is_dropped() -> None:
    scene = Scene(max_handshakes=0)
    transport, gone = Transport(), Transport()
    scene.acceptor.keep_alive(transport, b"")
    scene.acceptor.keep_alive(gone, b"GET")
    gone.lose()
    for seconds, aborted in ((KEEP_ALIVE - 1, False), (2, True)):
        scene.clock.now += seconds
        scene.sweep()
        assert transport.aborted is aborted
    assert not gone.aborted
    transport.lose()
    assert list(scene.acceptor.deadlines) == []


@virtual
async def test_the_next_request_has_as_much_time_as_the_first_one() -> None:
    scene = Scene()
    transport = Transport()
    scene.acceptor.keep_alive(transport, b"")
    scene.clock.now += KEEP_ALIVE - 1
    for _ in range(5):  # bytes alone buy no time
        scene.sweep()
        assert not transport.aborted
        transport.protocol.data_received(b"x")
        scene.clock.now += TIMEOUT / 5
    scene.clock.now += 0.25
    scene.sweep()
    assert transport.aborted


@virtual
async def test_a_client_that_closes_its_half_between_two_requests() -> None:
    scene = Scene()
    transport = Transport()
    scene.acceptor.keep_alive(transport, b"GET")
    assert not transport.protocol.eof_received(), "so the event loop closes the connection"
    assert not transport.aborted, "the last response may not be sent yet"
    transport.lose()
    assert list(scene.acceptor.deadlines) == []


@virtual
async def test_a_connection_is_closed_gracefully() -> None:
    scene = Scene()
    reads, stuck = Transport(), Transport()
    for transport in (reads, stuck):
        scene.acceptor.close_gracefully(transport)
        transport.protocol.data_received(b"what comes now means nothing")
        assert transport.eof, "our half is closed"
        assert not transport.closing, "a reset could overtake the response"
    assert not reads.protocol.eof_received(), "so the event loop closes the connection"
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
    assert transport.eof
    assert scene.rejected == {"headers_too_large": 1}
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
    assert transport.eof
    assert scene.rejected == {"bad_request": 1}
    assert (scene.entered, scene.served) == ([], [])


@given(damaged | st.binary(max_size=100).map(lambda junk: junk + b"\r\n\r\n"))
def test_every_first_request_is_accepted_or_served_or_rejected(data: bytes) -> None:
    @virtual
    async def arrived() -> None:
        scene = Scene()
        visitor, transport = scene.visit()
        visitor.data_received(data)
        assert len(scene.entered) + len(scene.served) <= 1
        assert transport.eof == bool(scene.rejected) == transport.output.startswith(b"HTTP/1.1 4")
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
