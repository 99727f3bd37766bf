"""The table by example, and against a model of Redis in any order of events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sized
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.core.subscriptions import (
    FEW,
    MAX_HELD_PAYLOADS,
    Action,
    ChannelState,
    Confirmation,
    Subscriptions,
)
from gateway.redis.cluster.slots import key_slot

from ..wire import strategies  # noqa: F401 - sets hypothesis up

A, B, C = "anna", "bert", "cleo"


def table() -> Subscriptions[str]:
    return Subscriptions()


def confirmed(subscriptions: Subscriptions[str], *members: str) -> None:
    """Bring `members` of channel x as far as listening."""
    for member in members:
        subscriptions.join(b"x", member, connected=True)
        assert member in subscriptions.confirmed(b"x", None).newcomers


# Examples


def test_the_first_to_join_subscribes_and_the_last_to_leave_unsubscribes() -> None:
    subs = table()
    assert subs.join(b"x", A, connected=True) is Action.SUBSCRIBE
    assert subs.confirmed(b"x", None) == Confirmation(Action.NOTHING, newcomers=(A,))
    assert subs.listening(b"x", b"1") == (A,)
    assert subs.leave(b"x", A) is Action.UNSUBSCRIBE
    assert subs.unsubscribed(b"x") is Action.NOTHING
    assert len(subs) == 0


def test_who_joins_while_the_question_is_open_waits_for_the_same_answer() -> None:
    subs = table()
    assert subs.join(b"x", A, connected=True) is Action.SUBSCRIBE
    assert subs.join(b"x", B, connected=True) is Action.NOTHING
    assert subs.confirmed(b"x", None).newcomers == (A, B)


def test_who_joins_a_confirmed_channel_reads_only() -> None:
    subs = table()
    confirmed(subs, A)
    assert subs.join(b"x", B, connected=True) is Action.READ
    assert subs.join(b"x", C, connected=True) is Action.NOTHING
    assert subs.confirmed(b"x", b"r") == Confirmation(Action.NOTHING, (B, C), (b"r",), (), b"r")


def test_whether_a_channel_is_awaited_or_confirmed() -> None:
    subs = table()
    assert (subs.awaited(b"x"), subs.is_confirmed(b"x")) == (False, False)
    subs.join(b"x", A, connected=True)
    assert (subs.awaited(b"x"), subs.is_confirmed(b"x")) == (True, False)
    subs.confirmed(b"x", None)
    assert (subs.awaited(b"x"), subs.is_confirmed(b"x")) == (False, True)


def test_what_comes_live_is_held_for_those_who_wait() -> None:
    subs = table()
    confirmed(subs, A)
    subs.join(b"x", B, connected=True)
    assert subs.listening(b"x", b"1") == (A,)
    assert subs.listening(b"x", b"2") == (A,)
    assert subs.confirmed(b"x", b"0").payloads == (b"0", b"1", b"2")
    assert subs.listening(b"x", b"3") == (A, B)


def test_a_retained_result_that_also_came_live_is_not_repeated() -> None:
    subs = table()
    subs.join(b"x", A, connected=True)
    subs.listening(b"x", b"1")
    subs.listening(b"x", b"2")
    assert subs.confirmed(b"x", b"1").payloads == (b"1", b"2")


def test_only_the_newest_are_held() -> None:
    subs = table()
    subs.join(b"x", A, connected=True)
    for i in range(MAX_HELD_PAYLOADS + 10):
        subs.listening(b"x", b"%d" % i)
    assert subs.confirmed(b"x", None).payloads == tuple(b"%d" % i for i in range(10, MAX_HELD_PAYLOADS + 10))


def test_nothing_is_held_while_nobody_waits() -> None:
    subs = table()
    confirmed(subs, A)
    subs.listening(b"x", b"1")
    subs.join(b"x", B, connected=True)
    assert subs.confirmed(b"x", None).payloads == ()


def test_who_leaves_before_the_confirmation_is_unsubscribed_after_it() -> None:
    subs = table()
    subs.join(b"x", A, connected=True)
    assert subs.leave(b"x", A) is Action.NOTHING
    assert subs.confirmed(b"x", b"r") == Confirmation(Action.UNSUBSCRIBE)
    assert subs.unsubscribed(b"x") is Action.NOTHING
    assert len(subs) == 0


def test_who_comes_back_before_the_confirmation_needs_no_second_question() -> None:
    subs = table()
    subs.join(b"x", A, connected=True)
    subs.leave(b"x", A)
    assert subs.join(b"x", B, connected=True) is Action.NOTHING
    assert subs.confirmed(b"x", None).newcomers == (B,)


def test_who_comes_while_the_channel_is_given_up_waits_for_that() -> None:
    subs = table()
    confirmed(subs, A)
    assert subs.leave(b"x", A) is Action.UNSUBSCRIBE
    assert subs.join(b"x", B, connected=True) is Action.NOTHING
    assert subs.unsubscribed(b"x") is Action.SUBSCRIBE
    assert subs.confirmed(b"x", None).newcomers == (B,)


def test_what_came_before_the_channel_was_given_up_does_not_follow_what_is_newer() -> None:
    subs = table()
    confirmed(subs, A)
    subs.leave(b"x", A)
    subs.join(b"x", B, connected=True)
    assert subs.listening(b"x", b"older") == ()
    subs.unsubscribed(b"x")
    assert subs.confirmed(b"x", b"newer").payloads == (b"newer",)


def test_who_comes_and_goes_while_the_channel_is_given_up_leaves_nothing() -> None:
    subs = table()
    confirmed(subs, A)
    subs.leave(b"x", A)
    subs.join(b"x", B, connected=True)
    assert subs.leave(b"x", B) is Action.NOTHING
    assert subs.unsubscribed(b"x") is Action.NOTHING
    assert len(subs) == 0


class Counted:
    """A member that counts how often any is compared with another."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return self is other

    __hash__ = object.__hash__


