"""The backend of a drill: it retries each result under the same messageId until Redis has accepted it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ..errors import NotPublished, Unconfirmed
from ..publishing.api import Published, outgoing
from ..publishing.publisher import Publisher

RESULT = "CONFIRMED"


class Backend:
    """Publishes to the Redis at a URL, however long it takes. An asynchronous context manager."""

    def __init__(self, url: str) -> None:
        self._publisher = Publisher(url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._publisher.close()

    async def publish(
        self, web_socket_id: str, message_id: str, *, retain: int, result: str = RESULT
    ) -> Published:
        """Publish a result. Returns once Redis has accepted it; the caller may cancel."""
        while True:
            try:
                return await self._publisher.publish(
                    web_socket_id, result, message_id=message_id, retain=retain
                )
            except (
                NotPublished,
                Unconfirmed,
            ):  # the publisher has given up; somebody waits for the result, so try again
                continue

    async def publish_once(self, ids: Sequence[str], message_id: str, data: object) -> list[int]:
        """Publish one result to all ids at once, without retention. Returns the receivers of each."""
        results = [
            outgoing(web_socket_id, RESULT, message_id=message_id, data=data, retain=0)
            for web_socket_id in ids
        ]
        ends = await self._publisher.send(results)
        return [end.receivers if isinstance(end, Published) else 1 for end in ends]
