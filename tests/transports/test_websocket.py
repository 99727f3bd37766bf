"""A browser of another make (wsproto) at one end, a session at the other, no network."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from gateway.core.admission import Backlog, Incoming
from gateway.core.events import EventLog
from gateway.core.session import SessionContext, SessionState
from gateway.messages import OTHER_CODE, CloseCode
from gateway.transports.slow_reader import WRITE_COST
from gateway.transports.websocket import WebSocketSession, open_session
from gateway.wire import Wire, frames
from gateway.wire.frames import Opcode
from gateway.wire.handshake import Handshake
from gateway.wire.json import JSON_WIRE
from gateway.wire.stomp import StompWire

from ..fakes import Clock, Subscriber, Transport, node, virtual
from ..wire.strategies import client_frame

CHANNEL = b"websocket:12345678"
REGISTER = '{"webSocketId":"12345678"}'
ADDRESS = "192.0.2.1"


class Scene:
    """A session and its browser. What the session writes, the browser reads when it is asked."""

    def __init__(
        self, wire: Wire = JSON_WIRE, *, stuck: bool = False, events: bool = False, **settings: float
    ) -> None:
        self.clock = Clock()
        self.broker = Subscriber()
        self.node = node(self.clock, self.broker, **settings)
        self.log = EventLog("node-1", "run", self.clock)
        if events:
            self.node.events = self.log
        self.node.admission.admit(ADDRESS)
        self.transport = Transport(stuck=stuck)
        self.session = WebSocketSession(self.node, wire, ADDRESS, self.transport)
        self.transport.protocol = self.session
        self.browser = Connection(ConnectionType.CLIENT)
        self._read = 0

    def state(self) -> SessionState:
        return self.session.state

    def send(self, *events: Event) -> None:
        self.session.data_received(b"".join(self.browser.send(event) for event in events))

    def say(self, *texts: str) -> None:
        self.send(*map(TextMessage, texts))

    def heard(self) -> list[object]:
        """What the browser has got since the last time: JSON bodies, and wsproto's other events."""
        written = self.transport.written[self._read :]
        self._read += len(written)
        if not written:
            return []
        self.browser.receive_data(b"".join(written))
        return [
            orjson.loads(event.data) if isinstance(event, TextMessage) else event
            for event in self.browser.events()
        ]

    def closed_with(self) -> tuple[int, str | None]:
        """The one CLOSE that the browser has got, as the last thing of all."""
        *_, close = self.heard()
        assert isinstance(close, CloseConnection)
        return close.code, close.reason

    def register(self, retained: bytes | None = None) -> None:
        self.say(REGISTER)
        self.node.hub.subscribed(CHANNEL, retained)

    def registered(self) -> Scene:
        self.register()
        assert self.heard() == [
            {"topic": "/user/topic/registration", "webSocketId": "12345678", "registrationSucceeded": True}
        ]
        self.broker.taken()
        return self

    def wait(self, seconds: float) -> bool:
        """Time passes, and the deadlines that come are told; whether the connection has been aborted."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + 0.25, end)
            for item in self.node.deadlines.expired(self.clock.now):
                item.deadline_passed()
        return self.transport.aborted


# The life of a session


def test_registers_hears_and_leaves() -> None:
    scene = Scene().registered()
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    assert scene.heard() == [
        {"topic": "/user/topic/authorization", "webSocketId": "12345678", "authResult": "CONFIRMED"}
    ]
    scene.send(CloseConnection(code=1000, reason="thanks"))
    assert scene.closed_with() == (1000, "")
    assert scene.transport.closing
    scene.transport.lose()
    assert scene.broker.taken() == [("unsubscribe", CHANNEL)]
    assert scene.node.admission.sessions == 0
    assert scene.node.ended == {(1000, "closed by the client"): 1}


def test_answer_then_what_is_retained_then_live() -> None:
    scene = Scene()
    scene.say(REGISTER)
    scene.node.hub.received(CHANNEL, b"LIVE")
    scene.node.hub.subscribed(CHANNEL, b"RETAINED")
    assert [body.get("authResult") for body in scene.heard() if isinstance(body, dict)] == [
        None,
        "RETAINED",
        "LIVE",
    ]


def test_pings_are_answered_with_their_payload_and_pongs_are_not() -> None:
    scene = Scene()
    scene.send(Ping(payload=b"abc"), Pong(payload=b"unasked"), Ping())
    assert scene.heard() == [Pong(payload=b"abc"), Pong(payload=b"")]


@given(st.lists(st.integers(0, 200), max_size=8).map(sorted))
def test_any_fragmentation_says_the_same(cuts: list[int]) -> None:
    scene = Scene()
    stream = (
        client_frame(Opcode.TEXT, REGISTER[:5].encode(), final=False)
        + client_frame(Opcode.PING, b"?")
        + client_frame(Opcode.CONTINUATION, REGISTER[5:].encode())
        + client_frame(Opcode.TEXT, b"{}")
    )
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        scene.session.data_received(stream[begin:end])
    assert scene.broker.asked == [("subscribe", CHANNEL)]
    pong, complaint = scene.heard()
    assert pong == Pong(payload=b"?")
    assert isinstance(complaint, dict)
    assert complaint["topic"] == "/user/topic/error"


CONVERSATION = (
    b"CONNECT\naccept-version:1.2\n\n\0",
    b"SUBSCRIBE\nid:0\ndestination:/user/topic/registration\n\n\0",
    b'SEND\ndestination:/app/registration\n\n{"webSocketId":"12345678"}\0',
)


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_stomp_may_come_in_text_and_in_binary_and_is_answered_in_text(opcode: Opcode) -> None:
    """@stomp/stompjs sends binary messages on React Native, where a text message ends at a NUL."""
    scene = Scene(StompWire(16_384))
    for message in (*CONVERSATION, b"\n"):
        scene.session.data_received(client_frame(opcode, message))
    scene.node.hub.subscribed(CHANNEL, None)
    assert [frame[:1] for frame in scene.transport.written] == [b"\x81", b"\x81"]
    assert b'"registrationSucceeded":true' in scene.transport.output


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_a_message_may_come_in_22_fragments(opcode: Opcode) -> None:
    """Fragments are no messages: they once used up the rate of messages."""
    scene = Scene(StompWire(16_384))
    for message in CONVERSATION:
        cuts = [0, 0, *range(1, 20), len(message)]
        for number, (begin, end) in enumerate(pairwise(cuts)):
            last = end == len(message)
            frame = client_frame(0 if number else opcode, message[begin:end], final=last)
            scene.session.data_received(frame)
    scene.node.hub.subscribed(CHANNEL, None)
    assert b'"registrationSucceeded":true' in scene.transport.output


def test_what_is_no_utf8_in_a_binary_message_is_never_sent_on_in_text() -> None:
    scene = Scene(StompWire(16_384))
    scene.session.data_received(client_frame(Opcode.BINARY, b"CONNECT\nreceipt:\xff\n\n\0"))
    error, close = scene.transport.written
    assert b"headers must be UTF-8" in error
    assert b"\xff" not in error
    assert close == frames.close(1007, "headers must be UTF-8")


# Refusals


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (client_frame(Opcode.TEXT, b"hello"), 1007, "not JSON"),
        (client_frame(Opcode.TEXT, b"\xff"), 1007, "text is not UTF-8"),
        (client_frame(Opcode.BINARY, b"{}"), 1003, "text messages only"),
        (client_frame(Opcode.TEXT, b"x" * 16_385), 1009, "messages may have 16384 bytes"),
        (
            client_frame(Opcode.TEXT, b"x" * 16_384, final=False) + client_frame(Opcode.CONTINUATION, b"x"),
            1009,
            "messages may have 16384 bytes",
        ),
        (client_frame(Opcode.TEXT, b"{}", rsv=4), 1002, "reserved bit set"),
        (b"\x81\x02{}", 1002, "client frames must be masked"),
        (client_frame(Opcode.CLOSE, b"\x03\xee"), 1002, "invalid close code"),
        (client_frame(Opcode.TEXT, b"{}") * 6, 1008, "too many unknown messages"),
        (client_frame(Opcode.PING) * 21, 1008, "too many messages"),
        (
            client_frame(Opcode.TEXT, b"", final=False) + client_frame(0, b"", final=False) * 330,
            1008,
            "too many messages",
        ),
    ],
)
def test_who_breaks_the_rules_is_told_why(data: bytes, code: int, reason: str) -> None:
    scene = Scene().registered()
    scene.clock.now += 60
    scene.session.data_received(data)
    assert scene.closed_with() == (code, reason)
    assert scene.transport.eof, "our half ends, so that the CLOSE arrives before any reset"
    assert not scene.transport.closing
    assert scene.broker.taken() == [("unsubscribe", CHANNEL)]
    scene.transport.lose()
    assert scene.node.ended == {(code, reason): 1}
    assert scene.node.admission.sessions == 0


def test_bytes_that_complete_no_frame_are_paid_for() -> None:
    """A frame of 16 KB in packets of a byte each would copy 128 MB, and none of them be counted."""
    scene = Scene().registered()
    frame = client_frame(Opcode.TEXT, b" " * 1_000)
    packets = 0
    while scene.state() is SessionState.REGISTERED:
        scene.session.data_received(frame[packets : packets + 1])
        packets += 1
    assert scene.closed_with() == (1008, "too many messages")
    assert 250 < packets < 330


def test_five_messages_of_nonsense_are_answered_first() -> None:
    scene = Scene()
    scene.say(*["{}"] * 6)
    *answers, close = scene.heard()
    assert len(answers) == 5
    assert isinstance(close, CloseConnection)


def test_messages_of_16_kib_are_read() -> None:
    scene = Scene()
    scene.say('{"webSocketId":"12345678","x":"' + "x" * (16_384 - 33) + '"}')
    assert scene.broker.asked == [("subscribe", CHANNEL)]


def test_no_registration_in_time() -> None:
    scene = Scene()
    scene.wait(10.5)
    assert scene.closed_with() == (1008, "registration timeout")


def test_no_redis_in_time() -> None:
    scene = Scene()
    scene.broker.lose(scene.node.hub)
    scene.say(REGISTER)
    scene.wait(10.5)
    assert scene.closed_with() == (1013, "registration not confirmed in time")


def test_the_node_shuts_down() -> None:
    scene = Scene().registered()
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    assert scene.closed_with() == (1012, "service restart")
    assert not scene.transport.closing, "the client's own CLOSE comes first"


# What an address has used up


@virtual
async def test_a_client_of_a_busy_address_is_read_later() -> None:
    scene = Scene().registered()
    scene.node.budgets.charge(ADDRESS, 50 * 12.0, scene.clock.now)
    scene.send(Ping(payload=b"1"), Ping(payload=b"2"))
    assert scene.heard() == [Pong(payload=b"1"), Pong(payload=b"2")], "what has been read is handled"
    assert not scene.transport.is_reading()
    await asyncio.sleep(1.5)
    assert not scene.transport.is_reading()
    await asyncio.sleep(1)
    assert scene.transport.is_reading()
    assert scene.state() is SessionState.REGISTERED


@virtual
async def test_a_client_that_is_read_later_may_go_meanwhile() -> None:
    scene = Scene().registered()
    scene.node.budgets.charge(ADDRESS, 50 * 12.0, scene.clock.now)
    scene.send(Ping())
    scene.transport.close()
    scene.transport.lose()
    await asyncio.sleep(10)


# Closing


def test_our_close_is_answered_and_then_tcp_ends() -> None:
    scene = Scene().registered()
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    (close,) = scene.heard()
    assert isinstance(close, CloseConnection)
    scene.send(close.response())
    assert scene.transport.closing
    assert not scene.transport.aborted
    assert scene.heard() == [], "one CLOSE is enough"
    scene.transport.lose()
    assert scene.node.ended == {(1012, "service restart"): 1}


def test_a_client_that_floods_while_we_close_is_read_no_more() -> None:
    """Nothing else would stop it for as long as a close frame may take."""
    scene = Scene().registered()
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    scene.send(*[Ping()] * 30)
    assert scene.transport.eof
    (close,) = scene.heard()
    assert isinstance(close, CloseConnection)
    assert scene.wait(2.5)
    scene.transport.lose()
    assert scene.node.ended == {(1012, "service restart"): 1}


def test_our_close_is_not_answered() -> None:
    scene = Scene().registered()
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    assert not scene.wait(1.9)
    assert scene.wait(0.5)


def test_a_client_that_does_not_read_its_close_is_dropped() -> None:
    scene = Scene().registered()
    scene.send(CloseConnection(code=1000))
    assert scene.transport.closing
    assert scene.wait(2.5)


@pytest.mark.parametrize("body", [b"", b"\x03\xe8", b"\x03\xe9bye", b"\x0f\xa0"])
def test_the_clients_code_is_given_back(body: bytes) -> None:
    scene = Scene()
    scene.session.data_received(client_frame(Opcode.CLOSE, body))
    assert scene.transport.output == b"\x88" + bytes([len(body[:2])]) + body[:2]


def test_the_codes_that_clients_choose_are_counted_as_one() -> None:
    """/readyz once grew to 64 KB, and the node's memory with it."""
    shared = node(max_sessions_per_ip=0)
    for code in (*range(3000, 5000), *range(1010, 1015)):
        transport = Transport()
        shared.admission.admit(ADDRESS)
        session = WebSocketSession(shared, JSON_WIRE, ADDRESS, transport)
        session.data_received(client_frame(Opcode.CLOSE, code.to_bytes(2, "big")))
        assert transport.output[2:] == code.to_bytes(2, "big"), "the client gets its own back"
        session.connection_lost(None)
    assert len(shared.ended) <= 5
    assert shared.ended[OTHER_CODE, "closed by the client"] == 2_002
    assert shared.ended.total() == 2_005


