"""Every command written and every reply read; the test plays Redis. Time is virtual."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.core.hub import Hub
from gateway.redis.connection import ConnectionLost, ReplyError
from gateway.redis.denials import FIRST_RETRY, HOPELESS_AFTER, MAX_RETRY
from gateway.redis.history import MAX_PENDING_BATCHES, SUBSCRIBE_BATCH, ServerHistory
from gateway.redis.subscriber import (
    DEAD_AFTER,
    LIVENESS_TICK,
    NO_ROOM,
    PING_AFTER,
    SubscriberConnection,
)

from ..fakes import Events, Member, Redis, Transport, VirtualLoop, parse_commands, push, resp, turns, virtual
from ..wire import strategies  # noqa: F401 - sets hypothesis up

NOPERM = Exception("NOPERM this user has no permissions")


class Scene:
    """A connection that is up; the test plays Redis."""

    def __init__(self, *wanted: bytes, history: ServerHistory | None = None) -> None:
        self.events = Events(wanted)
        self.connection = SubscriberConnection(self.events, 1_000, history)
        self.transport = Transport(prompt=True)
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)
        self._read = 0

    async def started(self) -> Scene:
        self.connection.start()
        await turns()
        assert self.events.taken() == [("connected",)]
        return self

    def commands(self) -> list[list[bytes]]:
        """What was written since the last time."""
        commands = [
            command for data in self.transport.written[self._read :] for command in parse_commands(data)
        ]
        self._read = len(self.transport.written)
        return commands

    def confirm(self, *names: bytes) -> None:
        self.say(*(push(b"subscribe", name, 1) for name in names))

    def say(self, *messages: bytes) -> None:
        self.connection.data_received(b"".join(messages))

    async def why(self) -> str:
        return str(await self.connection.closed)


async def up(*wanted: bytes) -> Scene:
    return await Scene(*wanted).started()


def names(count: int, first: int = 0) -> list[bytes]:
    return [b"websocket:%d" % i for i in range(first, first + count)]


# HELLO

HELLO = b"%1\r\n+proto\r\n:3\r\n"


async def greeting(scene: Scene, *answers: bytes, **options: Any) -> asyncio.Task[None]:
    arguments: dict[str, Any] = {"username": "default", "password": None, "database": 0, "name": "gateway-x"}
    task = asyncio.create_task(scene.connection.log_in(**(arguments | options)))
    for answer in answers:
        await turns()
        scene.say(answer)
    await turns()
    return task


@virtual
async def test_introduces_itself() -> None:
    scene = Scene()
    task = await greeting(scene, HELLO, resp("PONG"), resp([]))
    assert task.done()
    assert scene.commands() == [[b"HELLO", b"3", b"SETNAME", b"gateway-x"], [b"PING"], [b"READ"]]
    assert len(scene.transport.written) == 1, "one round trip"


@virtual
async def test_introduces_itself_with_a_password_and_chooses_the_database() -> None:
    scene = Scene()
    task = await greeting(
        scene, HELLO, resp("OK"), resp("PONG"), resp([]), username="me", password="secret", database=7
    )
    assert task.done()
    assert scene.commands() == [
        [b"HELLO", b"3", b"AUTH", b"me", b"secret", b"SETNAME", b"gateway-x"],
        [b"SELECT", b"7"],
        [b"PING"],
        [b"READ"],
    ]


@virtual
async def test_a_user_that_may_not_ping_is_found_out_at_once() -> None:
    why = "NOPERM User weak has no permissions to run the 'ping' command"
    task = await greeting(Scene(), HELLO, resp(Exception(why)), resp([]))
    with pytest.raises(ConnectionLost, match="permissions to run the 'ping' command"):
        await task


@pytest.mark.parametrize(
    "error", ["WRONGPASS invalid username-password pair", "NOPROTO unsupported", "ERR unknown"]
)
def test_redis_may_refuse_the_introduction(error: str) -> None:
    @virtual
    async def refused() -> None:
        task = await greeting(Scene(), resp(Exception(error)) * 3, password="secret")
        with pytest.raises(ConnectionLost, match=error) as raised:
            await task
        assert "secret" not in str(raised.value)

    refused()


@virtual
async def test_results_are_read_by_eval_where_eval_ro_is_missing() -> None:
    scene = Scene()
    task = await greeting(
        scene, HELLO, resp("PONG"), resp(Exception("ERR unknown command 'EVAL_RO'")), resp([])
    )
    await task
    scene.connection.start()
    scene.connection.subscribe(b"a")
    await turns()
    assert b"EVAL_RO" in scene.transport.written[0]
    assert all(b"$4\r\nEVAL\r\n" in written for written in scene.transport.written[1:])


@pytest.mark.parametrize(
    ("denied", "told"),
    [
        ("NOPERM no eval_ro", "EVAL_RO with: NOPERM no eval_ro"),
        ("ERR unknown command", "EVAL with: NOPERM no eval"),
    ],
)
def test_a_user_that_may_run_no_script_is_told_so(denied: str, told: str) -> None:
    @virtual
    async def rejected() -> None:
        answers = map(resp, ["PONG", Exception(denied), Exception("NOPERM no eval")])
        task = await greeting(Scene(), HELLO, *answers)
        with pytest.raises(ConnectionLost, match=f"{told}$"):
            await task

    rejected()


@virtual
async def test_a_loss_ends_the_introduction() -> None:
    scene = Scene()
    task = await greeting(scene)
    scene.connection.connection_lost(ConnectionResetError("reset by peer"))
    with pytest.raises(ConnectionLost, match="reset by peer"):
        await task


# Subscribing


@virtual
async def test_one_turn_of_the_loop_is_one_write() -> None:
    scene = await up(b"a", b"b")
    assert scene.commands() == [[b"SUBSCRIBE", b"a", b"b"], [b"READ", b"a", b"b"]]
    assert len(scene.transport.written) == 1


@virtual
async def test_requests_of_one_turn_share_a_command() -> None:
    scene = await up()
    scene.connection.subscribe(b"a")
    scene.connection.subscribe(b"b")
    await turns()
    scene.connection.subscribe(b"c")
    assert len(scene.transport.written) == 1
    await turns()
    assert len(scene.transport.written) == 2
    assert scene.commands() == [
        [b"SUBSCRIBE", b"a", b"b"],
        [b"READ", b"a", b"b"],
        [b"SUBSCRIBE", b"c"],
        [b"READ", b"c"],
    ]


@virtual
async def test_subscribed_means_confirmed_and_read() -> None:
    scene = await up(b"a", b"b")
    scene.confirm(b"a", b"b")
    assert scene.events.taken() == []
    scene.say(resp([b"CONFIRMED", None]))
    assert scene.events.taken() == [("subscribed", b"a", b"CONFIRMED"), ("subscribed", b"b", None)]


@virtual
async def test_what_is_published_meanwhile_is_heard_in_redis_order() -> None:
    scene = await up(b"a")
    scene.say(push(b"subscribe", b"a", 1), push(b"message", b"a", b"ONE"), resp([None]))
    scene.say(push(b"message", b"a", b"TWO"))
    assert scene.events.taken() == [
        ("received", b"a", b"ONE"),
        ("subscribed", b"a", None),
        ("received", b"a", b"TWO"),
    ]


@virtual
async def test_answers_may_come_in_any_pieces() -> None:
    scene = await up(b"a")
    stream = push(b"subscribe", b"a", 1) + resp([b"R"]) + push(b"message", b"a", b"M" * 100)
    for i in range(len(stream)):
        scene.say(stream[i : i + 1])
    assert scene.events.taken() == [("subscribed", b"a", b"R"), ("received", b"a", b"M" * 100)]


@virtual
async def test_reading_and_leaving() -> None:
    scene = await up()
    scene.events.wanted = [b"a", b"b"]
    scene.connection.read(b"a")
    scene.connection.read(b"b")
    scene.connection.unsubscribe(b"c")
    scene.connection.unsubscribe(b"d")
    await turns()
    assert scene.commands() == [[b"READ", b"a", b"b"], [b"UNSUBSCRIBE", b"c", b"d"]]
    scene.say(resp([None, b"R"]), push(b"unsubscribe", b"c", 1), push(b"unsubscribe", b"d", 0))
    assert scene.events.taken() == [
        ("subscribed", b"a", None),
        ("subscribed", b"b", b"R"),
        ("unsubscribed", b"c"),
        ("unsubscribed", b"d"),
    ]


@virtual
async def test_results_without_room_in_the_reply_are_read_again() -> None:
    scene = await up(b"a", b"b")
    scene.commands()
    scene.confirm(b"a", b"b")
    scene.say(resp([b"R" * 100, NO_ROOM]))
    assert scene.events.taken() == [("subscribed", b"a", b"R" * 100)]
    await turns()
    assert scene.commands() == [[b"SUBSCRIBE", b"b"], [b"READ", b"b"]]
    scene.confirm(b"b")
    scene.connection.read(b"a")
    scene.say(resp([b"S" * 100]))
    await turns()
    scene.say(resp([NO_ROOM]))
    await turns()
    scene.say(resp([b"R" * 100]))
    assert scene.commands() == [[b"READ", b"a"]] * 2
    assert scene.events.taken() == [("subscribed", b"b", b"S" * 100), ("subscribed", b"a", b"R" * 100)]


@virtual
async def test_a_read_does_not_answer_a_member_that_left_and_came_back() -> None:
    """The new member waits for a SUBSCRIBE, which Redis gets after the read."""
    scene = await up(b"a")
    scene.confirm(b"a")
    scene.say(resp([None]))
    scene.connection.read(b"a")
    await turns()
    scene.events.taken()
    scene.events.wanted = []
    scene.say(resp([b"R"]))
    assert scene.events.taken() == []
    assert scene.connection.idle


@virtual
async def test_batches_of_500_and_eight_of_them_unanswered() -> None:
    everybody = names(SUBSCRIBE_BATCH * (MAX_PENDING_BATCHES + 2) + 1)
    scene = await up(*everybody)
    commands = scene.commands()
    assert [len(command) - 1 for command in commands] == [SUBSCRIBE_BATCH] * 2 * MAX_PENDING_BATCHES
    assert [command[0] for command in commands] == [b"SUBSCRIBE", b"READ"] * MAX_PENDING_BATCHES
    for _ in range(2):
        batch = commands.pop(0)[1:]
        commands.pop(0)
        scene.confirm(*batch)
        await turns()
        assert scene.commands() == [], "the batch is not answered before its read is"
        scene.say(resp([None] * len(batch)))
        await turns()
        fresh = scene.commands()
        assert [len(command) - 1 for command in fresh] == [SUBSCRIBE_BATCH] * 2
        commands += fresh
    while commands:
        batch = commands.pop(0)[1:]
        commands.pop(0)
        scene.confirm(*batch)
        scene.say(resp([None] * len(batch)))
        await turns()
        commands += scene.commands()
    assert [event[1] for event in scene.events.taken()] == everybody


@virtual
async def test_the_window_counts_reads_and_leaves_too() -> None:
    scene = await up()
    for i in range(MAX_PENDING_BATCHES + 3):
        (scene.connection.read if i % 2 else scene.connection.unsubscribe)(b"%d" % i)
        await turns()
    assert len(scene.commands()) == MAX_PENDING_BATCHES
    scene.say(push(b"unsubscribe", b"0", 0))
    await turns()
    assert len(scene.commands()) == 1


# What Redis forbids


@virtual
async def test_a_denied_batch_is_halved_until_the_denied_channel_is_alone() -> None:
    scene = await up(b"a", b"b", b"c", b"d")
    scene.commands()
    scene.say(resp(NOPERM), resp([None] * 4))
    await turns()
    assert scene.commands() == [
        [kind, *names] for names in ((b"a", b"b"), (b"c", b"d")) for kind in (b"SUBSCRIBE", b"READ")
    ]
    scene.say(resp(NOPERM), resp([None, None]))
    scene.confirm(b"c", b"d")
    scene.say(resp([b"R", None]))
    await turns()
    assert scene.commands() == [[kind, name] for name in (b"a", b"b") for kind in (b"SUBSCRIBE", b"READ")]
    scene.say(push(b"subscribe", b"a", 1), resp([None]), resp(NOPERM), resp([b"R"]))
    assert scene.events.taken() == [
        ("subscribed", b"c", b"R"),
        ("subscribed", b"d", None),
        ("subscribed", b"a", None),
        ("denied", b"b"),
    ]
    await turns()
    assert scene.commands() == []
    assert (scene.connection.denied_channels, scene.connection.denies(b"b")) == (1, True)
    assert not scene.transport.aborted


@pytest.mark.parametrize("error", ["MOVED 7 10.0.0.2:7002", "CROSSSLOT Keys in request"])
def test_one_id_that_another_server_serves_harms_no_other(error: str) -> None:
    """A node of a Cluster at a redis:// URL takes any SUBSCRIBE, and reads only keys of its own slots."""

    @virtual
    async def asked() -> None:
        scene = await up(b"a", b"b")
        scene.commands()
        scene.confirm(b"a", b"b")
        scene.say(resp(Exception(error)))
        await turns()
        assert [command[0] for command in scene.commands()] == [b"SUBSCRIBE", b"READ"] * 2
        scene.confirm(b"a")
        scene.say(resp(Exception("MOVED 7 10.0.0.2:7002")))
        scene.confirm(b"b")
        scene.say(resp([b"R"]))
        assert scene.events.taken() == [("subscribed", b"b", b"R")]
        await turns()
        scene.say(push(b"unsubscribe", b"a", 1))
        assert scene.events.taken() == [("denied", b"a")]
        assert not scene.transport.aborted

    asked()


