"""What a session does whatever carries it; time is an argument, the carrier a list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.core.events import EventLog
from gateway.core.session import (
    MAX_ENDS,
    MAX_REMEMBERED_IDS,
    MAX_UNKNOWN_MESSAGES,
    Session,
    SessionContext,
    SessionState,
)
from gateway.errors import WireError
from gateway.messages import (
    NO_DATA,
    OTHER,
    OTHER_CODE,
    CloseCode,
    Disconnect,
    NextMessage,
    Reply,
    Request,
    Result,
    WatchStatus,
)
from gateway.wire.json import JSON_WIRE
from gateway.wire.stomp import StompWire

from ..fakes import Clock, Subscriber, node
from ..wire import strategies  # noqa: F401 - sets hypothesis up

CHANNEL = b"websocket:12345678"
REGISTER = b'{"webSocketId":"12345678"}'


class Spoken(Session):
    """A session whose carrier keeps what it is given; `answers` says whether its client shows itself."""

    __slots__ = ("aborted", "answers", "closes", "written")

    def __init__(self, node: SessionContext) -> None:
        self.written: list[bytes] = []
        self.closes: list[tuple[CloseCode, str]] = []
        self.answers = True
        self.aborted = False
        super().__init__(node, JSON_WIRE, "192.0.2.1")

    def _write(self, message: bytes) -> None:
        self.written.append(message)

    def _send_close(self, code: CloseCode, reason: str) -> None:
        self.closes.append((code, reason))

    def _ping(self) -> bool:
        return self.answers

    def abort(self) -> None:
        self.aborted = True


class Overflowing(Spoken):
    """A message too many for its client, the first unless there is `room`: it is closed from within."""

    room = 0

    def _write(self, message: bytes) -> None:
        super()._write(message)
        if len(self.written) > self.room:
            self.close(CloseCode.POLICY, "slow consumer")


class Scene:
    """One session on a node of its own."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.broker = Subscriber()
        self.node = node(self.clock, self.broker, **settings)
        self.node.admission.admit("192.0.2.1")
        self.session = Spoken(self.node)

    def state(self) -> SessionState:
        return self.session.state

    @property
    def hub_knows(self) -> bool:
        return self.node.hub.channels > 0

    def said(self) -> list[dict[str, object]]:
        """What was written since the last time."""
        written = [orjson.loads(message) for message in self.session.written]
        self.session.written.clear()
        return written

    def register(self) -> None:
        """Register, and have it confirmed and answered."""
        self.session.message_received(REGISTER)
        self.node.hub.subscribed(CHANNEL, None)
        (answer,) = self.said()
        assert answer["registrationSucceeded"] is True

    def chat(self, messages: int, *, pause: float = 0) -> None:
        """That many messages are counted, each followed by a pause."""
        for _ in range(messages):
            self.session.pay_message()
            self.clock.now += pause

    def wait(self, seconds: float) -> bool:
        """Time passes, and the deadlines that come are told; whether the connection has been aborted."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + 0.25, end)
            for item in self.node.deadlines.expired(self.clock.now):
                item.deadline_passed()
        return self.session.aborted


# Registering


def test_registers_and_is_answered_once_redis_has_confirmed() -> None:
    scene = Scene()
    scene.session.message_received(REGISTER)
    assert scene.state() is SessionState.WAITING
    assert scene.broker.asked == [("subscribe", CHANNEL)]
    assert scene.said() == []
    scene.node.hub.subscribed(CHANNEL, None)
    assert scene.state() is SessionState.REGISTERED
    assert scene.said() == [
        {"topic": "/user/topic/registration", "webSocketId": "12345678", "registrationSucceeded": True}
    ]


def test_the_same_id_again_is_answered_again() -> None:
    scene = Scene()
    scene.register()
    scene.broker.taken()
    scene.session.message_received(REGISTER)
    assert [answer["registrationSucceeded"] for answer in scene.said()] == [True]
    assert scene.broker.taken() == []


def test_the_same_id_again_while_it_waits_is_answered_as_often_as_it_came() -> None:
    scene = Scene()
    for _ in range(3):
        scene.session.message_received(REGISTER)
    assert scene.broker.asked == [("subscribe", CHANNEL)]
    scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert [answer.get("registrationSucceeded") for answer in scene.said()] == [True, True, True, None]


def test_the_same_id_again_amid_a_gap_is_answered_once_it_is_heard_again() -> None:
    """An answer promises that nothing published after it is missed."""
    scene = Scene()
    scene.register()
    scene.said()
    scene.broker.lose(scene.node.hub)
    scene.session.message_received(REGISTER)
    assert scene.said() == []
    scene.broker.regain(scene.node.hub)
    scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert [answer.get("registrationSucceeded") for answer in scene.said()] == [None, True]


@pytest.mark.parametrize("confirmed", [True, False])
def test_another_id_is_refused_and_the_first_one_stays(confirmed: bool) -> None:
    scene = Scene()
    scene.session.message_received(REGISTER)
    if confirmed:
        scene.node.hub.subscribed(CHANNEL, None)
        scene.said()
    scene.session.message_received(b'{"webSocketId":"another"}')
    (answer,) = scene.said()
    assert answer["webSocketId"] == "another"
    assert answer["registrationSucceeded"] is False
    assert answer["error"] == {
        "code": "already_registered",
        "message": "this connection has registered another webSocketId",
    }
    if not confirmed:
        scene.node.hub.subscribed(CHANNEL, None)
        assert [message["registrationSucceeded"] for message in scene.said()] == [True]
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    assert [message["authResult"] for message in scene.said()] == ["CONFIRMED"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b'{"topic":"/user/topic/registration"}', "missing_id"),
        (b'{"webSocketId":7}', "invalid_id"),
        (b'{"webSocketId":""}', "invalid_id"),
        (b'{"webSocketId":"' + b"x" * 201 + b'"}', "invalid_id"),
        (b'{"webSocketId":"a b"}', "invalid_id"),
    ],
)
def test_a_bad_id_is_refused_and_the_next_one_may_be_good(message: bytes, code: str) -> None:
    scene = Scene()
    for _ in range(20):  # as often as it likes: it is no nonsense, only wrong
        scene.session.message_received(message)
        (answer,) = scene.said()
        assert answer["registrationSucceeded"] is False
        assert isinstance(answer["error"], dict)
        assert answer["error"]["code"] == code
    assert scene.state() is SessionState.OPEN
    assert scene.broker.asked == []
    scene.register()


# Announced ids


def announced(**settings: Any) -> Scene:
    return Scene(registration="announced", **settings)


def refusal(name: str = "12345678") -> dict[str, object]:
    return {
        "topic": "/user/topic/registration",
        "webSocketId": name,
        "registrationSucceeded": False,
        "error": {"code": "unknown_id", "message": "nobody has announced this webSocketId"},
    }


def test_an_id_that_nobody_has_announced_is_refused_and_the_connection_stays() -> None:
    scene = announced()
    scene.session.message_received(REGISTER)
    scene.node.hub.subscribed(CHANNEL, None)
    assert scene.said() == [refusal()]
    assert scene.session.closes == []
    assert scene.state() is SessionState.OPEN
    assert scene.node.rejected == {"unknown_id": 1}
    assert scene.node.hub.members(b"12345678") == ()
    scene.node.hub.unsubscribed(CHANNEL)
    assert not scene.hub_knows


def test_an_id_that_is_announced_late_registers_when_it_comes_again() -> None:
    scene = announced()
    scene.session.message_received(REGISTER)
    scene.node.hub.subscribed(CHANNEL, None)
    scene.session.message_received(REGISTER)
    scene.node.hub.unsubscribed(CHANNEL)
    scene.node.hub.subscribed(CHANNEL, b"")
    assert [message["registrationSucceeded"] for message in scene.said()] == [False, True]
    assert scene.state() is SessionState.REGISTERED
    scene.node.hub.subscribed(CHANNEL, None)
    scene.session.message_received(REGISTER)
    assert [message["registrationSucceeded"] for message in scene.said()] == [True]


def test_after_a_refusal_the_session_may_register_another_id() -> None:
    scene = announced()
    scene.session.message_received(REGISTER)
    scene.node.hub.subscribed(CHANNEL, None)
    scene.session.message_received(b'{"webSocketId":"other"}')
    scene.node.hub.subscribed(b"websocket:other", b"DONE")
    assert [message.get("webSocketId") for message in scene.said()] == ["12345678", "other", "other"]
    scene.node.hub.received(CHANNEL, b"DONE")
    assert scene.said() == []


def test_every_registration_of_an_unknown_id_is_answered() -> None:
    scene = announced()
    for _ in range(3):
        scene.session.message_received(REGISTER)
    scene.node.hub.subscribed(CHANNEL, None)
    assert scene.said() == [refusal()] * 3
    assert scene.node.rejected == {"unknown_id": 3}


def test_a_session_that_is_refused_has_no_more_time_to_register() -> None:
    scene = announced(registration_timeout=10)
    scene.wait(6)
    for _ in range(2):
        scene.session.message_received(REGISTER)
        scene.node.hub.subscribed(CHANNEL, None)
        scene.node.hub.unsubscribed(CHANNEL)
    assert scene.session.closes == []
    scene.wait(5)
    assert scene.session.closes == [(CloseCode.POLICY, "registration timeout")]
    assert scene.node.timed_out == 0


def test_a_session_that_was_confirmed_is_never_judged_again() -> None:
    scene = announced()
    scene.session.message_received(REGISTER)
    scene.node.hub.subscribed(CHANNEL, b"")
    scene.broker.lose(scene.node.hub)
    scene.session.message_received(REGISTER)
    scene.broker.regain(scene.node.hub)
    scene.node.hub.subscribed(CHANNEL, None)
    assert [message["registrationSucceeded"] for message in scene.said()] == [True, True]
    assert scene.state() is SessionState.REGISTERED


def test_a_registration_during_an_outage_waits_and_is_refused_after_it() -> None:
    scene = announced()
    scene.broker.lose(scene.node.hub)
    scene.broker.lines_down.add(CHANNEL)
    scene.session.message_received(WATCHING)
    assert pushes(scene) == ["degraded"]
    scene.broker.regain(scene.node.hub)
    scene.broker.lines_down.clear()
    scene.node.hub.subscribed(CHANNEL, None)
    first, second = scene.said()
    assert first == refusal()
    assert second["push"] == "restored"
    scene.session.message_received(REGISTER)
    scene.node.hub.unsubscribed(CHANNEL)
    scene.node.hub.subscribed(CHANNEL, b"")
    assert [message.get("registrationSucceeded") for message in scene.said()] == [True]


def test_a_client_that_has_shown_that_the_id_is_its_own_needs_no_announcement() -> None:
    scene = announced()
    scene.session.message_received(REGISTER)
    scene.session._proven = True
    scene.node.hub.subscribed(CHANNEL, None)
    assert [message["registrationSucceeded"] for message in scene.said()] == [True]


def test_a_refusal_that_is_too_much_for_its_client_ends_the_session() -> None:
    scene = announced()
    scene.node.admission.admit("192.0.2.1")
    session = Overflowing(scene.node)
    session.room = 1
    for _ in range(2):
        session.message_received(WATCHING)
    session.degraded()
    assert session.closes == []
    scene.node.hub.subscribed(CHANNEL, None)
    assert session.closes == [(CloseCode.POLICY, "slow consumer")]
    assert not any(b"restored" in message for message in session.written)
    scene.node.hub.unsubscribed(CHANNEL)
    assert not scene.hub_knows
    session.ended()
    assert scene.node.ended == {(1008, "slow consumer"): 1}


def test_a_refusal_can_be_followed_in_debug_lines(debugging: list[Any]) -> None:
    scene = announced()
    scene.session.message_received(REGISTER)
    scene.node.hub.subscribed(CHANNEL, None)
    (line,) = [line for line in debugging if line["event"] == "registration refused"]
    assert (line["id"], line["kind"]) == ("1234…", "unknown_id")


def test_what_redis_denies_waits_until_it_is_allowed() -> None:
    scene = Scene()
    scene.session.message_received(REGISTER)
    scene.node.hub.denied(CHANNEL)
    assert scene.said() == []
    assert scene.state() is SessionState.WAITING
    assert scene.node.hub.retry(CHANNEL)
    scene.node.hub.subscribed(CHANNEL, None)
    assert [message["registrationSucceeded"] for message in scene.said()] == [True]


def test_what_redis_denies_ends_as_an_outage_does() -> None:
    """Never with `registrationSucceeded: false`, which is the end of a login."""
    scene = Scene(registration_timeout=10)
    scene.session.message_received(REGISTER)
    scene.node.hub.denied(CHANNEL)
    scene.wait(11)
    assert scene.said() == []
    assert scene.session.closes == [(CloseCode.TRY_AGAIN_LATER, "registration not confirmed in time")]
    assert not scene.hub_knows


def test_what_redis_denies_later_ends_no_session() -> None:
    scene = Scene()
    scene.register()
    scene.node.hub.lost(CHANNEL)
    scene.node.hub.denied(CHANNEL)
    scene.wait(20)
    assert scene.session.closes == []
    assert scene.state() is SessionState.REGISTERED


def test_one_session_of_an_id_too_many_is_told_to_try_again_and_never_that_it_failed() -> None:
    scene = Scene(max_sessions_per_id=1)
    scene.register()
    scene.node.admission.admit("192.0.2.1")
    other = Spoken(scene.node)
    with capture_logs() as lines:
        other.message_received(REGISTER)
    assert other.written == []
    assert other.closes == [(CloseCode.TRY_AGAIN_LATER, "too many sessions of this webSocketId")]
    assert [(line["event"], line["id"]) for line in lines] == [("too many sessions of one id", "1234…")]
    other.ended()
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    assert [message["authResult"] for message in scene.said()] == ["CONFIRMED"], "the first one stays"
    scene.session.ended()
    assert not scene.hub_knows or scene.broker.asked[-1] == ("unsubscribe", CHANNEL)


# Nonsense


def test_five_messages_of_nonsense_are_answered_and_the_sixth_ends_it() -> None:
    scene = Scene()
    for _ in range(MAX_UNKNOWN_MESSAGES):
        scene.session.message_received(b'{"hello":1}')
        (answer,) = scene.said()
        assert answer["topic"] == "/user/topic/error"
        assert isinstance(answer["error"], dict)
        assert answer["error"]["code"] == "unknown_message"
    with pytest.raises(WireError) as raised:
        scene.session.message_received(b'{"hello":1}')
    assert MAX_UNKNOWN_MESSAGES == 5
    assert raised.value.code is CloseCode.POLICY
    assert raised.value.reason == "too many unknown messages"


def test_what_is_not_json_ends_it() -> None:
    with pytest.raises(WireError) as raised:
        Scene().session.message_received(b"hello")
    assert raised.value.code is CloseCode.INVALID_DATA


# The rate


def test_a_bursts_worth_of_a_second_passes_and_no_more() -> None:
    scene = Scene(messages_per_second=10)
    scene.chat(9)
    with pytest.raises(WireError) as raised:
        scene.chat(2)
    assert raised.value.code is CloseCode.POLICY
    assert raised.value.reason == "too many messages"


def test_the_allowed_rate_passes_for_ever() -> None:
    scene = Scene(messages_per_second=10)
    scene.chat(1_000, pause=0.1)


def test_a_little_more_than_the_allowed_rate_does_not() -> None:
    scene = Scene(messages_per_second=10)
    with pytest.raises(WireError):
        scene.chat(1_000, pause=0.09)


def test_a_closing_session_pays_too() -> None:
    """Its client may send for as long as a close frame may take, and nothing else would stop it."""
    scene = Scene(messages_per_second=10)
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    scene.chat(10)
    with pytest.raises(WireError):
        scene.chat(1)


@pytest.mark.parametrize("rate", [1, 1.5, 3])
def test_however_low_the_rate_is_one_message_passes(rate: float) -> None:
    scene = Scene(messages_per_second=rate)
    scene.chat(2, pause=1 / rate)
    with pytest.raises(WireError):
        scene.chat(4)


def test_size_is_paid_for_and_any_size_once() -> None:
    scene = Scene(messages_per_second=1_000, max_message_size=1_024)
    scene.session.pay_message(1_024_000)
    with pytest.raises(WireError, match="too many messages"):
        scene.session.pay_message()
    scene.clock.now += 510
    for _ in range(2):
        scene.session.pay_message(1_024)
    with pytest.raises(WireError, match="too many messages"):
        scene.session.pay_message()


def test_a_registration_and_all_that_comes_before_it_fit_into_a_second() -> None:
    """CONNECT with the largest token that STOMP allows, two SUBSCRIBE, SEND, and a ping for each."""
    scene = Scene()
    for size in (8_192, 100, 100, 400, 0, 0, 0, 0):
        scene.session.pay_message(size)


def test_fragments_are_no_messages_and_have_a_bound() -> None:
    scene = Scene(messages_per_second=20)
    passed = 0
    with suppress(WireError):
        while passed < 1_000:
            scene.session.pay_fragment()
            passed += 1
    assert 300 < passed < 330


def test_what_comes_together_in_one_message_is_paid_one_by_one() -> None:
    scene = Scene(messages_per_second=4)
    seen = []

    class Bundled(type(JSON_WIRE)):  # type: ignore[misc]
        def receive(self, message: bytes) -> Iterator[Request]:
            for number in range(message[0]):
                seen.append(number)
                yield Reply(b"{}")
                yield NextMessage()

    scene.session._wire = Bundled()
    scene.session.pay_message()
    with pytest.raises(WireError, match="too many messages"):
        scene.session.message_received(b"\x64")
    assert seen == [0, 1, 2, 3], "what was not paid for was not parsed"


# Results


def test_delivers_with_what_was_sent_along() -> None:
    scene = Scene()
    scene.register()
    scene.node.hub.received(CHANNEL, b'{"authResult":"DONE","messageId":"m-1","data":[1],"other":2}')
    assert scene.said() == [
        {
            "topic": "/user/topic/authorization",
            "webSocketId": "12345678",
            "authResult": "DONE",
            "messageId": "m-1",
            "data": [1],
        }
    ]


def test_a_session_that_overflows_at_its_answer_gets_no_result_after_it() -> None:
    scene = Scene()
    scene.node.admission.admit("192.0.2.1")
    session = Overflowing(scene.node)
    session.message_received(REGISTER)
    scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert len(session.written) == 1
    assert session.closes == [(CloseCode.POLICY, "slow consumer")]


def test_a_message_id_is_sent_once() -> None:
    scene = Scene()
    scene.register()
    first, second = (b'{"authResult":"DONE","messageId":"%d"}' % i for i in (1, 2))
    for payload in (first, first, second, first):
        scene.node.hub.received(CHANNEL, payload)
    scene.broker.lose(scene.node.hub)
    scene.broker.regain(scene.node.hub)
    scene.node.hub.subscribed(CHANNEL, second)
    assert [message["messageId"] for message in scene.said()] == ["1", "2"]


def test_results_without_a_message_id_are_all_sent() -> None:
    scene = Scene()
    scene.register()
    for _ in range(3):
        scene.node.hub.received(CHANNEL, b"DONE")
    assert len(scene.said()) == 3


@given(st.lists(st.integers(0, 30), max_size=100))
def test_the_latest_message_ids_are_remembered_and_no_more(numbers: list[int]) -> None:
    scene = Scene()
    scene.register()
    remembered: list[int] = []
    for number in numbers:
        scene.session.deliver(b"12345678", Result("DONE", str(number), NO_DATA))
        assert len(scene.said()) == (number not in remembered)
        if number not in remembered:
            remembered = [*remembered, number][-MAX_REMEMBERED_IDS:]
        assert len(scene.session._message_ids) <= MAX_REMEMBERED_IDS


# What the client has had before


def result(number: int) -> bytes:
    return b'{"authResult":"DONE","messageId":"m-%d"}' % number


def registration(**members: object) -> bytes:
    return orjson.dumps({"webSocketId": "12345678", **members})


def test_what_a_client_has_had_before_is_not_sent_again_and_all_else_is() -> None:
    scene = Scene()
    scene.session.message_received(registration(lastMessageId="m-1"))
    scene.node.hub.subscribed(CHANNEL, result(1))
    assert [message.get("messageId", "answer") for message in scene.said()] == ["answer"]
    for number in (1, 2):
        scene.node.hub.received(CHANNEL, result(number))
    scene.node.hub.received(CHANNEL, b"DONE")
    assert [message.get("messageId") for message in scene.said()] == ["m-2", None]


@pytest.mark.parametrize("last", [None, "", "m 1", "x" * 201, 7, ["m-1"], {"m-1": 1}])
def test_who_does_not_say_so_in_the_right_form_registers_and_gets_it_again(last: object) -> None:
    scene = Scene()
    scene.session.message_received(registration(lastMessageId=last))
    scene.node.hub.subscribed(CHANNEL, result(1))
    assert [message.get("messageId", "answer") for message in scene.said()] == ["answer", "m-1"]


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_registration_that_comes_again_may_say_more(confirmed: bool) -> None:
    scene = Scene()
    scene.session.message_received(registration(lastMessageId="m-1"))
    if confirmed:
        scene.node.hub.subscribed(CHANNEL, None)
    scene.session.message_received(registration(lastMessageId="m-2"))
    if not confirmed:
        scene.node.hub.subscribed(CHANNEL, None)
    scene.said()
    for number in (1, 2, 3):
        scene.node.hub.received(CHANNEL, result(number))
    assert [message["messageId"] for message in scene.said()] == ["m-3"]


def test_a_registration_that_is_refused_says_nothing_about_results() -> None:
    scene = Scene()
    scene.register()
    scene.session.message_received(b'{"webSocketId":"another","lastMessageId":"m-1"}')
    scene.said()
    scene.node.hub.received(CHANNEL, result(1))
    assert [message["messageId"] for message in scene.said()] == ["m-1"]


def test_a_client_that_says_ever_more_takes_no_more_memory() -> None:
    scene = Scene()
    for number in range(100):
        scene.session.message_received(registration(lastMessageId=f"m-{number}"))
    scene.session.message_received(registration(lastMessageId="m-99"))
    assert scene.session._message_ids == tuple(
        f"m-{number}" for number in range(100 - MAX_REMEMBERED_IDS, 100)
    )


# The status of push

WATCHING = registration(status=True)


def pushes(scene: Scene) -> list[object]:
    """What was said of push since the last time."""
    return [message["push"] for message in scene.said() if message["topic"] == "/user/topic/status"]


def test_who_watches_is_told_once_and_then_that_it_is_over() -> None:
    scene = Scene()
    scene.session.message_received(WATCHING)
    scene.node.hub.subscribed(CHANNEL, None)
    assert pushes(scene) == []
    for _ in range(2):
        scene.session.degraded()
    assert pushes(scene) == ["degraded"]
    for _ in range(2):
        scene.session.restored()
    assert pushes(scene) == ["restored"]
    scene.session.degraded()
    assert pushes(scene) == ["degraded"]


def test_who_does_not_watch_is_told_nothing() -> None:
    scene = Scene()
    scene.register()
    scene.session.degraded()
    scene.session.restored()
    assert scene.said() == []


def test_who_begins_to_watch_is_told_at_once_after_its_answer() -> None:
    scene = Scene()
    scene.register()
    scene.session.degraded()
    scene.session.message_received(WATCHING)
    assert [message["topic"] for message in scene.said()] == [
        "/user/topic/registration",
        "/user/topic/status",
    ]
    scene.session.message_received(WATCHING)
    assert pushes(scene) == ["degraded"], "and as often as it asks"
    scene.session.restored()
    assert pushes(scene) == ["restored"]


def test_who_began_to_watch_afterwards_is_told_nothing() -> None:
    scene = Scene()
    scene.register()
    scene.session.degraded()
    scene.session.restored()
    scene.session.message_received(WATCHING)
    assert pushes(scene) == []


def test_who_registers_while_results_cannot_be_heard_is_told_at_once() -> None:
    scene = Scene()
    scene.broker.lines_down.add(CHANNEL)
    scene.session.message_received(WATCHING)
    assert pushes(scene) == ["degraded"]
    scene.broker.lines_down.clear()
    scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
    said = scene.said()
    assert [message.get("push") or message.get("authResult", "answer") for message in said] == [
        "answer",
        "CONFIRMED",
        "restored",
    ]


def test_another_line_that_is_down_concerns_nobody_here() -> None:
    scene = Scene()
    scene.broker.lines_down.add(b"websocket:other")
    scene.session.message_received(WATCHING)
    assert pushes(scene) == []


def test_who_watches_the_status_is_told_of_a_denial_and_of_its_end() -> None:
    scene = Scene()
    scene.session.message_received(WATCHING)
    scene.node.hub.denied(CHANNEL)
    assert pushes(scene) == ["degraded"]
    scene.node.hub.retry(CHANNEL)
    scene.node.hub.subscribed(CHANNEL, None)
    assert pushes(scene) == ["restored"]


def test_a_status_that_is_too_much_for_a_client_that_registers_leaves_nothing_in_the_hub() -> None:
    scene = Scene()
    scene.node.admission.admit("192.0.2.1")
    scene.broker.lines_down.add(CHANNEL)
    session = Overflowing(scene.node)
    session._handle(WatchStatus())
    session.message_received(REGISTER)
    assert [orjson.loads(message)["push"] for message in session.written] == ["degraded"]
    assert session.closes == [(CloseCode.POLICY, "slow consumer")]
    scene.node.hub.subscribed(CHANNEL, None)
    scene.node.hub.unsubscribed(CHANNEL)
    assert not scene.hub_knows


def test_who_is_gone_because_of_its_result_is_told_nothing_behind_it() -> None:
    scene = Scene()
    scene.node.admission.admit("192.0.2.1")
    scene.broker.lines_down.add(CHANNEL)
    session = Overflowing(scene.node)
    session.room = 2
    session.message_received(WATCHING)
    scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert len(session.written) == 3, "how push is, the answer, the result"
    assert session.closes == [(CloseCode.POLICY, "slow consumer")]


# Deadlines


def test_who_does_not_register_in_time_is_closed() -> None:
    scene = Scene(registration_timeout=10)
    scene.wait(9.9)
    assert scene.session.closes == []
    scene.wait(0.5)
    assert scene.session.closes == [(CloseCode.POLICY, "registration timeout")]


def test_words_that_register_nothing_buy_no_time() -> None:
    scene = Scene(registration_timeout=10)
    scene.wait(9)
    scene.session.message_received(b'{"webSocketId":""}')
    scene.session.message_received(b"{}")
    scene.wait(1.5)
    assert scene.session.closes == [(CloseCode.POLICY, "registration timeout")]


def test_who_waits_for_redis_is_asked_to_come_back() -> None:
    """Never registrationSucceeded:false, which would send the page to its error screen."""
    scene = Scene(registration_timeout=10)
    scene.broker.lose(scene.node.hub)
    scene.session.message_received(REGISTER)
    scene.wait(9.5)
    assert scene.session.closes == []
    scene.wait(1)
    ((code, _reason),) = scene.session.closes
    assert code is CloseCode.TRY_AGAIN_LATER
    assert scene.said() == []
    assert not scene.hub_knows


def test_redis_may_come_back_in_time() -> None:
    scene = Scene(registration_timeout=10)
    scene.broker.lose(scene.node.hub)
    scene.session.message_received(REGISTER)
    scene.wait(9)
    scene.broker.regain(scene.node.hub)
    scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert [message.get("authResult", "answer") for message in scene.said()] == ["answer", "CONFIRMED"]
    scene.wait(5)
    assert scene.session.closes == []


def test_heartbeats_go_on_for_as_long_as_they_are_answered() -> None:
    scene = Scene(heartbeat=25)
    scene.register()
    assert not scene.wait(25 * 10)
    scene.session.answers = False
    assert scene.wait(25.5)
    assert scene.session.closes == [], "nobody would hear it"
    scene.session.ended()
    assert scene.node.ended == {(1006, "heartbeat unanswered"): 1}


def test_registered_sessions_stay_while_redis_is_away() -> None:
    scene = Scene(heartbeat=25, registration_timeout=10)
    scene.register()
    scene.broker.lose(scene.node.hub)
    scene.wait(600)
    assert scene.session.closes == []
    assert scene.state() is SessionState.REGISTERED


# The end


def test_close_sends_one_close_frame_and_leaves_the_hub_at_once() -> None:
    scene = Scene()
    scene.register()
    scene.broker.taken()
    for _ in range(2):
        scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    assert scene.session.closes == [(CloseCode.SERVICE_RESTART, "service restart")]
    assert scene.broker.taken() == [("unsubscribe", CHANNEL)]
    scene.node.hub.received(CHANNEL, b"CONFIRMED")
    assert scene.said() == []


def test_a_close_frame_that_is_not_answered_ends_in_an_abort() -> None:
    scene = Scene(close_timeout=2)
    scene.register()
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    assert not scene.wait(1.9)
    assert scene.wait(0.5)


@pytest.mark.parametrize("state", ["open", "waiting", "registered", "closing"])
def test_the_end_gives_everything_back_once(state: str) -> None:
    scene = Scene()
    if state in ("waiting", "registered"):
        scene.session.message_received(REGISTER)
    if state == "registered":
        scene.node.hub.subscribed(CHANNEL, None)
    if state == "closing":
        scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    for _ in range(2):
        scene.session.ended()
    assert scene.state() is SessionState.CLOSED
    assert scene.node.admission.sessions == 0
    assert list(scene.node.deadlines) == []
    assert scene.node.ended.total() == 1
    if state == "waiting":
        scene.node.hub.subscribed(CHANNEL, None)
    scene.node.hub.unsubscribed(CHANNEL)
    assert not scene.hub_knows
    scene.wait(100)
    scene.session.close(CloseCode.INTERNAL, "too late")
    assert len(scene.session.closes) == (state == "closing")


def test_the_end_is_counted_by_code_and_reason() -> None:
    scene = Scene()
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    scene.session.ended()
    assert scene.node.ended == {(1012, "service restart"): 1}


def test_a_confirmation_that_comes_too_late_finds_nobody() -> None:
    scene = Scene()
    scene.session.message_received(REGISTER)
    scene.session.close(CloseCode.GOING_AWAY, "")
    scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert scene.said() == []
    assert scene.broker.taken() == [("subscribe", CHANNEL), ("unsubscribe", CHANNEL)]


def test_what_a_carrier_must_bring() -> None:
    scene = Scene()
    bare = Session(scene.node, JSON_WIRE, "192.0.2.1")
    for call in (
        lambda: bare._write(b""),
        lambda: bare._send_close(CloseCode.NORMAL, ""),
        bare._ping,
        bare.abort,
    ):
        with pytest.raises(NotImplementedError):
            call()


# What is logged of it


@pytest.fixture
def debugging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    monkeypatch.setattr("gateway.telemetry.logs.debugging", True)
    with capture_logs() as lines:
        yield lines


def test_a_session_can_be_followed_in_debug_lines(debugging: list[Any]) -> None:
    scene = Scene()
    scene.session.message_received(REGISTER)
    scene.node.hub.subscribed(CHANNEL, None)
    scene.node.hub.received(CHANNEL, b'{"authResult":"DONE","messageId":"m"}')
    scene.session.close(CloseCode.POLICY, "slow consumer")
    scene.session.ended()
    told = [{k: v for k, v in line.items() if k not in ("event", "log_level")} for line in debugging]
    assert [line["event"] for line in debugging] == [
        "session opened",
        "registered",
        "result",
        "session ended",
    ]
    assert told == [
        {"session": 1, "protocol": "json", "transport": "none", "address": "192.0.2.1"},
        {"session": 1, "id": "1234…"},
        {"id": "1234…", "result": "DONE", "sessions": 1, "live": True, "message_id": "m"},
        {"session": 1, "code": 1008, "reason": "slow consumer"},
    ]
    assert all(line["log_level"] == "debug" for line in debugging)


def test_without_debug_lines_none_is_made() -> None:
    with capture_logs() as lines:
        scene = Scene()
        scene.session.message_received(REGISTER)
        scene.node.hub.subscribed(CHANNEL, b"CONFIRMED")
        scene.session.ended()
    assert lines == []


def test_the_facts_about_a_session() -> None:
    scene = Scene()
    assert scene.session.about()["registered_for"] is None
    scene.register()
    scene.node.hub.received(CHANNEL, b'{"authResult":"DONE","messageId":"m1"}')
    scene.clock.now += 2
    assert scene.session.about() == {
        "state": "registered",
        "protocol": "json",
        "transport": "none",
        "address": "192.0.2.1",
        "registered_for": 2.0,
        "results": 1,
        "message_ids": ("m1",),
        "degraded": False,
    }


def test_ends_are_counted_under_few_names_whatever_they_are() -> None:
    shared = node()
    for number in range(1_000):
        shared.count_end(CloseCode.POLICY, f"reason {number}")
    shared.count_end(CloseCode.POLICY, "reason 7")
    assert len(shared.ended) == MAX_ENDS + 1
    assert shared.ended[CloseCode.POLICY, "reason 7"] == 2
    assert shared.ended[OTHER_CODE, OTHER] == 1_000 - MAX_ENDS


# Tokens


class Verifier:
    """Knows one token, and why each other one proves nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def refusal(self, web_socket_id: str, token: str | None) -> str | None:
        self.asked.append((web_socket_id, token))
        return None if token == "good" else "missing" if token is None else "expired"