def test_what_comes_behind_a_close_is_not_read() -> None:
    scene = Scene().registered()
    scene.session.data_received(client_frame(Opcode.CLOSE) + client_frame(Opcode.PING) + b"garbage")
    scene.session.data_received(client_frame(Opcode.PING))
    assert scene.transport.output.endswith(b"\x88\x00")


def test_what_comes_behind_a_broken_rule_is_not_read() -> None:
    scene = Scene().registered()
    scene.session.data_received(client_frame(Opcode.BINARY) + client_frame(Opcode.PING))
    scene.session.data_received(client_frame(Opcode.CLOSE))
    assert scene.closed_with()[0] == 1003
    assert scene.transport.output.count(b"\x8a") == 0


def test_while_closing_only_a_close_is_heard() -> None:
    scene = Scene()
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    scene.say(REGISTER)
    scene.send(Ping())
    assert scene.broker.asked == []
    assert [type(event) for event in scene.heard()] == [CloseConnection]


ENDS: list[Callable[[Scene], None]] = [
    lambda scene: scene.session.close(CloseCode.SERVICE_RESTART, "service restart"),
    lambda scene: scene.send(BytesMessage(b"")),
    lambda scene: scene.send(CloseConnection(code=1000)),
    lambda scene: scene.transport.lose(),
]


