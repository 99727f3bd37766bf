"""Load for integration tests: many clients, and backends that publish to them.

The clients are those of the drills' load (`gateway.drill.connection`). They keep every message, because tests
look at content and order; a drill only counts results in its ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.drill import backend as drill
from gateway.drill.connection import HANDSHAKE as HANDSHAKE
from gateway.drill.connection import ClientConnection
from gateway.drill.connection import frame as frame
from gateway.drill.connection import take_frame as take_frame
from gateway.drill.connection import text as text
from gateway.errors import NotPublished, Unconfirmed
from gateway.publishing import api as publishing

SECONDS = 10.0  # for anything that takes milliseconds; only a hang takes that long

CONNECTING = 200  # concurrent handshakes


async def until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Poll `condition` until it is true. Raises TimeoutError, which names `what`, after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        await asyncio.sleep(0.005)


class LoadClient(ClientConnection):
    """Registers `name` on `/ws` as soon as it is connected, and keeps every message."""

    def __init__(self, name: str) -> None:
        super().__init__({"webSocketId": name})
        self.name = name
        self.messages: list[dict[str, Any]] = []
        self.registered = asyncio.Event()
        """Set once the registration has succeeded."""
        self.closed_at: float | None = None
        """When the connection ended, by time.monotonic(); None while it is open."""

    @property
    def results(self) -> list[str]:
        return [message["authResult"] for message in self.messages if "authResult" in message]

    def on_message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if message.get("registrationSucceeded"):
            self.registered.set()

    def on_rejection(self, head: bytes) -> None:
        raise AssertionError(head)

    def on_close(self) -> None:
        self.closed_at = time.monotonic()


@contextlib.asynccontextmanager
async def load_clients(
    ports: Sequence[int], names: Iterable[str], *, registered: bool = True
) -> AsyncIterator[list[LoadClient]]:
    """A client for each of `names`, spread over the nodes on `ports`; waits until all are registered.

    With `registered=False` it waits for the connections only.
    """
    loop = asyncio.get_running_loop()
    turns = asyncio.Semaphore(CONNECTING)

    async def connect(number: int, client: LoadClient) -> None:
        async with turns:
            await loop.create_connection(lambda: client, "127.0.0.1", ports[number % len(ports)])
            if registered:
                await asyncio.wait_for(client.registered.wait(), SECONDS)

    clients = [LoadClient(name) for name in names]
    try:
        await asyncio.gather(*(connect(number, client) for number, client in enumerate(clients)))
        yield clients
    finally:
        for client in clients:
            client.leave()
        await until(
            lambda: all(client.closed_at or client._transport is None for client in clients),
            "all connections have ended",
        )


@dataclass(frozen=True)
class Accepted:
    """A result that Redis has accepted: its id, when, and how many subscribers Redis counted.

    `at` is by time.time(), to compare it with log lines of nodes; a drill's ledger has a monotonic clock.
    """

    name: str
    at: float
    receivers: int


class Backend:
    """Retries each result under the same messageId until Redis has accepted it.

    It uses a plain redis-py client, as a service without this package's Publisher does.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self.accepted: list[Accepted] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def on(cls, url: str) -> AsyncIterator[Backend]:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url, max_connections=16, timeout=None, socket_timeout=1, retry=Retry(NoBackoff(), 0)
        )
        async with redis.asyncio.Redis.from_pool(pool) as client:
            yield cls(client)

    async def publish(self, name: str, result: str, *, retain: int = 60) -> None:
        """Publish `result`. Returns once Redis has accepted it."""
        while True:
            try:
                published = await publishing.publish(
                    self.client, name, result, message_id=f"of-{name}-{result}", retain=retain
                )
            except (NotPublished, Unconfirmed):
                await asyncio.sleep(0.02)
            else:
                self.accepted.append(Accepted(name, time.time(), published.receivers))
                return

    async def publish_once(self, names: Iterable[str]) -> list[int]:
        """PUBLISH to each of `names` its result, once and in one go. Returns the replies of Redis."""
        pipeline = self.client.pipeline(transaction=False)
        for name in names:
            pipeline.publish(f"websocket:{name}", result_of(name))
        replies: list[int] = await pipeline.execute()
        return replies

    async def publish_all(self, names: Iterable[str], a_second: float, *, retain: int = 60) -> None:
        """Publish a result to each of `names`, so many `a_second`. Returns when all are accepted."""
        async with asyncio.TaskGroup() as publishing_all:
            for name in names:
                publishing_all.create_task(self.publish(name, result_of(name), retain=retain))
                await asyncio.sleep(1 / a_second)


class PublisherBackend(Backend):
    """The same with the drills' backend, and so with the Publisher, which knows Sentinel and Cluster."""

    def __init__(self, backend: drill.Backend) -> None:
        self.accepted = []
        self._backend = backend

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[PublisherBackend]:
        async with drill.Backend(url) as backend:
            yield cls(backend)

    async def publish(self, name: str, result: str, *, retain: int = 60) -> None:
        message_id = f"of-{name}-{result}"
        published = await self._backend.publish(name, message_id, retain=retain, result=result)
        self.accepted.append(Accepted(name, time.time(), published.receivers))


def all_undisturbed(clients: Iterable[LoadClient]) -> bool:
    """Whether all connections are open, and none has got a close frame."""
    return not any(client.closed_at or client.close_code for client in clients)


def result_of(name: str) -> str:
    """The authResult of this client, which no other client has."""
    return "OF_" + hashlib.sha256(name.encode()).hexdigest()[:32].upper()


def without_their_result(clients: Iterable[LoadClient]) -> list[str]:
    """The names of clients that have anything else than exactly their own result, once."""
    return [client.name for client in clients if client.results != [result_of(client.name)]]