@virtual
async def test_a_denied_key_affects_only_its_own_channel() -> None:
    scene = await up(b"a", b"b")
    scene.commands()
    scene.say(push(b"subscribe", b"a", 1), push(b"subscribe", b"b", 2), resp(NOPERM))
    await turns()
    assert [command[0] for command in scene.commands()] == [b"SUBSCRIBE", b"READ"] * 2
    scene.say(push(b"subscribe", b"a", 2), resp(NOPERM), push(b"subscribe", b"b", 2), resp([None]))
    assert scene.events.taken() == [("subscribed", b"b", None)]
    await turns()
    assert scene.commands() == [[b"UNSUBSCRIBE", b"a"]]
    scene.say(push(b"unsubscribe", b"a", 1))
    assert scene.events.taken() == [("denied", b"a")], "from now on nothing of it is subscribed"
    assert not scene.transport.aborted


async def denied(*names: bytes) -> Scene:
    """A connection to a Redis that denies all these channels, one by one."""
    scene = await up()
    for name in names:
        scene.connection.subscribe(name)
        await turns()
        scene.say(resp(NOPERM), resp([None]))
    assert scene.events.taken() == [("denied", name) for name in names]
    scene.commands()
    return scene


@virtual
async def test_what_is_denied_is_asked_for_again_until_it_is_allowed() -> None:
    scene = await denied(b"a", b"b")
    redis = Redis()
    redis.forbidden_channels = {b"a", b"b"}
    for _ in range(5):
        await asyncio.sleep(MAX_RETRY)
        await settle(scene, redis)
    kinds = [kind for kind, *_ in scene.events.taken()]
    assert kinds == ["retry", "retry", "denied", "denied"] * (len(kinds) // 4)
    assert len(kinds) >= 5 * 4
    redis.forbidden_channels = {b"b"}
    await asyncio.sleep(MAX_RETRY)
    await settle(scene, redis)
    assert ("subscribed", b"a", None) in scene.events.taken()
    assert not scene.transport.aborted


@virtual
async def test_what_is_left_while_it_is_denied_is_not_asked_for_again() -> None:
    scene = await denied(b"a", b"b", b"c")
    scene.events.given_up = {b"b"}
    scene.connection.unsubscribe(b"a")
    assert scene.connection.denied_channels == 2
    await asyncio.sleep(1)
    assert scene.commands() == [[b"SUBSCRIBE", b"c"], [b"READ", b"c"]]


@virtual
async def test_a_denied_read_is_asked_for_again_and_leaves_the_subscription_alone() -> None:
    scene = await up()
    scene.events.wanted = [b"a"]
    scene.connection.read(b"a")
    await turns()
    scene.say(resp(NOPERM))
    scene.commands()
    await asyncio.sleep(FIRST_RETRY)
    assert scene.commands() == [[b"READ", b"a"]]
    scene.say(resp([b"R"]))
    assert scene.events.taken() == [("denied", b"a"), ("retry", b"a"), ("subscribed", b"a", b"R")]
    scene.connection.read(b"a")
    await turns()
    scene.say(resp(NOPERM))
    scene.commands()
    scene.connection.unsubscribe(b"a")
    await turns()
    assert scene.commands() == [[b"UNSUBSCRIBE", b"a"]], "this one is subscribed"


@virtual
async def test_a_channel_that_is_asked_for_anew_is_asked_for_once() -> None:
    """In a Cluster its slot may leave and come back meanwhile."""
    scene = await denied(b"a", b"b")
    scene.connection.subscribe(b"a")
    scene.connection.read(b"b")
    await turns()
    assert scene.commands() == [[b"SUBSCRIBE", b"a"], [b"READ", b"a"], [b"READ", b"b"]]
    assert scene.connection.denied_channels == 0


HALVES = 2 * HOPELESS_AFTER + MAX_PENDING_BATCHES  # of each batch that was split, one half may still wait


@virtual
async def test_while_everything_is_denied_little_is_asked() -> None:
    """Of 5,000 channels: not each by itself, and not again and again."""
    scene = await up(*names(5_000))
    redis = Redis()
    redis.forbidden_channels = set(names(5_000))
    await settle(scene, redis)
    assert scene.connection.denied_channels == 5_000
    assert len(redis.commands) <= 2 * (5_000 / SUBSCRIBE_BATCH + HALVES)
    before = len(redis.commands)
    await asyncio.sleep(FIRST_RETRY)
    await settle(scene, redis)
    assert len(redis.commands) - before <= 2 * HALVES
    redis.forbidden_channels = {b"websocket:7"}
    await asyncio.sleep(MAX_RETRY)
    await settle(scene, redis)
    assert len(redis.subscribed) == 4_999
    assert scene.connection.denied_channels == 1


@virtual
async def test_a_denial_is_logged_once_and_says_which_right_is_missing() -> None:
    with capture_logs() as logs:
        await denied(b"websocket:a", b"websocket:b")
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("channel denied by redis", "error")
    assert line["reason"].startswith("NOPERM")


@virtual
async def test_batches_shrink_when_redis_closes_a_connection_during_one() -> None:
    history = ServerHistory(asyncio.get_running_loop().time)
    sizes = []
    for _ in range(3):
        scene = await Scene(*names(5_000), history=history).started()
        sizes.append([len(command) - 1 for command in scene.commands() if command[0] == b"SUBSCRIBE"])
        scene.transport.lose()
    assert sizes == [[500] * 8, [250] * 4, [125] * 2]


@virtual
async def test_batches_do_not_shrink_when_this_node_ends_the_connection() -> None:
    history = ServerHistory(asyncio.get_running_loop().time)
    scene = await Scene(*names(10), history=history).started()
    scene.connection.abort("no longer trusted")
    await turns()
    scene = await Scene(history=history).started()
    scene.transport.lose()
    assert history.batch == SUBSCRIBE_BATCH
    assert not history.lost_within_batch


@virtual
async def test_a_channel_left_while_its_refused_read_is_retried_stays_left() -> None:
    """No channel may be subscribed again after an UNSUBSCRIBE that is on its way."""
    redis = Redis()
    redis.forbidden_keys = {b"forbidden"}
    scene = await up()
    scene.connection.read(b"a")
    scene.connection.read(b"forbidden")
    await turns()
    replies = b"".join(map(redis.execute, scene.commands()))
    redis.subscribed = {b"a"}
    scene.connection.unsubscribe(b"a")
    scene.say(replies)
    await turns()
    await settle(scene, redis)
    assert b"a" not in redis.subscribed


@pytest.mark.parametrize(
    "refusal",
    [
        "LOADING Redis is loading",
        "MASTERDOWN Link with MASTER is down",
        "ERR unknown command",
        "NOAUTH",
    ],
)
def test_any_other_refusal_ends_the_connection(refusal: str) -> None:
    @virtual
    async def refused() -> None:
        scene = await up(b"a")
        scene.say(resp(Exception(refusal)), resp(Exception(refusal)))
        assert scene.transport.aborted
        assert refusal in await scene.why()
        assert scene.events.taken() == []

    refused()


# Order


@pytest.mark.parametrize(
    "answer",
    [
        push(b"subscribe", b"other", 1),
        push(b"subscribe", b"b", 1),
        push(b"unsubscribe", b"a", 0),
        push(b"subscribe", b"a", 1) + push(b"subscribe", b"a", 1),
        push(b"subscribe", b"a", 1) + resp([None, None]),
        push(b"subscribe", b"a", 1) + push(b"subscribe", b"b", 1) + push(b"subscribe", b"b", 1),
        push(b"subscribe", b"a", 1) + push(b"subscribe", b"b", 1) + resp([None, None]) + resp([None, None]),
        resp("OK"),
        resp([None, None]),
        b"!nonsense\r\n",
        b"*-7\r\n",
    ],
)
def test_an_unexpected_reply_ends_the_connection(answer: bytes) -> None:
    @virtual
    async def desynchronised() -> None:
        scene = await up(b"a", b"b")
        scene.say(answer)
        assert scene.transport.aborted
        assert "unexpected reply" in await scene.why()

    desynchronised()


@virtual
async def test_other_pushes_are_none_of_its_business() -> None:
    scene = await up(b"a")
    scene.say(push(b"invalidate", [b"a"]), push(b"subscribe", b"a", 1), resp([None]))
    assert scene.events.taken() == [("subscribed", b"a", None)]
    assert not scene.transport.aborted


stream_parts = st.sampled_from(
    [
        push(b"subscribe", b"a", 1),
        push(b"unsubscribe", b"a", 1),
        push(b"message", b"a", b"x"),
        resp([None]),
        resp("OK"),
    ]
) | st.binary(max_size=12)


@given(st.lists(stream_parts, max_size=8))
@example([push(b"subscribe", b"a", 1), resp("OK")])
def test_whatever_redis_says_raises_nothing(parts: list[bytes]) -> None:
    @virtual
    async def heard() -> None:
        scene = await up(b"a")
        for part in parts:
            if not scene.transport.closing:
                scene.say(part)
                await turns(2)
        scene.connection.abort("the test is over")
        await scene.why()

    heard()


# The channel that no browser waits for


async def service_messages(scene: Scene, *answers: bytes) -> list[bytes]:
    received: list[bytes] = []
    task = asyncio.create_task(scene.connection.subscribe_service(b"probe", received.append))
    await turns()
    scene.say(*answers)
    await task
    return received


@virtual
async def test_subscribes_a_service_channel() -> None:
    scene = await up()
    assert scene.connection.service_channels == set()
    received = await service_messages(
        scene, push(b"subscribe", b"probe", 1), push(b"message", b"probe", b"W")
    )
    assert scene.commands() == [[b"SUBSCRIBE", b"probe"]]
    assert (received, scene.connection.service_channels) == ([b"W"], {b"probe"})
    assert scene.events.taken() == []


@virtual
async def test_a_service_subscription_between_batches() -> None:
    scene = await up(b"a")
    received = await service_messages(
        scene, push(b"subscribe", b"a", 1), resp([b"R"]), push(b"subscribe", b"probe", 2)
    )
    scene.say(push(b"message", b"a", b"M"), push(b"message", b"probe", b"W"))
    assert received == [b"W"]
    assert scene.events.taken() == [("subscribed", b"a", b"R"), ("received", b"a", b"M")]


@virtual
async def test_a_denied_service_channel_affects_nothing_else() -> None:
    scene = await up()
    with pytest.raises(ReplyError, match="SUBSCRIBE with: NOPERM"):
        await service_messages(scene, resp(NOPERM))
    assert scene.connection.service_channels == set()
    assert scene.connection.refuses_service(b"probe") == str(NOPERM)
    assert not scene.transport.aborted
    await service_messages(scene, push(b"subscribe", b"probe", 1))
    assert scene.connection.refuses_service(b"probe") == ""
    assert scene.connection.refuses_service(None) == ""


@pytest.mark.parametrize("answer", [resp("OK"), push(b"subscribe", b"other", 1)])
def test_an_unexpected_reply_to_a_service_subscription_ends_the_connection(answer: bytes) -> None:
    @virtual
    async def desynchronised() -> None:
        with pytest.raises(ConnectionLost, match="unexpected reply"):
            await service_messages(await up(), answer)

    desynchronised()


@virtual
async def test_a_service_subscription_ends_with_the_connection() -> None:
    scene = await up()
    watch = asyncio.create_task(scene.connection.subscribe_service(b"probe", print))
    await turns()
    scene.transport.lose(OSError("reset by peer"))
    with pytest.raises(ConnectionLost, match="reset by peer"):
        await watch
    with pytest.raises(ConnectionLost, match="is closed: reset by peer"):
        await scene.connection.subscribe_service(b"probe", print)


@virtual
async def test_idle_means_no_open_and_no_unsent_command() -> None:
    scene = Scene()
    for ask, answer in [
        (scene.connection.subscribe, push(b"subscribe", b"a", 1) + resp([None])),
        (scene.connection.read, resp([None])),
        (scene.connection.unsubscribe, push(b"unsubscribe", b"a", 1)),
    ]:
        quiet = [scene.connection.idle]
        ask(b"a")
        quiet.append(scene.connection.idle)
        await turns()
        quiet.append(scene.connection.idle)
        scene.say(answer)
        assert [*quiet, scene.connection.idle] == [True, False, False, True]


# Liveness


def loop() -> VirtualLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running


@virtual
async def test_silence_is_broken_by_a_ping() -> None:
    scene = await up()
    await asyncio.sleep(PING_AFTER - 0.1)
    assert scene.commands() == []
    await asyncio.sleep(LIVENESS_TICK)
    assert scene.commands() == [[b"PING"]]


@virtual
async def test_silence_ends_the_connection_within_five_seconds() -> None:
    scene = await up()
    began = loop().time()
    assert "was silent" in await scene.why()
    assert DEAD_AFTER <= loop().time() - began < 5
    assert scene.transport.aborted


@virtual
async def test_silence_in_the_midst_of_answers_counts_from_the_last_of_them() -> None:
    scene = await up()
    for _ in range(10):
        await asyncio.sleep(3)
        scene.say(resp("PONG") * len(scene.commands()))
    began = loop().time()
    await scene.why()
    assert DEAD_AFTER <= loop().time() - began < 5


@virtual
async def test_any_message_at_all_is_a_sign_of_life() -> None:
    scene = await up()
    for _ in range(30):
        await asyncio.sleep(1)
        scene.say(push(b"message", b"a", b"x"))
    assert scene.commands() == []
    assert not scene.transport.aborted


@virtual
async def test_pongs_keep_a_quiet_connection_up() -> None:
    scene = await up()
    redis = Redis()
    redis.serve(scene.transport)
    await asyncio.sleep(600)
    assert not scene.transport.aborted
    assert 250 < len(scene.commands()) < 450


@virtual
async def test_a_ping_among_batches_is_answered_in_its_place() -> None:
    scene = await up(b"a")
    await asyncio.sleep(PING_AFTER + LIVENESS_TICK)
    pings = len(scene.commands()) - 2
    assert pings >= 1
    scene.say(push(b"subscribe", b"a", 1), resp([b"R"]), resp("PONG") * pings)
    assert scene.events.taken() == [("subscribed", b"a", b"R")]
    assert not scene.transport.aborted


@virtual
async def test_a_refused_ping_ends_the_connection() -> None:
    scene = await up()
    await asyncio.sleep(PING_AFTER + LIVENESS_TICK)
    scene.say(resp(Exception("NOPERM")))
    assert "PING" in await scene.why()


@virtual
async def test_a_redis_that_cannot_save_to_its_disk_is_alive() -> None:
    """Redis answers PING with MISCONF, and SUBSCRIBE and PUBLISH as usual."""
    misconf = resp(Exception("MISCONF Redis is configured to save RDB snapshots, but is unable to"))
    scene = Scene(b"a")
    await (await greeting(scene, HELLO, misconf, resp([])))
    scene.commands()
    scene.connection.start()
    for _ in range(20):
        await asyncio.sleep(1)
        scene.say(misconf * [command[0] for command in scene.commands()].count(b"PING"))
        if not scene.connection.idle:
            scene.say(push(b"subscribe", b"a", 1), resp([None]))
    assert not scene.transport.aborted


@virtual
async def test_a_stall_of_our_own_is_not_taken_for_a_dead_redis() -> None:
    scene = await up()
    loop().stall(30)
    await asyncio.sleep(LIVENESS_TICK / 2)
    assert not scene.transport.aborted
    began = loop().time()
    await scene.why()  # but if it stays silent, it is dead
    assert 2 < loop().time() - began < 5


# The end


@virtual
async def test_the_first_reason_counts() -> None:
    scene = await up()
    scene.connection.abort("first")
    scene.connection.abort("second")
    assert await scene.why() == "first"


@pytest.mark.parametrize(
    ("error", "why"),
    [(None, "Redis closed the connection"), (OSError("no route to host"), "no route to host")],
)
def test_a_loss_tells_its_reason(error: Exception | None, why: str) -> None:
    @virtual
    async def lost() -> None:
        scene = await up()
        scene.transport.lose(error)
        assert await scene.why() == why

    lost()


@virtual
async def test_after_the_end_nothing_is_written_and_nothing_is_planned() -> None:
    scene = await up()
    scene.commands()
    scene.connection.subscribe(b"a")
    scene.transport.lose()
    scene.connection.unsubscribe(b"b")
    scene.connection.read(b"c")
    scene.connection.abort("too late")
    await asyncio.sleep(60)
    assert scene.commands() == []


@virtual
async def test_an_end_between_the_introduction_and_the_start_is_an_end() -> None:
    """Redis may close the connection right after its reply to HELLO."""
    trouble: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: trouble.append(context))
    scene = Scene(b"a")
    scene.transport.lose()
    scene.connection.start()
    await asyncio.sleep(60)
    assert trouble == []