def test_members_of_one_channel_join_and_leave_in_linear_time() -> None:
    """8,000 sessions of one id that closed at once held up all others for a second."""
    subs: Subscriptions[Counted] = Subscriptions()
    members = [Counted() for _ in range(2_000)]
    Counted.compared = 0
    for member in members:
        subs.join(b"x", member, connected=True)
    assert subs.confirmed(b"x", None).newcomers == tuple(members)
    for member in reversed(members):
        assert subs.listening(b"x", b"1")[-1] is member
        action = subs.leave(b"x", member)
    assert action is Action.UNSUBSCRIBE
    assert Counted.compared < 20 * len(members)


def test_many_members_keep_their_order_and_leave_while_others_wait() -> None:
    subs = table()
    names = [f"member {number}" for number in range(2 * FEW)]
    for name in names:
        subs.join(b"x", name, connected=True)
    assert subs.leave(b"x", names[3]) is Action.NOTHING
    assert subs.leave(b"x", "nobody") is Action.NOTHING
    del names[3]
    assert subs.members(b"x") == subs.unconfirmed(b"x") == tuple(names)
    assert subs.confirmed(b"x", b"r") == Confirmation(Action.NOTHING, tuple(names), (b"r",), (), b"r")
    subs.join(b"x", A, connected=True)
    assert subs.members(b"x") == (A, *names)
    assert subs.confirmed(b"x", None).newcomers == (A,)
    listening = subs.listening(b"x", b"1")
    subs.leave(b"x", A)
    assert listening == (*names, A), "what is told of now is not changed by who leaves meanwhile"
    assert subs.lost(b"x") is Action.SUBSCRIBE
    assert subs.denied(b"x") == tuple(names)


