"""The reconciler and a Redis that has lost or kept subscriptions. Time is virtual."""

from __future__ import annotations

import asyncio

import pytest

from gateway.redis.connection import ConnectionLost
from gateway.redis.history import SUBSCRIBE_BATCH
from gateway.redis.reconciler import BATCHES_PER_RUN, IDLE_POLL, RECONCILE_INTERVAL, Reconciler
from gateway.redis.subscriber import SubscriberConnection

from ..fakes import Events, Redis, Transport, push, resp, turns, virtual


class Server(Redis):
    """A Redis that tells its subscriptions."""

    def __init__(self) -> None:
        super().__init__()
        self.refusal: str | None = None
        self.asked: list[list[bytes]] = []

    def execute(self, command: list[bytes]) -> bytes:
        if command[0] not in (b"CLIENT", b"PUBSUB"):
            return super().execute(command)
        self.asked.append(command)
        if self.refusal is not None:
            return resp(Exception(self.refusal))
        if command[0] == b"CLIENT":
            return resp(b"id=3 addr=x sub=%d psub=0 ssub=0 multi=-1" % len(self.subscribed))
        answer: list[object] = []
        for name in command[2:]:
            answer += [name, int(name in self.subscribed)]
        return resp(answer)


class Scene:
    """A connection with `wanted` subscribed, and its reconciler."""

    def __init__(self, *wanted: bytes) -> None:
        self.events = Events(wanted)
        self.redis = Server()
        self.connection = SubscriberConnection(self.events, 1_000)
        self.transport = Transport(prompt=True)
        self.transport.protocol = self.connection
        self.redis.serve(self.transport)
        self.connection.connection_made(self.transport)
        self.connection.start()
        self.reconciler = Reconciler(self.events)

    async def up(self) -> Scene:
        await turns(20)
        self.events.taken()
        return self

    def lost(self) -> list[bytes]:
        return [event[1] for event in self.events.taken() if event[0] == "lost"]

    def numbers_of(self) -> list[bytes]:
        return [name for command in self.redis.asked if command[0] == b"PUBSUB" for name in command[2:]]


@virtual
async def test_without_a_difference_nothing_happens() -> None:
    scene = await Scene(b"a", b"b").up()
    await scene.reconciler.run_once(scene.connection)
    assert scene.redis.asked == [[b"CLIENT", b"INFO"], [b"PUBSUB", b"NUMSUB", b"a", b"b"]]
    assert (scene.lost(), scene.reconciler.repaired, scene.reconciler.runs) == ([], 0, 1)


@virtual
async def test_without_channels_there_is_nothing_to_compare() -> None:
    scene = await Scene().up()
    await scene.reconciler.run_once(scene.connection)
    assert scene.redis.asked == [[b"CLIENT", b"INFO"]]
    assert scene.reconciler.runs == 1


@virtual
async def test_service_channels_count() -> None:
    scene = await Scene(b"a").up()
    await scene.connection.subscribe_service(b"probe", print)
    await scene.reconciler.run_once(scene.connection)
    assert (scene.reconciler.repaired, scene.transport.aborted) == (0, False)


@virtual
async def test_a_missing_channel_is_reported_lost_and_so_subscribed_again() -> None:
    scene = await Scene(b"a", b"b", b"c").up()
    scene.redis.subscribed.discard(b"b")
    await scene.reconciler.run_once(scene.connection)
    assert scene.lost() == [b"b"]
    assert scene.reconciler.repaired == 1
    assert not scene.transport.aborted


@virtual
async def test_with_a_surplus_the_connection_is_dropped() -> None:
    scene = await Scene(b"a").up()
    scene.redis.subscribed |= {b"x", b"y"}
    await scene.reconciler.run_once(scene.connection)
    assert scene.reconciler.repaired == 2
    assert str(await scene.connection.closed) == "Redis has more channels subscribed on it than the node"


