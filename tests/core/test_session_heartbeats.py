"""What it makes of a wire that has promised signs of life."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest

from gateway.core.admission import Incoming
from gateway.core.session import Session, SessionContext, SessionState
from gateway.errors import WireError
from gateway.messages import CloseCode, Disconnect, Problem, Register, Reply, Request, Result

from ..fakes import Clock, Subscriber, node

CHANNEL = b"websocket:a"
BEAT = b"still here"


class BeatingWire:
    """Agrees on `interval` seconds, if the client's first message asks for it."""

    name = "beating"
    binary = False
    either = False
    incomplete = 0
    greeting: bytes | None = None
    heartbeat = BEAT

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self.outgoing = 0.0
        self.says: bytes | None = b"result"

    def receive(self, message: bytes) -> Iterable[Request]:
        if message.startswith(b"connect"):
            self.outgoing = self._interval * (b"send" in message)
            yield Reply(b"connected")
        elif message == b"register":
            yield Register("a")
        elif message == b"leave":
            yield Disconnect(b"bye")
            yield Register("never")
        elif message == b"leave silently":
            yield Disconnect(None)
        elif message == b"empty":
            yield Reply(b"")

    def registered(self, web_socket_id: bytes) -> bytes:
        return b"registered"

    def rejected(self, web_socket_id: object, problem: Problem) -> None:
        return None

    def error(self, problem: Problem) -> None:
        return None

    def result(self, web_socket_id: bytes, result: Result) -> bytes | None:
        return self.says

    def status(self, push: str) -> bytes:
        return push.encode()


class Spoken(Session):
    """A session whose carrier keeps what it is given, and when. Its client answers while it `lives`."""

    __slots__ = ("aborted", "close_frame", "lives", "probes", "written")

    def __init__(self, node: SessionContext, wire: BeatingWire) -> None:
        self.written: list[tuple[float, bytes]] = []
        self.close_frame: tuple[CloseCode, str] | None = None
        self.probes = 0
        self.lives = True
        self.aborted = False
        super().__init__(node, wire, "192.0.2.1")

    def _write(self, message: bytes) -> None:
        self.written.append((self._context.clock(), message))

    def _send_close(self, code: CloseCode, reason: str) -> None:
        self.close_frame = code, reason

    def _ping(self) -> bool:
        self.probes += 1
        return self.lives or self.probes == 1  # as on a WebSocket: the first one asks

    def abort(self) -> None:
        self.aborted = True