def test_a_channel_may_have_a_limit() -> None:
    subs: Subscriptions[str] = Subscriptions(max_members=2)
    assert subs.join(b"x", A, connected=True) is Action.SUBSCRIBE
    subs.confirmed(b"x", None)
    assert subs.join(b"x", B, connected=True) is Action.READ
    assert subs.join(b"x", C, connected=True) is Action.NO_ROOM, "those who wait count too"
    assert subs.members(b"x") == (B, A), "nothing has changed"
    assert subs.join(b"y", C, connected=True) is Action.SUBSCRIBE, "another channel has room"
    subs.leave(b"x", A)
    assert subs.join(b"x", C, connected=True) is Action.NOTHING
    confirmed(unlimited := table(), A, B, C)
    assert unlimited.join(b"x", "D", connected=True) is Action.READ


def test_a_read_that_the_last_leave_overtook_confirms_nothing() -> None:
    subs = table()
    confirmed(subs, A)
    assert subs.join(b"x", B, connected=True) is Action.READ
    subs.leave(b"x", B)
    assert subs.leave(b"x", A) is Action.UNSUBSCRIBE
    subs.join(b"x", C, connected=True)
    assert subs.confirmed(b"x", b"r") == Confirmation(Action.NOTHING)  # B's read
    assert subs.unsubscribed(b"x") is Action.SUBSCRIBE
    assert subs.confirmed(b"x", b"r").newcomers == (C,)


def test_nothing_is_asked_while_there_is_no_connection() -> None:
    subs = table()
    assert subs.join(b"x", A, connected=False) is Action.NOTHING
    assert subs.join(b"y", B, connected=False) is Action.NOTHING
    assert subs.leave(b"y", B) is Action.NOTHING
    assert len(subs) == 1
    assert subs.connected() == [b"x"]
    assert subs.confirmed(b"x", b"r") == Confirmation(Action.NOTHING, (A,), (b"r",), (), b"r")


def test_after_a_gap_veterans_get_what_is_retained_and_newcomers_their_answer() -> None:
    subs = table()
    confirmed(subs, A)
    subs.disconnected()
    subs.join(b"x", B, connected=False)
    assert subs.connected() == [b"x"]
    subs.listening(b"x", b"live")
    answer = subs.confirmed(b"x", b"r")
    assert answer == Confirmation(Action.NOTHING, (B,), (b"r", b"live"), (A,), b"r")
    subs.join(b"x", C, connected=True)
    assert subs.confirmed(b"x", b"r").veterans == ()  # no gap since


def test_a_loss_forgets_what_was_held_and_who_left() -> None:
    subs = table()
    confirmed(subs, A)
    subs.leave(b"x", A)
    subs.join(b"y", B, connected=True)
    subs.listening(b"y", b"old")
    subs.disconnected()
    assert len(subs) == 1
    assert subs.connected() == [b"y"]
    assert subs.confirmed(b"y", None).payloads == ()


def test_who_cannot_be_heard_for_is_whoever_waits_for_redis() -> None:
    subs = table()
    subs.join(b"x", A, connected=True)
    assert subs.unconfirmed(b"x") == (A,), "asked and not answered"
    subs.confirmed(b"x", None)
    subs.join(b"x", B, connected=True)
    assert subs.unconfirmed(b"x") == (), "B waits for a read only, and what comes live is held for it"
    subs.disconnected()
    assert set(subs.unconfirmed(b"x")) == {A, B}
    subs.connected()
    assert set(subs.unconfirmed(b"x")) == {A, B}
    subs.confirmed(b"x", None)
    assert subs.unconfirmed(b"x") == ()
    for member in (A, B):
        subs.leave(b"x", member)
    assert subs.unconfirmed(b"x") == ()
    subs.join(b"x", C, connected=True)
    assert subs.unconfirmed(b"x") == (C,), "it is being given up, and will be asked for again"
    assert subs.unconfirmed(b"other") == ()


def test_names_are_those_of_a_moment() -> None:
    subs = table()
    for name in (b"x", b"y"):
        subs.join(name, A, connected=True)
    names = subs.names()
    subs.join(b"z", A, connected=True)
    assert names == [b"x", b"y"]