class SignedScene(Scene):
    """One session on a node that wants a token, or one or an announcement."""

    def __init__(self, *modes: str, **settings: float) -> None:
        super().__init__(**settings)
        self.node.config = self.node.config.model_copy(update={"registration": modes or ("signed",)})
        self.verifier = self.node.verifier = Verifier()

    def ask(self, token: str | None = None, web_socket_id: str = "12345678") -> None:
        message = {"webSocketId": web_socket_id} | ({} if token is None else {"token": token})
        self.session.message_received(orjson.dumps(message))


def test_a_token_that_proves_the_id_admits_it() -> None:
    scene = SignedScene()
    scene.ask("good")
    assert scene.verifier.asked == [("12345678", "good")]
    assert scene.broker.asked == [("subscribe", CHANNEL)]
    scene.node.hub.subscribed(CHANNEL, None)
    assert [answer["registrationSucceeded"] for answer in scene.said()] == [True]
    assert not scene.node.refused_tokens


@pytest.mark.parametrize(("token", "reason"), [(None, "missing"), ("", "expired"), ("bad", "expired")])
def test_any_other_is_refused_without_a_word_to_redis(token: str | None, reason: str) -> None:
    scene = SignedScene()
    with capture_logs() as lines:
        scene.ask(token)
    assert scene.said() == [
        {
            "topic": "/user/topic/registration",
            "webSocketId": "12345678",
            "registrationSucceeded": False,
            "error": {"code": "not_authorized", "message": "the token does not allow this webSocketId"},
        }
    ]
    assert not scene.broker.asked
    assert not scene.hub_knows
    assert scene.node.rejected == {"not_authorized": 1}
    assert scene.node.refused_tokens == {reason: 1}
    (line,) = lines
    assert (line["event"], line["kind"], line["id"]) == ("token refused", reason, "1234…")
    assert line["address"] == "192.0.2.1"
    assert "bad" not in str(line)