@pytest.mark.parametrize("end", ENDS)
def test_after_any_close_nothing_is_delivered(end: Callable[[Scene], None]) -> None:
    scene = Scene().registered()
    end(scene)
    written = len(scene.transport.written)
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert len(scene.transport.written) == written


def test_the_clients_half_close_ends_it() -> None:
    scene = Scene()
    protocol: asyncio.Protocol = scene.session
    assert not protocol.eof_received(), "a true value would keep our half open"


def test_a_loss_is_counted_as_one() -> None:
    scene = Scene().registered()
    scene.transport.lose(ConnectionResetError("reset by peer"))
    scene.session.connection_lost(None)
    assert scene.node.ended == {(1006, "connection lost"): 1}
    assert scene.node.admission.sessions == 0
    assert scene.broker.taken() == [("unsubscribe", CHANNEL)]
    assert list(scene.node.deadlines) == []


@pytest.mark.parametrize("state", ["open", "waiting", "registered"])
def test_a_connection_that_broke_a_moment_ago_is_not_written_to(state: str) -> None:
    """uvloop raises then, and the result was on its way to others too."""
    scene = Scene()
    if state != "open":
        scene.say(REGISTER)
    if state == "registered":
        scene.node.hub.subscribed(CHANNEL, None)
    scene.transport.closing = True
    scene.session.data_received(client_frame(Opcode.PING) + client_frame(Opcode.TEXT, b"{}"))
    scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    scene.wait(60)
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    scene.session.pause_writing()
    scene.transport.lose()
    assert scene.node.admission.sessions == 0


