"""A session over server-sent events, with no network."""

from __future__ import annotations

import pytest

from gateway.core.session import TokenVerifier
from gateway.messages import CloseCode, Register
from gateway.transports.http import HttpConnection
from gateway.transports.sse import SSESession
from gateway.wire.sse import SSE_WIRE

from ..fakes import Clock, Subscriber, Transport, node

ADDRESS = "192.0.2.1"
CHANNEL = b"websocket:12345678"
REGISTERED = b'event: registration\ndata: {"webSocketId":"12345678","registrationSucceeded":true}\n\n'
DONE = b'event: authorization\ndata: {"webSocketId":"12345678","authResult":"DONE"}\n\n'


class Scene:
    """A session that has begun; `heard` is what its client has read since the last time."""

    def __init__(
        self,
        *,
        chunked: bool = False,
        stuck: bool = False,
        registration: str = "open",
        verifier: TokenVerifier | None = None,
    ) -> None:
        self.clock = Clock()
        self.broker = Subscriber()
        self.node = node(self.clock, self.broker, registration=registration)
        self.node.verifier = verifier
        self.node.admission.admit(ADDRESS)
        self.transport = Transport(stuck=stuck)
        connection = HttpConnection(self.transport, chunked, True)
        self.session = SSESession(self.node, SSE_WIRE, ADDRESS, connection)
        self.transport.protocol = self.session
        self.session.begin(Register("12345678", "m1"), "m2", {"X": "y"})
        self._read = 0

    def heard(self) -> bytes:
        output, start = self.transport.output, self._read
        self._read = len(output)
        return output[start:]

    def registered(self) -> Scene:
        self.node.hub.subscribed(CHANNEL, None)
        assert self.heard().partition(b"\r\n\r\n")[2] == b"retry: 1000\n\n" + REGISTERED
        return self

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        for item in self.node.deadlines.expired(self.clock.now):
            item.deadline_passed()


def test_registers_and_brings_results() -> None:
    scene = Scene().registered()
    scene.node.hub.received(CHANNEL, b"DONE")
    assert scene.heard() == DONE
    for number in (1, 2, 3):
        scene.node.hub.received(CHANNEL, b'{"authResult":"DONE","messageId":"m%d"}' % number)
    assert scene.heard().startswith(b"id: m3\n"), "the client has had the first two"


def test_a_refusal_ends_the_stream_and_the_browser_is_told_not_to_come_back() -> None:
    """The event id is what it names when it reconnects; then it gets the 204 that stops it."""
    scene = Scene(registration="announced")
    scene.heard()
    scene.node.hub.subscribed(CHANNEL, None)
    event, comment = scene.heard().split(b"\n\n", 1)
    assert event.startswith(b"id: not registered\nevent: registration\n")
    assert b'"registrationSucceeded":false' in event
    assert comment == b": 1008 unknown_id\n\n"
    assert scene.transport.closing
    assert scene.node.rejected == {"unknown_id": 1}


class NoToken:
    """Proves nothing."""

    def refusal(self, _web_socket_id: str, _token: str | None) -> str:
        return "missing"


def test_a_registration_without_its_token_ends_the_stream_at_once() -> None:
    """Nobody can register again on this connection, which would keep its place until the deadline."""
    scene = Scene(verifier=NoToken())
    event, comment = (
        scene.heard().partition(b"\r\n\r\n")[2].removeprefix(b"retry: 1000\n\n").split(b"\n\n", 1)
    )
    assert event.startswith(b"id: not registered\nevent: registration\n")
    assert b'"code":"not_authorized"' in event
    assert comment == b": 1008 not_authorized\n\n"
    assert scene.transport.closing
    assert not scene.broker.asked


def test_an_announced_id_is_registered() -> None:
    scene = Scene(registration="announced")
    scene.node.hub.subscribed(CHANNEL, b"")
    assert scene.heard().endswith(REGISTERED)
    assert not scene.transport.closing


def test_chunks_end_with_the_close() -> None:
    scene = Scene(chunked=True)
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    output = scene.heard()
    assert b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nd\r\nretry: 1000\n\n\r\n" in output
    assert output.endswith(b"\r\n: 1012 service restart\n\n\r\n0\r\n\r\n")
    assert scene.transport.closing


def test_every_client_watches_the_status() -> None:
    scene = Scene().registered()
    scene.broker.lose(scene.node.hub)
    list(scene.node.hub.degraded())
    assert scene.heard() == b'event: status\ndata: {"push":"degraded"}\n\n'


def test_heartbeats_are_comments() -> None:
    scene = Scene().registered()
    scene.wait(scene.node.config.heartbeat + 0.5)
    assert scene.heard() == b":\n\n"


def test_a_denied_registration_waits_and_is_told_so() -> None:
    scene = Scene()
    scene.node.hub.denied(CHANNEL)
    assert scene.heard().endswith(b'event: status\ndata: {"push":"degraded"}\n\n')
    assert not scene.transport.closing


def test_a_slow_consumer() -> None:
    scene = Scene(stuck=True)
    scene.node.hub.subscribed(CHANNEL, None)
    while not scene.transport.closing:
        scene.node.hub.received(CHANNEL, b'{"authResult":"DONE","data":"%b"}' % (b"x" * 10_000))
    scene.session.resume_writing()
    scene.transport.lose()
    assert scene.node.ended == {(1008, "slow consumer"): 1}


def test_what_a_client_leaves_unread_is_counted_until_it_reads() -> None:
    scene = Scene(stuck=True)
    assert scene.node.ledger.backlog.unread == len(scene.transport.output)
    scene.transport.drain()
    assert len(scene.node.ledger.backlog) == 0


def test_the_worst_reader_is_dropped() -> None:
    scene = Scene(stuck=True)
    scene.session.drop()
    assert scene.transport.aborted
    scene.transport.lose()
    assert scene.node.ended == {(1006, "slow consumer"): 1}


@pytest.mark.parametrize("how", ["lost", "aborted"])
def test_the_end_of_the_connection_ends_the_session(how: str) -> None:
    scene = Scene().registered()
    scene.session.data_received(b"GET / HTTP/1.1\r\n\r\n")
    assert scene.session.eof_received() is None  # type: ignore[func-returns-value]
    if how == "aborted":
        scene.session.abort()
        assert scene.transport.aborted
    scene.transport.lose()
    assert scene.node.admission.sessions == 0
    assert scene.broker.taken()[-1] == ("unsubscribe", CHANNEL)