def test_the_connection_stays_and_a_better_token_admits() -> None:
    scene = SignedScene()
    scene.ask("bad")
    assert scene.state() is SessionState.OPEN
    scene.ask("good")
    scene.node.hub.subscribed(CHANNEL, None)
    assert [answer["registrationSucceeded"] for answer in scene.said()] == [False, True]


def test_without_one_it_is_closed_in_time() -> None:
    scene = SignedScene()
    scene.ask("bad")
    scene.wait(11)
    assert scene.session.closes == [(CloseCode.POLICY, "registration timeout")]


def test_a_connection_proves_its_id_once() -> None:
    scene = SignedScene()
    scene.ask("good")
    scene.ask("bad")
    scene.node.hub.subscribed(CHANNEL, None)
    scene.ask()
    assert [answer["registrationSucceeded"] for answer in scene.said()] == [True, True, True]
    assert len(scene.verifier.asked) == 1
    scene.ask("good", "another")
    assert scene.node.rejected == {"already_registered": 1}
    assert len(scene.verifier.asked) == 1


def test_a_malformed_id_is_no_matter_of_a_token() -> None:
    scene = SignedScene()
    scene.ask("good", "a b")
    assert scene.node.rejected == {"invalid_id": 1}
    assert not scene.verifier.asked