# Heartbeats


def test_a_quiet_client_is_pinged_and_its_pong_is_enough() -> None:
    scene = Scene().registered()
    for _ in range(5):
        scene.wait(25.25)
        assert scene.heard() == [Ping(payload=b"")]
        scene.send(Pong())
    assert not scene.transport.aborted


def test_a_frame_that_never_ends_is_no_sign_of_life() -> None:
    """Or a client could have the gateway keep what it has begun to say for as long as it likes."""
    scene = Scene().registered()
    scene.wait(25.25)
    for byte in client_frame(Opcode.TEXT, b"{}")[:3]:
        scene.session.data_received(bytes([byte]))
    assert scene.wait(25.25)


def test_a_ping_that_nobody_answers_ends_it() -> None:
    scene = Scene().registered()
    assert not scene.wait(25.25)
    assert scene.wait(25.25)
    scene.transport.lose()
    assert scene.node.ended == {(1006, "heartbeat unanswered"): 1}


# Slow consumers


def test_what_a_client_leaves_unread_is_counted_until_it_reads() -> None:
    scene = Scene(stuck=True)
    scene.register()
    written = len(scene.transport.output)
    assert scene.node.ledger.backlog.unread == written
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    assert scene.node.ledger.backlog.unread == len(scene.transport.output) + WRITE_COST > written
    scene.transport.drain()
    assert len(scene.node.ledger.backlog) == 0
    scene.transport.stuck = False
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    assert len(scene.node.ledger.backlog) == 0
    assert scene.state() is SessionState.REGISTERED


