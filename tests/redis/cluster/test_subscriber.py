"""One channel a command; the test plays a node of a Cluster. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.redis.cluster.subscriber import (
    MAX_IN_FLIGHT,
    MIGRATING_RETRY,
    UNSERVED_RETRY,
    ShardedSubscriberConnection,
)
from gateway.redis.connection import ConnectionLost, ReplyError
from gateway.redis.denials import FIRST_RETRY

from ...fakes import Events, Transport, parse_commands, push, resp, turns, virtual

MOVED = resp(Exception("MOVED 7 10.0.0.2:7002"))
ASK = resp(Exception("ASK 7 10.0.0.2:7002"))
DOWN = resp(Exception("CLUSTERDOWN The cluster is down"))
NOBODY = resp(b"")  # what GETRANGE says of a key that is not there


class ShardEvents(Events):
    """The events of a connection to a node; `readers` wait for replies of another node."""

    def __init__(self, wanted: tuple[bytes, ...]) -> None:
        super().__init__(wanted)
        self.readers: list[Callable[[Any], object]] = []

    def moved(self, name: bytes, host: str, port: int) -> None:
        self.heard.append(("moved", name, host, port))

    def migrating(self, name: bytes, host: str, port: int, read: Callable[[Any], object]) -> None:
        self.heard.append(("migrating", name, host, port))
        self.readers.append(read)


class Scene:
    """A connection that is up; the test plays the node."""

    def __init__(self, *wanted: bytes, max_result_size: int = 1_000, announced: bool = False) -> None:
        self.events = ShardEvents(wanted)
        self.connection = ShardedSubscriberConnection(self.events, max_result_size, announced=announced)
        self.transport = Transport(prompt=True)
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)
        self.connection.start()
        self._read = 0

    async def commands(self) -> list[list[bytes]]:
        """What was written since the last time, but PINGs that only show who is alive."""
        await turns(3)
        written, self._read = self.transport.written[self._read :], len(self.transport.written)
        return [command for data in written if data != PING for command in parse_commands(data)]

    def say(self, *messages: bytes) -> None:
        self.connection.data_received(b"".join(messages))

    def heard(self) -> list[tuple[Any, ...]]:
        return [event for event in self.events.taken() if event != ("connected",)]


PING = b"*1\r\n$4\r\nPING\r\n"


def join(name: bytes) -> list[list[bytes]]:
    return [[b"SSUBSCRIBE", name], *read(name)]


def read(name: bytes) -> list[list[bytes]]:
    return [[b"GETRANGE", name, b"0", b"1000"]]


def leave(name: bytes) -> list[list[bytes]]:
    return [[b"SUNSUBSCRIBE", name], [b"PING"]]


def subscribed(name: bytes) -> bytes:
    return push(b"ssubscribe", name, 1)


def gone(name: bytes) -> bytes:
    return push(b"sunsubscribe", name, 0)


async def asked(*wanted: bytes) -> Scene:
    """A connection whose SSUBSCRIBE and read of each channel are on their way."""
    scene = Scene(*wanted)
    assert await scene.commands() == [command for name in wanted for command in join(name)]
    return scene


# What is asked, and what is answered


@virtual
async def test_each_channel_has_commands_of_its_own_in_one_write() -> None:
    scene = await asked(b"a", b"b")
    assert len(scene.transport.written) == 1
    scene.say(subscribed(b"a"), NOBODY, subscribed(b"b"), push(b"smessage", b"b", b"M"), resp(b"R"))
    assert scene.heard() == [("subscribed", b"a", None), ("received", b"b", b"M"), ("subscribed", b"b", b"R")]


@virtual
async def test_leaves_and_reads() -> None:
    scene = Scene()
    scene.events.wanted = [b"b"]
    scene.connection.unsubscribe(b"a")
    scene.connection.read(b"b")
    assert await scene.commands() == [*read(b"b"), *leave(b"a")]
    scene.say(resp(b"R"), gone(b"a"))
    assert scene.heard() == [("subscribed", b"b", b"R")]
    scene.say(resp("PONG"))
    assert scene.heard() == [("unsubscribed", b"a")]
    assert scene.connection.idle


@virtual
async def test_a_key_that_holds_no_string_is_no_result() -> None:
    scene = await asked(b"a")
    scene.say(subscribed(b"a"), resp(Exception("WRONGTYPE Operation against a key")))
    assert scene.heard() == [("subscribed", b"a", None)]


@pytest.mark.parametrize(("size", "window"), [(1_000, MAX_IN_FLIGHT), (1 << 20, 16), (64 << 20, 1)])
def test_no_more_is_on_its_way_than_can_be_answered(size: int, window: int) -> None:
    @virtual
    async def limited() -> None:
        scene = Scene(*(b"%d" % i for i in range(MAX_IN_FLIGHT + 5)), max_result_size=size)
        assert len(await scene.commands()) == 2 * window
        scene.say(subscribed(b"0"), NOBODY)
        assert len(await scene.commands()) == 2

    limited()


# The slot moves


@virtual
async def test_a_moved_channel_is_reported_once() -> None:
    scene = await asked(b"a")
    scene.say(MOVED, MOVED)
    assert scene.heard() == [("moved", b"a", "10.0.0.2", 7_002)]
    assert scene.connection.idle


@pytest.mark.parametrize("host", ["", "?"])
def test_a_node_may_not_know_by_which_name_the_others_are_reached(host: str) -> None:
    @virtual
    async def nameless() -> None:
        scene = await asked(b"a")
        scene.say(resp(Exception(f"MOVED 7 {host}:7002")) * 2)
        assert scene.heard() == [("moved", b"a", "", 7_002)]

    nameless()


@virtual
async def test_an_address_may_have_colons() -> None:
    scene = await asked(b"a")
    scene.say(resp(Exception("MOVED 7 fd00::2:7002")) * 2)
    assert scene.heard() == [("moved", b"a", "fd00::2", 7_002)]


@virtual
async def test_a_channel_that_is_taken_away_is_lost() -> None:
    scene = Scene()
    scene.say(gone(b"a"))
    assert scene.heard() == [("lost", b"a", False)]


@virtual
async def test_a_channel_taken_away_between_its_confirmation_and_its_read_was_not_subscribed() -> None:
    scene = await asked(b"a")
    scene.say(subscribed(b"a"), gone(b"a"))
    assert scene.heard() == []
    scene.say(MOVED)
    assert scene.heard() == [("lost", b"a", True)]


@virtual
async def test_a_channel_taken_away_while_its_read_is_on_its_way_is_lost() -> None:
    scene = Scene()
    scene.connection.read(b"a")
    await scene.commands()
    scene.say(gone(b"a"), MOVED)
    assert scene.heard() == [("lost", b"a", False)]


@pytest.mark.parametrize(
    "answer", [subscribed(b"a") + NOBODY, MOVED + MOVED, subscribed(b"a") + gone(b"a") + MOVED]
)
def test_an_earlier_subscription_taken_away_is_none_of_the_next_ones_answers(answer: bytes) -> None:
    """It was subscribed already, as when its first request was deferred, or its slot came back."""

    @virtual
    async def earlier() -> None:
        scene = await asked(b"a", b"b")
        scene.say(gone(b"a"), answer, subscribed(b"b"), NOBODY)
        first, second = scene.heard()
        assert first[:2] in [("subscribed", b"a"), ("moved", b"a"), ("lost", b"a")]
        assert second == ("subscribed", b"b", None)
        assert not scene.transport.aborted

    earlier()


@pytest.mark.parametrize(
    "answers",
    [[gone(b"a")], [resp(Exception("MOVED 7 h:1"))], [gone(b"a"), MOVED], [gone(b"a"), gone(b"a")], [DOWN]],
)
def test_leaving_ends_with_its_pong_whatever_the_slot_does(answers: list[bytes]) -> None:
    @virtual
    async def left() -> None:
        scene = Scene()
        scene.connection.unsubscribe(b"a")
        scene.connection.subscribe(b"b")
        await scene.commands()
        scene.say(subscribed(b"b"), NOBODY)
        scene.heard()
        scene.say(*answers)
        assert scene.heard() == []
        scene.say(resp("PONG"))
        assert scene.heard() == [("unsubscribed", b"a")]
        assert scene.connection.idle
        assert not scene.transport.aborted

    left()


@pytest.mark.parametrize(
    "answer",
    [
        resp("PONG"),
        NOBODY,
        subscribed(b"b"),
        subscribed(b"a") + subscribed(b"a"),
        subscribed(b"a") + NOBODY + NOBODY,
    ],
)
def test_an_unexpected_reply_ends_the_connection(answer: bytes) -> None:
    @virtual
    async def desynchronised() -> None:
        scene = await asked(b"a")
        scene.say(answer)
        assert "unexpected reply" in str(await scene.connection.closed)

    desynchronised()


@virtual
async def test_a_pong_before_the_unsubscribe_push_ends_the_connection() -> None:
    scene = Scene()
    scene.connection.unsubscribe(b"a")
    await scene.commands()
    scene.say(resp("PONG"))
    assert "unexpected reply" in str(await scene.connection.closed)


# What is put off


@pytest.mark.parametrize("error", [DOWN, resp(Exception("TRYAGAIN Multiple keys"))])
@pytest.mark.parametrize("confirmation", [b"", subscribed(b"a")])
def test_while_no_node_serves_the_slot_the_request_is_sent_again(error: bytes, confirmation: bytes) -> None:
    """A Cluster that is down takes subscriptions all the same, and reads nothing."""

    @virtual
    async def down() -> None:
        scene = await asked(b"a")
        for _ in range(3):
            scene.say(confirmation or error, error)
            assert await scene.commands() == []
            assert not scene.connection.idle
            await asyncio.sleep(UNSERVED_RETRY)
            assert await scene.commands() == join(b"a")
        scene.say(subscribed(b"a"), NOBODY)
        assert scene.heard() == [("subscribed", b"a", None)]
        assert scene.connection.idle

    down()


@virtual
async def test_a_read_alone_is_put_off_as_such() -> None:
    scene = Scene()
    scene.connection.read(b"a")
    await scene.commands()
    scene.say(DOWN)
    await asyncio.sleep(UNSERVED_RETRY)
    assert await scene.commands() == read(b"a")


@virtual
async def test_nothing_is_subscribed_again_behind_its_sunsubscribe() -> None:
    """Its slot may have moved away and back, so that it was answered before its time had come."""
    scene = await asked(b"a")
    scene.say(DOWN, DOWN)
    scene.connection.unsubscribe(b"a")
    assert await scene.commands() == leave(b"a")
    await asyncio.sleep(UNSERVED_RETRY)
    assert await scene.commands() == []


@virtual
async def test_another_request_replaces_a_deferred_one() -> None:
    scene = await asked(b"a")
    scene.say(DOWN, DOWN)
    scene.connection.subscribe(b"a")
    assert await scene.commands() == join(b"a")
    await asyncio.sleep(UNSERVED_RETRY)
    assert await scene.commands() == []


@virtual
async def test_a_channel_dropped_while_its_request_is_deferred_is_lost() -> None:
    scene = await asked(b"a")
    scene.say(subscribed(b"a"), DOWN, gone(b"a"))
    assert scene.heard() == [("lost", b"a", True)]
    await asyncio.sleep(UNSERVED_RETRY)
    assert await scene.commands() == []


@virtual
async def test_the_end_of_the_connection_ends_what_is_put_off() -> None:
    scene = await asked(b"a")
    scene.say(subscribed(b"a"), DOWN)
    scene.transport.lose()
    await asyncio.sleep(1)
    assert await scene.commands() == []
    assert scene.heard() == []


# A slot on its way


@virtual
async def test_a_result_that_may_have_gone_ahead_is_read_there() -> None:
    scene = await asked(b"a")
    scene.say(subscribed(b"a"), ASK)
    assert scene.heard() == [("migrating", b"a", "10.0.0.2", 7_002)]
    scene.events.readers[0](b"R")
    assert scene.heard() == [("subscribed", b"a", b"R")]
    await asyncio.sleep(MIGRATING_RETRY)
    assert await scene.commands() == []


@pytest.mark.parametrize("nothing", [None, Exception("WRONGTYPE Operation against a key")])
def test_nothing_there_is_an_answer_too(nothing: Any) -> None:
    @virtual
    async def empty() -> None:
        scene = await asked(b"a")
        scene.say(subscribed(b"a"), ASK)
        scene.heard()
        scene.events.readers[0](nothing)
        assert scene.heard() == [("subscribed", b"a", None)]

    empty()


@virtual
async def test_without_a_reply_of_the_target_the_request_is_sent_again() -> None:
    """The other node is not connected, has died, or does not serve the slot either."""
    scene = await asked(b"a")
    for _ in range(3):
        scene.say(subscribed(b"a"), ASK)
        scene.events.readers.pop()(Exception("MOVED 7 10.0.0.1:7001"))
        scene.heard()
        await asyncio.sleep(MIGRATING_RETRY)
        assert await scene.commands() == join(b"a")
    scene.say(subscribed(b"a"), resp(b"R"))
    assert scene.heard() == [("subscribed", b"a", b"R")]


@virtual
async def test_a_reply_of_the_target_is_too_late_after_a_new_request() -> None:
    scene = await asked(b"a")
    scene.say(subscribed(b"a"), ASK)
    scene.heard()
    scene.connection.subscribe(b"a")
    scene.events.readers[0](b"R")
    assert scene.heard() == []


@virtual
async def test_an_answer_from_there_is_none_for_what_is_taken_away_here() -> None:
    scene = await asked(b"a")
    scene.say(subscribed(b"a"), ASK, gone(b"a"))
    scene.events.readers[0](b"R")
    assert scene.heard() == [("migrating", b"a", "10.0.0.2", 7_002), ("lost", b"a", True)]


@virtual
async def test_a_read_alone_of_a_slot_on_its_way_is_lost_with_its_subscription() -> None:
    """The channel was confirmed, so its loss is no answer to a request."""
    scene = Scene()
    scene.connection.read(b"a")
    await scene.commands()
    scene.say(ASK, gone(b"a"))
    assert scene.heard() == [("migrating", b"a", "10.0.0.2", 7_002), ("lost", b"a", False)]


@virtual
async def test_reads_for_the_node_that_a_slot_comes_from() -> None:
    scene = Scene()
    answers: list[Any] = []
    scene.connection.read_migrating(b"a", answers.append)
    assert await scene.commands() == [[b"ASKING"], *read(b"a")]
    scene.say(resp("OK"), resp(b"R"))
    assert answers == [b"R"]
    scene.transport.lose()
    with pytest.raises(ConnectionLost):
        scene.connection.read_migrating(b"a", answers.append)


# Refusals


@virtual
async def test_a_forbidden_channel_is_refused() -> None:
    scene = await asked(b"a", b"b")
    scene.say(resp(Exception("NOPERM this user has no permissions to access one of the channels")), NOBODY)
    scene.say(subscribed(b"b"), NOBODY)
    assert scene.heard() == [("denied", b"a"), ("subscribed", b"b", None)]
    assert await scene.commands() == []
    await asyncio.sleep(FIRST_RETRY)
    assert await scene.commands() == join(b"a"), "it is asked for again"
    scene.say(subscribed(b"a"), resp(b"R"))
    assert scene.heard() == [("retry", b"a"), ("subscribed", b"a", b"R")]


@virtual
async def test_a_denied_key_unsubscribes_its_channel() -> None:
    scene = await asked(b"a")
    scene.say(
        subscribed(b"a"), resp(Exception("NOPERM this user has no permissions to access one of the keys"))
    )
    assert scene.heard() == []
    assert await scene.commands() == leave(b"a")
    scene.say(gone(b"a"), resp("PONG"))
    assert scene.heard() == [("denied", b"a")]
    await asyncio.sleep(FIRST_RETRY)
    assert await scene.commands() == join(b"a")


@pytest.mark.parametrize(
    "error",
    [
        "LOADING Redis is loading",
        "ERR x",
    ],
)
def test_any_other_refusal_ends_the_connection(error: str) -> None:
    @virtual
    async def refused() -> None:
        scene = await asked(b"a")
        scene.say(resp(Exception(error)), resp(Exception(error)))
        assert error in str(await scene.connection.closed)
        assert scene.heard() == []

    refused()


# The channel that no browser waits for


async def service_messages(scene: Scene, *answers: bytes) -> list[bytes]:
    received: list[bytes] = []
    task = asyncio.create_task(scene.connection.subscribe_service(b"probe", received.append))
    assert await scene.commands() == [[b"SSUBSCRIBE", b"probe"]]
    scene.say(*answers)
    await task
    return received


@virtual
async def test_subscribes_a_service_channel() -> None:
    scene = Scene()
    received = await service_messages(scene, subscribed(b"probe"), push(b"smessage", b"probe", b"W"))
    assert received == [b"W"]
    assert scene.connection.service_channels == {b"probe"}
    assert scene.heard() == []


@virtual
async def test_a_dropped_service_channel_is_forgotten() -> None:
    """Otherwise, when the slot has come back, the subscriber would wait for ever."""
    scene = Scene()
    await service_messages(scene, subscribed(b"probe"))
    scene.say(gone(b"probe"))
    assert scene.connection.service_channels == set()
    assert scene.heard() == []
    assert await service_messages(scene, subscribed(b"probe"), push(b"smessage", b"probe", b"W")) == [b"W"]


@virtual
async def test_a_service_channel_may_be_on_another_node() -> None:
    with pytest.raises(ReplyError, match="SSUBSCRIBE with: MOVED"):
        await service_messages(Scene(), MOVED)


# Announced ids: an empty value is not the same as none


def announced_read(name: bytes) -> list[list[bytes]]:
    return [[b"EXISTS", name], *read(name)]


async def asked_whether_announced(name: bytes) -> Scene:
    """The same as `asked`, by a node that registers announced ids only."""
    scene = Scene(name, announced=True)
    assert await scene.commands() == [[b"SSUBSCRIBE", name], *announced_read(name)]
    assert len(scene.transport.written) == 1
    return scene


@pytest.mark.parametrize(
    ("exists", "text", "value"),
    [
        (0, b"", None),
        (1, b"", b""),
        (1, b"R", b"R"),
        (0, b"R", b"R"),  # written between the two commands
        (1, Exception("WRONGTYPE Operation against a key"), None),
    ],
)
def test_an_empty_value_announces_an_id(exists: int, text: Any, value: bytes | None) -> None:
    @virtual
    async def told() -> None:
        scene = await asked_whether_announced(b"a")
        scene.say(subscribed(b"a"), resp(exists))
        assert scene.heard() == []
        scene.say(resp(text))
        assert scene.heard() == [("subscribed", b"a", value)]
        scene.events.wanted = [b"a"]
        scene.connection.read(b"a")
        assert await scene.commands() == announced_read(b"a")
        scene.say(resp(exists), resp(text))
        assert scene.heard() == [("subscribed", b"a", value)]
        assert scene.connection.idle

    told()


@virtual
async def test_without_the_right_to_ask_whether_it_exists_the_channel_is_denied() -> None:
    scene = await asked_whether_announced(b"a")
    denied = resp(Exception("NOPERM this user has no permissions to run the 'exists' command"))
    scene.say(subscribed(b"a"), denied, NOBODY)
    assert await scene.commands() == leave(b"a")
    scene.say(gone(b"a"), resp("PONG"))
    assert scene.heard() == [("denied", b"a")]


@virtual
async def test_a_redirection_answers_all_three_commands() -> None:
    scene = await asked_whether_announced(b"a")
    scene.say(MOVED, MOVED, MOVED)
    assert scene.heard() == [("moved", b"a", "10.0.0.2", 7_002)]
    assert scene.connection.idle


@virtual
async def test_an_announcement_may_have_gone_ahead_with_its_slot() -> None:
    scene = await asked_whether_announced(b"a")
    scene.say(subscribed(b"a"), ASK, ASK)
    assert scene.heard() == [("migrating", b"a", "10.0.0.2", 7_002)]
    scene.events.readers[0](b"")
    assert scene.heard() == [("subscribed", b"a", b"")]


@pytest.mark.parametrize(
    ("exists", "text", "value"),
    [
        (resp(0), NOBODY, None),
        (resp(1), NOBODY, b""),
        (resp(1), resp(b"R"), b"R"),
        (MOVED, MOVED, "MOVED 7 10.0.0.2:7002"),
        (resp(Exception("NOPERM")), NOBODY, "NOPERM"),
    ],
)
def test_reads_for_the_node_that_a_slot_comes_from_whether_an_id_was_announced(
    exists: bytes, text: bytes, value: Any
) -> None:
    @virtual
    async def told() -> None:
        scene = Scene(announced=True)
        answers: list[Any] = []
        scene.connection.read_migrating(b"a", answers.append)
        assert await scene.commands() == [
            [b"ASKING"],
            [b"EXISTS", b"a"],
            [b"ASKING"],
            *read(b"a"),
        ]
        scene.say(resp("OK"), exists, resp("OK"), text)
        assert [str(each) if isinstance(each, Exception) else each for each in answers] == [value]

    told()
