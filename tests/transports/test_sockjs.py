"""Sessions between a hub and requests that come and go, with no network."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.admission import Backlog
from gateway.core.events import EventLog
from gateway.core.session import MAX_UNKNOWN_MESSAGES, SessionState
from gateway.messages import CloseCode
from gateway.transports import sockjs
from gateway.transports.hijack import MAX_READ_AHEAD
from gateway.transports.http import HttpConnection
from gateway.transports.slow_reader import WRITE_COST
from gateway.transports.sockjs import (
    DISCONNECT_DELAY,
    HttpReceiver,
    PollReceiver,
    SockJSSession,
    SockJSSessions,
    SockJSWebSocket,
    StreamReceiver,
)
from gateway.wire import frames
from gateway.wire import sockjs as codec
from gateway.wire.frames import Opcode
from gateway.wire.json import JSON_WIRE
from gateway.wire.sockjs import InvalidPayload
from gateway.wire.stomp import StompWire

from ..fakes import Clock, Subscriber, Transport, node
from ..wire import strategies  # noqa: F401 - sets hypothesis up
from ..wire.strategies import client_frame

ADDRESS = "192.0.2.1"
CHANNEL = b"websocket:12345678"
REGISTER = b'{"webSocketId":"12345678"}'
REGISTERED = '{"topic":"/user/topic/registration","webSocketId":"12345678","registrationSucceeded":true}'
GO_AWAY = 'c[3000,"Go away!"]'


def request_body(*messages: bytes) -> bytes:
    """What a client posts to send these messages at once."""
    return json.dumps([message.decode() for message in messages]).encode()


def confirmed(word: str) -> str:
    return f'{{"topic":"/user/topic/authorization","webSocketId":"12345678","authResult":"{word}"}}'


class Sink:
    """In the acceptor's place: keeps the connections it gets."""

    def __init__(self) -> None:
        self.kept_alive: list[tuple[asyncio.Transport, bytes]] = []
        self.closed: list[asyncio.Transport] = []
        self.gone: list[asyncio.BaseTransport] = []

    def keep_alive(self, transport: asyncio.Transport, rest: bytes) -> None:
        self.kept_alive.append((transport, rest))

    def close_gracefully(self, transport: asyncio.Transport) -> None:
        self.closed.append(transport)
        transport.close()

    def lost(self, transport: asyncio.BaseTransport) -> None:
        self.gone.append(transport)


class Request:
    """A request by which the client listens, and what its response has been so far."""

    def __init__(self, receiver: HttpReceiver, transport: Transport) -> None:
        self.receiver = receiver
        self.transport = transport
        self._read = transport.output.index(b"\r\n\r\n") + 4 if transport.output else 0

    def frames(self) -> list[str]:
        """The frames since the last time."""
        output = self.transport.output
        if output.startswith(b"HTTP") and not self._read:
            self._read = output.index(b"\r\n\r\n") + 4
        body, self._read = output[self._read :], len(output)
        return [line for line in body.decode().split("\n") if line and line[0] in "ohac"]

    @property
    def answered(self) -> bool:
        return self.receiver._session is None