def test_refused_tokens_use_the_allowance_up() -> None:
    """To try one costs a node more than to read a message."""
    scene = SignedScene()

    def attempt() -> None:
        scene.session.pay_message()
        scene.ask("bad")

    for _ in range(4):
        attempt()
    with pytest.raises(WireError) as caught:
        attempt()
    assert (caught.value.code, caught.value.reason) == (CloseCode.POLICY, "too many messages")
    assert len(scene.node.budgets) == 1, "the address pays, too"


@pytest.mark.parametrize("rate", [5, 20, 100])
def test_one_refused_token_ends_no_session(rate: float) -> None:
    """With STOMP: CONNECT, SUBSCRIBE, SEND, and a moment later SUBSCRIBE again."""
    scene = SignedScene("announced", "signed", messages_per_second=rate)
    for _ in range(3):
        scene.session.pay_message()
    scene.ask("bad")
    scene.session.pay_message()


def test_a_good_token_costs_no_more_than_its_message() -> None:
    scene = SignedScene()
    scene.ask("good")
    for _ in range(20):
        scene.session.pay_message()


def test_with_announced_a_token_admits_at_once() -> None:
    scene = SignedScene("announced", "signed")
    scene.ask("good")
    assert scene.broker.asked == [("subscribe", CHANNEL)]


