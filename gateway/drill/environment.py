"""What a drill is played on: Redis, nodes, and HAProxy in front of them where it is to be had.

Starting and asking blocks. Everything is on this machine's loopback, in processes that end with this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from .clients import NodeAddress
from .fleet import (
    Balancer,
    NodeProcess,
    SentinelGroup,
    ValkeyCluster,
    ValkeyProcess,
    address,
    available,
    configuration,
    free_port,
    wait_until,
)
from .report import NodeOutage, count, seconds

SLOW_CONSUMER = "1008 slow consumer"  # as /readyz names what ended sessions

Body = dict[str, Any]
Redis = TypeVar("Redis", bound=ValkeyProcess | SentinelGroup | ValkeyCluster)


@dataclass(frozen=True)
class Plan(Generic[Redis]):
    """What a drill needs."""

    redis: Callable[[], Redis]
    balanced: bool = False
    """Whether clients come through HAProxy, where it is installed."""
    node_options: tuple[str, ...] = ()
    preface: str = ""
    """Python that every node runs first: takes a cure out, for a control."""


class Environment(Generic[Redis]):
    """First `start_redis`, then `start_nodes`; in any case `stop`. It remembers what its nodes have told."""

    def __init__(self, plan: Plan[Redis], nodes: int, workers: int = 1) -> None:
        """Of so many nodes, with so many processes each."""
        self.redis: Redis
        self.nodes: list[NodeProcess] = []
        self.balancer: Balancer | None = None
        self.states: list[str] = []
        """How each node was when it was looked at last, in a few words."""
        self._plan = plan
        self._count = nodes
        self._by_workers = ("--workers", str(workers)) if workers > 1 else ()
        self._running = ExitStack()
        self._lives: dict[tuple[int, int], NodeOutage] = {}  # by number and process id
        self._down = [0.0] * nodes

    # Starting and stopping

    def start_redis(self) -> None:
        redis = self._plan.redis()
        self._running.enter_context(redis)
        self.redis = redis

    def start_nodes(self, clients: int) -> None:
        """Start all nodes side by side, and HAProxy with room for so many clients."""
        balanced = self._plan.balanced and available()
        # Behind HAProxy all have the same ports, each on an address of its own.
        ports = (free_port(), free_port()) if balanced else (0, 0)
        hosts = [address(number) if balanced else "127.0.0.1" for number in range(self._count)]
        with ThreadPoolExecutor(self._count) as pool:
            self.nodes = list(pool.map(partial(self._start_node, *ports), range(self._count), hosts))
        wait_until(lambda: all(map(_connected, self.ask())), "every node has all of Redis")
        if balanced:
            files = 4 * clients + 1_000  # two for each, and as many again while they come back
            self.balancer = self._running.enter_context(Balancer(self.nodes, configuration(), files=files))

    def _start_node(self, port: int, admin_port: int, number: int, host: str) -> NodeProcess:
        node = NodeProcess(
            self.redis.url,
            *("--node", f"node-{number + 1}", "--max-sessions-per-ip", "0"),
            *("--trusted-proxies", "127.0.0.0/8", *self._by_workers, *self._plan.node_options),
            host=host,
            port=port,
            admin_port=admin_port,
            preface=self._plan.preface,
        )
        return self._running.enter_context(node)  # at once: another may fail to start

    def start_again(self, node: NodeProcess) -> None:
        """Start a node that has ended, and return when clients are sent to it."""
        node.start()
        if self.balancer is not None:
            wait_until(partial(self.balancer.gives_to, self._count), "HAProxy finds the node")

    def was_down(self, node: NodeProcess, seconds: float) -> None:
        """Note for how long it was."""
        self._down[self.nodes.index(node)] += seconds

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()  # its figures are known by now, and its clients are gone
        self._running.close()

    # Where clients go, and what nodes say

    @property
    def places(self) -> list[NodeAddress]:
        """Where clients connect."""
        if self.balancer is not None:
            return [NodeAddress("127.0.0.1", self.balancer.port)]
        return [NodeAddress(node.host, node.port) for node in self.nodes]

    @property
    def version(self) -> str:
        """Which Redis it is."""
        return self.redis.version

    def ask(self, nodes: Iterable[NodeProcess] | None = None) -> list[Body | None]:
        """What /readyz of each node says, or of these; None for one that does not answer."""
        return [node.readyz() for node in (self.nodes if nodes is None else nodes)]

    def look(self) -> None:
        """Ask all nodes how they are and remember it."""
        bodies = [(node.process.pid, node.readyz()) for node in self.nodes]
        for number, (pid, body) in enumerate(bodies):
            if body is not None:
                redis = body["redis"]
                seen = NodeOutage(
                    f"node {number + 1}", redis["outage_seconds"], redis["outages"], redis["repaired"]
                )
                self._lives[number, pid] = seen
        self.states = [_state(body) for _, body in bodies]

    def slow_consumers(self) -> int:
        """How many clients the nodes have closed because they did not read."""
        return sum(body["ended"].get(SLOW_CONSUMER, 0) for body in self.ask() if body is not None)

    def blindness(self) -> list[NodeOutage]:
        """What each node has told, all of its lives together."""
        return [self._blindness(number) for number in range(self._count)]

    def _blindness(self, number: int) -> NodeOutage:
        lives = [seen for (node, _), seen in self._lives.items() if node == number]
        return NodeOutage(
            f"node {number + 1}",
            blind=sum(life.blind for life in lives),
            outages=sum(life.outages for life in lives),
            repaired=sum(life.repaired for life in lives),
            down=self._down[number],
        )


def _connected(body: Body | None) -> bool:
    return body is not None and bool(body["redis"]["connected"])


def _state(body: Body | None) -> str:
    if body is None:
        return "down"
    redis = body["redis"]
    line = "Redis connected" if redis["connected"] else "REDIS AWAY"
    blind = f", blind {seconds(redis['blind_seconds'])}" if redis["outages"] else ""
    draining = ", draining" if body["reasons"] else ""
    return f"{count(body['sessions'], 'client')}{draining}, {line}{blind}"