class Scene:
    """One session, which `listen` and the like open."""

    def __init__(self, wire: StompWire | None = None, *, events: bool = False, **settings: float) -> None:
        self.clock = Clock()
        self.broker = Subscriber()
        self.node = node(self.clock, self.broker, **settings)
        self.log = EventLog("node-1", "run", self.clock)
        if events:
            self.node.events = self.log
        self.node.admission.admit(ADDRESS)
        self.sessions = SockJSSessions(self.clock)
        self.session = SockJSSession(self.node, wire or JSON_WIRE, ADDRESS, "name", self.sessions)
        self.sink = Sink()

    def say(self, *messages: bytes) -> None:
        self.session.receive(request_body(*messages))

    def poll(self, *, lasting: bool = True) -> Request:
        transport = Transport()
        receiver = PollReceiver(HttpConnection(transport, True, lasting), self.sink, {"X": "y"})
        transport.protocol = receiver
        self._listen(receiver)
        return Request(receiver, transport)

    def stream(self, limit: int = 1_000, *, chunked: bool = False, stuck: bool = False) -> Request:
        transport = Transport(stuck=stuck)
        connection = HttpConnection(transport, chunked, chunked)
        receiver = StreamReceiver(connection, self.sink, {"X": "y"}, codec.line, b"prelude\n", limit)
        transport.protocol = receiver
        request = Request(receiver, transport)
        request.transport.high = self.node.config.write_buffer
        self._listen(receiver)
        return request

    def _listen(self, receiver: HttpReceiver) -> None:
        close_frame = self.sessions.close_frame("name")
        if close_frame:
            receiver.end(close_frame)
        else:
            self.session.attach(receiver)

    def opened(self) -> Scene:
        assert self.poll().frames() == ["o"]
        return self

    def registered(self) -> Scene:
        self.opened().say(REGISTER)
        self.node.hub.subscribed(CHANNEL, None)
        assert self.said(self.poll()) == [REGISTERED]
        return self

    def publish(self, word: str) -> None:
        self.node.hub.received(CHANNEL, word.encode())

    def said(self, request: Request) -> list[str]:
        (frame,) = request.frames()
        assert frame[0] == "a", frame
        found: list[str] = json.loads(frame[1:])
        return found

    def wait(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += 0.25
            for item in self.node.deadlines.expired(self.clock.now):
                item.deadline_passed()

    def told(self) -> list[tuple[str, ...]]:
        """Kind and first value of what was recorded since the last time."""
        return [(event.kind, str(event.values[0])) for event in self.log.take(100)]

    def state(self) -> SessionState:
        return self.session.state

    def gone(self) -> bool:
        """Nothing anywhere knows of the session."""
        if ("unsubscribe", CHANNEL) in self.broker.taken():
            self.node.hub.unsubscribed(CHANNEL)
        return (
            not self.sessions
            and not list(self.node.deadlines)
            and not self.node.hub.channels
            and not self.node.admission.sessions
            and self.state() is SessionState.CLOSED
        )


# Polls


def test_a_poll_has_its_response_with_the_first_frame() -> None:
    scene = Scene()
    request = scene.poll()
    assert request.transport.output.startswith(b"HTTP/1.1 200 OK\r\nX: y\r\nDate: ")
    assert request.transport.output.endswith(b"Content-Length: 2\r\n\r\no\n")
    assert scene.sink.kept_alive == [(request.transport, b"")]


def test_polls_bring_what_there_is_and_wait_for_what_comes() -> None:
    scene = Scene().registered()
    waiting = scene.poll()
    assert waiting.frames() == []
    scene.publish("ONE")
    assert scene.said(waiting) == [confirmed("ONE")]
    scene.publish("TWO")
    scene.publish("THREE")
    assert scene.said(scene.poll()) == [confirmed("TWO"), confirmed("THREE")]
    assert scene.poll().frames() == []


def test_the_rest_of_a_polls_connection_is_the_next_request() -> None:
    scene = Scene().registered()
    waiting = scene.poll()
    waiting.receiver.data_received(b"GET /")
    scene.publish("ONE")
    assert scene.sink.kept_alive[-1] == (waiting.transport, b"GET /")


def test_a_client_that_floods_a_waiting_connection_is_dropped() -> None:
    scene = Scene().registered()
    waiting = scene.poll()
    waiting.receiver.data_received(b"x" * (MAX_READ_AHEAD + 1))
    assert waiting.transport.aborted
    waiting.transport.lose()
    assert scene.gone()


def test_a_connection_that_is_not_to_last_is_closed() -> None:
    scene = Scene()
    request = scene.poll(lasting=False)
    assert b"\r\nConnection: close\r\n" in request.transport.output
    assert scene.sink.closed == [request.transport]


def test_a_response_that_is_not_read_at_once_is_the_sinks_affair() -> None:
    scene = Scene().registered()
    waiting = scene.poll()
    waiting.transport.stuck = True
    scene.publish("ONE")
    assert scene.sink.kept_alive[-1] == (waiting.transport, b"")
    assert len(scene.node.ledger.backlog) == 0, "the acceptor counts what is unread"
    assert scene.state() is SessionState.REGISTERED, "the response may yet be read"


def test_messages_that_wait_for_a_poll_are_part_of_the_backlog() -> None:
    scene = Scene().registered()
    scene.publish("ONE")
    assert scene.node.ledger.backlog.unread > 0
    scene.poll()
    assert len(scene.node.ledger.backlog) == 0


async def test_the_messages_of_the_worst_reader_are_dropped() -> None:
    scene = Scene().registered()
    scene.node.ledger.backlog = Backlog(1_000)
    while not scene.node.ledger.backlog.dropped:
        scene.publish("ONE")
    await asyncio.sleep(0)
    assert scene.state() is SessionState.CLOSING or scene.gone()
    assert scene.node.ended == {(1008, "slow consumer"): 1}


def test_a_stream_whose_head_is_not_read_is_part_of_the_backlog() -> None:
    """On a connection that has carried a response, the transport speaks up before there is a session."""
    scene = Scene()
    transport = Transport(stuck=True)
    transport.high = 0
    transport.protocol = asyncio.Protocol()
    connection = HttpConnection(transport, True, True)
    receiver = StreamReceiver(connection, scene.sink, {}, codec.line, b"prelude\n", 100_000)
    scene.session.attach(receiver)
    assert scene.node.ledger.backlog.unread == len(transport.output) + WRITE_COST
    transport.drain()
    assert len(scene.node.ledger.backlog) == 0
    assert receiver._connection.transport is transport


def test_a_stream_that_is_not_read_is_part_of_the_backlog() -> None:
    scene = Scene()
    request = scene.stream(100_000, stuck=True)
    assert scene.node.ledger.backlog.unread == len(request.transport.output) + WRITE_COST
    request.transport.drain()
    assert len(scene.node.ledger.backlog) == 0
    request.transport.write(b"x")
    request.receiver.drop()
    assert request.transport.aborted
    request.transport.lose()
    assert scene.sink.gone == [request.transport]
    assert len(scene.node.ledger.backlog) == 0


def test_a_client_that_polls_gets_a_heartbeat_and_polls_again() -> None:
    scene = Scene().registered()
    waiting = scene.poll()
    scene.wait(scene.node.config.heartbeat + 0.5)
    assert waiting.frames() == ["h"]
    scene.wait(DISCONNECT_DELAY - 1)
    waiting = scene.poll()
    scene.wait(DISCONNECT_DELAY + 1)
    assert scene.state() is SessionState.REGISTERED, "it is listening"
    scene.publish("ONE")
    assert scene.said(waiting) == [confirmed("ONE")]


def test_a_client_that_does_not_poll_again_is_gone() -> None:
    scene = Scene().registered()
    scene.wait(DISCONNECT_DELAY - 0.5)
    assert not scene.gone()
    scene.wait(1)
    assert scene.gone()
    assert scene.node.ended == {(1006, "client did not come back"): 1}


def test_a_poller_that_leaves_takes_its_session_along() -> None:
    scene = Scene().registered()
    scene.poll().transport.lose()
    assert scene.gone()


def test_the_loss_of_an_answered_poll_means_nothing() -> None:
    scene = Scene().registered()
    waiting = scene.poll()
    scene.publish("ONE")
    waiting.transport.lose()
    assert scene.state() is SessionState.REGISTERED


# Streams


def test_a_stream_takes_frame_after_frame() -> None:
    scene = Scene()
    request = scene.stream(chunked=True)
    scene.say(REGISTER)
    scene.node.hub.subscribed(CHANNEL, b"ONE")
    pieces = b"".join(request.transport.written).split(b"\r\n\r\n", 1)
    assert b"Transfer-Encoding: chunked" in pieces[0]
    assert pieces[1].startswith(b"8\r\nprelude\n\r\n2\r\no\n\r\n")
    assert [json.loads(frame[1:]) for frame in request.frames() if frame[0] == "a"] == [
        [REGISTERED],
        [confirmed("ONE")],
    ]


def test_a_stream_has_a_limit_and_the_session_goes_on() -> None:
    scene = Scene().registered()
    request = scene.stream(limit=100, chunked=True)
    scene.publish("A" * 20)
    assert request.transport.output.endswith(b"\r\n0\r\n\r\n")
    assert scene.sink.kept_alive[-1] == (request.transport, b"")
    scene.publish("TWO")
    assert scene.said(scene.stream()) == [confirmed("TWO")]


def test_a_stream_that_ends_with_its_connection() -> None:
    scene = Scene().registered()
    request = scene.stream(limit=100)
    scene.publish("A" * 20)
    assert request.transport.output.endswith(b"]\n")
    assert scene.sink.closed == [request.transport]


@pytest.mark.parametrize("limit", [1_000, 1])
def test_a_stream_that_is_not_read_is_too_slow(limit: int) -> None:
    scene = Scene(write_buffer=1_024).registered()
    request = scene.stream(limit, stuck=True)
    for _ in range(20):
        scene.publish("A" * 60)
    assert scene.state() is SessionState.CLOSED
    assert request.transport.closing
    assert scene.poll().frames() == ['c[1008,"slow consumer"]']


def test_a_stream_that_breaks_while_it_is_written_to() -> None:
    scene = Scene().registered()
    request = scene.stream()
    request.transport.closing = True  # as uvloop's is, a moment before it tells
    scene.publish("ONE")
    request.transport.lose()
    assert scene.gone()


# Closing


@pytest.mark.parametrize("listening", [True, False])
def test_a_closed_session_says_so_until_it_is_forgotten(listening: bool) -> None:
    scene = Scene().registered()
    waiting = scene.poll() if listening else None
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    close_frame = 'c[1012,"service restart"]'
    if waiting:
        assert waiting.frames() == [close_frame]
    assert scene.gone(), "it takes nobody's place any more"
    assert scene.node.ended == {(1012, "service restart"): 1}
    for _ in range(3):
        scene.wait(DISCONNECT_DELAY / 4)
        assert scene.poll().frames() == [close_frame]
        assert scene.stream().frames()[-1] == close_frame
    scene.wait(DISCONNECT_DELAY / 2)
    assert scene.sessions.close_frame("name") == b""


def test_what_is_left_to_say_and_is_not_fetched_is_given_up() -> None:
    scene = Scene().registered()
    scene.publish("ONE")
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    scene.wait(DISCONNECT_DELAY - 0.5)
    assert not scene.gone()
    scene.wait(1)
    assert scene.gone()
    assert scene.node.ended == {(1012, "service restart"): 1}
    assert scene.sessions.close_frame("name") == b""


def test_close_frames_are_kept_for_a_while_and_no_more_than_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sockjs, "MAX_CLOSE_FRAMES", 3)
    clock = Clock()
    shared, sessions = node(clock), SockJSSessions(clock)

    def close(*names: str) -> None:
        for name in names:
            session = SockJSSession(shared, JSON_WIRE, ADDRESS, name, sessions)
            sessions.remove(name, session, b"close_frame " + name.encode())

    def remembered() -> str:
        return "".join(
            name for name in "abcdef" if sessions.close_frame(name) == b"close_frame " + name.encode()
        )

    close("a", "b", "c", "d")
    assert remembered() == "bcd"
    close("b", "e")
    assert remembered() == "bde", "the oldest went"
    clock.now += DISCONNECT_DELAY + 0.1
    assert remembered() == ""
    close("f")
    assert (remembered(), len(sessions._close_frames)) == ("f", 1)


