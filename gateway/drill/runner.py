"""A drill while it is played: clients, load, the watch over all of it, and what a play has at hand."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Generic, TypeVar

import orjson

from ..errors import DrillError
from ..system import RESERVED, raise_nofile_limit
from .backend import Backend
from .clients import FILLER, Clients, DrillClient
from .display import Display, Snapshot
from .environment import Body, Environment, Plan, Redis
from .fleet import NodeProcess
from .ledger import Ledger, busiest_second
from .report import Absence, DrillOptions, DrillReport, Happening, Measure, count

GATHER_SECONDS = 60.0  # 2,000 clients need one
SETTLE_SECONDS = 20.0  # after the load, for what is under way
UNRETAINED_SECONDS = 2.0  # the same for what nobody retains: it has come at once, or never will
RECENT_SECONDS = 1.0
WATCH_SECONDS = 0.5  # between two looks at the nodes
NOTICE_SECONDS = 0.05  # the same while something is waited for
SWAPPED = 0.01  # of the clients, a second: new operations begin as others end
FILLING = 8  # large results at a time
FILL_PAUSE = 0.02  # seconds between those: what is tried is slowness, not how much the machine can move

T = TypeVar("T")


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


class Runner(Generic[Redis]):
    """Within `set_up` everything runs; within `load`, in that, results are published; then comes `report`."""

    def __init__(self, options: DrillOptions, plan: Plan[Redis], display: Display) -> None:
        self.options = options
        self.installation = Environment(plan, options.nodes, options.workers)
        self.ledger = Ledger()
        self.crowd: Clients
        self._backend: Backend
        self._display = display
        self._version = ""
        self._began = time.monotonic()
        self._events: list[Happening] = []
        self._measures: list[tuple[Measure, Callable[[], float | None]]] = []
        self._tasks: asyncio.TaskGroup
        self._publishing: set[asyncio.Task[None]] = set()

    # What a play does

    @property
    def redis(self) -> Redis:
        return self.installation.redis

    @property
    def nodes(self) -> list[NodeProcess]:
        return self.installation.nodes

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

    async def start_again(self, node: NodeProcess, ended: float) -> None:
        """Start a node that ended at that moment, and return when clients are sent to it."""
        await in_thread(self.installation.start_again, node)
        self.installation.was_down(node, time.monotonic() - ended)

    def measure(
        self, what: str, value: Callable[[], float | None], limit: float | None = None, unit: str = "s"
    ) -> None:
        """Have `value` asked when everything has settled."""
        self._measures.append((Measure(what, None, limit, unit), value))

    async def until_nodes(self, condition: Callable[[Body], bool], seconds: float) -> float | None:
        """When /readyz of the last of the nodes was as wanted; None if that took longer than `seconds`."""
        waiting = list(self.nodes)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            bodies = await in_thread(self.installation.ask, waiting)
            now = time.monotonic()
            answers = zip(waiting, bodies, strict=True)
            waiting = [node for node, body in answers if body is None or not condition(body)]
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

    def newcomers(self, number: int) -> list[DrillClient]:
        """Further clients, with narrow connections; they get what the play publishes to them, no other."""
        return [self.crowd.newcomer(narrow=True) for _ in range(number)]

    def publish_to(self, clients: Iterable[DrillClient]) -> None:
        """Publish one result to each, as the load does; from then on they are as all others."""
        for client in clients:
            task = self._run(self._publish_to(client))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    async def fill(self, clients: Sequence[DrillClient], size: int, seconds: float) -> int:
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
                receivers += await self._backend.publish_once(some, f"{FILLER}{next(numbers)}", data)
            held = [name for name, nodes in zip(held, receivers, strict=True) if nodes]
        while True:
            closed = await in_thread(self.installation.slow_consumers)
            if closed >= len(clients) or time.monotonic() >= end:
                return closed
            await asyncio.sleep(NOTICE_SECONDS)

    # Setting up

    @asynccontextmanager
    async def set_up(self) -> AsyncIterator[None]:
        """Everything runs and all clients are registered; whatever happens, all is gone behind it."""
        self._check_room()
        installation, clients = self.installation, self.options.clients
        try:
            self._display.prepare("Redis starts ...")
            await in_thread(installation.start_redis)
            self._display.prepare(f"{count(self.options.nodes, 'node')} start ...")
            await in_thread(installation.start_nodes, clients)
            self._version = await in_thread(lambda: installation.version)
            self.crowd = Clients(installation.places, self.ledger, "drill")
            async with Backend(self.redis.url) as self._backend:
                try:
                    self._display.prepare(f"{count(clients, 'client')} connect ...")
                    await self.crowd.gather(clients, GATHER_SECONDS)
                    yield
                finally:
                    await self.crowd.close()
        finally:
            await in_thread(installation.stop)

    def _check_room(self) -> None:
        limit, needed = raise_nofile_limit(), self.options.clients + RESERVED
        if limit < needed:
            raise DrillError(
                f"{self.options.clients:,} clients need {needed:,} open files, and the system allows "
                f"{limit:,}; raise it (ulimit -n) or take fewer --clients"
            )

    # The load

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Publish, let clients come and go, watch the nodes and show it all, until the block ends."""
        self._began = time.monotonic()
        through = "through HAProxy" if self.installation.balancer else "at the nodes themselves"
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
                self.publish_to([client])
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _publish_to(self, client: DrillClient) -> None:
        result = self.ledger.attempt(client.name, time.monotonic())
        self.crowd.send(client, result)
        await self._backend.publish(client.name, result.message_id, retain=self.options.retain)
        self.ledger.acknowledge(result, time.monotonic())
        self.crowd.settle(client)

    async def _swap(self) -> None:
        while True:
            await asyncio.sleep(1 / (SWAPPED * self.options.clients))
            self.crowd.swap()

    async def _watch(self) -> None:
        while True:
            await in_thread(self.installation.look)
            await asyncio.sleep(WATCH_SECONDS)

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
            nodes=self.installation.states,
        )

    async def _settle(self) -> None:
        """Wait for what is under way, but not for ever: what has not come by then is lost."""
        end = time.monotonic() + (SETTLE_SECONDS if self.options.retain else UNRETAINED_SECONDS)
        while self.ledger.unsettled and time.monotonic() < end:  # noqa: ASYNC110 - or an event a result
            await asyncio.sleep(NOTICE_SECONDS)
        await in_thread(self.installation.look)

    # What came of it

    def report(self, drill: str, summary: str) -> DrillReport:
        """All that was found, once the load is over."""
        now = time.monotonic()
        ledger, crowd = self.ledger, self.crowd
        return DrillReport(
            drill=drill,
            summary=summary,
            options=self.options,
            redis=self._version,
            balanced=self.installation.balancer is not None,
            events=self._events,
            published=ledger.published,
            delivered=ledger.delivered,
            lost=len(ledger.lost),
            duplicates=ledger.duplicates,
            strays=ledger.strays,
            unaccepted=ledger.unaccepted,
            late=ledger.late(),
            measures=[measure._replace(value=value()) for measure, value in self._measures],
            nodes=self.installation.blindness(),
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
