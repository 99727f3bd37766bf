"""The broker keeps a connection up. Time is virtual, and the test plays Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from typing import Any, TypeVar

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.redis.connection import ConnectionLost, ReplyError
from gateway.redis.outage_notifier import NOTIFY_AFTER
from gateway.redis.reminder import REMIND_EVERY
from gateway.redis.server import STEP_TIMEOUT, Server
from gateway.redis.server_broker import (
    FIRST_RECONNECT_DELAY,
    MAX_RECONNECT_DELAY,
    STABLE_AFTER,
    ServerBroker,
)
from gateway.redis.subscriber import SubscriberConnection
from gateway.redis.url import RedisURL

from ..fakes import Events, Redis, Transport, VirtualLoop, parse_commands, resp, turns, virtual

P = TypeVar("P", bound=asyncio.Protocol)

Answer = Callable[["Topology", Transport], Awaitable[None]]


async def serves(topology: Topology, transport: Transport) -> None:
    """A Redis that does its work."""
    topology.redis.hello.pop(b"role", None)
    topology.redis.serve(transport)
    transport.protocol.connection_made(transport)


async def is_down(topology: Topology, transport: Transport) -> None:
    raise ConnectionRefusedError("Connect call failed")


async def is_frozen(topology: Topology, transport: Transport) -> None:
    """It accepts, and says nothing."""
    transport.protocol.connection_made(transport)


async def hangs(topology: Topology, transport: Transport) -> None:
    """Not even TCP gets an answer."""
    await asyncio.sleep(STEP_TIMEOUT)
    raise TimeoutError("no answer to TCP within 5 s")


async def knows_no_resp3(topology: Topology, transport: Transport) -> None:
    transport.protocol.connection_made(transport)
    refusal = resp(Exception("ERR unknown command"))
    transport.on_write = lambda data: transport.protocol.data_received(refusal * len(parse_commands(data)))


async def is_a_replica(topology: Topology, transport: Transport) -> None:
    topology.redis.hello[b"role"] = b"replica"
    topology.redis.serve(transport)
    transport.protocol.connection_made(transport)


LOGIN = [[b"HELLO", b"3", b"SETNAME", b"gateway-x"], [b"PING"], [b"READ"]]
"""What a subscriber connection begins with; the script that reads results is tried without any key."""


class Topology:
    """Where Redis is, and how it behaves when somebody connects: `answer` may change at any time."""

    connect: Any = Server.connect
    _connect: Any = Server._connect
    display_url = "redis://somewhere"
    only_masters = False
    username = "default"
    password: str | None = None
    database = 0

    def __init__(self, answer: Answer = serves) -> None:
        self.answer = answer
        self.redis = Redis()
        self.attempts: list[float] = []
        self.transports: list[Transport] = []

    def _check_mode(self, _mode: object) -> None:
        """It is what it should be."""

    def use(self, url: RedisURL) -> None:
        raise AssertionError

    async def find(self) -> Any:
        return self

    closed = False

    async def close(self) -> None:
        self.closed = True

    async def open(self, protocol: P) -> P:
        self.attempts.append(now())
        transport = Transport(prompt=True)
        transport.protocol = protocol
        self.transports.append(transport)
        await self.answer(self, transport)
        return protocol


def now() -> float:
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], bool]) -> None:
    """Let virtual time pass until `condition` holds, to a hundredth of a second."""
    while not condition():  # noqa: ASYNC110 - the broker tells nobody, and nothing is waited for in earnest
        await asyncio.sleep(0.01)


class Scene:
    """A broker that runs, its Redis, and what it tells the owner of the subscriptions."""

    def __init__(self, answer: Answer = serves, *wanted: bytes) -> None:
        self.topology = Topology(answer)
        self.events = Events(wanted)
        self.broker = ServerBroker(
            self.topology,
            self.events,
            "gateway-x",
            asyncio.get_running_loop().time,
            lambda history: SubscriberConnection(self.events, 1_000, history),
            lambda: None,
        )
        self.task = asyncio.create_task(self.broker.run())

    async def up(self) -> Scene:
        await turns(20)
        assert self.broker.connected
        return self

    def lose(self, why: str = "reset by peer") -> None:
        self.topology.redis.subscribed.clear()
        self.topology.transports[-1].lose(OSError(why))

    async def stop(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


def told(logs: list[Any], event: str) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == event]


@pytest.fixture(autouse=True)
def _plain_logs() -> None:
    structlog.reset_defaults()


@virtual
async def test_connects_introduces_itself_and_subscribes_what_is_wanted() -> None:
    scene = await Scene(serves, b"a", b"b").up()
    await turns()
    assert scene.topology.redis.commands == [
        *LOGIN,
        [b"SUBSCRIBE", b"a", b"b"],
        [b"READ", b"a", b"b"],
    ]
    assert scene.events.taken() == [("connected",), ("subscribed", b"a", None), ("subscribed", b"b", None)]
    assert scene.broker.ever_connected
    assert (scene.broker.outages, scene.broker.past_outage_seconds) == (0, 0)
    await scene.stop()


@virtual
async def test_forwards_requests() -> None:
    scene = await Scene().up()
    scene.broker.subscribe(b"a")
    scene.broker.read(b"b")
    scene.broker.unsubscribe(b"c")
    await turns()
    assert scene.topology.redis.commands[3:] == [
        [b"SUBSCRIBE", b"a"],
        [b"READ", b"a"],
        [b"READ", b"b"],
        [b"UNSUBSCRIBE", b"c"],
    ]
    await scene.stop()


@virtual
async def test_requests_without_a_connection_are_dropped() -> None:
    """The next connection subscribes all that `connected` names: a kept request would be sent twice."""
    scene = Scene(is_down)
    await turns()
    scene.broker.subscribe(b"a")
    scene.broker.read(b"a")
    scene.broker.unsubscribe(b"a")
    assert not scene.broker.connected
    assert not scene.broker.ever_connected
    scene.topology.answer = serves
    await asyncio.sleep(MAX_RECONNECT_DELAY)
    assert scene.events.taken() == [("connected",)]
    assert scene.topology.redis.commands == LOGIN
    await scene.stop()


@virtual
async def test_a_lost_connection_is_replaced_and_everything_subscribed_again() -> None:
    scene = await Scene(serves, b"a").up()
    await turns()
    scene.events.taken()
    scene.lose()
    await turns()
    assert scene.events.taken() == [("disconnected",)]
    assert not scene.broker.connected
    await asyncio.sleep(FIRST_RECONNECT_DELAY)
    await turns()
    assert scene.events.taken() == [("connected",), ("subscribed", b"a", None)]
    assert len(scene.topology.attempts) == 2
    await scene.stop()


@virtual
async def test_outages_are_counted_and_timed() -> None:
    scene = await Scene().up()
    for gap in (1, 2):
        scene.topology.answer = is_down
        lost = now()
        scene.lose()
        await asyncio.sleep(10)
        assert scene.broker.outages == gap
        before = scene.broker.past_outage_seconds
        scene.topology.answer = serves
        await until(lambda: scene.broker.connected)
        assert scene.broker.past_outage_seconds - before == pytest.approx(now() - lost, abs=0.02)
    assert scene.broker.past_outage_seconds > 20
    await scene.stop()


@virtual
async def test_the_time_before_the_first_connection_is_no_outage() -> None:
    scene = Scene(is_down)
    await asyncio.sleep(100)
    assert (scene.broker.outages, scene.broker.past_outage_seconds) == (0, 0)
    assert scene.events.taken() == []
    await scene.stop()


@virtual
async def test_attempts_come_soon_then_ever_more_slowly_and_never_too_slowly() -> None:
    scene = Scene(is_down)
    await asyncio.sleep(20)
    at = scene.topology.attempts
    pauses = [later - earlier for earlier, later in pairwise(at)]
    for i, pause in enumerate(pauses):
        longest = min(MAX_RECONNECT_DELAY, FIRST_RECONNECT_DELAY * 2**i)
        assert longest / 2 <= pause <= longest + 0.001
    assert len(set(pauses)) == len(pauses), "nodes must not come in step"
    await scene.stop()


@virtual
async def test_a_connection_that_dies_young_slows_the_attempts_down_too() -> None:
    async def hangs_up(topology: Topology, transport: Transport) -> None:
        await serves(topology, transport)
        asyncio.get_running_loop().call_later(0.01, transport.lose)

    scene = Scene(hangs_up)
    await asyncio.sleep(10)
    assert 15 < len(scene.topology.attempts) < 50
    assert scene.broker.outages in (len(scene.topology.attempts), len(scene.topology.attempts) - 1)
    await scene.stop()


@virtual
async def test_after_a_connection_that_lasted_the_next_comes_soon() -> None:
    scene = Scene(is_down)
    await asyncio.sleep(10)
    scene.topology.answer = serves
    await asyncio.sleep(STABLE_AFTER + 1)
    assert scene.broker.connected
    scene.lose()
    await asyncio.sleep(FIRST_RECONNECT_DELAY)
    assert scene.broker.connected
    await scene.stop()


@pytest.mark.parametrize(
    ("answer", "silence"),
    [(is_frozen, "no answer to HELLO within 5 s"), (hangs, "no answer to TCP within 5 s")],
)
def test_a_redis_that_says_nothing_does_not_hold_the_broker_up(answer: Answer, silence: str) -> None:
    @virtual
    async def silent() -> None:
        with capture_logs() as logs:
            scene = Scene(answer)
            await asyncio.sleep(STEP_TIMEOUT + FIRST_RECONNECT_DELAY + 0.1)
            assert [line["reason"] for line in told(logs, "redis unreachable")] == [silence]
            scene.topology.answer = serves
            await asyncio.sleep(STEP_TIMEOUT + MAX_RECONNECT_DELAY)
            assert scene.broker.connected
            await scene.stop()

    silent()


@virtual
async def test_an_attempt_that_failed_leaves_no_connection_behind() -> None:
    scene = Scene(is_frozen)
    await asyncio.sleep(10)
    overdue = [begun <= now() - STEP_TIMEOUT for begun in scene.topology.attempts]
    assert [transport.aborted for transport in scene.topology.transports] == overdue
    await scene.stop()
    await turns()
    assert scene.topology.transports[-1].aborted


@virtual
async def test_a_dead_connection_is_noticed_and_replaced() -> None:
    scene = await Scene().up()
    await asyncio.sleep(60)
    assert scene.broker.outages == 0
    frozen = now()
    scene.topology.transports[-1].on_write = lambda _data: None
    await until(lambda: scene.broker.outages == 1)
    assert now() - frozen < 5
    await asyncio.sleep(FIRST_RECONNECT_DELAY)
    assert scene.broker.connected
    await scene.stop()


@pytest.mark.parametrize(
    ("answer", "why"), [(is_down, "Connect call failed"), (knows_no_resp3, "HELLO with: ERR unknown command")]
)
def test_the_same_error_is_logged_once_and_then_every_half_minute(answer: Answer, why: str) -> None:
    @virtual
    async def troubled() -> None:
        with capture_logs() as logs:
            scene = Scene(answer)
            await asyncio.sleep(REMIND_EVERY - 1)
            (line,) = told(logs, "redis unreachable")
            assert why in line["reason"]
            await asyncio.sleep(2 * REMIND_EVERY)
            assert len(told(logs, "redis unreachable")) == 3
            await scene.stop()

    troubled()


@virtual
async def test_two_errors_that_alternate_are_logged_once_each() -> None:
    async def alternates(topology: Topology, transport: Transport) -> None:
        await (is_down if len(topology.attempts) % 2 else knows_no_resp3)(topology, transport)

    with capture_logs() as logs:
        scene = Scene(alternates)
        await asyncio.sleep(REMIND_EVERY - 1)
        assert len(scene.topology.attempts) > 30
        assert len(told(logs, "redis unreachable")) == 2
        await scene.stop()


@virtual
async def test_another_error_is_logged_at_once() -> None:
    with capture_logs() as logs:
        scene = Scene(is_down)
        await asyncio.sleep(5)
        scene.topology.answer = knows_no_resp3
        await asyncio.sleep(1)
        assert len(told(logs, "redis unreachable")) == 2
        await scene.stop()


@virtual
async def test_up_and_down_are_logged() -> None:
    with capture_logs() as logs:
        scene = await Scene().up()
        scene.lose("reset by peer")
        await asyncio.sleep(1)
        await scene.stop()
    assert [line["event"] for line in logs] == ["redis connected", "redis connection lost", "redis connected"]
    assert logs[1]["reason"] == "reset by peer"
    assert logs[2]["outages"] == 1
    assert 0 < logs[2]["after_seconds"] <= FIRST_RECONNECT_DELAY + 0.001


def warned(scene: Scene) -> list[tuple[Any, ...]]:
    return [event for event in scene.events.heard if event[0] == "degraded"]


@pytest.mark.parametrize("answer", [is_down, is_frozen, hangs])
def test_members_are_told_after_some_seconds_of_outage(answer: Answer) -> None:
    @virtual
    async def gone() -> None:
        scene = await Scene(serves, b"a", b"b").up()
        await asyncio.sleep(60)
        scene.topology.answer = answer
        scene.lose()
        await asyncio.sleep(NOTIFY_AFTER - 0.01)
        assert not scene.broker.degraded(b"a")
        assert warned(scene) == []
        await asyncio.sleep(0.02)
        assert scene.broker.degraded(b"a")
        assert warned(scene) == [("degraded", b"a"), ("degraded", b"b")]
        await asyncio.sleep(60)
        assert len(warned(scene)) == 2, "once for each outage"
        scene.topology.answer = serves
        await until(lambda: scene.broker.connected)
        assert not scene.broker.degraded(b"a")
        await scene.stop()

    gone()


@virtual
async def test_members_are_not_told_of_a_short_outage() -> None:
    scene = await Scene(serves, b"a").up()
    for _ in range(2):
        scene.topology.answer = is_down
        scene.lose()
        await asyncio.sleep(NOTIFY_AFTER - 2 * MAX_RECONNECT_DELAY)
        scene.topology.answer = serves
        await until(lambda: scene.broker.connected)
    await asyncio.sleep(2 * NOTIFY_AFTER)
    assert warned(scene) == []
    await scene.stop()


@virtual
async def test_a_redis_that_never_was_there_is_missed_as_one_that_is_gone() -> None:
    scene = Scene(is_down, b"a")
    await asyncio.sleep(NOTIFY_AFTER + 0.01)
    assert scene.broker.degraded(b"a")
    assert len(warned(scene)) == 1
    await scene.stop()


@virtual
async def test_the_next_connection_stops_the_notification() -> None:
    """Sessions that have not been told by then are not told."""
    scene = await Scene(serves, *(b"%d" % i for i in range(1_000))).up()
    loop, tell = asyncio.get_running_loop(), scene.broker._notifier._notify
    assert isinstance(loop, VirtualLoop)

    def slowly() -> Iterator[None]:
        for _ in tell():
            loop.stall(0.01)
            yield

    scene.broker._notifier._notify = slowly
    scene.topology.answer = is_down
    scene.lose()
    await until(lambda: scene.broker.degraded(b"0"))
    scene.topology.answer = serves
    await until(lambda: scene.broker.connected)
    told_by_then = len(warned(scene))
    assert 0 < told_by_then < 100
    await asyncio.sleep(60)
    assert len(warned(scene)) == told_by_then
    await scene.stop()


@pytest.mark.parametrize("answer", [serves, is_down, is_frozen, hangs])
def test_cancelling_ends_it_at_any_time(answer: Answer) -> None:
    @virtual
    async def cancelled() -> None:
        for moment in (0, 0.001, 0.3, 10):
            scene = Scene(answer)
            await asyncio.sleep(moment)
            await scene.stop()
            assert not scene.broker.connected
            await turns()
            attempts = len(scene.topology.attempts)
            await asyncio.sleep(10)
            assert len(scene.topology.attempts) == attempts
            if answer is serves:
                assert all(transport.lost for transport in scene.topology.transports)

    cancelled()


@virtual
async def test_a_command_on_the_connection_of_a_stopped_broker_fails() -> None:
    """A cancelled future would cancel everybody who waits for it."""
    scene = await Scene().up()
    scene.topology.transports[-1].on_write = lambda _data: None
    assert scene.broker.connection is not None
    question = asyncio.create_task(scene.broker.connection.execute("PING"))
    await turns()
    await scene.stop()
    with pytest.raises(ConnectionLost, match="the node stops"):
        await question


@virtual
async def test_a_replica_will_do() -> None:
    scene = await Scene(is_a_replica).up()
    await scene.stop()


@virtual
async def test_a_replica_is_rejected_where_the_master_is_needed() -> None:
    with capture_logs() as logs:
        scene = Scene(is_a_replica)
        scene.topology.only_masters = True
        await asyncio.sleep(5)
        assert not scene.broker.ever_connected
        assert [line["reason"] for line in told(logs, "redis unreachable")] == [
            "redis://somewhere is a replica; the master is needed"
        ]
        scene.topology.answer = serves
        await asyncio.sleep(MAX_RECONNECT_DELAY)
        assert scene.broker.connected
    await scene.stop()


@virtual
async def test_the_topology_is_asked_for_each_connection_and_closed_at_the_end() -> None:
    scene = await Scene().up()
    elsewhere = Topology()
    scene.topology.find = lambda: asyncio.sleep(0, elsewhere)  # type: ignore[method-assign]
    scene.lose()
    await asyncio.sleep(FIRST_RECONNECT_DELAY)
    assert len(elsewhere.attempts) == 1
    assert not scene.topology.closed
    await scene.stop()
    assert scene.topology.closed


@virtual
async def test_a_crashed_probe_or_reconciler_is_logged_and_the_connection_stays() -> None:
    async def fails(*_about: object) -> None:
        raise RuntimeError("a bug")

    with capture_logs() as logs:
        scene = Scene()
        scene.broker.reconciler.run = fails  # type: ignore[method-assign,assignment]
        await scene.up()
        await asyncio.sleep(10)
        assert scene.broker.connected
        assert scene.broker.outages == 0
        assert len(told(logs, "probe or reconciler crashed; connection unmonitored")) == 1
        await scene.stop()


@virtual
async def test_the_guards_of_a_connection_end_with_it() -> None:
    scene = await Scene().up()
    before = len(asyncio.all_tasks())
    for _ in range(3):
        scene.lose()
        await asyncio.sleep(1)
        assert scene.broker.connected
    assert len(asyncio.all_tasks()) == before
    await scene.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual
async def test_what_is_being_missed_counts_before_it_is_over() -> None:
    scene = await Scene().up()
    scene.topology.answer = is_down
    scene.lose()
    await asyncio.sleep(7)
    assert scene.broker.outage_seconds() == pytest.approx(7, abs=0.01)
    assert scene.broker.past_outage_seconds == 0
    scene.topology.answer = serves
    await until(lambda: scene.broker.connected)
    assert scene.broker.outage_seconds() == scene.broker.past_outage_seconds
    await scene.stop()


# Whether the node receives results, as a balancer asks


@virtual
async def test_a_node_without_a_connection_is_deaf_at_once() -> None:
    scene = Scene(is_down)
    assert scene.broker.deaf == "Redis is not connected"
    await asyncio.sleep(1)
    assert scene.broker.deaf == "Redis is not connected: Connect call failed"
    assert (scene.broker.denied_channels, scene.broker.missing_slots) == (0, ())
    scene.topology.answer = serves
    await asyncio.sleep(MAX_RECONNECT_DELAY)
    assert scene.broker.deaf == ""
    await scene.stop()


@virtual
async def test_a_silent_redis_makes_a_node_deaf_before_the_connection_is_given_up() -> None:
    scene = await Scene().up()
    await asyncio.sleep(10)
    assert scene.broker.deaf == "", "PINGs are answered"
    scene.topology.transports[-1].on_write = lambda _data: None
    await until(lambda: bool(scene.broker.deaf))
    assert scene.broker.connected
    assert scene.broker.deaf.startswith("Redis has been silent for 2.5")
    await scene.stop()


@virtual
async def test_a_node_whose_own_probe_channel_is_refused_is_deaf() -> None:
    scene = await Scene().up()
    scene.broker._probe_channel = lambda: b"probe"
    connection = scene.broker.connection
    assert connection is not None
    scene.topology.redis.forbidden_channels = {b"probe"}
    with pytest.raises(ReplyError):
        await connection.subscribe_service(b"probe", print)
    assert "refuses the channel of the node's own probe: NOPERM" in scene.broker.deaf
    scene.topology.redis.forbidden_channels = set()
    await connection.subscribe_service(b"probe", print)
    assert scene.broker.deaf == ""
    await scene.stop()


@virtual
async def test_a_denied_channel_is_degraded_and_no_other() -> None:
    scene = await Scene().up()
    scene.topology.redis.forbidden_channels = {b"a"}
    scene.broker.subscribe(b"a")
    await turns()
    assert (scene.broker.degraded(b"a"), scene.broker.degraded(b"b")) == (True, False)
    assert scene.broker.denied_channels == 1
    assert scene.broker.deaf == "", "an id that nobody may have says nothing of the node"
    await scene.stop()


@virtual
async def test_a_connection_lost_during_a_batch_has_a_hint_and_the_next_asks_for_less() -> None:
    with capture_logs() as logs:
        scene = await Scene(serves, *(b"%d" % number for number in range(500))).up()
        scene.topology.transports[-1].on_write = lambda _data: None
        scene.broker.subscribe(b"one more")
        await turns()
        scene.topology.redis.commands.clear()
        scene.lose()
        await asyncio.sleep(MAX_RECONNECT_DELAY)
        scene.lose()
        await turns()
    line, later = told(logs, "redis connection lost")
    assert "client-output-buffer-limit pubsub" in line["hint"]
    assert "hint" not in later, "nothing was owed on that connection"
    sizes = [len(command) - 1 for command in scene.topology.redis.commands if command[0] == b"SUBSCRIBE"]
    assert max(sizes) == 250
    await scene.stop()