def test_what_arrives_after_the_end_counts_for_nothing() -> None:
    """The request was there before the session ended, and its body came after it."""
    scene = Scene().opened()
    scene.session.abort()
    scene.say(REGISTER)
    assert scene.gone()


def test_what_was_left_to_say_comes_before_the_close() -> None:
    scene = Scene(StompWire(1_000)).opened()
    scene.say(b"CONNECT\n\n\0DISCONNECT\nreceipt:1\n\n\0", b"ignored")
    assert [text.split("\n")[0] for text in scene.said(scene.poll())] == ["CONNECTED", "RECEIPT"]
    assert scene.gone()
    assert scene.node.ended == {(1000, "disconnected"): 1}
    assert scene.poll().frames() == [GO_AWAY]


def test_the_last_message_and_the_close_frame_come_on_one_stream() -> None:
    scene = Scene(StompWire(1_000))
    request = scene.stream()
    scene.say(b"NONSENSE\n\n\0")
    opened, error, close = request.frames()
    assert (opened, error[:8], close) == ("o", 'a["ERROR', 'c[1002,"unknown command"]')
    assert request.answered


def test_a_session_that_never_registers() -> None:
    scene = Scene()
    request = scene.stream()
    scene.wait(scene.node.config.registration_timeout + 0.5)
    assert request.frames() == ["o", 'c[1008,"registration timeout"]']