def test_with_announced_a_registration_needs_no_token() -> None:
    scene = SignedScene("announced", "signed")
    with capture_logs() as lines:
        scene.ask()
    assert not lines
    assert not scene.node.refused_tokens
    assert scene.broker.asked == [("subscribe", CHANNEL)]
    assert scene.session.refuse_unknown(b"12345678"), "it needs the announcement"


def test_with_announced_a_bad_token_proves_nothing_and_harms_nothing() -> None:
    scene = SignedScene("announced", "signed")
    with capture_logs() as lines:
        scene.ask("bad")
    assert scene.node.refused_tokens == {"expired": 1}
    assert lines
    assert scene.broker.asked == [("subscribe", CHANNEL)]
    assert scene.session.refuse_unknown(b"12345678")


def test_a_token_that_comes_while_redis_is_asked_proves_the_id() -> None:
    scene = SignedScene("announced", "signed")
    scene.ask()
    scene.ask("good")
    scene.ask("bad")
    assert not scene.session.refuse_unknown(b"12345678")
    scene.node.hub.subscribed(CHANNEL, None)
    assert [answer["registrationSucceeded"] for answer in scene.said()] == [True, True, True]


def test_what_is_proven_of_one_id_says_nothing_of_another() -> None:
    scene = SignedScene("announced", "signed")
    scene.ask("good")
    scene.session._leave_hub()
    scene.ask(None, "another")
    assert scene.session.refuse_unknown(b"another")


