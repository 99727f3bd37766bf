"""The drills: each is a fault under load, and what is measured.

The report shows the project's own limits beside the measured values. Only a lost result makes a drill fail.
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

WARM_UP: Final = 4.0
"""Seconds of load before the fault."""

OUTAGE: Final = 3.0
"""Seconds that a killed server or node stays down: by then every reconnect delay is at its maximum."""

FROZEN: Final = 8.0
"""Seconds: longer than the nodes may need to notice."""

# The limits, in seconds.
RECOVERED: Final = 1.0  # nodes reconnect every half second
NOTICED: Final = 6.0  # nodes accept 4.5 s of silence; the rest is for a busy machine
FAILOVER: Final = 3.0  # two queries for the master, and a connection
MOVED: Final = 1.0  # the server tells the node that the slot has moved
UNDISTURBED: Final = 0.25  # increase of the p99; a machine that is busy with large results is slower
DISCONNECTED: Final = 5.0  # the longest reconnect delay of a client, and the machine's own delay

SURGE: Final = 0.25
"""Limit, as a share of all clients. A node has up to half of the clients when another was just restarted, and
closes a fifth of its clients in each second of its drain."""

STOP_SECONDS: Final = 30.0  # to drain and stop; it takes a few

SLOT: Final = 0  # the Cluster drills harm the server that holds this slot
ONE_BY_ONE: Final = 100  # slots
AT_ONCE: Final = 3_000

DRAIN_DELAY, DRAIN_SECONDS = 2, 5  # HAProxy needs up to 1.5 s to notice that a node is not ready

SLOW_SHARE: Final = 0.1  # of the clients
LARGE: Final = 60_000  # bytes
FLOOD_SECONDS: Final = 10.0  # until all slow clients are closed; it takes two


class Drill(NamedTuple):
    """One drill."""

    name: str
    summary: str
    plan: Plan[Any]
    run: Callable[[Runner[Any]], Awaitable[None]]
    seconds: float = 20.0
    """How long results are published, unless the user sets --seconds."""


async def redis_kill(runner: Runner[ValkeyProcess]) -> None:
    await asyncio.sleep(WARM_UP)
    await runner.in_thread(runner.redis.kill)
    runner.record("Valkey is killed")
    await asyncio.sleep(OUTAGE)
    await runner.in_thread(runner.redis.start)
    restarted = runner.record("Valkey is started again, with the data on its disk")
    runner.measure(
        "Valkey started -> every node delivers", lambda: runner.recovery_time(restarted), RECOVERED
    )


async def redis_freeze(runner: Runner[ValkeyProcess]) -> None:
    await asyncio.sleep(WARM_UP)
    runner.redis.freeze()
    frozen = runner.record("Valkey is frozen: its connections stay open, and nothing answers")
    noticed = await runner.wait_for_nodes(_without_redis, FROZEN + 2)
    if noticed is not None:
        runner.record("every node has noticed")
    runner.measure(
        "Valkey frozen -> every node has noticed",
        lambda: None if noticed is None else noticed - frozen,
        NOTICED,
    )
    await asyncio.sleep(frozen + FROZEN - time.monotonic())
    runner.redis.thaw()
    resumed = runner.record("Valkey is resumed")
    runner.measure("Valkey resumed -> every node delivers", lambda: runner.recovery_time(resumed))


async def sentinel_failover(runner: Runner[SentinelGroup]) -> None:
    await asyncio.sleep(WARM_UP)
    master, sentinel = await runner.in_thread(lambda: runner.redis.master), runner.redis.sentinels[0]
    await runner.in_thread(master.kill)
    await runner.in_thread(sentinel.kill)
    killed = runner.record("the master and the first Sentinel are killed")
    await runner.in_thread(runner.redis.await_other_master, master)
    promoted = runner.record("a replica is the new master")
    runner.measure("master killed -> new master (by the Sentinels)", lambda: promoted - killed)
    runner.measure("new master -> every node delivers", lambda: runner.recovery_time(promoted), FAILOVER)
    await asyncio.sleep(OUTAGE)
    await runner.in_thread(master.start)
    await runner.in_thread(sentinel.start)
    runner.record("the old master is started again, as a master until a Sentinel corrects it")


async def cluster_failover(runner: Runner[ValkeyCluster]) -> None:
    await asyncio.sleep(WARM_UP)
    master = await runner.in_thread(runner.redis.owner, SLOT)
    slots = await runner.in_thread(runner.redis.slots, master)
    await runner.in_thread(master.kill)
    killed = runner.record("one of the three masters is killed")
    await runner.in_thread(runner.redis.await_failover, master, SLOT)
    promoted = runner.record("its replica is promoted")

    def affected(web_socket_id: str) -> bool:
        return any(_slot(web_socket_id) in part for part in slots)

    runner.measure("master killed -> new master (by the Cluster)", lambda: promoted - killed)
    runner.measure(
        "new master -> every node delivers its results",
        lambda: runner.recovery_time(promoted, affected),
        FAILOVER,
    )
    await asyncio.sleep(OUTAGE)
    await runner.in_thread(master.start)
    runner.record("the old master is started again, as a replica")


async def cluster_reshard(runner: Runner[ValkeyCluster]) -> None:
    await asyncio.sleep(WARM_UP)
    source = await runner.in_thread(runner.redis.owner, SLOT)
    added = await runner.in_thread(runner.redis.add_node)
    start = runner.record("a fourth master has joined the Cluster")
    one_by_one = range(SLOT, SLOT + ONE_BY_ONE)
    await runner.in_thread(runner.redis.move_slots, source, added, one_by_one)
    runner.record(f"{ONE_BY_ONE} slots have moved to the new master one by one, with their keys")
    await asyncio.sleep(1.0)
    first, last = one_by_one.stop, one_by_one.stop + AT_ONCE - 1
    await runner.in_thread(runner.redis.migrate_slots, source, added, first, last)
    end = runner.record(f"{AT_ONCE:,} slots have moved to the new master at once (CLUSTER MIGRATESLOTS)")
    moved = range(SLOT, last + 1)
    runner.measure(
        "longest delivery of a result in a moved slot",
        lambda: runner.ledger.longest_delivery(start, end + MOVED, lambda name: _slot(name) in moved),
        MOVED,
    )


async def node_kill(runner: Runner[ValkeyProcess]) -> None:
    await asyncio.sleep(WARM_UP)
    node = runner.nodes[0]
    await runner.in_thread(node.kill)
    ended = runner.record("node 1 is killed: its clients reconnect to other nodes")
    await asyncio.sleep(OUTAGE)
    await runner.restart(node, ended)
    runner.record("node 1 is started again")


async def rolling_restart(runner: Runner[ValkeyProcess]) -> None:
    await asyncio.sleep(WARM_UP)
    for number, node in enumerate(runner.nodes, 1):
        node.signal(signal.SIGTERM)
        runner.record(f"node {number} gets SIGTERM")
        code = await runner.in_thread(node.process.wait, STOP_SECONDS)
        ended = runner.record(f"node {number} has ended with {code}")
        await runner.restart(node, ended)
        runner.record(f"node {number} is started again")
    clients = runner.options.clients
    runner.measure(
        "reconnects in the busiest second", runner.busiest_second, int(SURGE * clients), f"of {clients:,}"
    )
    runner.measure("longest time a client was disconnected", runner.longest_disconnect, DISCONNECTED)


async def slow_clients(runner: Runner[ValkeyProcess]) -> None:
    count = max(1, int(SLOW_SHARE * runner.options.clients))
    slow = runner.add_slow_readers(count)
    runner.record(f"{count:,} more clients connect")
    await asyncio.sleep(WARM_UP / 2)
    begin = time.monotonic()
    await asyncio.sleep(WARM_UP)
    paused = runner.record("these clients stop reading")
    for client in slow:
        client.pause()
    closed = await runner.flood(slow, LARGE, FLOOD_SECONDS)
    runner.publish_to(slow)
    runner.record(f"{closed:,} of them are closed with 1008; a last result is retained for each")
    await asyncio.sleep(OUTAGE)
    for client in slow:
        client.narrow = False
        client.resume()
    resumed = runner.record("these clients read again, and reconnect")
    names = {client.name for client in slow}
    runner.measure("slow clients closed with 1008", lambda: closed, unit=f"of {count:,}")

    def before() -> float:
        return runner.ledger.latency(begin, paused, names).p99

    def during() -> float:
        return runner.ledger.latency(paused, resumed, names).p99

    runner.measure("latency p99 of the other clients before", before)
    runner.measure("latency p99 of the other clients during", during)
    runner.measure("increase", lambda: max(0.0, during() - before()), UNDISTURBED)


def _without_redis(body: Body) -> bool:
    return not body["redis"]["connected"]


def _slot(web_socket_id: str) -> int:
    return key_slot(f"websocket:{web_socket_id}".encode())


def _durable() -> ValkeyProcess:
    """One server that keeps retained results over a restart."""
    return ValkeyProcess("--appendonly", "yes")


DRILLS: Final = {
    drill.name: drill
    for drill in (
        Drill(
            "redis-kill",
            "the only Valkey is killed, and started again 3 s later with its data",
            Plan(_durable),
            redis_kill,
            seconds=15.0,
        ),
        Drill(
            "redis-freeze",
            "the only Valkey is frozen for 8 s: connections stay open, nothing answers",
            Plan(_durable),
            redis_freeze,
            seconds=22.0,
        ),
        Drill(
            "sentinel-failover",
            "the master and a Sentinel are killed, and started again after the failover",
            Plan(SentinelGroup),
            sentinel_failover,
        ),
        Drill(
            "cluster-failover",
            "a master of a Cluster is killed, and its replica is promoted",
            Plan(ValkeyCluster),
            cluster_failover,
            seconds=15.0,
        ),
        Drill(
            "cluster-reshard",
            "a master is added to a Cluster, and slots move to it, one by one and at once",
            Plan(ValkeyCluster),
            cluster_reshard,
            seconds=16.0,
        ),
        Drill(
            "node-kill",
            "a node is killed, and its clients reconnect to the others",
            Plan(_durable, balanced=True),
            node_kill,
            seconds=15.0,
        ),
        Drill(
            "rolling-restart",
            "each node in turn is drained, stopped and started again",
            Plan(
                _durable,
                balanced=True,
                node_options=("--drain-delay", str(DRAIN_DELAY), "--drain-seconds", str(DRAIN_SECONDS)),
            ),
            rolling_restart,
        ),
        Drill(
            "slow-clients",
            "a tenth more clients connect and stop reading while large results are published to them",
            Plan(_durable, node_options=("--close-timeout", "0.5")),
            slow_clients,
            seconds=15.0,
        ),
    )
}
