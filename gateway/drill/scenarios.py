"""The drills: what is done to nodes and Redis under load, and what is measured of it.

The limits are those that the project holds itself to. They are shown beside what was measured; only a lost
result makes a drill fail.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from redis.crc import key_slot

from .environment import Body, Plan
from .fleet import SentinelGroup, ValkeyCluster, ValkeyProcess
from .runner import Runner

CALM: Final = 4.0
"""Seconds of load before anything happens."""

OUTAGE: Final = 3.0
"""Seconds that a killed server or node stays away: by then every attempt to reconnect is at its longest
pause."""

FROZEN: Final = 8.0
"""Seconds: longer than it may take to be noticed."""

# The limits, in seconds.
BACK: Final = 1.0  # nodes try every half second
NOTICED: Final = 6.0  # of silence they put up with 4.5 s at most; the rest is for a busy machine
FAILOVER: Final = 3.0  # two looks at who is the master, and a connection
MOVED: Final = 1.0  # a node is told by the server that the slot has left
UNDISTURBED: Final = 0.25  # more than before; a machine that is busy with large results is a little slower
ABSENT: Final = 5.0  # the longest pause of a client that comes back, and the machine's own

SURGE: Final = 0.25
"""Limit, as a part of all clients. A node has up to half of them, when another has just been restarted, and
closes a fifth of those in each second of its drain."""

GIVE_UP: Final = 30.0  # seconds, for what takes a few

SLOT: Final = 0  # the Cluster drills are about the server that holds this one
ONE_BY_ONE: Final = 100  # slots
AT_ONCE: Final = 3_000

DRAIN_DELAY, DRAIN_SECONDS = 2, 5  # HAProxy takes up to 1.5 s to notice that a node is unready

SLEEPERS: Final = 0.1  # of the clients
LARGE: Final = 60_000  # bytes
FILL_SECONDS: Final = 10.0  # to have them all closed; it takes two


class Drill(NamedTuple):
    """One exercise."""

    name: str
    summary: str
    plan: Plan[Any]
    play: Callable[[Runner[Any]], Awaitable[None]]
    seconds: float = 20.0
    """For how long results are published, unless told otherwise."""


async def redis_kill(stage: Runner[ValkeyProcess]) -> None:
    await asyncio.sleep(CALM)
    await stage.do(stage.redis.kill)
    stage.say("Valkey is killed")
    await asyncio.sleep(OUTAGE)
    await stage.do(stage.redis.start)
    back = stage.say("Valkey is back, with what it has on its disk")
    stage.measure("Valkey is back -> every node delivers", lambda: stage.heard_again(back), BACK)


async def redis_freeze(stage: Runner[ValkeyProcess]) -> None:
    await asyncio.sleep(CALM)
    stage.redis.freeze()
    frozen = stage.say("Valkey is frozen: its connections stay open, and nothing answers")
    noticed = await stage.until_nodes(_without_redis, FROZEN + 2)
    if noticed is not None:
        stage.say("every node has noticed")
    stage.measure(
        "Valkey is frozen -> every node has noticed",
        lambda: None if noticed is None else noticed - frozen,
        NOTICED,
    )
    await asyncio.sleep(frozen + FROZEN - time.monotonic())
    stage.redis.thaw()
    thawed = stage.say("Valkey goes on")
    stage.measure("Valkey goes on -> every node delivers", lambda: stage.heard_again(thawed))


async def sentinel_failover(stage: Runner[SentinelGroup]) -> None:
    await asyncio.sleep(CALM)
    master, sentinel = await stage.do(lambda: stage.redis.master), stage.redis.sentinels[0]
    await stage.do(master.kill)
    await stage.do(sentinel.kill)
    killed = stage.say("the master is killed, and the first Sentinel with it")
    await stage.do(stage.redis.await_other_master, master)
    promoted = stage.say("a replica is the new master")
    stage.measure("the Sentinels' own time to a new master", lambda: promoted - killed)
    stage.measure("new master -> every node delivers", lambda: stage.heard_again(promoted), FAILOVER)
    await asyncio.sleep(OUTAGE)
    await stage.do(master.start)
    await stage.do(sentinel.start)
    stage.say("the old master is back, and takes itself for the master until a Sentinel corrects it")


async def cluster_failover(stage: Runner[ValkeyCluster]) -> None:
    await asyncio.sleep(CALM)
    master = await stage.do(stage.redis.owner, SLOT)
    slots = await stage.do(stage.redis.slots, master)
    await stage.do(master.kill)
    killed = stage.say("one of the three masters is killed")
    await stage.do(stage.redis.await_failover, master, SLOT)
    promoted = stage.say("its replica has taken over")

    def affected(web_socket_id: str) -> bool:
        return any(_slot(web_socket_id) in part for part in slots)

    stage.measure("the Cluster's own time to a new master", lambda: promoted - killed)
    stage.measure(
        "new master -> every node delivers from it", lambda: stage.heard_again(promoted, affected), FAILOVER
    )
    await asyncio.sleep(OUTAGE)
    await stage.do(master.start)
    stage.say("the old master is back, as a replica")


async def cluster_reshard(stage: Runner[ValkeyCluster]) -> None:
    await asyncio.sleep(CALM)
    source = await stage.do(stage.redis.owner, SLOT)
    added = await stage.do(stage.redis.add_node)
    start = stage.say("a fourth master has joined")
    one_by_one = range(SLOT, SLOT + ONE_BY_ONE)
    await stage.do(stage.redis.move_slots, source, added, one_by_one)
    stage.say(f"{ONE_BY_ONE} slots have moved to it one by one, with their keys")
    await asyncio.sleep(1.0)
    first, last = one_by_one.stop, one_by_one.stop + AT_ONCE - 1
    await stage.do(stage.redis.migrate_slots, source, added, first, last)
    end = stage.say(f"{AT_ONCE:,} slots have moved to it at once (CLUSTER MIGRATESLOTS)")
    moved = range(SLOT, last + 1)
    stage.measure(
        "longest way of a result in a moved slot",
        lambda: stage.ledger.longest_way(start, end + MOVED, lambda name: _slot(name) in moved),
        MOVED,
    )


async def node_kill(stage: Runner[ValkeyProcess]) -> None:
    await asyncio.sleep(CALM)
    node = stage.nodes[0]
    await stage.do(node.kill)
    ended = stage.say("node 1 is killed: its clients come back elsewhere")
    await asyncio.sleep(OUTAGE)
    await stage.start_again(node, ended)
    stage.say("node 1 is back")


async def rolling_restart(stage: Runner[ValkeyProcess]) -> None:
    await asyncio.sleep(CALM)
    for number, node in enumerate(stage.nodes, 1):
        node.signal(signal.SIGTERM)
        stage.say(f"node {number} is told to stop (SIGTERM)")
        code = await stage.do(node.process.wait, GIVE_UP)
        ended = stage.say(f"node {number} has ended with {code}")
        await stage.start_again(node, ended)
        stage.say(f"node {number} is back")
    clients = stage.options.clients
    stage.measure(
        "clients back in the busiest second", stage.busiest_second, int(SURGE * clients), f"of {clients:,}"
    )
    stage.measure("longest that a client was without a node", stage.longest_absence, ABSENT)


async def slow_clients(stage: Runner[ValkeyProcess]) -> None:
    count = max(1, int(SLEEPERS * stage.options.clients))
    sleepers = stage.newcomers(count)
    stage.say(f"{count:,} more clients come")
    await asyncio.sleep(CALM / 2)
    begin = time.monotonic()
    await asyncio.sleep(CALM)
    asleep = stage.say("they stop reading")
    for client in sleepers:
        client.pause()
    closed = await stage.fill(sleepers, LARGE, FILL_SECONDS)
    stage.publish_to(sleepers)
    stage.say(f"{closed:,} of them are closed with 1008; each has a last result, retained")
    await asyncio.sleep(OUTAGE)
    for client in sleepers:
        client.narrow = False
        client.resume()
    awake = stage.say("they read again, and come back")
    names = {client.name for client in sleepers}
    stage.measure("slow clients closed with 1008", lambda: closed, unit=f"of {count:,}")

    def before() -> float:
        return stage.ledger.late(begin, asleep, names).p99

    def meanwhile() -> float:
        return stage.ledger.late(asleep, awake, names).p99

    stage.measure("late p99 of the others before", before)
    stage.measure("late p99 of the others meanwhile", meanwhile)
    stage.measure("more than before", lambda: max(0.0, meanwhile() - before()), UNDISTURBED)


def _without_redis(body: Body) -> bool:
    return not body["redis"]["connected"]


def _slot(web_socket_id: str) -> int:
    return key_slot(f"websocket:{web_socket_id}".encode())


def _durable() -> ValkeyProcess:
    """One server that still knows after a restart what it retained."""
    return ValkeyProcess("--appendonly", "yes")


DRILLS: Final = {
    drill.name: drill
    for drill in (
        Drill(
            "redis-kill",
            "the only Valkey is killed and comes back 3 s later with what it retained",
            Plan(_durable),
            redis_kill,
            seconds=15.0,
        ),
        Drill(
            "redis-freeze",
            "the only Valkey freezes for 8 s: connections stay open, nothing answers",
            Plan(_durable),
            redis_freeze,
            seconds=22.0,
        ),
        Drill(
            "sentinel-failover",
            "the machine with the master and a Sentinel dies, and comes back as if nothing had been",
            Plan(SentinelGroup),
            sentinel_failover,
        ),
        Drill(
            "cluster-failover",
            "a master of a Cluster is killed, its replica takes over",
            Plan(ValkeyCluster),
            cluster_failover,
            seconds=15.0,
        ),
        Drill(
            "cluster-reshard",
            "a master is added to a Cluster and gets slots, one by one and at once",
            Plan(ValkeyCluster),
            cluster_reshard,
            seconds=16.0,
        ),
        Drill(
            "node-kill",
            "a node is killed, its clients come back on the others",
            Plan(_durable, balanced=True),
            node_kill,
            seconds=15.0,
        ),
        Drill(
            "rolling-restart",
            "every node in turn is drained, stopped and started again",
            Plan(
                _durable,
                balanced=True,
                node_options=("--drain-delay", str(DRAIN_DELAY), "--drain-seconds", str(DRAIN_SECONDS)),
            ),
            rolling_restart,
        ),
        Drill(
            "slow-clients",
            "a tenth more clients stop reading while large results come for them",
            Plan(_durable, node_options=("--close-timeout", "0.5")),
            slow_clients,
            seconds=15.0,
        ),
    )
}