def test_the_worst_reader_of_a_node_is_dropped_when_its_clients_leave_too_much_unread() -> None:
    scene = Scene(stuck=True)
    scene.node.ledger.backlog = Backlog(1_000)
    scene.register()
    while not scene.transport.aborted:
        scene.node.hub.received(CHANNEL, b"CONFIRMED")
    assert len(scene.transport.output) < 1_200
    scene.transport.lose()
    assert scene.node.ended == {(1006, "slow consumer"): 1}
    assert len(scene.node.ledger.backlog) == 0


def test_who_does_not_read_is_closed_and_then_dropped() -> None:
    scene = Scene(stuck=True, write_buffer=1_024)
    scene.register()
    while scene.state() is not SessionState.CLOSING:
        scene.node.hub.received(CHANNEL, b"CONFIRMED")
    written = len(scene.transport.written)
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    assert len(scene.transport.written) == written
    assert scene.transport.written[-1] == frames.close(CloseCode.POLICY, "slow consumer")
    assert scene.transport.eof
    assert scene.broker.taken()[-1] == ("unsubscribe", CHANNEL)
    assert scene.wait(2.5)
    scene.transport.lose()
    assert scene.node.ended == {(1008, "slow consumer"): 1}
    scene.session.resume_writing()


def test_a_slow_consumer_harms_nobody_else() -> None:
    slow, quick = Scene(stuck=True, write_buffer=1_024), Transport()
    slow.register()
    slow.node.admission.admit(ADDRESS)
    other = WebSocketSession(slow.node, JSON_WIRE, ADDRESS, quick)
    quick.protocol = other
    other.data_received(client_frame(Opcode.TEXT, REGISTER.encode()))
    slow.node.hub.subscribed(CHANNEL, None)
    for _ in range(50):
        slow.node.hub.received(CHANNEL, b"CONFIRMED")
    assert slow.state() is SessionState.CLOSING
    assert other.state is SessionState.REGISTERED
    assert quick.output.count(b"CONFIRMED") == 50