def test_members_of_a_denied_channel_wait_until_it_is_allowed() -> None:
    subs = table()
    confirmed(subs, A)
    subs.lost(b"x")
    subs.join(b"x", B, connected=True)
    assert set(subs.denied(b"x")) == set(subs.unconfirmed(b"x")) == {A, B}
    assert subs.join(b"x", "C", connected=True) is Action.NOTHING, "the connection asks again by itself"
    assert subs.retry(b"x")
    assert subs.confirmed(b"x", b"r") == Confirmation(Action.NOTHING, (B, "C"), (b"r",), (A,), b"r")
    assert not subs.retry(b"x"), "nobody waits any more"


def test_what_is_left_while_it_is_denied_is_forgotten() -> None:
    subs = table()
    subs.join(b"x", A, connected=True)
    subs.denied(b"x")
    assert subs.leave(b"x", A) is Action.UNSUBSCRIBE, "so that the connection does not ask again"
    assert len(subs) == 0
    assert not subs.retry(b"x")
    assert subs.denied(b"x") == ()


def test_a_denied_channel_that_nobody_wants_any_more_is_not_asked_for_again() -> None:
    subs = table()
    subs.join(b"x", A, connected=True)
    assert subs.leave(b"x", A) is Action.NOTHING, "a request is open"
    assert subs.denied(b"x") == ()
    assert len(subs) == 0
    confirmed(subs, A)
    subs.leave(b"x", A)
    assert subs.denied(b"x") == (), "it is being given up"


def test_a_denied_read_harms_nobody_who_listens() -> None:
    subs = table()
    confirmed(subs, A)
    assert subs.join(b"x", B, connected=True) is Action.READ
    assert subs.denied(b"x") == (B,)
    assert subs.listening(b"x", b"1") == (A,)
    assert subs.is_confirmed(b"x")
    assert subs.retry(b"x")
    assert subs.confirmed(b"x", None).newcomers == (B,)


def test_a_denied_channel_is_wanted_like_any_other_once_the_connection_is_lost() -> None:
    subs = table()
    subs.join(b"x", A, connected=True)
    subs.denied(b"x")
    subs.disconnected()
    assert not subs.retry(b"x")
    assert subs.connected() == [b"x"]
    assert subs.confirmed(b"x", None).newcomers == (A,)


def test_what_redis_takes_away_is_asked_for_again_and_read() -> None:
    subs = table()
    confirmed(subs, A)
    assert subs.lost(b"x") is Action.SUBSCRIBE
    assert subs.lost(b"x") is Action.NOTHING, "it is being asked already"
    assert subs.join(b"x", B, connected=True) is Action.NOTHING
    assert subs.confirmed(b"x", b"r") == Confirmation(Action.NOTHING, (B,), (b"r",), (A,), b"r")


def test_a_subscribe_that_comes_to_nothing_is_repeated() -> None:
    subs = table()
    subs.join(b"x", A, connected=True)
    subs.listening(b"x", b"older")
    assert subs.lost(b"x") is Action.NOTHING
    assert subs.lost(b"x", answer=True) is Action.SUBSCRIBE
    assert subs.confirmed(b"x", b"newer").payloads == (b"newer",)


def test_what_is_taken_away_while_it_is_given_up_is_not_asked_for() -> None:
    subs = table()
    confirmed(subs, A)
    subs.leave(b"x", A)
    assert subs.lost(b"x") is Action.NOTHING
    subs.join(b"x", B, connected=True)
    assert subs.unsubscribed(b"x") is Action.SUBSCRIBE
    assert subs.lost(b"y") is Action.NOTHING


