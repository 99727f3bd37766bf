"""A connection's first request, with the rest of the gateway played by the test."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import NamedTuple

import pytest
from aiohttp.http import RawRequestMessage
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.admission import Incoming
from gateway.server.acceptor import MAX_HEAD, Acceptor, PendingConnection
from gateway.server.dispatcher import Dispatcher
from gateway.server.rejections import Rejections
from gateway.transports.sockets import RESET
from gateway.wire.handshake import MALFORMED, ORIGIN, Handshake, Rejection

from ..fakes import Clock, Transport, ledger, virtual
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

    def __init__(self, max_handshakes: int = 10, total: int = 1_000) -> None:
        self.clock = Clock()
        self.entered: list[tuple[Handshake, asyncio.Transport, bytes]] = []
        self.served: list[Request] = []
        self.rejection: Rejection | None = None
        self.rejected: Counter[str] = Counter()
        self.ledger = ledger(handshakes=max_handshakes, total=total)
        self.acceptor = Acceptor(self._dispatch, self.ledger, TIMEOUT, KEEP_ALIVE, self.clock)
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

    def visit(self, peer: str = "") -> tuple[PendingConnection, Transport]:
        visitor, transport = self.acceptor(), Transport(peer=peer)
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
    assert (scene.acceptor.rejected, scene.acceptor.handshakes) == ({"busy": 1}, 2)
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


# Shares


@virtual
async def test_an_address_holds_no_more_handshakes_than_are_free() -> None:
    scene = Scene(max_handshakes=600)
    for _ in range(900):
        scene.visit("198.51.100.1")
    assert scene.acceptor.handshakes == 300
    assert scene.acceptor.rejected == {"address_full": 600}
    for number in range(68):
        visitor, transport = scene.visit(f"192.0.2.{number}")
        visitor.data_received(HANDSHAKE)
        assert not transport.closing
    assert len(scene.entered) == 68


@virtual
async def test_connections_are_counted_whatever_they_do() -> None:
    scene = Scene()
    silent, _ = scene.visit()
    served, transport = scene.visit()
    served.data_received(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
    idle, leaving = Transport(), Transport()
    for _ in (idle, leaving):
        scene.ledger.connections.open("")
    scene.acceptor.keep_alive(idle, b"")
    scene.acceptor.close_gracefully(leaving)
    connections = scene.ledger.connections
    assert (connections.total, scene.acceptor.handshakes, scene.acceptor.idle, connections.closing) == (
        4,
        1,
        1,
        1,
    )
    for each in (transport, idle, leaving):
        each.lose()
    silent.connection_lost(None)
    assert (connections.total, scene.acceptor.handshakes, scene.acceptor.idle, connections.closing) == (
        0,
        0,
        0,
        0,
    )


@virtual
async def test_a_full_node_closes_what_is_idle_before_it_rejects() -> None:
    scene = Scene(total=3)
    idle = [Transport(peer="198.51.100.1"), Transport(peer="198.51.100.2")]
    for each in idle:
        scene.ledger.connections.open("")
        scene.acceptor.keep_alive(each, b"")
    _, first = scene.visit("192.0.2.1")
    visitor, second = scene.visit("192.0.2.2")
    assert (idle[0].aborted, idle[1].aborted) == (True, False), "the one that was idle longest"
    assert not first.closing
    visitor.data_received(HANDSHAKE)
    assert not second.closing
    scene.visit("192.0.2.3")
    assert idle[1].aborted
    _, last = scene.visit("192.0.2.4")
    assert last.output.startswith(b"HTTP/1.1 503 ")
    assert scene.acceptor.rejected == {"node_full": 1}
    assert scene.ledger.connections.total == 6, "a rejected one is a connection, until it is gone"
    last.lose()
    assert scene.ledger.connections.total == 5


@virtual
async def test_connections_between_workers_are_counted_by_the_one_that_has_them() -> None:
    scene = Scene(total=2)
    visitor, transport = scene.visit("192.0.2.1")
    scene.acceptor.let_go(transport)
    transport.lose()
    assert scene.ledger.connections.total == 0
    assert visitor is not transport.protocol
    arriving, late, own = Transport(), Transport(peer="192.0.2.9"), Transport(peer="192.0.2.9")
    scene.acceptor.take_over(arriving, HANDSHAKE)
    assert len(scene.entered) == 1
    scene.acceptor.take_over(own, b"")
    own.protocol._end_wait()  # it is answered: not idle
    scene.acceptor.take_over(late, HANDSHAKE)
    assert late.output.startswith(b"HTTP/1.1 503 ")
    assert scene.acceptor.rejected == {"node_full": 1}


# Responses that are not read


@virtual
async def test_the_next_request_waits_until_the_response_is_read() -> None:
    """Or the responses to a client that never reads would fill the memory."""
    scene = Scene()
    transport = Transport(stuck=True)
    transport.write(b"x" * 1_000)
    scene.acceptor.keep_alive(transport, HANDSHAKE[:9])
    assert scene.ledger.backlog.unread == 1_000
    reading = [transport.reading]
    transport.drain()
    assert [*reading, transport.reading] == [False, True]
    assert scene.ledger.backlog.unread == len(scene.ledger.backlog) == 0
    transport.protocol.data_received(HANDSHAKE[9:])
    assert len(scene.entered) == 1


@virtual
async def test_a_complete_request_is_answered_when_the_response_is_read() -> None:
    scene = Scene()
    transport = Transport(stuck=True)
    transport.write(b"x" * 1_000)
    scene.acceptor.keep_alive(transport, HANDSHAKE)
    assert scene.entered == []
    transport.drain()
    assert len(scene.entered) == 1


@virtual
async def test_an_unread_rejection_of_a_later_request_is_counted_once_and_then_forgotten() -> None:
    scene = Scene()
    transport = Transport()
    scene.acceptor.keep_alive(transport, b"")
    transport.high, transport.stuck = 0, True
    transport.protocol.data_received(b"no HTTP\r\n\r\n")
    assert transport.output == MALFORMED.response
    assert scene.ledger.backlog.unread == len(transport.output)
    transport.lose()
    assert len(scene.ledger.backlog) == 0


@virtual
async def test_unread_responses_are_part_of_the_backlog_until_they_are_dropped() -> None:
    scene = Scene()
    idle, leaving, gone = (Transport(stuck=True) for _ in range(3))
    for each in (idle, leaving, gone):
        each.write(b"x" * 1_000)
    scene.acceptor.keep_alive(idle, b"")
    scene.acceptor.close_gracefully(leaving)
    scene.acceptor.keep_alive(gone, b"")
    assert scene.ledger.backlog.unread == 3_000
    gone.closing = True
    gone.drain()  # it reads, a moment before it is lost
    gone.lose()
    idle.protocol.drop()
    assert idle.aborted
    scene.clock.now += TIMEOUT + 0.25
    scene.sweep()
    assert leaving.aborted
    for each in (idle, leaving):
        each.lose()
    assert len(scene.ledger.backlog) == 0


@virtual
async def test_the_largest_incomplete_heads_are_dropped_when_all_together_are_too_large() -> None:
    scene = Scene()
    scene.ledger.incoming = Incoming(1_000)
    (small, small_transport), (large, large_transport) = scene.visit(), scene.visit()
    small.data_received(b"GET / HTTP/1.1\r\n")
    large.data_received(b"GET / HTTP/1.1\r\nCookie: " + b"x" * 1_000)
    assert (small_transport.aborted, large_transport.aborted) == (False, True)
    small.data_received(b"Host: gw\r\n\r\n")
    assert len(scene.served) == 1


@virtual
async def test_a_client_that_never_closes_its_half_is_reset() -> None:
    scene = Scene()
    transport = Transport()
    scene.acceptor.close_gracefully(transport)
    scene.clock.now += TIMEOUT + 0.5
    for connection in scene.acceptor.deadlines.expired(scene.clock.now):
        connection.deadline_passed()
    assert transport.aborted
    linger: tuple[object, ...] = (socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    assert linger in transport.options, "or FIN-WAIT-2 would be left"