def test_an_empty_token_is_none() -> None:
    scene = SignedScene("announced", "signed")
    with capture_logs() as lines:
        scene.ask("")
    assert not lines
    assert not scene.node.refused_tokens


@pytest.mark.parametrize("modes", [("signed",), ("announced", "signed")])
def test_a_refused_token_gets_its_answer_at_the_lowest_rate(modes: tuple[str, ...]) -> None:
    scene = SignedScene(*modes, messages_per_second=1)
    scene.session.pay_message()
    scene.ask("bad")
    assert scene.session.state is not SessionState.CLOSING
    assert bool(scene.broker.asked) is (len(modes) == 2)


def test_a_refused_registration_says_nothing_of_the_next() -> None:
    scene = SignedScene()
    scene.session.message_received(b'{"webSocketId":"12345678","lastMessageId":"m"}')
    scene.ask("good")
    scene.node.hub.subscribed(CHANNEL, b'{"authResult":"A","messageId":"m"}')
    assert [message.get("messageId") for message in scene.said()] == [None, None, "m"]

    other = announced()
    other.session.message_received(b'{"webSocketId":"12345678","lastMessageId":"m"}')
    other.node.hub.subscribed(CHANNEL, None)
    other.node.hub.unsubscribed(CHANNEL)
    other.session.message_received(REGISTER)
    other.node.hub.subscribed(CHANNEL, b'{"authResult":"A","messageId":"m"}')
    assert other.said()[-1]["messageId"] == "m"


