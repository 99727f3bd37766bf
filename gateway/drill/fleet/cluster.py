"""A Valkey Cluster: three masters with a replica each, created with plain CLUSTER commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NamedTuple

import redis
from redis.cluster import ClusterNode as RedisClusterNode
from redis.cluster import RedisCluster

from .process import ProcessGroup, free_port, wait_until
from .valkey import ValkeyProcess, in_sync

SLOTS = 16_384
MASTERS = 3
NODE_TIMEOUT = 1_000  # ms; the default is 15 s
KEYS_AT_A_TIME = 100
MIGRATE_TIMEOUT = 5_000  # ms


class ClusterNodeView(NamedTuple):
    """A server as CLUSTER NODES describes it: its flags, and its ranges of slots."""

    flags: frozenset[str]
    slots: tuple[range, ...]

    def holds(self, first: int, last: int) -> bool:
        """Whether it is a master with all of these slots."""
        return "master" in self.flags and any(first in part and last in part for part in self.slots)


class ClusterNodeProcess(ValkeyProcess):
    """A server that can be a member of a Cluster."""

    def __init__(self, *options: str) -> None:
        self.bus_port = free_port()
        super().__init__(
            *("--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)),
            *("--cluster-node-timeout", str(NODE_TIMEOUT), "--repl-diskless-sync-delay", "0"),
            # A replica of another master, which has to fetch the data first, must not replace a failed one.
            *("--cluster-allow-replica-migration", "no", *options),
        )
        self.id: str = self.ask("CLUSTER", "MYID")

    def cluster_info(self) -> dict[str, str]:
        """CLUSTER INFO; empty if the server does not answer."""
        try:
            said = str(self.ask("CLUSTER", "INFO"))
        except redis.RedisError:
            return {}
        pairs = (line.split(":", 1) for line in said.splitlines() if ":" in line)
        return {name: value for name, value in pairs}  # noqa: C416 - mypy sees that these are pairs

    def view(self) -> dict[str, ClusterNodeView]:
        """CLUSTER NODES of this server, by node id; empty if it does not answer."""
        try:
            said = str(self.ask("CLUSTER", "NODES"))
        except redis.RedisError:
            return {}
        rows = (line.split(" ") for line in said.splitlines())
        return {row[0]: ClusterNodeView(frozenset(row[2].split(",")), _ranges(row[8:])) for row in rows}


class ValkeyCluster(ProcessGroup):
    """`masters` masters with `replicas` replicas each, which agree once the block is entered.

    `options` are more options of the servers. A killed server can be started again.
    """

    def __init__(self, *options: str, masters: int = MASTERS, replicas: int = 1) -> None:
        super().__init__()
        self._options = options
        self._masters = masters
        self._replicas = replicas
        self.nodes: list[ClusterNodeProcess] = []

    @property
    def url(self) -> str:
        """It names two of the nodes; a client learns the others from them."""
        return "redis+cluster://" + ",".join(node.address for node in self.nodes[:2])

    @property
    def version(self) -> str:
        return self.nodes[0].version

    def client(self) -> RedisCluster:
        """A redis-py client for a Cluster; the caller closes it."""
        known = [RedisClusterNode("127.0.0.1", node.port) for node in self.running]  # type: ignore[no-untyped-call]
        return RedisCluster(startup_nodes=known)

    @property
    def masters(self) -> list[ClusterNodeProcess]:
        """The masters that have slots, as a running server reports them."""
        view = self._view()
        return [node for node in self.nodes if "master" in view[node.id].flags and view[node.id].slots]

    def owner(self, slot: int) -> ClusterNodeProcess:
        """The master with this slot. Raises LookupError if there is none."""
        view = self._view()
        for node in self.nodes:
            if node.id in view and view[node.id].holds(slot, slot):
                return node
        raise LookupError(f"no master has slot {slot}")

    def slots(self, node: ClusterNodeProcess) -> tuple[range, ...]:
        """The slots of a server."""
        return self._view()[node.id].slots

    def await_failover(
        self, failed: ClusterNodeProcess, slot: int, seconds: float = 30.0
    ) -> ClusterNodeProcess:
        """Wait until another server than `failed` has `slot`, and return it. Raises TimeoutError."""
        found: list[ClusterNodeProcess] = []

        def taken_over() -> bool:
            found.extend(node for node in self.running if node is not failed and _holds(node, slot, slot))
            return bool(found)

        wait_until(taken_over, "a replica is promoted", seconds)
        return found[0]

    def add_node(self) -> ClusterNodeProcess:
        """Start another master, without slots, that all others know. It stops with the Cluster."""
        node = self._running.enter_context(ClusterNodeProcess(*self._options))
        self.nodes.append(node)
        node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self.nodes[0].bus_port)
        self.await_health()
        return node

    def move_slots(
        self, source: ClusterNodeProcess, target: ClusterNodeProcess, slots: Iterable[int]
    ) -> None:
        """Move slots one by one with their keys, as redis-cli does with every Redis since 3.0."""
        others = [node for node in self.masters if node not in (source, target)]
        for slot in slots:
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
            while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, KEYS_AT_A_TIME):
                source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, MIGRATE_TIMEOUT, "KEYS", *keys)
            for node in (target, source, *others):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def migrate_slots(
        self, source: ClusterNodeProcess, target: ClusterNodeProcess, first: int, last: int
    ) -> None:
        """Move a range of slots in one step (Valkey 9). Returns once all servers know."""
        source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", target.id)
        wait_until(
            lambda: all(
                target.id in (view := node.view()) and view[target.id].holds(first, last)
                for node in self.running
            ),
            f"the slots {first} to {last} have moved",
            30,
        )

    def await_health(self) -> None:
        """Wait until every running server reports the state `ok`, and the replicas are in sync."""
        count = len(self.nodes)

        def healthy() -> bool:
            for node in self.running:
                info = node.cluster_info()
                if info.get("cluster_state") != "ok" or info.get("cluster_known_nodes") != str(count):
                    return False
                if node.info("replication").get("role") == "slave" and not in_sync(node):
                    return False
            return True

        wait_until(healthy, "the Cluster is healthy", 30)

    def _start(self, running: ExitStack) -> None:
        count = self._masters * (1 + self._replicas)
        self.nodes = [running.enter_context(ClusterNodeProcess(*self._options)) for _ in range(count)]
        masters, replicas = self.nodes[: self._masters], self.nodes[self._masters :]
        for number, master in enumerate(masters):
            first, last = SLOTS * number // self._masters, SLOTS * (number + 1) // self._masters - 1
            master.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        for epoch, node in enumerate(self.nodes, 1):  # different epochs, so the servers need not agree first
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self.nodes[0].bus_port)
        self._await(lambda node: len(node.view()) == count, "the servers know each other")
        for number, replica in enumerate(replicas):
            replica.ask("CLUSTER", "REPLICATE", masters[number % self._masters].id)
        self._await(
            lambda node: sum("slave" in view.flags for view in node.view().values()) == len(replicas),
            "the replicas are known everywhere",
        )
        self.await_health()

    def _await(self, condition: Callable[[ClusterNodeProcess], object], what: str) -> None:
        wait_until(lambda: all(condition(node) for node in self.nodes), what, 30)

    @property
    def running(self) -> list[ClusterNodeProcess]:
        """The servers whose processes are running."""
        return [node for node in self.nodes if node.running]

    def _view(self) -> dict[str, ClusterNodeView]:
        for node in self.running:
            if view := node.view():
                return view
        raise LookupError("no server of the Cluster answers")


def _holds(node: ClusterNodeProcess, first: int, last: int) -> bool:
    view = node.view()
    return node.id in view and view[node.id].holds(first, last)


def _ranges(words: Iterable[str]) -> tuple[range, ...]:
    """The ranges in words such as `0-5460` or `7`. A word in brackets is a slot that moves: left out."""
    pairs = (word.split("-") for word in words if not word.startswith("["))
    return tuple(range(int(pair[0]), int(pair[-1]) + 1) for pair in pairs)
