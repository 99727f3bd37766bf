"""A drill's set-up and load: Redis, nodes, clients, a backend; and the watch over them while a fault is on.

Everything is on this machine's loopback, in processes that end with the drill, however it ends.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson

from ..descriptors import RESERVED, raise_limit
from ..errors import DrillError
from .backend import Backend
from .crowd import FILLER, Client, Crowd, Place
from .display import Display, Snapshot
from .fleet import (
    Balancer,
    Cluster,
    Node,
    SentinelSet,
    Valkey,
    address,
    available,
    configuration,
    free_port,
    wait_until,
)
from .ledger import Ledger, busiest_second
from .report import Absence, Blindness, Happening, Measure, Options, Report, count, seconds

GATHER_SECONDS = 60.0  # 2,000 clients need one
SETTLE_SECONDS = 20.0  # after the load, for what is under way
UNRETAINED_SECONDS = 2.0
RECENT_SECONDS = 1.0
WATCH_SECONDS = 0.5  # between two looks at the nodes
NOTICE_SECONDS = 0.05  # the same while something is waited for
FILLING = 8  # large results at a time
FILL_PAUSE = 0.02  # seconds between those: what is tried is slowness, not how much the machine can move
SLOW_CONSUMER = "1008 slow consumer"  # as /readyz names what ended sessions
SWAPPED = 0.01  # of the clients, a second: new operations begin as others end

T = TypeVar("T")
Redis = TypeVar("Redis", bound=Valkey | SentinelSet | Cluster)


@dataclass(frozen=True)
class Plan(Generic[Redis]):
    """What a drill is to be played on."""

    redis: Callable[[], Redis]
    balanced: bool = False
    """Whether clients come through HAProxy, where it is installed."""
    node_options: tuple[str, ...] = ()
    preface: str = ""
    """Python that every node runs first: takes a cure out, for a control."""


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """`asyncio.to_thread`, which also when it is cancelled waits until the function has ended.

    So nothing is left half started.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