def test_a_proven_id_needs_no_announcement() -> None:
    scene = SignedScene("announced", "signed")
    scene.ask("good")
    assert not scene.session.refuse_unknown(b"12345678")


def test_without_signed_a_token_is_ignored() -> None:
    scene = Scene()
    scene.session.message_received(b'{"webSocketId":"12345678","token":"whatever"}')
    assert scene.broker.asked == [("subscribe", CHANNEL)]


# Events


class EventScene(Scene):
    """A session of which events are recorded."""

    def __init__(self, **settings: float) -> None:
        super().__init__(**settings)
        self.log = EventLog("node-1", "run", self.clock)
        self.node.events = self.log
        self.node.admission.admit("192.0.2.1")
        self.session = Spoken(self.node)

    def told(self) -> list[tuple[str, ...]]:
        """Kind and values of what was recorded since the last time."""
        return [(event.kind, *map(str, event.values)) for event in self.log.take(100)]


def test_without_events_nothing_is_kept_for_them() -> None:
    scene = Scene()
    scene.session.requested_with({"Origin": "https://bank.example"})
    scene.register()
    assert scene.session._events is None


def test_the_story_of_a_session() -> None:
    scene = EventScene()
    scene.session.requested_with({"Origin": "https://bank.example", "User-Agent": "Mozilla"})
    scene.session.message_received(REGISTER)
    assert scene.told() == [], "it has no answer yet"
    scene.node.hub.subscribed(CHANNEL, b'{"authResult":"FIRST","messageId":"1"}')
    scene.node.hub.received(CHANNEL, b'{"authResult":"FIRST","messageId":"1"}')
    scene.node.hub.received(CHANNEL, b"SECOND")
    scene.clock.now += 2
    scene.session.message_received(REGISTER)
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    assert scene.told() == [
        (
            *("registered", "192.0.2.1", "https://bank.example", "Mozilla"),
            *("json", "none", "false"),
        ),
        ("delivered", "1", "FIRST", "true"),
        ("delivered", "", "SECOND", "false"),
    ]
    scene.session.ended()
    scene.session.ended()
    assert scene.told() == [("closed", "1012", "service restart", "gateway", "2.000")]