class Scene:
    """A session on a node of its own; the sweep looks at its deadlines as often as the real one."""

    def __init__(self, interval: float, **settings: float) -> None:
        self.clock = Clock()
        self.node = node(self.clock, Subscriber(), **settings)
        self.node.admission.admit("192.0.2.1")
        self.wire = BeatingWire(interval)
        self.session = Spoken(self.node, self.wire)

    def state(self) -> SessionState:
        return self.session.state

    def close_frame(self) -> tuple[CloseCode, str] | None:
        return self.session.close_frame

    def say(self, *messages: bytes) -> None:
        for message in messages:
            self.session.message_received(message)

    def register(self) -> None:
        self.say(b"register")
        self.node.hub.subscribed(CHANNEL, None)

    def wait(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += 0.25
            for item in self.node.deadlines.expired(self.clock.now):
                item.deadline_passed()

    def beats(self) -> list[float]:
        """When the heart-beats were sent, in seconds from the start."""
        return [when - 1_000 for when, message in self.session.written if message == BEAT]


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("interval", [1.0, 10.0, 60.0])
def test_heart_beats_are_sent_and_never_late(interval: float, registered: bool) -> None:
    scene = Scene(interval, registration_timeout=1_000)
    scene.say(b"connect, send")
    if registered:
        scene.register()
    scene.wait(10 * interval)
    times = [0.0, *scene.beats()]
    outages = [later - sooner for sooner, later in pairwise(times)]
    assert len(outages) >= 10
    assert all(interval - 0.5 <= gap <= interval for gap in outages)
    assert scene.close_frame() is None


def test_the_transports_own_heartbeat_goes_on_besides() -> None:
    scene = Scene(10)
    scene.say(b"connect, send")
    scene.register()
    for _ in range(20):
        scene.wait(5)
        scene.say(b"chat")
    assert 3 <= scene.session.probes <= 4
    assert len(scene.beats()) == 10
    assert scene.state() is SessionState.REGISTERED


def test_short_intervals_do_not_starve_the_states_own_deadline() -> None:
    scene = Scene(0.25, heartbeat=0.25)
    scene.say(b"connect, send")
    scene.wait(scene.node.config.registration_timeout + 0.5)
    assert scene.close_frame() == (CloseCode.POLICY, "registration timeout")
    scene.wait(scene.node.config.close_timeout + 0.5)
    assert scene.session.aborted


def test_a_page_that_the_browser_has_frozen_keeps_its_session() -> None:
    """It says nothing, whatever its library has promised; the browser itself answers the carrier's probes."""
    scene = Scene(10)
    scene.say(b"connect, send")
    scene.register()
    scene.wait(3_600)
    assert scene.state() is SessionState.REGISTERED
    assert scene.close_frame() is None


def test_a_client_that_answers_nothing_is_dropped() -> None:
    scene = Scene(10)
    scene.say(b"connect, send")
    scene.register()
    scene.session.lives = False
    scene.wait(2 * scene.node.config.heartbeat - 1)
    assert not scene.session.aborted
    scene.wait(2)
    assert scene.session.aborted


def test_nothing_is_sent_without_an_agreement() -> None:
    scene = Scene(1)
    scene.say(b"connect")
    scene.register()
    scene.wait(100)
    assert scene.beats() == []
    assert scene.state() is SessionState.REGISTERED


def test_no_heart_beats_after_the_close_frame() -> None:
    scene = Scene(0.5, close_timeout=30)
    scene.say(b"connect, send")
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    scene.wait(10)
    assert scene.beats() == []


@pytest.mark.parametrize(("message", "written"), [(b"leave", [b"bye"]), (b"leave silently", [])])
def test_a_client_that_takes_its_leave(message: bytes, written: list[bytes]) -> None:
    scene = Scene(1)
    scene.say(message)
    assert [text for _, text in scene.session.written] == written
    assert scene.close_frame() == (CloseCode.NORMAL, "disconnected")
    assert scene.node.hub.channels == 0, "what came behind it counts for nothing"


def test_a_wire_may_have_nothing_to_say() -> None:
    scene = Scene(1)
    scene.register()
    scene.wire.says = None
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    assert [message for _, message in scene.session.written] == [b"registered"]


def test_an_empty_message_is_a_message() -> None:
    scene = Scene(1)
    scene.say(b"empty")
    scene.register()
    scene.wire.says = b""
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    assert [message for _, message in scene.session.written] == [b"", b"registered", b""]


def test_a_wire_may_speak_first() -> None:
    scene = Scene(1)
    scene.wire.greeting = b""
    scene.session.opened()
    assert [message for _, message in scene.session.written] == [b""]
    assert scene.beats() == []


def test_a_wire_that_speaks_first_may_promise_heartbeats() -> None:
    scene = Scene(1)
    scene.wire.greeting, scene.wire.outgoing = b"hello", 3.0
    scene.session.opened()
    scene.register()
    scene.wait(9.5)
    assert len(scene.beats()) == 3


def test_an_error_has_no_last_message_unless_the_wire_gives_one() -> None:
    assert WireError(CloseCode.POLICY, "reason").last_message is None


def test_a_wire_that_speaks_first_may_promise_heartbeats_with_its_greeting() -> None:
    scene = Scene(10, registration_timeout=1_000)
    scene.wire.greeting = b"hello"
    scene.wire.outgoing = 10.0
    scene.session.opened()
    assert scene.session.written == [(1_000.0, b"hello")]
    scene.wait(30)
    assert len(scene.beats()) == 3


def test_an_earlier_deadline_goes_first() -> None:
    scene = Scene(10, registration_timeout=5)
    scene.say(b"connect, send")
    scene.wait(6)
    assert scene.beats() == []
    assert scene.close_frame() == (CloseCode.POLICY, "registration timeout")


def test_a_wire_without_a_greeting_waits_for_the_client() -> None:
    scene = Scene(10)
    scene.session.opened()
    assert scene.session.written == []


class KeepingWire(BeatingWire):
    """Keeps each message for the next one."""

    def receive(self, message: bytes) -> Iterable[Request]:
        self.incomplete += len(message)
        return ()


def test_what_wires_keep_of_all_sessions_is_limited() -> None:
    context = node(Clock(), Subscriber())
    context.ledger.incoming = Incoming(100)
    sessions = []
    for size in (40, 70):
        context.admission.admit("192.0.2.1")
        sessions.append(Spoken(context, KeepingWire(0)))
        sessions[-1].message_received(bytes(size))
    small, large = sessions
    assert (small.close_frame, large.close_frame) == (
        None,
        (CloseCode.TRY_AGAIN_LATER, "too many incomplete messages on this node"),
    )