def test_connections_for_some_slots_of_a_cluster() -> None:
    subs: Subscriptions[str] = Subscriptions(key_slot)
    for name in (b"x", b"y", b"z"):
        subs.join(name, A, connected=True)
        subs.confirmed(name, None)
    subs.join(b"w", B, connected=False)
    assert len(subs) == 4
    subs.disconnected({key_slot(b"x"), key_slot(b"w")})
    assert subs.confirmed_channels() == [b"y", b"z"]
    assert subs.confirmed_channels({key_slot(b"z"), key_slot(b"x")}) == [b"z"]
    assert (subs.count_confirmed(), subs.count_confirmed({key_slot(b"z"), key_slot(b"x")})) == (2, 1)
    assert sorted(subs.connected({key_slot(b"x"), key_slot(b"w"), key_slot(b"nobody's")})) == [b"w", b"x"]
    assert subs.confirmed(b"x", b"r").veterans == (A,)
    assert subs.denied(b"x") == ()
    assert subs.denied(b"w") == (B,)
    assert subs.leave(b"w", B) is Action.UNSUBSCRIBE
    assert len(subs) == 3


def test_what_is_not_in_the_table_changes_nothing() -> None:
    subs = table()
    assert subs.leave(b"x", A) is Action.NOTHING
    assert subs.unsubscribed(b"x") is Action.NOTHING
    assert subs.confirmed(b"x", b"r") == Confirmation(Action.NOTHING)
    assert subs.listening(b"x", b"1") == ()
    confirmed(subs, A)
    assert subs.leave(b"x", B) is Action.NOTHING
    assert subs.listening(b"x", b"1") == (A,)


# In any order

CHANNELS = [b"one", b"two", b"not subscribable", b"not readable"]
channels = st.sampled_from([CHANNELS[0]] * 6 + CHANNELS)  # much happens on one of them
often = ["join"] * 5 + ["leave"] * 3 + ["publish"] * 6 + ["work", "hear"] * 3
seldom = ["expire", "disconnect", "settle", "take away", "other rights", "retry"]


@dataclass(eq=False)
class Client:
    """A member, what it heard, and what it must have heard once everything is quiet."""

    channel: bytes
    answered: bool = False
    heard: list[bytes] = field(default_factory=list)
    owed: set[bytes] = field(default_factory=set)