def test_many_answers_at_once_may_be_too_much_and_harm_nobody() -> None:
    """The first of them fills the buffer, which ends the session; the rest must not raise in the hub."""
    scene = Scene(stuck=True, write_buffer=1_024)
    scene.say(*[REGISTER] * 19)
    scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert scene.state() is SessionState.CLOSING


def test_a_ping_may_be_too_much() -> None:
    """The close timeout runs then, and not the next heartbeat's."""
    scene = Scene(stuck=True, write_buffer=1_024)
    scene.register()
    scene.transport._unsent = 1_023
    scene.wait(25.25)
    assert scene.state() is SessionState.CLOSING
    assert scene.wait(2.5)


def test_a_close_frame_may_be_too_much() -> None:
    scene = Scene(stuck=True, write_buffer=1_024)
    scene.register()
    scene.transport._unsent = 1_020
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    assert scene.transport.eof
    assert scene.wait(2.5)


# What anybody may send


@given(
    st.lists(
        st.binary(max_size=60)
        | st.sampled_from(
            [
                client_frame(Opcode.TEXT, REGISTER.encode()),
                client_frame(Opcode.TEXT, b'{"webSocketId":"x"}'),
                client_frame(Opcode.TEXT, b"{}"),
                client_frame(Opcode.PING, b"x"),
                client_frame(Opcode.CLOSE, b"\x03\xe8"),
                client_frame(Opcode.TEXT, b"{", final=False),
            ]
        )
        | st.sampled_from([b"confirm", b"publish", b"lose redis", b"wait"]).map(lambda word: b"\0" + word),
        min_size=4,
        max_size=30,
    ),
    st.booleans(),
)
def test_nothing_a_client_sends_raises_or_leaks(steps: list[bytes], stuck: bool) -> None:
    scene = Scene(stuck=stuck, write_buffer=1_024)
    hub = scene.node.hub
    for step in steps:
        if step == b"\0confirm":
            hub.subscribed(CHANNEL, b"CONFIRMED")
        elif step == b"\0publish":
            hub.received(CHANNEL, b"CONFIRMED")
        elif step == b"\0lose redis":
            hub.disconnected()
            hub.connected()
        elif step == b"\0wait":
            scene.wait(6)
        elif not scene.transport.closing:
            scene.session.data_received(step)
    Connection(ConnectionType.CLIENT).receive_data(scene.transport.output)
    scene.transport.lose()
    hub.disconnected()
    assert hub.channels == 0
    assert scene.node.admission.sessions == 0
    assert list(scene.node.deadlines) == []


# Opening


def test_opens_with_101_and_reads_what_followed_the_handshake() -> None:
    shared, transport = node(), Transport()
    shared.admission.admit(ADDRESS)
    headers = CIMultiDictProxy(CIMultiDict({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}))
    rest = client_frame(Opcode.PING, b"early")
    open_session(shared, JSON_WIRE, ADDRESS, Handshake((1, 1), headers, ADDRESS), transport, rest)
    assert isinstance(transport.protocol, WebSocketSession)
    head, _, after = transport.output.partition(b"\r\n\r\n")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert after == frames.pong(b"early")


class Before(asyncio.Protocol):
    """What had the connection before the session."""

    def pause_writing(self) -> None:
        raise AssertionError("the session must be told")


def opened_on(shared: SessionContext, transport: Transport) -> None:
    shared.admission.admit(ADDRESS)
    transport.protocol = Before()
    headers = CIMultiDictProxy(CIMultiDict({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}))
    open_session(shared, JSON_WIRE, ADDRESS, Handshake((1, 1), headers, ""), transport, b"")