def test_messages_are_paid_one_by_one_and_requests_without_any_too() -> None:
    for messages in ([b"{}"], []):
        scene = Scene(messages_per_second=4).opened()
        for _ in range(4):
            scene.say(*messages)
        assert scene.state() is SessionState.OPEN
        scene.say(*messages)
        assert scene.state() is (SessionState.CLOSING if messages else SessionState.CLOSED), (
            "complaints are left to fetch"
        )
    scene = Scene(messages_per_second=4).opened()
    scene.say(*[b"{}"] * 200)
    assert scene.state() is SessionState.CLOSING
    scene.say(REGISTER)
    assert scene.node.hub.channels == 0, "nothing counts any more"


def test_a_request_is_paid_by_its_size_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it was parsed first, at 15 ms of the event loop, and then not even counted."""
    scene = Scene(max_message_size=16_384).opened()
    parsed: list[bytes] = []

    def parse(text: bytes) -> list[str]:
        parsed.append(text)
        return []

    monkeypatch.setattr(codec, "parse_json", parse)
    for _ in range(3):
        scene.session.receive(b"[" + b" " * 60_000 + b"]")
    assert len(parsed) == 1, "one of 60 KB uses up two seconds"
    assert scene.gone()
    assert scene.node.ended == {(1008, "too many messages"): 1}


@pytest.mark.parametrize("body", [b"", b'["', b"{}", b'["a",1]', b"[" + rb'"\ud800",' * 1_000 + b"1]"])
def test_a_malformed_request_is_a_strike(body: bytes) -> None:
    scene = Scene().opened()
    for _ in range(MAX_UNKNOWN_MESSAGES):
        with pytest.raises(InvalidPayload):
            scene.session.receive(body)
        scene.clock.now += 1
    assert scene.state() is SessionState.OPEN
    scene.session.receive(body)
    assert scene.gone()
    assert scene.node.ended == {(1008, "too many unknown messages"): 1}


def test_an_outbox_has_a_bound_and_one_message_always_fits() -> None:
    scene = Scene(write_buffer=1_024).registered()
    scene.node.hub.received(CHANNEL, json.dumps({"authResult": "A", "data": "x" * 2_000}).encode())
    assert scene.state() is SessionState.REGISTERED
    scene.publish("B")
    assert scene.state() is SessionState.CLOSED
    assert scene.poll().frames() == ['c[1008,"slow consumer"]']


def test_aborting_ends_it_at_once() -> None:
    for scene in (Scene().registered(), Scene().registered()):
        request = scene.poll()
        scene.session.abort()
        assert request.transport.aborted
        request.transport.lose()
        assert scene.gone()
    scene = Scene().registered()
    scene.session.abort()
    assert scene.gone()


def test_a_session_that_took_its_name_stays() -> None:
    scene = Scene().opened()
    scene.node.admission.admit(ADDRESS)
    other = SockJSSession(scene.node, JSON_WIRE, ADDRESS, "name", scene.sessions)
    scene.session.abort()
    assert scene.sessions.get("name") is other


def test_a_second_listener_is_turned_away() -> None:
    scene = Scene().registered()
    first = scene.poll()
    for second in (scene.poll(), scene.stream(chunked=True)):
        assert second.frames() == ['c[2010,"Another connection still open"]']
        second.transport.lose()
    assert scene.state() is SessionState.REGISTERED
    scene.publish("ONE")
    assert scene.said(first) == [confirmed("ONE")]


# STOMP's heart-beats


def test_heart_beats_are_messages_in_the_envelope() -> None:
    scene = Scene(StompWire(1_000, (5_000, 5_000)), registration_timeout=60)
    request = scene.stream()
    scene.say(b"CONNECT\naccept-version:1.2\nheart-beat:0,5000\n\n\0")
    request.frames()
    scene.wait(5.25)
    assert scene.said(request) == ["\n"]
    scene.wait(5)
    assert scene.said(request) == ["\n"]


def test_a_client_that_is_silent_against_its_word_is_one_as_long_as_it_listens() -> None:
    scene = Scene(StompWire(1_000, (5_000, 5_000)), registration_timeout=600)
    request = scene.stream()
    scene.say(b"CONNECT\naccept-version:1.2\nheart-beat:5000,0\n\n\0")
    request.frames()
    scene.wait(300)
    assert request.frames() == []
    assert scene.state() is SessionState.OPEN


# WebSocket


class Socket:
    """A SockJS WebSocket; what it wrote is read as frames."""

    def __init__(self, wire: StompWire | None = None, **settings: float) -> None:
        self.clock = Clock()
        self.node = node(self.clock, None, **settings)
        self.node.admission.admit(ADDRESS)
        self.transport = Transport()
        self.session = SockJSWebSocket(self.node, wire or JSON_WIRE, ADDRESS, self.transport)
        self.transport.protocol = self.session
        self.session.opened()

    def say(self, text: str) -> None:
        self.session.data_received(client_frame(Opcode.TEXT, text.encode()))


def test_the_envelope_on_a_websocket() -> None:
    socket = Socket()
    socket.say(json.dumps([REGISTER.decode()]))
    socket.node.hub.subscribed(CHANNEL, None)
    assert socket.transport.written == [
        frames.text(b"o"),
        frames.text(codec.message_frame([codec.quote(REGISTERED.encode())])),
    ]
    socket.clock.now += 25.25
    for item in socket.node.deadlines.expired(socket.clock.now):
        item.deadline_passed()
    assert socket.transport.written[2:] == [frames.text(b"h"), frames.PING_FRAME]
    socket.session.close(CloseCode.SERVICE_RESTART, "service restart")
    close_frame = [frames.text(b'c[1012,"service restart"]'), frames.close(1012, "service restart")]
    assert socket.transport.written[4:] == close_frame


def test_a_client_that_breaks_the_envelope_gets_a_close_and_nothing_else() -> None:
    socket = Socket()
    for nothing in ("", "[]"):
        socket.say(nothing)
    socket.say('["')
    assert socket.transport.written[1:] == [frames.close(1007, "Broken JSON encoding.")]


def test_the_envelope_is_text_whatever_the_wire_inside_takes() -> None:
    socket = Socket(StompWire(1_000))
    socket.session.data_received(client_frame(Opcode.BINARY, b'["CONNECT"]'))
    assert socket.transport.written[-1] == frames.close(1003, "text messages only")


def test_each_message_in_the_envelope_counts() -> None:
    socket = Socket(messages_per_second=4)
    socket.say(json.dumps(["{}"] * 4))
    assert socket.session.state is SessionState.OPEN
    socket = Socket(messages_per_second=4)
    socket.say(json.dumps(["{}"] * 5))
    assert socket.transport.written[-1] == frames.close(1008, "too many messages")


def test_what_follows_a_close_frame_in_the_envelope_counts_for_nothing() -> None:
    socket = Socket(StompWire(1_000))
    send = 'SEND\ndestination:/app/registration\n\n{"webSocketId":"a"}\0'
    socket.say(json.dumps(["CONNECT\n\n\0", "DISCONNECT\n\n\0", send]))
    assert socket.node.hub.channels == 0
    assert socket.transport.written[-2:] == [
        frames.text(GO_AWAY.encode()),
        frames.close(1000, "disconnected"),
    ]


# Whatever happens


def act(scene: Scene, requests: list[Request], action: str) -> None:
    if action == "poll":
        requests.append(scene.poll())
    elif action in ("stream", "stuck"):
        requests.append(scene.stream(200, stuck=action == "stuck"))
    elif action == "answer":
        scene.node.hub.subscribed(CHANNEL, None)
    elif action == "publish":
        scene.publish("A" * 60)
    elif action == "lose":
        requests[-1].transport.lose()
    elif action == "close":
        scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    else:
        scene.say(action.encode())


ACTIONS = ["poll", "stream", "stuck", "answer", "publish", "lose", "close", REGISTER.decode(), "{", "{}"]


@given(st.lists(st.sampled_from(ACTIONS) | st.floats(0, 60), max_size=40))
def test_nothing_raises_or_stays_behind(actions: list[str | float]) -> None:
    scene = Scene(write_buffer=1_024)
    requests = [scene.poll()]
    for action in actions:
        if scene.state() is SessionState.CLOSED:
            break
        if isinstance(action, str):
            act(scene, requests, action)
        else:
            scene.wait(action)
    scene.session.abort()
    scene.node.hub.subscribed(CHANNEL, None)  # if it had not yet been
    assert scene.gone()


def test_a_registered_stream_fits_its_budget() -> None:
    """Session, STOMP, receiver, table row, names and deadline; the rest of the 4 KB is the transport's."""
    ids = [f"{i:0128x}" for i in range(1_000)]
    shared, acceptor = node(max_sessions_per_ip=0), Sink()
    transport = Transport()
    sessions = SockJSSessions(shared.clock)
    subscribe = b"SUBSCRIBE\nid:sub-%d\ndestination:/user/topic/%b\n\n\0"
    said = [b"CONNECT\naccept-version:1.1\nheart-beat:10000,10000\n\n\0"]
    said += [subscribe % (0, b"registration"), subscribe % (1, b"authorization")]
    gc.collect()
    tracemalloc.start()
    try:
        for number, name in enumerate(ids):
            shared.admission.admit(ADDRESS)
            session = SockJSSession(shared, StompWire(16_384), ADDRESS, f"{number:08}", sessions)
            connection = HttpConnection(transport, True, True)
            session.attach(
                StreamReceiver(connection, acceptor, {}, codec.line, b"h\n", sockjs.RESPONSE_LIMIT)
            )
            body = json.dumps({"webSocketId": name}).encode()
            session.receive(request_body(*said, b"SEND\ndestination:/app/registration\n\n%b\0" % body))
            transport.written.clear()
        for name in ids:
            shared.hub.subscribed(b"websocket:" + name.encode(), None)
            transport.written.clear()
        used, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept = [sessions.get(f"{number:08}") for number in range(len(ids))]
    assert all(session is not None and session.state is SessionState.REGISTERED for session in kept)
    assert used / len(sessions) < 2_500


