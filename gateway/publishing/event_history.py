"""The events that Redis keeps, and those that come: for people who look, without a group."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

from ..redis.cluster.slots import parse_redirection
from ..redis.connection import ReplyError
from ..redis.factory import new_router
from ..redis.url import parse_redis_url
from .events import Event

PAGE: Final = 500
"""Entries in one reply."""

FOLLOW_EVERY: Final = 0.25
"""Seconds between two looks at what has come."""

TRIES: Final = 3
"""While slots of a Cluster move."""


class EventHistory:
    """Reads streams on the Redis of a URL, whichever topology it has. An asynchronous context manager."""

    def __init__(self, url: str, *, timeout: float) -> None:
        """`timeout` is the seconds for each reply. Raises ValueError if `url` is no Redis URL."""
        self._router = new_router(parse_redis_url(url))
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._router.close()

    async def read(self, streams: Sequence[str], *, follow: bool = False) -> AsyncIterator[Event]:
        """The entries of `streams`, the oldest first; with `follow`, for ever. Raises OSError."""
        after = dict.fromkeys(streams, "-")
        while True:
            async for event in self._merged(after):
                yield event
            if not follow:
                return
            await asyncio.sleep(FOLLOW_EVERY)

    async def _merged(self, after: dict[str, str]) -> AsyncIterator[Event]:
        """What has come to the streams since the entries in `after`, which moves on."""
        waiting: dict[str, deque[Event]] = {stream: deque() for stream in after}
        unread = set(after)
        while True:
            for stream in list(unread):
                if not waiting[stream]:
                    page = await self._page(stream, after[stream])
                    waiting[stream].extend(page)
                    if page:
                        after[stream] = f"({page[-1].id}"
                    if len(page) < PAGE:
                        unread.discard(stream)
            heads = [events[0] for events in waiting.values() if events]
            if not heads:
                return
            first = min(heads, key=_order)
            yield waiting[first.stream].popleft()

    async def _page(self, stream: str, start: str) -> list[Event]:
        for left in range(TRIES - 1, -1, -1):
            try:
                async with asyncio.timeout(self._timeout):
                    return [_event(stream, entry) for entry in await self._range(stream, start)]
            except ReplyError as error:
                if not left or parse_redirection(error.reply) is None:
                    raise
                self._router.forget()
        raise AssertionError("the last try returns or raises")

    async def _range(self, stream: str, start: str) -> list[Any]:
        (server,) = await self._router.servers([stream.encode()])
        if server is None:
            self._router.forget()
            raise ConnectionError("no node of the Cluster serves the slot of the stream")
        connection = await self._router.pool.get(server)
        entries: list[Any] = await connection.execute("XRANGE", stream, start, "+", "COUNT", PAGE)
        return entries


def _event(stream: str, entry: Any) -> Event:
    entry_id, flat = entry
    texts = [part.decode(errors="replace") for part in flat]
    return Event(stream, entry_id.decode(), dict(zip(texts[::2], texts[1::2], strict=True)))


def _order(event: Event) -> tuple[int, int]:
    """Entry ids are milliseconds and a number."""
    milliseconds, _, number = event.id.partition("-")
    return int(milliseconds), int(number)
