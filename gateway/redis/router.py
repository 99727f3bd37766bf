"""Which server a result is published on.

A publisher asks its router before every attempt. The router remembers what it knows until it is told to
`forget` it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import inf
from typing import Final, Protocol

from .pool import PUBLISHER_NAME, ConnectionPool, retrieve_exception
from .server import Server
from .topology import topology_of
from .url import Address, RedisURL

LOOKUP_INTERVAL: Final = 1.0
"""Seconds after which the Sentinels are asked again. A master that is cut off from them, but not from this
process, would accept results that its successor never receives."""

LOOKUP_WAIT: Final = 0.5
"""Seconds that a publication waits for that answer; then it goes to the present master."""


class Router(Protocol):
    """Finds the server for each channel."""

    pool: ConnectionPool
    """The connections to the servers."""
    command: str
    """PUBLISH or SPUBLISH."""

    async def servers(self, channels: Sequence[bytes]) -> Sequence[Server | None]:
        """The server of each channel; None if no server has its slot. Raises OSError."""

    def forget(self) -> None:
        """Look the servers up again before the next answer."""

    def use(self, url: RedisURL) -> None:
        """Connect as `url` says from the next connection on. It leads to the same place."""

    def server_at(self, address: Address) -> Server | None:
        """The server that a redirection names; None where only a Cluster redirects."""

    async def close(self) -> None:
        """Close all connections."""


class ServerRouter:
    """The `Router` for one server: the one at a fixed address, or the master that the Sentinels name."""

    command = "PUBLISH"

    def __init__(self, url: RedisURL, name: str = PUBLISHER_NAME) -> None:
        """`name` is what CLIENT LIST shows."""
        self._topology = topology_of(url)
        self._found: Server | None = None
        self._looked_up_at = -inf
        self._looking: asyncio.Task[Server] | None = None
        self.pool = ConnectionPool(name, only_masters=self._topology.only_masters)

    async def servers(self, channels: Sequence[bytes]) -> Sequence[Server | None]:
        now = asyncio.get_running_loop().time()
        if self._looking is None and (self._found is None or now - self._looked_up_at >= LOOKUP_INTERVAL):
            # One look-up for all callers. It goes on when they give up, as an attempt of the pool does.
            self._looked_up_at = now
            self._looking = asyncio.create_task(self._look_up())
            self._looking.add_done_callback(retrieve_exception)
        found = self._found if self._looking is None else await self._wait_for(self._looking)
        return [found] * len(channels)

    async def _wait_for(self, looking: asyncio.Task[Server]) -> Server:
        """The server, as soon as there is one; with a present one, soon. Raises OSError without any."""
        present = self._found
        if present is None:
            return await asyncio.shield(looking)
        # If no Sentinel answers, the present server has to do.
        await asyncio.wait((looking,), timeout=LOOKUP_WAIT)
        return self._found or present

    async def _look_up(self) -> Server:
        try:
            found = await self._topology.find()
        finally:
            self._looking = None
        before, self._found = self._found, found
        if before is not None and before is not found:
            self.pool.drop(before)
        return found

    def forget(self) -> None:
        self._found = None

    def use(self, url: RedisURL) -> None:
        self._topology.use(url)

    def server_at(self, address: Address) -> Server | None:
        return None

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self.pool.close()
        await self._topology.close()
