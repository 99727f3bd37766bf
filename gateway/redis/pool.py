"""The connections that results are published over: one for each server.

Commands of several callers go out one behind the other and are answered in that order; a batch is one write.
redis-py's client would take a connection from a pool for each of them, retry by its own rules, and close the
connections of others when one caller gives up.
"""

from __future__ import annotations

import asyncio
from typing import Final

from .connection import Connection
from .server import Server

PUBLISHER_NAME: Final = "webflow-publisher"
"""What CLIENT LIST shows."""


class ConnectionPool:
    """Keeps one connection for each server."""

    def __init__(self, *, only_masters: bool = False) -> None:
        """With `only_masters` a server that says it is a replica is the wrong one."""
        self._only_masters = only_masters
        self._entries: dict[Server, _PoolEntry] = {}

    async def get(self, server: Server) -> Connection:
        """The connection to `server`: the present one, or a new one. Raises OSError as `Server.connect`."""
        entry = self._entries.setdefault(server, _PoolEntry())
        async with entry.lock:
            if entry.connection is None or not entry.connection.is_open:
                entry.connection = None
                entry.connection = await server.connect(
                    Connection(), PUBLISHER_NAME, only_master=self._only_masters
                )
            return entry.connection

    def drop(self, server: Server) -> None:
        """Close the connection to `server`, if there is one; the next caller gets a new one."""
        if server in self._entries and (connection := self._entries[server].connection) is not None:
            connection.abort("no longer trusted")

    def close(self) -> None:
        for server in self._entries:
            self.drop(server)


class _PoolEntry:
    """A server's connection, and the lock that lets one caller open it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.connection: Connection | None = None