@virtual
async def test_an_abort_before_the_connection_is_harmless() -> None:
    SubscriberConnection(Events(), 1_000).abort("never mind")


@virtual
async def test_the_kernel_has_a_timeout_for_a_dead_peer_too() -> None:
    scene = Scene()
    assert (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5_000) in scene.transport.options
    local = Transport(family=socket.AF_UNIX)
    SubscriberConnection(Events(), 1_000).connection_made(local)
    assert local.options == []


# With the table and a Redis that knows what it does


async def settle(scene: Scene, redis: Redis) -> None:
    """Let Redis answer until no command is open."""
    while commands := scene.commands():
        scene.say(*map(redis.execute, commands))
        await turns(2)


IDS = [b"one", b"two", b"three", b"unsubscribable", b"unreadable"]


class Broker:
    """A broker whose connection is always up."""

    def __init__(self, connection: SubscriberConnection) -> None:
        self.connection = connection
        self.subscribe, self.read, self.unsubscribe = (
            connection.subscribe,
            connection.read,
            connection.unsubscribe,
        )

    def reaches(self, _name: bytes) -> bool:
        return True

    def degraded(self, _name: bytes) -> bool:
        return False


class Whole:
    """Hub, connection and Redis, with members that come and go while commands are open."""

    def __init__(self) -> None:
        self.hub = Hub("websocket:", 1_000, lambda hub: Broker(SubscriberConnection(hub, 1_000)))
        self.connection = self.hub.broker.connection
        self.transport = Transport()
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)
        self.redis = Redis()
        self.redis.forbidden_channels = {b"websocket:unsubscribable"}
        self.redis.forbidden_keys = {b"websocket:unreadable"}
        self.unread: list[list[bytes]] = []
        self.read = 0
        self.members: list[tuple[bytes, Member]] = []
        self.left: list[Member] = []

    def work(self) -> None:
        """Redis reads one command and answers it."""
        if self.unread:
            self.connection.data_received(self.redis.execute(self.unread.pop(0)))

    def collect(self) -> None:
        for data in self.transport.written[self.read :]:
            self.unread += parse_commands(data)
        self.read = len(self.transport.written)

    def present(self) -> list[tuple[bytes, Member]]:
        """The members whose channels Redis allows."""
        return [(name, member) for name, member in self.members if not name.startswith(b"websocket:un")]