class Conversation(RuleBasedStateMachine):
    """The table and one Redis, with two queues between them that move when hypothesis says so.

    Redis does one thing at a time, in order, and other clients publish between any two of them. What is
    published is a number that grows, so that every order is visible.

    It is one rule with a choice in it: hypothesis leaves whole rules out of a run, and a run without
    publishing, or in which Redis never works, shows little.
    """

    by_slot = False

    def __init__(self) -> None:
        super().__init__()
        self.table: Subscriptions[Client] = Subscriptions(key_slot if self.by_slot else None)
        self.connected = True
        self.clients: list[Client] = []
        self.published = 0
        # Redis: what it has been asked and has not read, what it said and nobody has read
        self.asked: deque[tuple[str, bytes]] = deque()
        self.said: deque[tuple[str, bytes, bytes | None]] = deque()
        self.subscribed: set[bytes] = set()
        self.retained: dict[bytes, bytes] = {}
        self.denies = True  # whether Redis denies what its rules do not name
        # The connection: what is denied, and what it gives up because its read was denied
        self.denied: set[bytes] = set()
        self.revoked: set[bytes] = set()

    # The gateway's end

    def ask(self, ask: Action, name: bytes) -> None:
        if ask is Action.NOTHING:
            return
        assert self.connected
        assert not self.open_questions(name, "SUBSCRIBE", "UNSUBSCRIBE"), "a second question"
        if ask is Action.UNSUBSCRIBE and name in self.denied:
            self.denied.remove(name)
            return
        self.asked.append((ask.name, name))
        if ask is Action.SUBSCRIBE:
            self.asked.append(("GET", name))

    def open_questions(self, name: bytes, *kinds: str) -> list[str]:
        answers = {
            "subscribed": "SUBSCRIBE",
            "read": "READ",
            "unsubscribed": "UNSUBSCRIBE",
            "refused": "SUBSCRIBE",
        }
        unread = [kind.replace("GET", "SUBSCRIBE") for kind, channel in self.asked if channel == name]
        probe_age = [answers[kind] for kind, channel, _ in self.said if channel == name and kind in answers]
        return [kind for kind in unread + probe_age if kind in kinds]

    @rule(what=st.sampled_from(often + seldom), channel=channels, number=st.integers(0, 7))
    def step(self, what: str, channel: bytes, number: int) -> None:
        if not self.connected and number % 2:
            self.connect()
        if what == "join":
            self.join(channel)
        elif what == "publish":
            self.publish(channel, retain=number < 3)
        elif what == "leave" and self.clients:
            self.leave(self.clients[number % len(self.clients)])
        elif what == "work":
            self.repeat(self.work, self.asked, number)
        elif what == "hear":
            self.repeat(self.hear, self.said, number)
        else:
            self.happen(what, channel)

    def happen(self, what: str, channel: bytes) -> None:
        if what == "expire":
            self.retained.pop(channel, None)
        elif what == "other rights":
            self.denies = not self.denies
        elif what == "retry":
            self.retry()
        elif what == "disconnect" and self.connected:
            self.disconnect()
        elif what == "take away" and channel in self.subscribed:
            self.take_away(channel)
        elif what == "settle":
            self.settle()

    def repeat(self, do: Callable[[], None], queue: Sized, times: int) -> None:
        """One queue moves on by some of what is in it."""
        for _ in range(times):
            if queue:
                do()

    def connect(self) -> None:
        self.connected = True
        for name in self.table.connected():
            self.ask(Action.SUBSCRIBE, name)

    def disconnect(self) -> None:
        self.connected = False
        self.asked.clear()
        self.said.clear()
        self.subscribed.clear()
        self.denied.clear()
        self.revoked.clear()
        self.table.disconnected()
        for client in self.clients:  # what was on its way is lost; what is retained comes again
            client.owed.intersection_update(client.heard)

    def join(self, channel: bytes) -> None:
        client = Client(channel)
        self.clients.append(client)
        self.ask(self.table.join(channel, client, connected=self.connected), channel)

    def leave(self, client: Client) -> None:
        self.clients.remove(client)
        self.ask(self.table.leave(client.channel, client), client.channel)

    def hear(self) -> None:
        kind, name, value = self.said.popleft()
        if kind in ("subscribed", "read"):
            self.confirm(name, value)
        elif kind == "unreadable":
            self.revoked.add(name)
            self.asked.append(("UNSUBSCRIBE", name))
        elif kind == "refused" or (kind == "unsubscribed" and name in self.revoked):
            self.revoked.discard(name)
            self.deny(name)
        elif kind == "unsubscribed":
            self.ask(self.table.unsubscribed(name), name)
        elif kind == "lost":
            self.ask(self.table.lost(name), name)
        else:
            assert value is not None
            for client in self.table.listening(name, value):
                self.deliver(client, value)

    def confirm(self, name: bytes, retained: bytes | None) -> None:
        answer = self.table.confirmed(name, retained)
        self.ask(answer.action, name)
        assert list(answer.payloads) == sorted(answer.payloads), "not in the order of their publication"
        assert len(set(answer.payloads)) == len(answer.payloads)
        for client in answer.newcomers:
            assert not client.answered, "answered twice"
            assert name in self.subscribed, "answered before Redis had subscribed"
            client.answered = True
            if name in self.retained:
                client.owed.add(self.retained[name])
            for payload in answer.payloads:
                self.deliver(client, payload)
        for client in answer.veterans:
            assert client.answered
            if answer.retained is not None:
                self.deliver(client, answer.retained)

    def deny(self, name: bytes) -> None:
        members = self.table.denied(name)
        assert set(members) == {client for client in self.clients if client.channel == name}
        if members:
            self.denied.add(name)

    def retry(self) -> None:
        for name in list(self.denied):
            assert self.table.retry(name), "nobody wants it, and the connection was not told"
            self.denied.remove(name)
            self.ask(Action.SUBSCRIBE, name)

    def deliver(self, client: Client, payload: bytes) -> None:
        assert client in self.clients, "delivered to somebody who has left"
        assert client.answered, "delivered before the answer"
        client.heard.append(payload)

    # Redis' end

    def work(self) -> None:
        kind, name = self.asked.popleft()
        if kind == "SUBSCRIBE" and name == b"not subscribable" and self.denies:
            self.asked.popleft()
            self.said.append(("refused", name, None))
        elif kind == "SUBSCRIBE":
            self.subscribed.add(name)
        elif kind == "UNSUBSCRIBE":
            self.subscribed.discard(name)
            self.said.append(("unsubscribed", name, None))
        elif kind == "READ" and name not in self.subscribed:
            self.said.append(("lost", name, None))
        elif kind == "GET" and name == b"not readable" and self.denies:
            self.said.append(("unreadable", name, None))
        else:
            self.said.append(("subscribed" if kind == "GET" else "read", name, self.retained.get(name)))

    def take_away(self, name: bytes) -> None:
        """Redis gives a channel up by itself, as when its slot moves."""
        if not self.open_questions(name, "SUBSCRIBE", "READ", "UNSUBSCRIBE"):
            self.subscribed.discard(name)
            self.said.append(("lost", name, None))
            for client in self.clients:
                if client.channel == name:  # what is on its way is heard; what comes now may be lost
                    client.owed.intersection_update(client.heard)

    def publish(self, channel: bytes, *, retain: bool) -> None:
        self.published += 1
        payload = b"%06d" % self.published
        if retain:
            self.retained[channel] = payload
        if channel in self.subscribed:
            self.said.append(("message", channel, payload))
            for client in self.clients:
                if client.channel == channel and client.answered:
                    client.owed.add(payload)

    # What holds

    def settle(self) -> None:
        """Everything that is on its way arrives; nobody does anything new."""
        for _round in range(10):  # it takes four
            self.repeat(self.work, self.asked, len(self.asked))
            self.repeat(self.hear, self.said, len(self.said))
        assert not self.asked
        assert not self.said
        for client in self.clients:
            waits_for_right = client.channel in self.denied
            assert client.answered or not self.connected or waits_for_right, "nothing is on its way"
            assert client.owed <= set(client.heard), "missed"
            if self.connected and client.channel in self.retained and not waits_for_right:
                assert self.retained[client.channel] in client.heard, "what is retained was missed"
        wanted = {client.channel for client in self.clients}
        assert len(self.table) == len(wanted)
        assert self.denied <= wanted
        assert self.subscribed == (wanted - self.denied if self.connected else set())

    @invariant()
    def who_waits_has_a_question_open(self) -> None:
        for name in self.table._channels:
            channel = self.table._channels[name]
            assert len(channel.held) <= MAX_HELD_PAYLOADS
            assert (channel.state is ChannelState.WANTED) == (not self.connected)
            if channel.waiting and self.connected:
                assert (
                    self.open_questions(name, "SUBSCRIBE", "READ", "UNSUBSCRIBE")
                    or name in self.denied
                    or ("unreadable", name, None) in self.said
                    or ("lost", name, None) in self.said
                )

    def teardown(self) -> None:
        self.settle()
        for client in list(self.clients):
            self.leave(client)
        self.settle()
        assert len(self.table) == 0
        assert not self.subscribed


class ConversationBySlot(Conversation):
    """The same with the table that a Cluster has."""

    by_slot = True


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=100, stateful_step_count=50)
TestConversationBySlot = ConversationBySlot.TestCase
TestConversationBySlot.settings = settings(max_examples=50, stateful_step_count=50)


def test_members_in_slots() -> None:
    """Channels of one slot come and go without a look at the others."""
    table: Subscriptions[str] = Subscriptions(lambda name: name[0])
    for name in (b"a1", b"a2", b"b1"):
        table.join(name, name.decode(), connected=True)
    assert table.members(b"a1") == ("a1",)
    assert table.members(b"c1") == ()
    assert table.denied(b"c1") == ()
    assert table.denied(b"a1") == ("a1",)
    table.leave(b"a1", "a1")
    assert sorted(table.names([ord("a"), ord("b")])) == [b"a2", b"b1"]
