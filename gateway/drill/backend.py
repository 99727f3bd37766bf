"""The backend of a drill: it publishes each result until Redis has accepted it, under one messageId."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import orjson
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .. import publishing
from ..messages import NO_DATA

PAUSE = 0.05  # seconds between attempts
ATTEMPT = 1.0  # seconds for one
CONNECTIONS = 16
RESULT = "CONFIRMED"


class Backend:
    """Publishes on the Redis of a URL, however long it takes; an asynchronous context."""

    def __init__(self, url: str) -> None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=None,
            socket_timeout=ATTEMPT,
            retry=Retry(NoBackoff(), 0),
        )
        self._client = redis.asyncio.Redis.from_pool(pool)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def publish_once(self, ids: Sequence[str], message_id: str, data: object) -> list[int]:
        """Publish the same to each, all in one go and without retention; how many nodes hold each id."""
        payload = orjson.dumps({"authResult": RESULT, "messageId": message_id, "data": data})
        async with self._client.pipeline(transaction=False) as pipeline:
            for web_socket_id in ids:
                pipeline.publish(f"websocket:{web_socket_id}", payload)
            receivers: list[int] = await pipeline.execute()
        return receivers

    async def publish(
        self, web_socket_id: str, message_id: str, *, retain: int, data: object = NO_DATA
    ) -> None:
        """Return once Redis has accepted the result; the caller may cancel it."""
        while True:
            try:
                await publishing.publish(
                    self._client, web_socket_id, RESULT, message_id=message_id, retain=retain, data=data
                )
            except (redis.exceptions.RedisError, OSError):
                await asyncio.sleep(PAUSE)
            else:
                return
