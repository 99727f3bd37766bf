"""The backend of a drill: it publishes each result until Redis has accepted it, under one messageId."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ..errors import Unconfirmed
from ..messages import NO_DATA
from ..publishing.api import Published, outgoing
from ..publishing.publisher import Publisher

RESULT = "CONFIRMED"


class Backend:
    """Publishes on the Redis of a URL, however long it takes; an asynchronous context."""

    def __init__(self, url: str) -> None:
        self._publisher = Publisher(url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._publisher.close()

    async def publish(
        self, web_socket_id: str, message_id: str, *, retain: int, data: object = NO_DATA
    ) -> None:
        """Return once Redis has accepted the result; the caller may cancel it."""
        while True:
            try:
                await self._publisher.publish(
                    web_socket_id, RESULT, message_id=message_id, retain=retain, data=data
                )
            except Unconfirmed:  # it has tried for a while; a result that somebody waits for is tried on
                continue
            return

    async def publish_once(self, ids: Sequence[str], message_id: str, data: object) -> list[int]:
        """Publish the same to each, all in one go and without retention; how many nodes hold each id."""
        results = [
            outgoing(web_socket_id, RESULT, message_id=message_id, data=data, retain=0)
            for web_socket_id in ids
        ]
        ends = await self._publisher.send(results)
        return [end.receivers if isinstance(end, Published) else 1 for end in ends]
