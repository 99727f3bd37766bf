"""gateway.hub: what the broker is asked, what members are told, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.hub import Hub
from gateway.messages import Result

from . import strategies  # noqa: F401 - sets hypothesis up
from .fakes import Member, Subscriber

CHANNEL = b"websocket:id"


class Scene:
    """A connected hub, the broker it asks, and members that register for `id`."""

    def __init__(self, max_result_size: int = 1_000) -> None:
        self.hub = Hub("websocket:", max_result_size)
        self.broker = Subscriber()
        self.hub.attach(self.broker)

    def registered(self, name: str = "member") -> Member:
        member = Member(name)
        self.hub.register(b"id", member)
        self.hub.subscribed(CHANNEL, None)
        assert member.heard == [("acknowledge", b"id")]
        member.heard.clear()
        self.broker.asked.clear()
        return member


def test_registering_subscribes_the_prefixed_channel() -> None:
    scene = Scene()
    assert scene.hub.register(b"id", Member()) == CHANNEL
    assert scene.broker.asked == [("subscribe", CHANNEL)]
    assert scene.hub.web_socket_id(CHANNEL) == b"id"
    assert scene.hub.channels == 1


def test_a_member_hears_nothing_before_redis_has_answered() -> None:
    scene = Scene()
    member = Member()
    scene.hub.register(b"id", member)
    scene.hub.received(CHANNEL, b"CONFIRMED")
    assert member.heard == []


def test_first_the_answer_then_what_is_retained_then_what_came_live() -> None:
    scene = Scene()
    member = Member()
    scene.hub.register(b"id", member)
    scene.hub.received(CHANNEL, b"SECOND")
    scene.hub.received(CHANNEL, b"THIRD")
    scene.hub.subscribed(CHANNEL, b"FIRST")
    scene.hub.received(CHANNEL, b"FOURTH")
    assert member.heard == [
        ("acknowledge", b"id"),
        ("deliver", "FIRST"),
        ("deliver", "SECOND"),
        ("deliver", "THIRD"),
        ("deliver", "FOURTH"),
    ]


def test_a_result_that_is_retained_and_came_live_is_delivered_once() -> None:
    scene = Scene()
    member = Member()
    scene.hub.register(b"id", member)
    scene.hub.received(CHANNEL, b"CONFIRMED")
    scene.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert member.heard == [("acknowledge", b"id"), ("deliver", "CONFIRMED")]


def test_every_member_of_the_channel_gets_it_and_no_other() -> None:
    scene = Scene()
    first, second, other = scene.registered("first"), scene.registered("second"), Member("other")
    scene.hub.register(b"other", other)
    scene.hub.received(CHANNEL, b"CONFIRMED")
    assert first.heard == second.heard == [("deliver", "CONFIRMED")]
    assert other.heard == []
    assert scene.hub.delivered == 2


def test_the_second_member_reads_and_gets_what_is_retained_alone() -> None:
    scene = Scene()
    first, second = scene.registered("first"), Member("second")
    scene.hub.register(b"id", second)
    assert scene.broker.asked == [("read", CHANNEL)]
    scene.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert first.heard == []
    assert second.heard == [("acknowledge", b"id"), ("deliver", "CONFIRMED")]


def test_who_has_left_gets_nothing() -> None:
    scene = Scene()
    first, second = scene.registered("first"), scene.registered("second")
    scene.hub.leave(CHANNEL, first)
    scene.hub.received(CHANNEL, b"CONFIRMED")
    assert first.heard == []
    scene.hub.leave(CHANNEL, second)
    assert scene.broker.asked == [("unsubscribe", CHANNEL)]
    scene.hub.unsubscribed(CHANNEL)
    assert scene.hub.channels == 0


def test_who_comes_while_the_channel_is_given_up_is_subscribed_after_it() -> None:
    scene = Scene()
    scene.hub.leave(CHANNEL, scene.registered())
    member = Member()
    scene.hub.register(b"id", member)
    scene.hub.unsubscribed(CHANNEL)
    assert scene.broker.taken() == [("unsubscribe", CHANNEL), ("subscribe", CHANNEL)]
    scene.hub.subscribed(CHANNEL, None)
    assert member.heard == [("acknowledge", b"id")]


def test_a_gap_asks_again_and_brings_what_is_retained_to_those_who_listen() -> None:
    scene = Scene()
    member = scene.registered()
    scene.broker.lose(scene.hub)
    waiting = Member("waiting")
    scene.hub.register(b"id", waiting)
    assert scene.broker.asked == []
    assert scene.broker.regain(scene.hub) == [CHANNEL]
    scene.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert member.heard == [("deliver", "CONFIRMED")]
    assert waiting.heard == [("acknowledge", b"id"), ("deliver", "CONFIRMED")]


def test_a_refusal_reaches_everybody_of_the_channel() -> None:
    scene = Scene()
    listening, waiting = scene.registered("listening"), Member("waiting")
    scene.hub.register(b"id", waiting)
    scene.hub.refused(CHANNEL, "NOPERM")
    assert listening.heard == waiting.heard == [("refuse", "not_allowed")]
    assert scene.hub.channels == 0


def test_what_is_no_result_is_counted_and_goes_no_further() -> None:
    scene = Scene(max_result_size=1_000)
    member = scene.registered()
    for payload in (b"confirmed", b"{}", b"{", b"X" * 1_001, b'{"authResult":"A","webSocketId":"other"}'):
        scene.hub.received(CHANNEL, payload)
    assert member.heard == []
    assert scene.hub.delivered == 0
    assert scene.hub.invalid == {
        "not a result": 1,
        "no authResult": 1,
        "not JSON": 1,
        "too big": 1,
        "another webSocketId": 1,
    }


def test_a_retained_result_that_is_invalid_does_not_keep_anybody_from_registering() -> None:
    scene = Scene()
    member = Member()
    scene.hub.register(b"id", member)
    scene.hub.subscribed(CHANNEL, b"\xff")
    scene.hub.received(CHANNEL, b"CONFIRMED")
    assert member.heard == [("acknowledge", b"id"), ("deliver", "CONFIRMED")]


def test_what_nobody_waits_for_is_not_even_parsed() -> None:
    scene = Scene()
    scene.hub.received(CHANNEL, b"\xff")
    scene.hub.subscribed(CHANNEL, b"\xff")
    scene.hub.unsubscribed(CHANNEL)
    scene.hub.refused(CHANNEL, "NOPERM")
    assert not scene.hub.invalid


class Quitter(Member):
    """Leaves from within whatever it is told, as a session does whose buffer is full."""

    def __init__(self, hub: Hub) -> None:
        super().__init__("quitter")
        self._hub = hub

    def acknowledge(self, web_socket_id: bytes) -> None:
        super().acknowledge(web_socket_id)
        self._hub.leave(CHANNEL, self)

    def deliver(self, web_socket_id: bytes, result: Result) -> None:
        super().deliver(web_socket_id, result)
        self._hub.leave(CHANNEL, self)


@pytest.mark.parametrize("retained", [None, b"CONFIRMED"])
def test_a_member_may_leave_from_within_what_it_is_told(retained: bytes | None) -> None:
    scene = Scene()
    members = [Quitter(scene.hub), Member("steady"), Quitter(scene.hub)]
    for member in members:
        scene.hub.register(b"id", member)
    scene.hub.subscribed(CHANNEL, retained)
    assert all(member.heard[0] == ("acknowledge", b"id") for member in members)
    members[1].heard.clear()
    scene.hub.received(CHANNEL, b"DONE")
    assert members[1].heard == [("deliver", "DONE")]
    assert ("deliver", "DONE") not in members[0].heard + members[2].heard


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"CONFIRMED", b'{"authResult":"A"}']), max_size=10))
def test_no_payload_harms_those_that_follow(payloads: list[bytes]) -> None:
    scene = Scene()
    member = scene.registered()
    for payload in payloads:
        scene.hub.received(CHANNEL, payload)
    scene.hub.received(CHANNEL, b"CONFIRMED")
    assert member.heard[-1] == ("deliver", "CONFIRMED")
    assert scene.hub.delivered + scene.hub.invalid.total() == len(payloads) + 1