@virtual
async def test_with_too_few_and_none_missing_the_connection_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another node has the id as well, so that Redis does not tell which one is missing."""
    scene = await Scene(b"a", b"b").up()
    monkeypatch.setattr(scene.reconciler, "_compare", lambda *_: -1)
    await scene.reconciler.run_once(scene.connection)
    assert scene.lost() == []
    assert scene.reconciler.repaired == 1
    assert str(await scene.connection.closed) == "Redis has fewer channels subscribed on it than the node"


@virtual
async def test_one_missing_and_one_too_many_are_both_found() -> None:
    scene = await Scene(b"a", b"b").up()
    scene.redis.subscribed = {b"a", b"x", b"y"}
    await scene.reconciler.run_once(scene.connection)
    assert scene.lost() == [b"b"]
    assert scene.reconciler.repaired == 3
    assert scene.transport.aborted


@virtual
async def test_it_waits_while_a_command_is_open() -> None:
    scene = await Scene(b"a").up()
    answer, scene.transport.on_write = scene.transport.on_write, lambda _data: None
    scene.connection.subscribe(b"b")
    task = asyncio.create_task(scene.reconciler.run_once(scene.connection))
    await asyncio.sleep(1)
    assert scene.redis.asked == []
    scene.transport.on_write = answer
    scene.events.wanted.append(b"b")
    scene.redis.subscribed.add(b"b")
    scene.connection.data_received(push(b"subscribe", b"b", 2) + resp([None]))
    await asyncio.sleep(IDLE_POLL)
    await task
    assert (scene.reconciler.repaired, scene.reconciler.runs) == (0, 1)


@virtual
async def test_a_reply_while_another_command_is_open_is_ignored() -> None:
    scene = await Scene(b"a").up()
    task = asyncio.create_task(scene.reconciler.run_once(scene.connection))
    await asyncio.sleep(0)
    scene.connection.subscribe(b"b")  # behind CLIENT INFO, whose answer is on its way
    scene.events.wanted.append(b"b")
    await task
    assert (scene.reconciler.repaired, scene.lost(), scene.transport.aborted) == (0, [], False)
    assert [command[0] for command in scene.redis.asked].count(b"CLIENT") >= 2


@virtual
async def test_each_run_checks_the_next_part() -> None:
    everybody = [b"%d" % i for i in range(BATCHES_PER_RUN * SUBSCRIBE_BATCH + 10)]
    scene = await Scene(*everybody).up()
    await scene.reconciler.run_once(scene.connection)
    assert scene.numbers_of() == everybody[: BATCHES_PER_RUN * SUBSCRIBE_BATCH]
    scene.redis.asked.clear()
    await scene.reconciler.run_once(scene.connection)
    assert scene.numbers_of() == everybody[BATCHES_PER_RUN * SUBSCRIBE_BATCH :]
    scene.redis.asked.clear()
    await scene.reconciler.run_once(scene.connection)
    assert scene.numbers_of()[0] == b"0"


@virtual
async def test_when_the_counts_differ_every_channel_is_checked() -> None:
    everybody = [b"%d" % i for i in range(BATCHES_PER_RUN * SUBSCRIBE_BATCH + 10)]
    scene = await Scene(*everybody).up()
    scene.redis.subscribed.discard(everybody[-1])
    await scene.reconciler.run_once(scene.connection)
    assert scene.lost() == [everybody[-1]]


@virtual
async def test_it_runs_at_intervals_until_the_connection_is_lost() -> None:
    scene = await Scene(b"a").up()
    task = asyncio.create_task(scene.reconciler.run(scene.connection))
    await asyncio.sleep(3 * RECONCILE_INTERVAL + 1)
    assert scene.reconciler.runs == 3
    scene.transport.lose()
    await task
    assert scene.reconciler.runs == 3


@virtual
async def test_a_denied_command_ends_it() -> None:
    scene = await Scene(b"a").up()
    scene.redis.refusal = "NOPERM User weak has no permissions to run the 'client|info' command"
    await scene.reconciler.run(scene.connection)
    assert (scene.reconciler.runs, scene.reconciler.repaired, scene.transport.aborted) == (0, 0, False)


@virtual
async def test_a_connection_lost_during_a_run_ends_it() -> None:
    scene = await Scene(b"a").up()
    scene.transport.on_write = lambda _data: None
    task = asyncio.create_task(scene.reconciler.run_once(scene.connection))
    await turns()
    scene.transport.lose()
    with pytest.raises(ConnectionLost):
        await task
    assert scene.reconciler.runs == 0


@virtual
async def test_without_a_count_in_the_reply_nothing_is_compared() -> None:
    """Redis before 7.0 has no ssub, and a proxy may leave out more."""
    scene = await Scene(b"a").up()
    scene.redis.execute = lambda command: (  # type: ignore[method-assign]
        resp(b"id=3") if command[0] == b"CLIENT" else Server.execute(scene.redis, command)
    )
    await scene.reconciler.run_once(scene.connection)
    assert (scene.reconciler.repaired, scene.reconciler.runs) == (0, 1)
