"""What the broker is asked, what members are told, and in which order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.core.hub import NOTICE_BATCH, Hub
from gateway.core.subscriptions import Slots
from gateway.messages import Result
from gateway.redis.cluster.slots import key_slot
from gateway.telemetry import logs
from gateway.telemetry.latency import Latency

from ..fakes import Member, Subscriber
from ..wire import strategies  # noqa: F401 - sets hypothesis up

CHANNEL = b"websocket:id"


class Scene:
    """A connected hub, the broker it asks, and members that register for `id`."""

    def __init__(
        self,
        max_result_size: int = 1_000,
        slot_of: Callable[[bytes], int] | None = None,
        *,
        announced: bool = False,
    ) -> None:
        self.broker = Subscriber()
        self.hub = Hub(
            "websocket:", max_result_size, lambda _hub: self.broker, slot_of=slot_of, announced=announced
        )

    def registered(self, name: str = "member") -> Member:
        member = Member(name)
        self.hub.register(b"id", member)
        self.hub.subscribed(CHANNEL, None)
        assert member.heard == [("confirm", b"id")]
        member.heard.clear()
        self.broker.asked.clear()
        return member


def test_registering_subscribes_the_prefixed_channel() -> None:
    scene = Scene()
    assert scene.hub.register(b"id", Member()) == CHANNEL
    assert scene.broker.asked == [("subscribe", CHANNEL)]
    assert scene.hub.web_socket_id(CHANNEL) == b"id"
    assert scene.hub.channels == 1


def test_an_id_may_have_as_many_members_as_the_setting_says() -> None:
    hub = Hub("websocket:", 1_000, lambda _hub: Subscriber(), max_members=1)
    assert hub.register(b"id", Member()) == CHANNEL
    late = Member()
    assert hub.register(b"id", late) is None
    assert late not in hub.members(b"id")
    assert hub.register(b"other", Member()) is not None


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
        ("confirm", b"id"),
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
    assert member.heard == [("confirm", b"id"), ("deliver", "CONFIRMED")]


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
    assert second.heard == [("confirm", b"id"), ("deliver", "CONFIRMED")]


def test_a_channel_whose_member_left_before_redis_answered_is_given_up() -> None:
    scene = Scene()
    member = Member()
    scene.hub.register(b"id", member)
    scene.hub.leave(CHANNEL, member)
    scene.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert scene.broker.asked == [("subscribe", CHANNEL), ("unsubscribe", CHANNEL)]
    assert member.heard == []


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
    assert member.heard == [("confirm", b"id")]


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
    assert waiting.heard == [("confirm", b"id"), ("deliver", "CONFIRMED")]


def test_a_denial_is_an_outage_for_everybody_of_the_channel() -> None:
    scene = Scene()
    listening, waiting = scene.registered("listening"), Member("waiting")
    scene.hub.lost(CHANNEL)
    scene.hub.register(b"id", waiting)
    assert scene.hub.denied(CHANNEL)
    assert listening.heard == waiting.heard == [("degraded", "")]
    assert scene.hub.retry(CHANNEL)
    scene.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert listening.heard[1:] == [("deliver", "CONFIRMED"), ("restored", "")]
    assert waiting.heard[1:] == [("confirm", b"id"), ("deliver", "CONFIRMED"), ("restored", "")]


def test_a_denied_channel_that_nobody_waits_for_is_not_wanted() -> None:
    scene = Scene()
    member = Member()
    scene.hub.register(b"id", member)
    scene.hub.leave(CHANNEL, member)
    assert not scene.hub.denied(CHANNEL)
    assert not scene.hub.retry(CHANNEL)


def told(scene: Scene, slots: Slots | None = None) -> int:
    """The hub tells of a line that is down; returns how many shares that took."""
    return 1 + sum(1 for _ in scene.hub.degraded(slots))


def test_who_waits_and_who_listens_is_told_that_nothing_can_be_heard() -> None:
    scene = Scene()
    listening, waiting = scene.registered("listening"), Member("waiting")
    scene.broker.lose(scene.hub)
    scene.hub.register(b"id", waiting)
    assert told(scene) == 1
    assert listening.heard == waiting.heard == [("degraded", "")]


def test_it_is_over_after_what_is_retained_and_for_newcomers_after_their_answer() -> None:
    scene = Scene()
    veteran, newcomer = scene.registered("veteran"), Member("newcomer")
    scene.broker.lose(scene.hub)
    scene.hub.register(b"id", newcomer)
    told(scene)
    scene.broker.regain(scene.hub)
    scene.hub.subscribed(CHANNEL, b"CONFIRMED")
    assert veteran.heard == [("degraded", ""), ("deliver", "CONFIRMED"), ("restored", "")]
    assert newcomer.heard == [
        ("degraded", ""),
        ("confirm", b"id"),
        ("deliver", "CONFIRMED"),
        ("restored", ""),
    ]


def test_it_is_over_also_where_nothing_was_retained() -> None:
    scene = Scene()
    veteran = scene.registered()
    scene.broker.lose(scene.hub)
    told(scene)
    scene.broker.regain(scene.hub)
    scene.hub.subscribed(CHANNEL, None)
    assert veteran.heard == [("degraded", ""), ("restored", "")]


def test_those_are_not_told_who_are_heard_for_by_now() -> None:
    scene = Scene()
    scene.broker.lose(scene.hub)
    back, still = Member("back"), Member("still")
    scene.hub.register(b"back", back)
    scene.hub.register(b"still", still)
    scene.broker.regain(scene.hub)
    scene.hub.subscribed(b"websocket:back", None)
    told(scene)
    assert back.heard == [("confirm", b"back")]
    assert still.heard == [("degraded", "")]


def test_of_a_cluster_only_those_in_the_slots_that_cannot_be_heard() -> None:
    scene = Scene(slot_of=key_slot)
    scene.broker.lose(scene.hub)
    members = {name: Member(name.decode()) for name in (b"a", b"b", b"c")}
    for name, member in members.items():
        scene.hub.register(name, member)
    told(scene, [key_slot(b"websocket:a"), key_slot(b"websocket:c")])
    assert [name for name, member in members.items() if member.is_degraded] == [b"a", b"c"]
    told(scene, [])
    assert not members[b"b"].heard


def test_it_is_told_in_shares_and_the_table_may_change_between_two() -> None:
    scene = Scene()
    scene.broker.lose(scene.hub)
    members = [Member(f"{i}") for i in range(3 * NOTICE_BATCH)]
    for member in members:
        scene.hub.register(member.name.encode(), member)
    share = scene.hub.degraded()
    next(share)
    first = [member for member in members if member.heard]
    assert 0 < len(first) <= NOTICE_BATCH
    gone, back, late = members[-1], members[-2], Member("late")
    scene.hub.leave(b"websocket:" + gone.name.encode(), gone)
    scene.hub.register(b"late", late)
    scene.broker.regain(scene.hub)
    scene.hub.subscribed(b"websocket:" + back.name.encode(), None)
    assert len(list(share)) >= 1
    assert gone.heard == late.heard == []
    assert back.heard == [("confirm", back.name.encode())], "or it would be degraded for ever"
    assert all(member.heard == [("degraded", "")] for member in members[:-2])


@pytest.mark.parametrize(("channels", "members"), [(10, 1), (1_000, 1), (100, 10), (1, 1_000)])
def test_no_share_is_much_larger_than_the_others(channels: int, members: int) -> None:
    scene = Scene()
    scene.broker.lose(scene.hub)
    everybody = [(b"%d" % i, Member()) for i in range(channels) for _ in range(members)]
    for name, member in everybody:
        scene.hub.register(name, member)
    before = 0
    for _ in scene.hub.degraded():
        now = sum(1 for _, member in everybody if member.heard)
        assert now - before < NOTICE_BATCH + members, (
            "one channel's members are told in one go, as a result is"
        )
        before = now
    assert all(member.heard == [("degraded", "")] for _, member in everybody)


def test_channels_that_need_no_word_count_for_the_share_too() -> None:
    scene = Scene()
    for i in range(5 * NOTICE_BATCH):
        scene.hub.register(b"%d" % i, Member())
        scene.hub.subscribed(b"websocket:%d" % i, None)
    assert told(scene) == 6


def test_the_hub_says_what_the_broker_knows() -> None:
    scene = Scene()
    assert not scene.hub.is_degraded(CHANNEL)
    scene.broker.lines_down.add(CHANNEL)
    assert scene.hub.is_degraded(CHANNEL)


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
    assert member.heard == [("confirm", b"id"), ("deliver", "CONFIRMED")]


@pytest.mark.parametrize("announced", [False, True])
def test_an_empty_retained_value_is_no_result_and_no_mistake(announced: bool) -> None:
    scene = Scene(announced=announced)
    veteran, newcomer = Member("veteran"), Member("newcomer")
    scene.hub.register(b"id", veteran)
    with capture_logs() as lines:
        scene.hub.subscribed(CHANNEL, b"")
        scene.broker.lose(scene.hub)
        scene.broker.regain(scene.hub)
        scene.hub.register(b"id", newcomer)
        scene.hub.subscribed(CHANNEL, b"")
    assert veteran.heard == newcomer.heard == [("confirm", b"id")]
    assert not scene.hub.invalid
    assert lines == []


def test_an_empty_payload_that_is_published_is_invalid_as_ever() -> None:
    scene = Scene(announced=True)
    member = Member()
    scene.hub.register(b"id", member)
    scene.hub.subscribed(CHANNEL, b"")
    scene.hub.received(CHANNEL, b"")
    assert member.heard == [("confirm", b"id")]
    assert scene.hub.invalid == {"not a result": 1}


class Judged(Member):
    """Has to be announced, unless it is `proven`; leaves when it is refused, as a session does."""

    def __init__(self, name: str, hub: Hub[Subscriber], *, proven: bool = False) -> None:
        super().__init__(name)
        self._hub = hub
        self._proven = proven

    def refuse_unknown(self, web_socket_id: bytes) -> bool:
        if self._proven:
            return False
        self.heard.append(("refuse", web_socket_id))
        self._hub.leave(CHANNEL, self)
        return True


def judged(scene: Scene, *names: str) -> list[Judged]:
    members = [Judged(name, scene.hub, proven=name == "proven") for name in names]
    for member in members:
        scene.hub.register(b"id", member)
    return members


def test_an_id_that_nobody_has_announced_is_refused_and_unsubscribed() -> None:
    scene = Scene(announced=True)
    members = judged(scene, "one", "two")
    scene.hub.subscribed(CHANNEL, None)
    assert [member.heard for member in members] == [[("refuse", b"id")]] * 2
    assert scene.broker.taken() == [("subscribe", CHANNEL), ("unsubscribe", CHANNEL)]
    assert scene.hub.registrations_confirmed == 0
    scene.hub.unsubscribed(CHANNEL)
    assert scene.hub.channels == 0


def test_an_id_is_known_by_a_retained_result_and_by_one_that_came_live() -> None:
    scene = Scene(announced=True)
    (early,) = judged(scene, "early")
    scene.hub.subscribed(CHANNEL, b"DONE")
    (late,) = judged(scene, "late")
    scene.hub.received(CHANNEL, b"LIVE")
    scene.hub.subscribed(CHANNEL, None)
    assert early.heard == [("confirm", b"id"), ("deliver", "DONE"), ("deliver", "LIVE")]
    assert late.heard == [("confirm", b"id"), ("deliver", "LIVE")]


def test_the_read_judges_newcomers_and_nobody_who_was_confirmed() -> None:
    scene = Scene(announced=True)
    (first,) = judged(scene, "first")
    scene.hub.subscribed(CHANNEL, b"")
    (second,) = judged(scene, "second")
    scene.hub.subscribed(CHANNEL, None)  # it has expired meanwhile
    assert (first.heard, second.heard) == ([("confirm", b"id")], [("refuse", b"id")])
    assert scene.broker.taken() == [("subscribe", CHANNEL), ("read", CHANNEL)]
    scene.hub.received(CHANNEL, b"DONE")
    assert (first.heard[1:], second.heard[1:]) == ([("deliver", "DONE")], [])


def test_after_an_outage_that_has_emptied_redis_only_newcomers_are_refused() -> None:
    scene = Scene(announced=True)
    (veteran,) = judged(scene, "veteran")
    scene.hub.subscribed(CHANNEL, b"")
    scene.broker.lose(scene.hub)
    told(scene)
    (newcomer,) = judged(scene, "newcomer")
    assert scene.broker.regain(scene.hub) == [CHANNEL]
    scene.hub.subscribed(CHANNEL, None)
    assert veteran.heard == [("confirm", b"id"), ("degraded", ""), ("restored", "")]
    assert newcomer.heard == [("refuse", b"id")]
    scene.hub.lost(CHANNEL)  # its slot has moved, or the reconciler has missed it
    scene.hub.subscribed(CHANNEL, None)
    assert scene.hub.members(b"id") == (veteran,)


def test_a_member_that_needs_no_announcement_is_confirmed_beside_one_that_does() -> None:
    scene = Scene(announced=True)
    unknown, proven = judged(scene, "unknown", "proven")
    scene.hub.subscribed(CHANNEL, None)
    assert (unknown.heard, proven.heard) == ([("refuse", b"id")], [("confirm", b"id")])
    assert scene.hub.members(b"id") == (proven,)
    assert scene.hub.registrations_confirmed == 1


def test_a_denied_read_judges_nobody() -> None:
    scene = Scene(announced=True)
    (member,) = judged(scene, "member")
    scene.hub.denied(CHANNEL)
    assert member.heard == [("degraded", "")]
    assert scene.hub.retry(CHANNEL)
    scene.hub.subscribed(CHANNEL, b"")
    assert member.heard[1:] == [("confirm", b"id"), ("restored", "")]


def test_who_was_refused_may_come_back_before_redis_has_unsubscribed() -> None:
    scene = Scene(announced=True)
    (member,) = judged(scene, "member")
    scene.hub.subscribed(CHANNEL, None)
    scene.hub.register(b"id", member)
    scene.hub.unsubscribed(CHANNEL)
    scene.hub.subscribed(CHANNEL, b"")
    assert member.heard == [("refuse", b"id"), ("confirm", b"id")]
    assert [asked for asked, _ in scene.broker.taken()] == ["subscribe", "unsubscribe", "subscribe"]


def test_what_nobody_waits_for_is_not_even_parsed() -> None:
    scene = Scene()
    scene.hub.received(CHANNEL, b"\xff")
    scene.hub.subscribed(CHANNEL, b"\xff")
    scene.hub.unsubscribed(CHANNEL)
    scene.hub.denied(CHANNEL)
    assert not scene.hub.invalid


class Quitter(Member):
    """Leaves from within whatever it is told, as a session does whose buffer is full."""

    def __init__(self, hub: Hub[Subscriber]) -> None:
        super().__init__("quitter")
        self._hub = hub

    def confirm(self, web_socket_id: bytes) -> None:
        super().confirm(web_socket_id)
        self._hub.leave(CHANNEL, self)

    def deliver(self, web_socket_id: bytes, result: Result, retained: bool = False) -> None:
        super().deliver(web_socket_id, result)
        self._hub.leave(CHANNEL, self)

    def degraded(self) -> None:
        super().degraded()
        self._hub.leave(CHANNEL, self)


@pytest.mark.parametrize("retained", [None, b"CONFIRMED"])
def test_a_member_may_leave_from_within_what_it_is_told(retained: bytes | None) -> None:
    scene = Scene()
    members = [Quitter(scene.hub), Member("steady"), Quitter(scene.hub)]
    for member in members:
        scene.hub.register(b"id", member)
    scene.hub.subscribed(CHANNEL, retained)
    assert all(member.heard[0] == ("confirm", b"id") for member in members)
    members[1].heard.clear()
    scene.hub.received(CHANNEL, b"DONE")
    assert members[1].heard == [("deliver", "DONE")]
    assert ("deliver", "DONE") not in members[0].heard + members[2].heard


def test_a_member_may_leave_from_within_that_nothing_can_be_heard() -> None:
    scene = Scene()
    scene.broker.lose(scene.hub)
    members = [Quitter(scene.hub), Member("steady"), Quitter(scene.hub)]
    for member in members:
        scene.hub.register(b"id", member)
    told(scene)
    assert all(member.heard == [("degraded", "")] for member in members)
    scene.broker.regain(scene.hub)
    scene.hub.subscribed(CHANNEL, None)
    assert [len(member.heard) for member in members] == [1, 3, 1]


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"CONFIRMED", b'{"authResult":"A"}']), max_size=10))
def test_no_payload_harms_those_that_follow(payloads: list[bytes]) -> None:
    scene = Scene()
    member = scene.registered()
    for payload in payloads:
        scene.hub.received(CHANNEL, payload)
    scene.hub.received(CHANNEL, b"CONFIRMED")
    assert member.heard[-1] == ("deliver", "CONFIRMED")
    assert scene.hub.delivered + scene.hub.invalid.total() == len(payloads) + 1


def test_what_the_hub_knows_of_an_id() -> None:
    scene = Scene()
    member = scene.registered()
    assert scene.hub.channel(b"id") == CHANNEL
    assert (scene.hub.members(b"id"), scene.hub.members(b"other")) == ((member,), ())
    assert (scene.hub.confirmed(), scene.hub.count_confirmed()) == ([CHANNEL], 1)
    assert (scene.hub.is_confirmed(CHANNEL), scene.hub.is_confirmed(b"websocket:other")) == (True, False)


def test_a_subscription_that_redis_ends_is_asked_for_again() -> None:
    scene = Scene()
    scene.registered()
    scene.hub.lost(CHANNEL)
    assert scene.broker.taken() == [("subscribe", CHANNEL)]


def test_the_origin_of_a_live_result_is_measured() -> None:
    latency = Latency(lambda _call: None, lambda: 0.0, lambda: 0.0)
    broker = Subscriber()
    hub = Hub("websocket:", 1_000, lambda _hub: broker, latency=latency)
    hub.register(b"id", Member())
    hub.subscribed(CHANNEL, None)
    hub.received(CHANNEL, b'{"authResult":"DONE","publishedAt":1500}')
    hub.received(CHANNEL, b"DONE")
    assert [origin.published_at for origin in latency.origins] == [1.5]
    assert latency.under_way == 2


def test_each_result_is_logged_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "debugging", True)
    scene = Scene()
    scene.registered()
    with capture_logs() as lines:
        scene.hub.received(CHANNEL, b'{"authResult":"CONTINUE","messageId":"m"}')
        scene.hub.received(CHANNEL, b"DONE")
    assert lines == [
        {
            "event": "result",
            "log_level": "debug",
            "id": "i…",
            "result": "CONTINUE",
            "sessions": 1,
            "live": True,
            "message_id": "m",
        },
        {"event": "result", "log_level": "debug", "id": "i…", "result": "DONE", "sessions": 1, "live": True},
    ]