steps = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "work", "turn", "publish"]), st.integers(0, 4)),
    min_size=15,
    max_size=60,
)


@given(steps)
def test_redis_is_subscribed_to_what_the_members_want(drawn: list[tuple[str, int]]) -> None:
    @virtual
    async def played() -> None:
        whole = Whole()
        whole.connection.start()
        for step, i in drawn:
            if step == "join":
                member = Member()
                name = whole.hub.register(IDS[i], member)
                assert name is not None
                whole.members.append((name, member))
            elif step == "leave" and whole.members:
                name, member = whole.members.pop(i % len(whole.members))
                whole.hub.leave(name, member)
            elif step == "work":
                whole.work()
            elif step == "publish":
                whole.connection.data_received(whole.redis.publish(b"websocket:" + IDS[i], b"CONFIRMED"))
            else:
                await turns(2)
                whole.collect()
        await idle(whole)
        assert not whole.transport.aborted
        for name, member in whole.members:
            kinds = [kind for kind, _ in member.heard if kind not in ("deliver", "degraded")]
            assert kinds == ([] if name.startswith(b"websocket:un") else ["confirm"])
        wanted = {name for name, _ in whole.present()}
        assert whole.redis.subscribed == wanted
        denied = {name for name, _ in whole.members} - wanted
        assert whole.connection.denied_channels == len(denied)
        for name, member in whole.members:
            whole.hub.leave(name, member)
        await idle(whole)
        assert whole.redis.subscribed == set()
        assert whole.hub.channels == 0

    played()


