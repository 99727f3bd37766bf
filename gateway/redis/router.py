"""Which server a result is published on.

A publisher asks its router before every attempt. The router remembers what it knows until it is told to
`forget` it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from .pool import ConnectionPool
from .server import Server
from .topology import topology_of
from .url import Address, RedisURL

LOOKUP_INTERVAL: Final = 1.0
"""Seconds after which the Sentinels are asked again. A master that is cut off from them, but not from this
process, would accept results that its successor never receives."""


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

    def server_at(self, address: Address) -> Server | None:
        """The server that a redirection names; None where only a Cluster redirects."""

    async def close(self) -> None:
        """Close all connections."""


class ServerRouter:
    """The `Router` for one server: the one at a fixed address, or the master that the Sentinels name."""

    command = "PUBLISH"

    def __init__(self, url: RedisURL) -> None:
        self._topology = topology_of(url)
        self._found: Server | None = None
        self._looked_up_at = 0.0
        self._lock = asyncio.Lock()
        self.pool = ConnectionPool(only_masters=self._topology.only_masters)

    async def servers(self, channels: Sequence[bytes]) -> Sequence[Server | None]:
        async with self._lock:  # one lookup for all callers: it takes 0.1 s when a Sentinel is dead
            return [await self._server()] * len(channels)

    async def _server(self) -> Server:
        now = asyncio.get_running_loop().time()
        if self._found is None:
            self._found = await self._topology.find()
            self._looked_up_at = now
        elif now - self._looked_up_at >= LOOKUP_INTERVAL:
            self._looked_up_at = now
            self._found = await self._look_again(self._found)
        return self._found

    async def _look_again(self, present: Server) -> Server:
        try:
            found = await self._topology.find()
        except OSError:  # no Sentinel answers: keep the present server
            return present
        if found is not present:
            self.pool.drop(present)
        return found

    def forget(self) -> None:
        self._found = None

    def server_at(self, address: Address) -> Server | None:
        return None

    async def close(self) -> None:
        self.pool.close()
        await self._topology.close()
