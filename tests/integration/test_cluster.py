"""A Cluster's masters fail and its slots move under load: whoever serves a slot, its results arrive.

Beside them runs a node without a safeguard, which stays without results.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import redis.asyncio

from gateway.drill.fleet import ClusterNodeProcess, NodeProcess, Process, ValkeyCluster
from gateway.node import Node
from gateway.redis.cluster import slots
from gateway.redis.cluster.broker import ClusterBroker as Lines
from gateway.redis.cluster.broker import ShardEventFilter

from .conftest import Measured, nodes_on
from .faults import never_move, never_resubscribe
from .in_process import admin_port_of, node_in_process, port_of, readiness, unconnected_node
from .load import SECONDS, PublisherBackend, all_undisturbed, load_clients, until, without_their_result
from .test_race import Waiting

BROWSERS = 240
AFFECTED = 30
CONTROLS = 20
A_SECOND = 200.0
SLACK = 3.0  # seconds for a busy machine; drills hold the promises to the letter
MOVED = 3.0 + SLACK  # seconds until the nodes are on a new master, once it is there
SLOT_MOVED = 1.0 + SLACK  # seconds without delivery while a slot moves

MOVING = range(1_000, 1_024)
"""Slots of the first master, few enough to be moved one by one."""

SLOW = 1_100
"""A slot that takes its time."""

OFTEN_RECONCILED = "import gateway.redis.reconciler; gateway.redis.reconciler.RECONCILE_INTERVAL = 0.3"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    # It writes down what it retains, as one does that may be restarted.
    with ValkeyCluster("--appendonly", "yes", "--appendfsync", "no") as running:
        yield running


@pytest.fixture(scope="module")
def nodes(cluster: ValkeyCluster) -> Iterator[list[NodeProcess]]:
    """Two nodes. If their reconcilers find anything, that is a complaint in their logs."""
    with nodes_on(cluster.url, 2, preface=OFTEN_RECONCILED) as running:
        yield running


@pytest.fixture
async def here(cluster: ValkeyCluster) -> AsyncIterator[Node]:
    """A gateway that a test can look into."""
    async with node_in_process(cluster.url) as gateway:
        yield gateway


def all_names_in(stem: str, those: Collection[int]) -> Iterator[str]:
    """Names whose channels are in these slots."""
    names = (f"{stem}-{number}" for number in itertools.count())
    return (name for name in names if slots.key_slot(channel(name)) in those)


def names_in(stem: str, those: Collection[int], count: int) -> list[str]:
    """The first of them."""
    return list(itertools.islice(all_names_in(stem, those), count))


def channel(name: str) -> bytes:
    return f"websocket:{name}".encode()


def slots_of(cluster: ValkeyCluster, node: ClusterNodeProcess) -> set[int]:
    return {number for part in cluster.slots(node) for number in part}


async def heard(server: ClusterNodeProcess, names: Collection[str]) -> None:
    """Wait until nodes have subscribed all of `names` at `server`."""
    async with asyncio.timeout(SECONDS), redis.asyncio.Redis(port=server.port) as client:
        while True:
            answer = await client.pubsub_shardnumsub(*map(channel, names))
            if all(number for _, number in answer):
                return
            await asyncio.sleep(0.01)


async def reconciled(gateway: Node, nodes: list[NodeProcess]) -> None:
    """What Redis says is subscribed is what the tables say, now and whenever it was looked at."""
    lines = gateway._broker
    assert isinstance(lines, Lines)
    for line in lines.server_brokers:
        if line.connection is not None:
            await line.reconciler.run_once(line.connection)
    assert lines.repaired == 0
    for node in nodes:
        body = await asyncio.to_thread(node.readyz)
        assert body is not None
        assert body["redis"]["repaired"] == 0


class Ticks:
    """What is published to one id every few milliseconds, without retention, and what of it is heard."""

    def __init__(self, name: str) -> None:
        self.member = Waiting(name)
        self.published: list[tuple[float, str]] = []

    @classmethod
    @asynccontextmanager
    async def to(cls, gateway: Node, name: str, backend: PublisherBackend) -> AsyncIterator[Ticks]:
        ticks = cls(name)
        gateway._hub.register(name.encode(), ticks.member)
        await until(lambda: ticks.member.told, "it is registered")
        ticking = asyncio.create_task(ticks._publish(backend))
        try:
            yield ticks
        finally:
            ticking.cancel()
            gateway._hub.leave(channel(name), ticks.member)

    async def _publish(self, backend: PublisherBackend) -> None:
        for number in itertools.count():
            start = time.monotonic()
            await backend.publish(self.member.name, f"TICK_{number}", retain=0)
            self.published.append((start, f"TICK_{number}"))
            await asyncio.sleep(0.005)

    def deaf(self) -> float:
        """The longest time over which what was published was not heard."""
        heard = set(self.member.told)
        longest, since = 0.0, None
        for at, word in self.published:
            if word not in heard:
                since = at if since is None else since
            elif since is not None:
                longest, since = max(longest, at - since), None
        return longest


async def test_registrations_and_results_are_spread_over_all_masters(
    cluster: ValkeyCluster, nodes: list[NodeProcess], here: Node
) -> None:
    names = [f"spread-{number}" for number in range(BROWSERS)]
    async with (
        load_clients([*(node.port for node in nodes), port_of(here)], names) as browsers,
        PublisherBackend.to(cluster.url) as backend,
    ):
        await backend.publish_all(names, 1_000)
        assert {accepted.receivers for accepted in backend.accepted} == {1}
        await until(lambda: not without_their_result(browsers), "every result arrives")
        for master in cluster.masters:
            assert len(master.ask("PUBSUB", "SHARDCHANNELS", "websocket:spread-*")) > BROWSERS // 6
            assert not master.ask("PUBSUB", "CHANNELS")
        async with load_clients([node.port for node in nodes], names) as again:
            await until(lambda: not without_their_result(again), "what was retained arrives")
        await reconciled(here, nodes)


@pytest.mark.adds_to("cluster")
@pytest.mark.parametrize("harm", [Process.kill, Process.freeze])
async def test_a_master_fails(
    cluster: ValkeyCluster,
    nodes: list[NodeProcess],
    here: Node,
    harm: Callable[[Process], None],
    measured: Measured,
) -> None:
    how = harm.__name__
    first = cluster.owner(0)  # at the beginning also the first one in the URL
    its_own = slots_of(cluster, first)
    names = [f"{how}-{number}" for number in range(BROWSERS)] + names_in(f"{how}-its", its_own, AFFECTED)
    newcomer_names = names_in(f"{how}-newcomer", its_own, AFFECTED)
    control_names = names_in(f"{how}-control", its_own, CONTROLS)
    ports = [*(node.port for node in nodes), port_of(here)]
    async with (
        PublisherBackend.to(cluster.url) as backend,
        node_in_process(cluster.url) as control,
        load_clients([port_of(control)], control_names) as control_browsers,
        load_clients(ports, names) as browsers,
    ):
        never_move(control)
        publishing = asyncio.create_task(backend.publish_all(names + newcomer_names, A_SECOND))
        await until(lambda: len(backend.accepted) >= 40, "the load is on")
        harm(first)
        async with load_clients(ports, newcomer_names, registered=False) as newcomers:
            second = await asyncio.to_thread(cluster.await_failover, first, 0)
            promoted = time.monotonic()
            assert not any(newcomer.closed_at for newcomer in newcomers)
            answers = [message for newcomer in newcomers for message in newcomer.messages]
            assert all(answer.get("registrationSucceeded", True) for answer in answers), "not rejected"
            theirs = [name for name in names + newcomer_names if slots.key_slot(channel(name)) in its_own]
            await heard(second, theirs)
            took = time.monotonic() - promoted
            measured(f"Cluster, {how} of a master: all heard on the new one, once it was there", took)
            assert took <= MOVED
            await publishing
            await backend.publish_all(control_names, 1_000)
            if how == "freeze":  # it takes itself for the master still
                first.thaw()
            await until(lambda: not without_their_result(browsers + newcomers), "every result arrives")
            assert all_undisturbed(browsers + newcomers)
            assert len(without_their_result(control_browsers)) == CONTROLS, (
                "control: stays where its slots were"
            )
            if how == "kill":
                await asyncio.to_thread(first.start)
            await asyncio.to_thread(cluster.await_health)
            await reconciled(here, nodes)


@pytest.fixture(scope="module")
def added(cluster: ValkeyCluster) -> ClusterNodeProcess:
    """A node that has come to the Cluster, and has no slots yet."""
    return cluster.add_node()


def one_by_one(cluster: ValkeyCluster, source: ClusterNodeProcess, target: ClusterNodeProcess) -> None:
    cluster.move_slots(source, target, MOVING)


def in_one_step(cluster: ValkeyCluster, source: ClusterNodeProcess, target: ClusterNodeProcess) -> None:
    cluster.migrate_slots(source, target, MOVING[0], MOVING[-1])


Move = Callable[[ValkeyCluster, ClusterNodeProcess, ClusterNodeProcess], None]


@pytest.mark.parametrize("move", [one_by_one, in_one_step])
async def test_slots_move_to_a_new_node_and_back(
    cluster: ValkeyCluster,
    nodes: list[NodeProcess],
    here: Node,
    added: ClusterNodeProcess,
    move: Move,
    measured: Measured,
) -> None:
    source = cluster.owner(MOVING[0])
    stem = move.__name__.replace("_", "-")
    names = names_in(stem, MOVING, BROWSERS)
    ports = [*(node.port for node in nodes), port_of(here)]
    control_names = names_in(f"{stem}-control", MOVING, CONTROLS)
    (ticking,) = names_in(f"{stem}-ticking", MOVING[12:13], 1)
    async with (
        PublisherBackend.to(cluster.url) as backend,
        node_in_process(cluster.url) as control,
        load_clients([port_of(control)], control_names) as control_browsers,
        load_clients(ports, names) as browsers,
        Ticks.to(here, ticking, backend) as ticks,
        AsyncExitStack() as also,
    ):
        never_move(control)
        publishing = asyncio.create_task(backend.publish_all(names, A_SECOND))
        everybody = list(browsers)
        for number, (there, back) in enumerate([(source, added), (added, source)]):
            moving = asyncio.create_task(asyncio.to_thread(move, cluster, there, back))
            newcomers = all_names_in(f"{stem}-newcomer-{number}", MOVING)
            while not moving.done():
                name = next(newcomers)
                await backend.publish_all([name], 1_000)
                everybody += await also.enter_async_context(load_clients([ports[len(everybody) % 3]], [name]))
            await moving
            moved = time.monotonic()
            await heard(back, [browser.name for browser in everybody])
            took = time.monotonic() - moved
            measured(f"slots moved {stem}: all heard at the new node, once they had", took)
            assert took <= SLOT_MOVED
        await publishing
        await until(lambda: not without_their_result(everybody), "every result arrives")
        measured(f"slots moved {stem}: nothing was heard there for at most", ticks.deaf())
        assert ticks.deaf() <= SLOT_MOVED
        await backend.publish_all(control_names, 1_000)
        async with load_clients([port_of(here)], control_names) as witnesses:
            await until(lambda: not without_their_result(witnesses), "they are there to be read")
        assert len(without_their_result(control_browsers)) == CONTROLS, "control: deaf since the slots moved"
        assert all_undisturbed(everybody)
        await reconciled(here, nodes)


@pytest.mark.parametrize("safeguard", [True, False], ids=["safeguard", "control"])
async def test_a_slot_is_on_its_way_for_long(
    cluster: ValkeyCluster, added: ClusterNodeProcess, safeguard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its subscribers are at the old node until the end, and what is retained is at the new one."""
    if not safeguard:
        monkeypatch.setattr(ShardEventFilter, "migrating", lambda *_said: None)
    source = cluster.owner(SLOW)
    early, registered, new = names_in(f"slow-{safeguard}", [SLOW], 3)
    async with PublisherBackend.to(cluster.url) as backend, node_in_process(cluster.url) as gateway:
        await backend.publish_all([early], 1_000)
        added.ask("CLUSTER", "SETSLOT", SLOW, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", SLOW, "MIGRATING", added.id)
        async with load_clients([port_of(gateway)], [early]) as first:
            await until(lambda: not without_their_result(first), "what has not moved yet is read where it is")
            await backend.publish_all([new], 1_000)
            holders = [node.ask("CLUSTER", "GETKEYSINSLOT", SLOW, 10) for node in (source, added)]
            assert [f"websocket:{early}" in keys for keys in holders] == [True, False], "it has not moved yet"
            assert [f"websocket:{new}" in keys for keys in holders] == [False, True], (
                "new ones go there at once"
            )
            async with load_clients([port_of(gateway)], [registered, new], registered=safeguard) as browsers:
                if not safeguard:
                    with pytest.raises(TimeoutError):
                        await until(lambda: any(browser.messages for browser in browsers), "an answer", 0.5)
                else:
                    await until(
                        lambda: not without_their_result(browsers[1:]), "it is read where it has gone"
                    )
                    await backend.publish_all([registered], 1_000)
                    await until(
                        lambda: not without_their_result(browsers), "who is there already is told at once"
                    )
                    await reconciled(gateway, [])
                await asyncio.to_thread(cluster.move_slots, source, added, [SLOW])
                await asyncio.to_thread(cluster.move_slots, added, source, [SLOW])
        await reconciled(gateway, [])


@pytest.mark.adds_to("cluster")
@pytest.mark.parametrize("safeguard", [True, False], ids=["safeguard", "control"])
async def test_the_whole_cluster_is_restarted(
    cluster: ValkeyCluster, nodes: list[NodeProcess], safeguard: bool, measured: Measured
) -> None:
    names = [f"restart-{safeguard}-{number}" for number in range(BROWSERS)]
    newcomer_names = [f"restart-{safeguard}-newcomer-{number}" for number in range(AFFECTED)]
    async with PublisherBackend.to(cluster.url) as backend, node_in_process(cluster.url) as here:
        ports = [*(node.port for node in nodes), port_of(here)] if safeguard else [port_of(here)]
        if not safeguard:
            never_resubscribe(here)
        async with load_clients(ports, names) as browsers:
            publishing = asyncio.create_task(backend.publish_all(names + newcomer_names, A_SECOND))
            await until(lambda: len(backend.accepted) >= 40, "the load is on")
            for node in cluster.nodes:
                node.kill()
            before = len(backend.accepted)
            async with load_clients(ports, newcomer_names, registered=False) as newcomers:
                await asyncio.gather(*(asyncio.to_thread(node.start) for node in cluster.nodes))
                await asyncio.to_thread(cluster.await_health)
                start = time.monotonic()
                await publishing
                if not safeguard:
                    # A few results have arrived although Redis died before it answered their publisher.
                    assert len(without_their_result(browsers)) >= BROWSERS - before - 10
                    return
                await until(lambda: not without_their_result(browsers + newcomers), "every result arrives")
                measured("whole Cluster restarted: all results there, once it was", time.monotonic() - start)
                assert all_undisturbed(browsers + newcomers)
                await reconciled(here, nodes)


# A master that is away when a node starts


async def test_a_node_that_starts_without_one_of_the_masters_is_ready_with_the_others() -> None:
    """There is no replica to promote, and the Cluster goes on without the slots, as it can be told to."""
    options = ("--cluster-require-full-coverage", "no")
    with ValkeyCluster(*options, replicas=0) as cluster:
        *_, away = cluster.nodes
        missing = await asyncio.to_thread(slots_of, cluster, away)
        away.kill()
        async with (
            unconnected_node(cluster.url) as gateway,
            PublisherBackend.to(cluster.url) as backend,
        ):
            await until(
                lambda: len(gateway._broker.missing_slots) == len(missing), "the others are connected"
            )
            status, body = await readiness(admin_port_of(gateway))
            assert (status, body["ready"], body["redis"]["missing_slots"]) == (200, True, len(missing))
            status, body = await readiness(admin_port_of(gateway), strict=True)
            assert (status, body["ready"]) == (503, False)
            assert body["reasons"] == [f"Redis is not connected for the slots {min(missing)}-{max(missing)}"]
            names = names_in("served", set(range(slots.SLOT_COUNT)) - missing, 5)
            async with load_clients([port_of(gateway)], names) as browsers:
                await backend.publish_all(names, 1_000)
                await until(lambda: not without_their_result(browsers), "each has its result")
            await asyncio.to_thread(away.start)
            await until(lambda: gateway._broker.connected, "it is complete")
            assert (await readiness(admin_port_of(gateway), strict=True))[0] == 200
