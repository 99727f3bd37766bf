"""Browsers by the thousand, and a backend that publishes to them; light, since nodes need the cores too."""

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

from gateway.drill.connection import HANDSHAKE as HANDSHAKE
from gateway.drill.connection import ClientConnection
from gateway.drill.connection import frame as frame
from gateway.drill.connection import take_frame as take_frame
from gateway.drill.connection import text as text
from gateway.publishing import api as publishing
from gateway.publishing.publisher import Publisher

SECONDS = 10.0  # for anything that takes milliseconds; only a hang takes that long

CONNECTING = 200  # handshakes that a crowd has under way at a time


async def until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Poll `condition` until it is true; raises TimeoutError, naming `what`, after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        await asyncio.sleep(0.005)


class Browser(ClientConnection):
    """Registers `name` on `/ws` as soon as it is connected, and keeps what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__({"webSocketId": name})
        self.name = name
        self.told: list[dict[str, Any]] = []
        self.answered = asyncio.Event()
        """Set once the registration has succeeded."""
        self.lost_at: float | None = None
        """When the connection ended, by time.monotonic(); None while it is open."""

    @property
    def results(self) -> list[str]:
        return [message["authResult"] for message in self.told if "authResult" in message]

    def on_message(self, message: dict[str, Any]) -> None:
        self.told.append(message)
        if message.get("registrationSucceeded"):
            self.answered.set()

    def on_rejection(self, head: bytes) -> None:
        raise AssertionError(head)

    def on_close(self) -> None:
        self.lost_at = time.monotonic()


@contextlib.asynccontextmanager
async def crowd(
    ports: Sequence[int], names: Iterable[str], *, registered: bool = True
) -> AsyncIterator[list[Browser]]:
    """Browsers with these `names`, spread over the nodes on `ports`, and registered unless told otherwise."""
    loop = asyncio.get_running_loop()
    turns = asyncio.Semaphore(CONNECTING)

    async def connect(number: int, browser: Browser) -> None:
        async with turns:
            await loop.create_connection(lambda: browser, "127.0.0.1", ports[number % len(ports)])
            if registered:
                await asyncio.wait_for(browser.answered.wait(), SECONDS)

    browsers = [Browser(name) for name in names]
    try:
        await asyncio.gather(*(connect(number, browser) for number, browser in enumerate(browsers)))
        yield browsers
    finally:
        for browser in browsers:
            browser.leave()
        await until(
            lambda: all(b.lost_at or b._transport is None for b in browsers), "the browsers have left"
        )


@dataclass(frozen=True)
class Accepted:
    """Redis took a result: for whom, when (by time.time()), and how many nodes it said held the id."""

    name: str
    at: float
    receivers: int


class Backend:
    """Publishes as a careful backend does: until Redis has accepted the result, under one messageId."""

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
        """Publish `result`, again and again if need be."""
        while True:
            try:
                published = await publishing.publish(
                    self.client, name, result, message_id=f"of-{name}-{result}", retain=retain
                )
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                await asyncio.sleep(0.02)  # as anybody would who does not want to spin
            else:
                self.accepted.append(Accepted(name, time.time(), published.receivers))
                return

    async def publish_plainly(self, names: Iterable[str]) -> list[int]:
        """PUBLISH each of `names` its result, once and in one go; returns Redis's replies."""
        pipeline = self.client.pipeline(transaction=False)
        for name in names:
            pipeline.publish(f"websocket:{name}", result_of(name))
        replies: list[int] = await pipeline.execute()
        return replies

    async def publish_all(self, names: Iterable[str], a_second: float, *, retain: int = 60) -> None:
        """Publish a result to each of `names`, so many `a_second`; returns when all are accepted."""
        async with asyncio.TaskGroup() as publishing_all:
            for name in names:
                publishing_all.create_task(self.publish(name, result_of(name), retain=retain))
                await asyncio.sleep(1 / a_second)


class PublisherBackend(Backend):
    """Leaves it to the project's own Publisher, which knows every kind of Redis, and gives it a minute."""

    def __init__(self, publisher: Publisher) -> None:
        self.accepted = []
        self._publisher = publisher

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[PublisherBackend]:
        async with Publisher(url, timeout=60) as publisher:
            yield cls(publisher)

    async def publish(self, name: str, result: str, *, retain: int = 60) -> None:
        message_id = f"of-{name}-{result}"
        published = await self._publisher.publish(name, result, message_id=message_id, retain=retain)
        self.accepted.append(Accepted(name, time.time(), published.receivers))


def nobody_was_disturbed(browsers: Iterable[Browser]) -> bool:
    """Whether all connections are open, and none has been asked to close."""
    return not any(browser.lost_at or browser.close_code for browser in browsers)


def result_of(name: str) -> str:
    """The authResult that belongs to the browser called `name` and to no other."""
    return "OF_" + hashlib.sha256(name.encode()).hexdigest()[:32].upper()


def without_theirs(browsers: Iterable[Browser]) -> list[str]:
    """The names of those that have anything but exactly their own result, once."""
    return [browser.name for browser in browsers if browser.results != [result_of(browser.name)]]