@pytest.mark.parametrize("high", [0, 65_536])
def test_a_client_that_has_not_read_an_older_response_is_a_slow_reader_from_the_start(high: int) -> None:
    """Or nobody would count what its session leaves unread: the transport tells it once."""
    shared, transport = node(), Transport(stuck=True)
    transport.high = high
    opened_on(shared, transport)
    assert shared.ledger.backlog.unread == len(transport.output) > 0
    transport.lose()
    assert len(shared.ledger.backlog) == 0


def test_a_handshake_whose_client_has_just_gone_leaves_nothing() -> None:
    shared, transport = node(), Transport()
    transport.closing = True  # so that a write raises, as with uvloop
    opened_on(shared, transport)
    transport.lose()
    assert shared.admission.sessions == 0


# Memory


def test_a_session_has_no_dict() -> None:
    scene = Scene()
    assert not hasattr(scene.session, "__dict__")
    assert sys.getsizeof(scene.session) < 250


def test_a_registered_session_fits_its_budget() -> None:
    """Session, reader, table row, channel name and deadline; half of the 3 KB is the transport's."""
    ids = [f"{i:0128x}" for i in range(2_000)]
    shared = node(max_sessions_per_ip=0)
    transport = Transport()
    messages = [client_frame(Opcode.TEXT, orjson.dumps({"webSocketId": text})) for text in ids]
    gc.collect()
    tracemalloc.start()
    try:
        sessions = []
        for message in messages:
            shared.admission.admit(ADDRESS)
            sessions.append(WebSocketSession(shared, JSON_WIRE, ADDRESS, transport))
            sessions[-1].data_received(message)
            transport.written.clear()
        for text in ids:
            shared.hub.subscribed(b"websocket:" + text.encode(), None)
            transport.written.clear()
        used, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(session.state is SessionState.REGISTERED for session in sessions)
    assert used / len(sessions) < 1_500


# Incomplete messages


def test_incomplete_messages_of_all_sessions_are_limited() -> None:
    for wire, sent in (
        (JSON_WIRE, b"\x81\xfe\x01\x00mask" + bytes(200)),
        (JSON_WIRE, b"\x89\x80mask" + b"\x81\xfe\x01\x00mask" + bytes(200)),  # a ping before it
        (JSON_WIRE, b"\x01\xfe\x00\xc8\0\0\0\0" + b"x" * 200),  # a fragment
        (StompWire(1_000), b"\x81\xfe\x00\xc8\0\0\0\0" + b"CONNECT\n" + b"x" * 192),
    ):
        scene = Scene(wire)
        scene.node.ledger.incoming = Incoming(150)
        scene.session.data_received(sent)
        code, reason = scene.closed_with()
        assert (code, reason) == (1013, "too many incomplete messages on this node")
        scene.transport.lose()


# Events


@pytest.mark.parametrize("code", [1000, 4000])
def test_a_close_of_the_client_is_told_with_the_clients_own_code(code: int) -> None:
    scene = Scene(events=True).registered()
    scene.send(CloseConnection(code=code))
    scene.transport.lose()
    *_, closed = scene.log.take(9)
    assert closed.kind == "closed"
    assert closed.values[:3] == (str(code), "closed by the client", "client")


def test_an_answer_to_our_close_frame_is_no_close_of_the_client() -> None:
    scene = Scene(events=True).registered()
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    scene.send(CloseConnection(code=1000))
    scene.transport.lose()
    *_, closed = scene.log.take(9)
    assert closed.values[:3] == ("1012", "service restart", "gateway")


def test_a_handshake_tells_of_the_browser() -> None:
    context = node()
    context.events = EventLog("node-1", "run", Clock())
    context.admission.admit("192.0.2.1")
    headers = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "origin": "https://a.example"}
    handshake = Handshake((1, 1), CIMultiDictProxy(CIMultiDict(headers)), "192.0.2.1")
    transport = Transport()
    open_session(
        context, JSON_WIRE, "192.0.2.1", handshake, transport, client_frame(Opcode.TEXT, REGISTER.encode())
    )
    context.hub.subscribed(CHANNEL, None)
    (event,) = context.events.take(9)
    assert event.values[:3] == ("192.0.2.1", "https://a.example", "")
    transport.lose()