def test_a_result_that_is_read_again_after_an_outage_is_retained() -> None:
    scene = EventScene()
    scene.register()
    scene.broker.lose(scene.node.hub)
    scene.broker.regain(scene.node.hub)
    scene.node.hub.subscribed(CHANNEL, b"RETAINED")
    assert [told[0] for told in scene.told()] == ["registered", "delivered"]


def test_a_client_that_has_had_results_is_resumed() -> None:
    scene = EventScene()
    scene.session.message_received(b'{"webSocketId":"12345678","lastMessageId":"m"}')
    scene.node.hub.subscribed(CHANNEL, b'{"authResult":"A","messageId":"m"}')
    (told,) = scene.told()
    assert (told[0], told[-1]) == ("registered", "true")


def test_refused_registrations_and_a_session_without_an_answer() -> None:
    scene = EventScene()
    scene.session.message_received(b'{"webSocketId":"a b"}')
    scene.session.message_received(REGISTER)
    scene.session.message_received(b'{"webSocketId":"another"}')
    scene.session.ended()
    assert scene.told() == [
        ("refused", "invalid_id", "192.0.2.1"),
        ("refused", "already_registered", "192.0.2.1"),
    ]


def test_a_client_that_disconnects_has_closed() -> None:
    scene = EventScene()
    scene.register()
    scene.session._handle(Disconnect(None))
    scene.session.ended()
    assert scene.told()[1][:4] == ("closed", "1000", "disconnected", "client")


def test_who_closes_first_has_closed() -> None:
    scene = EventScene()
    scene.register()
    scene.session.close(CloseCode.SERVICE_RESTART, "service restart")
    scene.session.close(CloseCode.NORMAL, "disconnected", by_client=True)
    scene.session.ended()
    assert scene.told()[1][:4] == ("closed", "1012", "service restart", "gateway")


def test_a_node_that_stops_at_once_has_closed() -> None:
    scene = EventScene()
    scene.register()
    scene.session.stop()
    assert scene.session.aborted
    scene.session.ended()
    assert scene.told()[1][:4] == ("closed", "1006", "node stopped", "gateway")

    closing = EventScene()
    closing.register()
    closing.session.close(CloseCode.SERVICE_RESTART, "service restart")
    closing.session.stop()
    closing.session.ended()
    assert closing.told()[1][:4] == ("closed", "1012", "service restart", "gateway")


def test_a_lost_connection_is_the_networks() -> None:
    scene = EventScene()
    scene.register()
    scene.session.ended()
    assert scene.told()[1][:4] == ("closed", "1006", "connection lost", "network")


def test_results_that_the_wire_keeps_are_delivered_when_it_gives_them_away() -> None:
    scene = EventScene()
    scene.session._wire = StompWire(16_384)

    def says(frame: bytes) -> None:
        scene.session.message_received(frame + b"\0")

    says(b"CONNECT\naccept-version:1.2\n\n")
    says(b'SEND\ndestination:/app/registration\n\n{"webSocketId":"12345678"}')
    scene.node.hub.subscribed(CHANNEL, None)
    for number in range(2):
        scene.node.hub.received(CHANNEL, b'{"authResult":"A","messageId":"%d"}' % number)
    assert [told[0] for told in scene.told()] == ["registered"]
    says(b"SUBSCRIBE\nid:0\ndestination:/user/topic/registration\n\n")
    assert scene.told() == []
    says(b"SUBSCRIBE\nid:1\ndestination:/user/topic/authorization\n\n")
    assert scene.told() == [("delivered", "0", "A", "false"), ("delivered", "1", "A", "false")]
    scene.node.hub.received(CHANNEL, b"B")
    assert scene.told() == [("delivered", "", "B", "false")]
    scene.session._handle(Reply(b"", kept=1))
    assert scene.told() == [], "it has nothing more"
    scene.session._events = None
    scene.session._handle(Reply(b"", kept=1))