def test_close_frames_that_were_not_fetched_are_counted() -> None:
    clock = Clock()
    sessions = SockJSSessions(clock)

    def close(name: str, *, sent: bool) -> None:
        session = SockJSSession(node(clock), JSON_WIRE, ADDRESS, name, sessions)
        sessions.remove(name, session, b"c", sent=sent)

    close("heard", sent=True)
    close("asks", sent=False)
    close("never asks", sent=False)
    assert sessions.unsent_close_frames == 2
    sessions.close_frame_sent("asks")
    assert sessions.unsent_close_frames == 1
    clock.now += DISCONNECT_DELAY + 1
    close("later", sent=True)
    assert sessions.unsent_close_frames == 0, "it could not be told any more"


# Events


def test_a_result_is_delivered_when_a_poll_takes_it() -> None:
    scene = Scene(events=True).registered()
    assert [kind for kind, _ in scene.told()] == ["registered"]
    waiting = scene.poll()
    scene.node.hub.received(CHANNEL, b'{"authResult":"A","messageId":"1"}')
    assert scene.told() == [("delivered", "1")]
    for number in (2, 3):
        scene.node.hub.received(CHANNEL, b'{"authResult":"A","messageId":"%d"}' % number)
    assert scene.told() == [], "nobody listens"
    assert waiting.answered
    scene.poll()
    assert scene.told() == [("delivered", "2"), ("delivered", "3")]
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    scene.poll()
    assert scene.told() == [("closed", "1012")]


def test_results_that_nobody_fetches_are_not_delivered() -> None:
    scene = Scene(events=True, write_buffer=1_024).registered()
    for _ in range(100):
        scene.publish("A" * 60)
    assert scene.state() is SessionState.CLOSED
    scene.poll()
    assert [told for told in scene.told() if told[0] != "registered"] == [("closed", "1008")]
