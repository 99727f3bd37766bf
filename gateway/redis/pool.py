"""The connections that results are published and events are written over: one for each server.

Commands of several callers go out one behind the other and are answered in that order; a batch is one write.
redis-py's client would take a connection from a pool for each of them, retry by its own rules, and close the
connections of others when one caller gives up.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from .connection import Connection
from .server import Server

PUBLISHER_NAME: Final = "webflow-publisher"
"""What CLIENT LIST shows of a publisher."""


class ConnectionPool:
    """Keeps one connection for each server."""

    def __init__(self, name: str = PUBLISHER_NAME, *, only_masters: bool = False) -> None:
        """`name` is what CLIENT LIST shows. With `only_masters` a server that says it is a replica is the
        wrong one."""
        self._name = name
        self._only_masters = only_masters
        self._entries: dict[Server, _PoolEntry] = {}

    async def get(self, server: Server) -> Connection:
        """The connection to `server`: the present one, or a new one. Raises OSError as `Server.connect`.

        All callers share one attempt. It goes on when they give up, so that the next caller profits from it
        where the network is slow.
        """
        entry = self._entries.setdefault(server, _PoolEntry())
        if entry.connection is not None and entry.connection.is_open:
            return entry.connection
        if entry.connecting is None:
            entry.connecting = asyncio.create_task(self._connect(server, entry))
            entry.connecting.add_done_callback(retrieve_exception)
        return await asyncio.shield(entry.connecting)

    async def _connect(self, server: Server, entry: _PoolEntry) -> Connection:
        try:
            entry.connection = await server.connect(Connection, self._name, only_master=self._only_masters)
            return entry.connection
        finally:
            entry.connecting = None

    def drop(self, server: Server) -> None:
        """Close the connection to `server`, if there is one; the next caller gets a new one."""
        if server in self._entries and (connection := self._entries[server].connection) is not None:
            connection.abort("no longer trusted")

    async def close(self) -> None:
        """Close all connections, and give up those that are being made."""
        attempts = [entry.connecting for entry in self._entries.values() if entry.connecting is not None]
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        for server in self._entries:
            self.drop(server)


class _PoolEntry:
    """A server's connection, and the attempt to make one."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.connecting: asyncio.Task[Connection] | None = None


def retrieve_exception(attempt: asyncio.Task[Any]) -> None:
    """Take the exception of an attempt for which nobody waits any longer: asyncio would log it."""
    if not attempt.cancelled():
        attempt.exception()