class Stage(Generic[Redis]):
    """What the play of a drill has at hand. `start` it, let `load` run, `settle` it, ask for the `report`."""

    def __init__(self, options: Options, plan: Plan[Redis], display: Display) -> None:
        self.options = options
        self.ledger = Ledger()
        self.redis: Redis
        self.nodes: list[Node] = []
        self.balancer: Balancer | None = None
        self.crowd: Crowd
        self.backend: Backend
        self._plan = plan
        self._display = display
        self._running = ExitStack()
        self._began = time.monotonic()
        self._events: list[Happening] = []
        self._measures: list[tuple[Measure, Callable[[], float | None]]] = []
        self._watched: dict[tuple[int, int], Blindness] = {}
        self._states: list[str] = []
        self._down = [0.0] * options.nodes
        self._version = ""
        self._tasks: asyncio.TaskGroup
        self._publishing: set[asyncio.Task[None]] = set()

    # What a play does

    def say(self, text: str) -> float:
        """Note what was done or seen; returns the moment."""
        now = time.monotonic()
        event = Happening(now - self._began, text)
        self._events.append(event)
        self._display.happened(event)
        return now

    async def do(self, function: Callable[..., T], *arguments: object) -> T:
        """Call what blocks."""
        return await in_thread(function, *arguments)

    async def start_again(self, node: Node, ended: float) -> None:
        """Start a node that ended at that moment, and wait until clients are sent to it."""
        await in_thread(node.start)
        if self.balancer is not None:
            balancer = self.balancer
            every = partial(balancer.gives_to, len(self.nodes))
            await in_thread(wait_until, every, "HAProxy finds the node")
        self._down[self.nodes.index(node)] += time.monotonic() - ended

    def measure(
        self, what: str, value: Callable[[], float | None], limit: float | None = None, unit: str = "s"
    ) -> None:
        """Have `value` asked when everything has settled."""
        self._measures.append((Measure(what, None, limit, unit), value))

    async def until_nodes(
        self, condition: Callable[[dict[str, Any]], bool], seconds: float, nodes: Iterable[Node] = ()
    ) -> float | None:
        """When /readyz of the last of the nodes was as wanted; None if that took longer than `seconds`."""
        waiting = list(nodes) or list(self.nodes)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            bodies = await in_thread(_ask, waiting)
            now = time.monotonic()
            waiting = [
                node
                for node, body in zip(waiting, bodies, strict=True)
                if body is None or not condition(body)
            ]
            if not waiting:
                return now
            await asyncio.sleep(NOTICE_SECONDS)
        return None

    def busiest_second(self) -> float:
        """The most clients that came back within one second."""
        return busiest_second(self.crowd.returned)

    def longest_absence(self) -> float:
        """The longest that a client was without a registration, after it had had one, in seconds."""
        return self.crowd.longest_gap(time.monotonic())

    def heard_again(self, since: float, about: Callable[[str], bool] = lambda _: True) -> float | None:
        """Seconds after `since` at which the last place delivered again; None if one has not at all."""
        parts = range(len(self.crowd.places))
        times = self.ledger.heard_again(since, parts, about)
        return None if None in times else max(time for time in times if time is not None)

    def newcomers(self, number: int) -> list[Client]:
        """Further clients, with narrow connections; they get what the play publishes to them, no other."""
        return [self.crowd.newcomer(narrow=True) for _ in range(number)]

    def publish_to(self, clients: Iterable[Client]) -> None:
        """Publish one result to each, as the load does; from then on they are as all others."""
        for client in clients:
            self._start_publishing(client)

    async def fill(self, clients: Sequence[Client], size: int, seconds: float) -> int:
        """Publish large results to `clients` until their nodes have closed them all as slow consumers.

        The ledger does not know these results, and Redis does not keep them. Returns how many were closed
        when all were, or after `seconds`.
        """
        end = time.monotonic() + seconds
        data = "x" * size
        held = [client.name for client in clients]
        numbers = itertools.count()
        while held and time.monotonic() < end:
            receivers: list[int] = []
            for start in range(0, len(held), FILLING):
                await asyncio.sleep(FILL_PAUSE)
                some = held[start : start + FILLING]
                receivers += await self.backend.publish_once(some, f"{FILLER}{next(numbers)}", data)
            held = [name for name, nodes in zip(held, receivers, strict=True) if nodes]
        while True:
            closed = await self._slow_consumers()
            if closed >= len(clients) or time.monotonic() >= end:
                return closed
            await asyncio.sleep(NOTICE_SECONDS)

    async def _slow_consumers(self) -> int:
        bodies = await in_thread(_ask, self.nodes)
        return sum(body["ended"].get(SLOW_CONSUMER, 0) for body in bodies if body is not None)

    # Setting up

    @asynccontextmanager
    async def set_up(self) -> AsyncIterator[None]:
        """Everything runs and all clients are registered; whatever happens, all is gone behind it."""
        self._check_room()
        try:
            self._display.prepare("Redis starts ...")
            self.redis = await in_thread(self._start_redis)
            self._version = await in_thread(_version, self.redis)
            self._display.prepare(f"{count(self.options.nodes, 'node')} start ...")
            await in_thread(self._start_nodes)
            places = (
                [Place("127.0.0.1", self.balancer.port)]
                if self.balancer
                else [Place(node.host, node.port) for node in self.nodes]
            )
            self.crowd = Crowd(places, self.ledger, "drill")
            async with Backend(self.redis.url) as self.backend:
                try:
                    self._display.prepare(f"{count(self.options.clients, 'client')} connect ...")
                    await self.crowd.gather(self.options.clients, GATHER_SECONDS)
                    yield
                finally:
                    await self.crowd.close()
        finally:
            await in_thread(self._stop)

    def _check_room(self) -> None:
        limit, needed = raise_limit(), self.options.clients + RESERVED
        if limit < needed:
            raise DrillError(
                f"{self.options.clients:,} clients need {needed:,} open files, and the system allows "
                f"{limit:,}; raise it (ulimit -n) or take fewer --clients"
            )

    def _start_redis(self) -> Redis:
        redis = self._plan.redis()
        self._running.enter_context(redis)
        return redis

    def _start_nodes(self) -> None:
        balanced = self._plan.balanced and available()
        port, admin_port = (free_port(), free_port()) if balanced else (0, 0)
        options = ("--max-sessions-per-ip", "0", "--trusted-proxies", "127.0.0.0/8", *self._plan.node_options)
        if self.options.workers > 1:
            options += ("--workers", str(self.options.workers))

        def start(number: int) -> Node:
            node = Node(
                self.redis.url,
                *("--node", f"node-{number + 1}", *options),
                host=address(number) if balanced else "127.0.0.1",
                port=port,
                admin_port=admin_port,
                preface=self._plan.preface,
            )
            return self._running.enter_context(node)  # at once: another may fail to start

        with ThreadPoolExecutor(self.options.nodes) as pool:
            self.nodes = list(pool.map(start, range(self.options.nodes)))
        wait_until(lambda: all(map(_connected, _ask(self.nodes))), "every node has all of Redis")
        if balanced:
            files = 4 * self.options.clients + 1_000
            self.balancer = self._running.enter_context(Balancer(self.nodes, configuration(), files=files))

    def _stop(self) -> None:
        for node in self.nodes:
            node.kill()  # its figures are known by now, and its clients are gone
        self._running.close()

    # The load

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Publish, let clients come and go, watch the nodes and show it all, until the block ends."""
        self._began = time.monotonic()
        through = "through HAProxy" if self.balancer else "at the nodes themselves"
        self.say(f"{count(self.options.clients, 'client')} have registered {through}; results begin")
        async with asyncio.TaskGroup() as self._tasks:
            load = [self._run(self._publish()), self._run(self._swap())]
            watch = [self._run(self._watch()), self._run(self._show())]
            try:
                yield
                await asyncio.sleep(self._began + self.options.seconds - time.monotonic())
                for task in load:
                    task.cancel()
                self.say("the load ends")
                await self._settle()
            finally:
                for task in [*load, *watch, *self._publishing]:
                    task.cancel()
                self._display.end()

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do `work` as a part of the load: when it fails, the drill does."""
        return self._tasks.create_task(work)

    async def _publish(self) -> None:
        """A result each 1/rate seconds, to the client that has waited longest; late ones are caught up."""
        due = time.monotonic()
        while True:
            now = time.monotonic()
            while due <= now:
                due += 1 / self.options.rate
                client = self.crowd.take()
                if client is None:  # all have one under way
                    due = now + 1 / self.options.rate
                    break
                self._start_publishing(client)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _start_publishing(self, client: Client) -> None:
        task = self._run(self._publish_to(client))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _publish_to(self, client: Client) -> None:
        result = self.ledger.attempt(client.name, time.monotonic())
        self.crowd.send(client, result)
        await self.backend.publish(client.name, result.message_id, retain=self.options.retain)
        self.ledger.acknowledge(result, time.monotonic())
        self.crowd.settle(client)

    async def _swap(self) -> None:
        while True:
            await asyncio.sleep(1 / (SWAPPED * self.options.clients))
            self.crowd.swap()

    async def _watch(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(WATCH_SECONDS)

    async def _look(self) -> None:
        bodies = await in_thread(lambda: [(node.process.pid, node.readyz()) for node in self.nodes])
        for number, (pid, body) in enumerate(bodies):
            if body is not None:
                redis = body["redis"]
                self._watched[number, pid] = Blindness(
                    "", redis["blind_seconds"], redis["gaps"], redis["mended"]
                )
        self._states = [_state(body) for _, body in bodies]

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(self._display.pause)
            self._display.show(self._snapshot())

    def _snapshot(self) -> Snapshot:
        ledger, crowd, now = self.ledger, self.crowd, time.monotonic()
        return Snapshot(
            elapsed=now - self._began,
            clients=len(crowd.clients),
            registered=crowd.registered,
            published=ledger.published,
            delivered=ledger.delivered,
            under_way=ledger.unsettled,
            duplicates=ledger.duplicates,
            late=ledger.recently_late(now - RECENT_SECONDS),
            nodes=self._states,
        )

    async def _settle(self) -> None:
        """Wait for what is under way, but not for ever: what has not come by then is lost.

        What nobody retains has come at once, or never will.
        """
        end = time.monotonic() + (SETTLE_SECONDS if self.options.retain else UNRETAINED_SECONDS)
        while self.ledger.unsettled and time.monotonic() < end:  # noqa: ASYNC110 - or an event a result
            await asyncio.sleep(0.05)
        await self._look()

    # What came of it

    def report(self, drill: str, summary: str) -> Report:
        """All that was found, once the load is over."""
        now = time.monotonic()
        ledger, crowd = self.ledger, self.crowd
        return Report(
            drill=drill,
            summary=summary,
            options=self.options,
            redis=self._version,
            balanced=self.balancer is not None,
            events=self._events,
            published=ledger.published,
            delivered=ledger.delivered,
            lost=len(ledger.lost),
            duplicates=ledger.duplicates,
            strays=ledger.strays,
            unaccepted=ledger.unaccepted,
            late=ledger.late(),
            measures=[measure._replace(value=value()) for measure, value in self._measures],
            nodes=[self._blindness(number) for number in range(len(self.nodes))],
            clients=Absence(
                longest=crowd.longest_gap(now),
                returns=len(crowd.returned),
                busiest_second=busiest_second(crowd.returned),
                slowest_welcome=crowd.slowest_welcome,
                closes=dict(crowd.closes),
            ),
        )

    def write_logs(self, folder: Path, drill: str) -> None:
        """Leave what each node has logged in a file, an object a line."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, node in enumerate(self.nodes, 1):
            lines = [orjson.dumps(line) + b"\n" for line in node.logs]
            (folder / f"{drill}-node-{number}.jsonl").write_bytes(b"".join(lines))

    def _blindness(self, number: int) -> Blindness:
        lives = [seen for (node, _), seen in self._watched.items() if node == number]
        return Blindness(
            f"node {number + 1}",
            blind=sum(life.blind for life in lives),
            gaps=sum(life.gaps for life in lives),
            mended=sum(life.mended for life in lives),
            down=self._down[number],
        )


def _ask(nodes: Iterable[Node]) -> list[dict[str, Any] | None]:
    return [node.readyz() for node in nodes]


def _version(redis: Valkey | SentinelSet | Cluster) -> str:
    server = redis
    if isinstance(redis, SentinelSet):
        server = redis.servers[0]
    elif isinstance(redis, Cluster):
        server = redis.nodes[0]
    assert isinstance(server, Valkey)
    return f"Valkey {server.info('server').get('valkey_version', '?')}"


def _connected(body: dict[str, Any] | None) -> bool:
    return body is not None and bool(body["redis"]["connected"])


def _state(body: dict[str, Any] | None) -> str:
    """How a node is, by its /readyz."""
    if body is None:
        return "down"
    redis = body["redis"]
    line = "Redis connected" if redis["connected"] else "REDIS AWAY"
    blind = f", blind {seconds(redis['blind_seconds'])}" if redis["gaps"] else ""
    draining = ", draining" if body["reasons"] else ""
    return f"{count(body['sessions'], 'client')}{draining}, {line}{blind}"
