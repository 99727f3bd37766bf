"""Runs one drill: the processes, the clients, the load, and the steps that scenarios use."""

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
from .report import Disconnects, DrillEvent, DrillOptions, DrillReport, Measure, count

CONNECT_SECONDS = 60.0  # 2,000 clients need one
SETTLE_SECONDS = 20.0  # after the load, for results in flight
UNRETAINED_SECONDS = 2.0  # without retention: a result arrives at once or never
RECENT_SECONDS = 1.0
NODE_POLL_SECONDS = 0.5  # between two reads of /readyz
POLL_SECONDS = 0.05  # the same while a scenario waits
CHURN = 0.01  # share of the clients that is replaced in a second
FLOOD_BATCH = 8  # large results at a time
FLOOD_PAUSE = 0.02  # seconds between two batches: the drill tests slow clients, not the throughput

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """As `asyncio.to_thread`, but waits for the function also when cancelled: nothing stays half started."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


class Runner(Generic[Redis]):
    """Runs one drill. Everything runs within `set_up`, results are published within `load`; then `report`."""

    def __init__(self, options: DrillOptions, plan: Plan[Redis], display: Display) -> None:
        self.options = options
        self.environment = Environment(plan, options.nodes, options.workers)
        self.ledger = Ledger()
        self.clients: Clients
        self._backend: Backend
        self._display = display
        self._version = ""
        self._began = time.monotonic()
        self._events: list[DrillEvent] = []
        self._measures: list[tuple[Measure, Callable[[], float | None]]] = []
        self._tasks: asyncio.TaskGroup
        self._publishing: set[asyncio.Task[None]] = set()

    # For scenarios

    @property
    def redis(self) -> Redis:
        return self.environment.redis

    @property
    def nodes(self) -> list[NodeProcess]:
        return self.environment.nodes

    def record(self, text: str) -> float:
        """Add an event to the report. Returns its time."""
        now = time.monotonic()
        event = DrillEvent(now - self._began, text)
        self._events.append(event)
        self._display.event(event)
        return now

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function that blocks."""
        return await in_thread(function, *arguments)

    async def restart(self, node: NodeProcess, ended: float) -> None:
        """Start a node whose process ended at `ended`. Returns when clients are sent to it."""
        await in_thread(self.environment.restart, node)
        self.environment.add_downtime(node, time.monotonic() - ended)

    def measure(
        self, what: str, value: Callable[[], float | None], limit: float | None = None, unit: str = "s"
    ) -> None:
        """Add a measured value to the report; `value` is called when everything has settled."""
        self._measures.append((Measure(what, None, limit, unit), value))

    async def wait_for_nodes(self, condition: Callable[[Body], bool], seconds: float) -> float | None:
        """The time at which /readyz of every node had met `condition`; None if not within `seconds`."""
        waiting = list(self.nodes)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            bodies = await in_thread(self.environment.readyz, waiting)
            now = time.monotonic()
            answers = zip(waiting, bodies, strict=True)
            waiting = [node for node, body in answers if body is None or not condition(body)]
            if not waiting:
                return now
            await asyncio.sleep(POLL_SECONDS)
        return None

    def busiest_second(self) -> float:
        """The most clients that reconnected within one second."""
        return busiest_second(self.clients.reconnects)

    def longest_disconnect(self) -> float:
        """Seconds: the longest time from the end of a client's connection to its next registration."""
        return self.clients.longest_disconnect(time.monotonic())

    def recovery_time(self, since: float, counts: Callable[[str], bool] = lambda _: True) -> float | None:
        """Seconds from `since` until every address has delivered a new result; None if one has not.

        `counts` says which ids count.
        """
        addresses = range(len(self.clients.addresses))
        times = self.ledger.first_deliveries_after(since, addresses, counts)
        return None if None in times else max(time for time in times if time is not None)

    def add_slow_readers(self, number: int) -> list[DrillClient]:
        """More clients, with small buffers. They get only the results that the scenario publishes to them."""
        return [self.clients.add(narrow=True) for _ in range(number)]

    def publish_to(self, clients: Iterable[DrillClient]) -> None:
        """Publish one result to each, as the load does; afterwards the load includes them."""
        for client in clients:
            task = self._run(self._publish_to(client))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    async def flood(self, clients: Sequence[DrillClient], size: int, seconds: float) -> int:
        """Publish large results to `clients` until the nodes have closed them all as slow consumers.

        These results are not in the ledger, and Redis does not retain them. Returns the number of closed
        clients, when all are closed or after `seconds`.
        """
        end = time.monotonic() + seconds
        data = "x" * size
        held = [client.name for client in clients]
        numbers = itertools.count()
        while held and time.monotonic() < end:
            receivers: list[int] = []
            for start in range(0, len(held), FLOOD_BATCH):
                await asyncio.sleep(FLOOD_PAUSE)
                batch = held[start : start + FLOOD_BATCH]
                receivers += await self._backend.publish_once(batch, f"{FILLER}{next(numbers)}", data)
            held = [name for name, nodes in zip(held, receivers, strict=True) if nodes]
        while True:
            closed = await in_thread(self.environment.slow_consumers)
            if closed >= len(clients) or time.monotonic() >= end:
                return closed
            await asyncio.sleep(POLL_SECONDS)

    # Setting up

    @asynccontextmanager
    async def set_up(self) -> AsyncIterator[None]:
        """Start everything and register all clients. Nothing is left at the end, whatever happens."""
        self._check_file_limit()
        environment, clients = self.environment, self.options.clients
        try:
            self._display.progress("starting Redis ...")
            await in_thread(environment.start_redis)
            self._display.progress(f"starting {count(self.options.nodes, 'node')} ...")
            await in_thread(environment.start_nodes, clients)
            self._version = await in_thread(lambda: environment.version)
            self.clients = Clients(environment.addresses, self.ledger, "drill")
            async with Backend(self.redis.url) as self._backend:
                try:
                    self._display.progress(f"connecting {count(clients, 'client')} ...")
                    await self.clients.connect_all(clients, CONNECT_SECONDS)
                    yield
                finally:
                    await self.clients.close()
        finally:
            await in_thread(environment.stop)

    def _check_file_limit(self) -> None:
        limit, needed = raise_nofile_limit(), self.options.clients + RESERVED
        if limit < needed:
            raise DrillError(
                f"{self.options.clients:,} clients need {needed:,} open files, and the system allows "
                f"{limit:,}: raise the limit (ulimit -n), or set fewer --clients"
            )

    # The load

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Publish, replace clients, poll the nodes and show the progress, until the block ends."""
        self._began = time.monotonic()
        through = "through HAProxy" if self.environment.balancer else "directly with the nodes"
        self.record(f"{count(self.options.clients, 'client')} have registered {through}; publishing starts")
        async with asyncio.TaskGroup() as self._tasks:
            load = [self._run(self._publish()), self._run(self._churn())]
            watch = [self._run(self._poll_nodes()), self._run(self._show())]
            try:
                yield
                await asyncio.sleep(self._began + self.options.seconds - time.monotonic())
                for task in load:
                    task.cancel()
                self.record("publishing ends")
                await self._settle()
            finally:
                for task in [*load, *watch, *self._publishing]:
                    task.cancel()
                self._display.end()

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` as a part of the load: when it fails, the drill fails."""
        return self._tasks.create_task(work)

    async def _publish(self) -> None:
        """Publish a result every 1/rate seconds to the client that has waited longest. Catches up if late."""
        due = time.monotonic()
        while True:
            now = time.monotonic()
            while due <= now:
                due += 1 / self.options.rate
                client = self.clients.next_idle()
                if client is None:  # every client has a result in flight
                    due = now + 1 / self.options.rate
                    break
                self.publish_to([client])
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _publish_to(self, client: DrillClient) -> None:
        result = self.ledger.attempt(client.name, time.monotonic())
        self.clients.assign(client, result)
        await self._backend.publish(client.name, result.message_id, retain=self.options.retain)
        self.ledger.accept(result, time.monotonic())
        self.clients.settle(client)

    async def _churn(self) -> None:
        while True:
            await asyncio.sleep(1 / (CHURN * self.options.clients))
            self.clients.replace_one()

    async def _poll_nodes(self) -> None:
        while True:
            await in_thread(self.environment.poll_nodes)
            await asyncio.sleep(NODE_POLL_SECONDS)

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(self._display.pause)
            self._display.show(self._snapshot())

    def _snapshot(self) -> Snapshot:
        ledger, clients, now = self.ledger, self.clients, time.monotonic()
        return Snapshot(
            elapsed=now - self._began,
            clients=len(clients.by_name),
            registered=clients.registered,
            published=ledger.published,
            delivered=ledger.delivered,
            in_flight=ledger.in_flight,
            duplicates=ledger.duplicates,
            latency=ledger.recent_latency(now - RECENT_SECONDS),
            nodes=self.environment.states,
        )

    async def _settle(self) -> None:
        """Wait for results in flight. What is not delivered by the end of this wait is lost."""
        end = time.monotonic() + (SETTLE_SECONDS if self.options.retain else UNRETAINED_SECONDS)
        while self.ledger.in_flight and time.monotonic() < end:  # noqa: ASYNC110 - simpler than an event for each result
            await asyncio.sleep(POLL_SECONDS)
        await in_thread(self.environment.poll_nodes)

    # The results

    def report(self, drill: str, summary: str) -> DrillReport:
        """The report; call it after the load."""
        now = time.monotonic()
        ledger, clients = self.ledger, self.clients
        return DrillReport(
            drill=drill,
            summary=summary,
            options=self.options,
            redis=self._version,
            balanced=self.environment.balancer is not None,
            events=self._events,
            published=ledger.published,
            delivered=ledger.delivered,
            lost=len(ledger.lost),
            duplicates=ledger.duplicates,
            strays=ledger.strays,
            unaccepted=ledger.unaccepted,
            latency=ledger.latency(),
            measures=[measure._replace(value=value()) for measure, value in self._measures],
            nodes=self.environment.node_outages(),
            clients=Disconnects(
                longest=clients.longest_disconnect(now),
                reconnects=len(clients.reconnects),
                busiest_second=busiest_second(clients.reconnects),
                slowest_registration=clients.slowest_registration,
                close_codes=dict(clients.close_codes),
            ),
        )

    def write_logs(self, folder: Path, drill: str) -> None:
        """Write the log of each node to a file, one JSON object in each line."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, node in enumerate(self.nodes, 1):
            lines = [orjson.dumps(line) + b"\n" for line in node.logs]
            (folder / f"{drill}-node-{number}.jsonl").write_bytes(b"".join(lines))
