"""Browsers by the thousand, and a backend that publishes to them; light, since nodes need the cores too."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway import publishing

SECONDS = 10.0  # for anything that takes milliseconds; only a hang takes that long

CONNECTING = 200  # handshakes that a crowd has under way at a time

HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
"""The request's line and headers, with the key of RFC 6455 section 1.3; the empty line is still to come."""


async def until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Poll `condition` until it is true; raises TimeoutError, naming `what`, after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        await asyncio.sleep(0.005)


def frame(opcode: int, payload: bytes, *, first: int = 0x80, key: bytes = bytes(4)) -> bytes:
    """A client's frame; `first` holds the bits above the opcode. The key 0 masks and changes nothing."""
    if len(payload) < 126:
        length = bytes((0x80 | len(payload),))
    elif len(payload) < 65536:
        length = b"\xfe" + len(payload).to_bytes(2, "big")
    else:
        length = b"\xff" + len(payload).to_bytes(8, "big")
    masked = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload)) if any(key) else payload
    return bytes((first | opcode,)) + length + key + masked


def text(body: object) -> bytes:
    """A client's text frame with `body` as JSON, or as it is if it is a str."""
    return frame(1, (body if isinstance(body, str) else json.dumps(body)).encode())


def take_frame(data: bytes) -> tuple[int, bytes, bytes] | None:
    """The server's first frame in `data`: opcode, payload and the rest; None while it is incomplete."""
    if len(data) < 2:
        return None
    begin, length = 2, data[1]
    if length >= 126:
        begin += 2 if length == 126 else 8
        length = int.from_bytes(data[2:begin], "big")
    end = begin + length
    return (data[0] & 0x0F, data[begin:end], data[end:]) if len(data) >= max(begin, end) else None


class Browser(asyncio.Protocol):
    """Registers `name` on `/ws` as soon as it is connected, and keeps what it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[dict[str, Any]] = []
        self.answered = asyncio.Event()
        """Set once the registration has succeeded."""
        self.close_code: int | None = None
        self.lost_at: float | None = None
        """When the connection ended, by time.monotonic(); None while it is open."""
        self._head = b""
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    @property
    def results(self) -> list[str]:
        return [message["authResult"] for message in self.told if "authResult" in message]

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def leave(self) -> None:
        """Close as a browser does whose page is left: CLOSE 1001 and the end of TCP."""
        if self._transport is not None and self.lost_at is None:
            self.send(frame(8, b"\x03\xe9"))
            self._transport.close()

    def abort(self) -> None:
        """Reset the connection, as a device does that has lost its network."""
        assert self._transport is not None
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # The registration comes right behind the handshake, without waiting for its answer.
        self.send(f"{HANDSHAKE}\r\n".encode() + text({"webSocketId": self.name}))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._head:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._head, self._buffer = head, rest
        while found := take_frame(self._buffer):
            opcode, payload, self._buffer = found
            self._received(opcode, payload)

    def _received(self, opcode: int, payload: bytes) -> None:
        if opcode == 1:
            message = json.loads(payload)
            self.told.append(message)
            if message.get("registrationSucceeded"):
                self.answered.set()
        elif opcode == 9:
            self.send(frame(10, payload))
        elif opcode == 8:
            self.close_code = int.from_bytes(payload[:2], "big")
            self.send(frame(8, payload[:2]))

    def connection_lost(self, exc: Exception | None) -> None:
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


def result_of(name: str) -> str:
    """The authResult that belongs to the browser called `name` and to no other."""
    return "OF_" + hashlib.sha256(name.encode()).hexdigest()[:32].upper()


def without_theirs(browsers: Iterable[Browser]) -> list[str]:
    """The names of those that have anything but exactly their own result, once."""
    return [browser.name for browser in browsers if browser.results != [result_of(browser.name)]]