async def idle(whole: Whole) -> None:
    await turns(2)
    whole.collect()
    while whole.unread:
        whole.work()
        await turns(2)
        whole.collect()


# Service channels


@virtual
async def test_each_service_channel_has_its_own_callback() -> None:
    scene = await up()
    received: dict[bytes, list[bytes]] = {b"w::a": [], b"w::b": []}
    for name, messages in received.items():
        subscribing = asyncio.create_task(scene.connection.subscribe_service(name, messages.append))
        await turns()
        scene.confirm(name)
        await subscribing
    assert scene.commands() == [[b"SUBSCRIBE", b"w::a"], [b"SUBSCRIBE", b"w::b"]]
    assert set(scene.connection.service_channels) == {b"w::a", b"w::b"}
    scene.say(*(push(b"message", name, name[-1:]) for name in (b"w::b", b"w::c", b"w::a")))
    assert received == {b"w::a": [b"a"], b"w::b": [b"b"]}
    assert scene.events.taken() == [("received", b"w::c", b"c")]


@virtual
async def test_an_aborted_connection_takes_no_more_commands() -> None:
    """The broker keeps an aborted connection until its transport is gone."""
    scene = await up()
    scene.connection.abort("no longer trusted")
    with pytest.raises(ConnectionLost):
        await scene.connection.subscribe_service(b"w::a", lambda _word: None)
    with pytest.raises(ConnectionLost):
        scene.connection.send(lambda _reply: None, "PING")
    await turns()
    assert await scene.why() == "no longer trusted"
