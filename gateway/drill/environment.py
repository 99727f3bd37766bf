"""The processes of one drill: Redis, the nodes, and HAProxy in front of them if it is installed.

All calls block. Everything listens on this machine's loopback, in processes that end with this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from ..messages import SLOW_CONSUMER, CloseCode
from .clients import NodeAddress
from .fleet import (
    HAProxyProcess,
    NodeGroup,
    NodeProcess,
    SentinelGroup,
    ValkeyCluster,
    ValkeyProcess,
    haproxy_available,
    wait_until,
)
from .report import NodeOutage, count, seconds

SLOW_CONSUMERS = f"{CloseCode.POLICY:d} {SLOW_CONSUMER}"  # the key in the member `closed` of /readyz

Body = dict[str, Any]
Redis = TypeVar("Redis", bound=ValkeyProcess | SentinelGroup | ValkeyCluster)


@dataclass(frozen=True)
class Plan(Generic[Redis]):
    """The processes that a drill needs."""

    redis: Callable[[], Redis]
    balanced: bool = False
    """Whether clients connect through HAProxy, if it is installed."""
    node_options: tuple[str, ...] = ()
    preface: str = ""
    """Python that every node runs first. A control run disables a safeguard with it."""


class Environment(Generic[Redis]):
    """Call `start_redis`, then `start_nodes`, and `stop` in any case. Keeps what its nodes have reported."""

    def __init__(self, plan: Plan[Redis], nodes: int, workers: int = 1) -> None:
        """`nodes` is the number of nodes, `workers` the number of processes of each."""
        self.redis: Redis
        self.nodes: list[NodeProcess] = []
        self.balancer: HAProxyProcess | None = None
        self.states: list[str] = []
        """The state of each node at the last `poll_nodes`, in a few words."""
        self._plan = plan
        self._count = nodes
        self._worker_options = ("--workers", str(workers)) if workers > 1 else ()
        self._running = ExitStack()
        self._outages: dict[tuple[int, int], NodeOutage] = {}  # by number and process id
        self._down = [0.0] * nodes

    # Starting and stopping

    def start_redis(self) -> None:
        redis = self._plan.redis()
        self._running.enter_context(redis)
        self.redis = redis

    def start_nodes(self, clients: int) -> None:
        """Start all nodes at once, and HAProxy with enough file descriptors for `clients`."""
        balanced = self._plan.balanced and haproxy_available()
        common = ("--max-sessions-per-ip", "0", "--trusted-proxies", "127.0.0.0/8")
        options = [
            ("--node", f"node-{number}", *common, *self._worker_options, *self._plan.node_options)
            for number in range(1, self._count + 1)
        ]
        group = NodeGroup(self.redis.url, *options, balanced=balanced, preface=self._plan.preface)
        self.nodes = self._running.enter_context(group).nodes
        wait_until(lambda: all(map(_connected, self.readyz())), "every node is connected to all of Redis")
        if balanced:
            files = 4 * clients + 1_000  # two for each client, and as many again while clients reconnect
            self.balancer = self._running.enter_context(HAProxyProcess(self.nodes, files=files))

    def restart(self, node: NodeProcess) -> None:
        """Start a node that has ended. Returns when clients are sent to it."""
        node.start()
        if self.balancer is not None:
            wait_until(partial(self.balancer.serves_nodes, self._count), "HAProxy sends clients to the node")

    def add_downtime(self, node: NodeProcess, seconds: float) -> None:
        """Count the time that a node was down."""
        self._down[self.nodes.index(node)] += seconds

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()  # its figures are known, and its clients are gone
        self._running.close()

    # What clients and reports need

    @property
    def addresses(self) -> list[NodeAddress]:
        """Where clients connect."""
        if self.balancer is not None:
            return [NodeAddress("127.0.0.1", self.balancer.port)]
        return [NodeAddress(node.host, node.port) for node in self.nodes]

    @property
    def version(self) -> str:
        """Name and version of the Redis server."""
        return self.redis.version

    def readyz(self, nodes: Iterable[NodeProcess] | None = None) -> list[Body | None]:
        """The /readyz body of each of `nodes`, or of all nodes; None for a node that does not answer."""
        return [node.readyz() for node in (self.nodes if nodes is None else nodes)]

    def poll_nodes(self) -> None:
        """Read /readyz of all nodes and keep the figures."""
        bodies = [(node.process.pid, node.readyz()) for node in self.nodes]
        for number, (pid, body) in enumerate(bodies):
            if body is not None:
                redis = body["redis"]
                seen = NodeOutage(
                    f"node {number + 1}", redis["outage_seconds"], redis["outages"], redis["repaired"]
                )
                self._outages[number, pid] = seen
        self.states = [state(body) for _, body in bodies]

    def slow_consumers(self) -> int:
        """How many sessions the nodes have closed because their clients did not read."""
        return sum(body["closed"].get(SLOW_CONSUMERS, 0) for body in self.readyz() if body is not None)

    def node_outages(self) -> list[NodeOutage]:
        """The figures of each node, summed over all processes that it has had."""
        return [self._node_outage(number) for number in range(self._count)]

    def _node_outage(self, number: int) -> NodeOutage:
        runs = [seen for (node, _), seen in self._outages.items() if node == number]
        return NodeOutage(
            f"node {number + 1}",
            outage_seconds=sum(run.outage_seconds for run in runs),
            outages=sum(run.outages for run in runs),
            repaired=sum(run.repaired for run in runs),
            down_for=self._down[number],
        )


def _connected(body: Body | None) -> bool:
    return body is not None and bool(body["redis"]["connected"])


def state(body: Body | None) -> str:
    """The state of a node in a few words, from its /readyz body."""
    if body is None:
        return "down"
    redis = body["redis"]
    connected = "Redis connected" if redis["connected"] else "REDIS LOST"
    outages = f", {seconds(redis['outage_seconds'])} without Redis" if redis["outages"] else ""
    words = [count(body["sessions"], "client"), *body["reasons"], f"{connected}{outages}"]
    return ", ".join(words)
