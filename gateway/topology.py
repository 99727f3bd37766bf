"""Where Redis is: turns the URL in the settings into an open connection.

The broker asks `Topology.open` anew after every loss, so that one that moves (Sentinel) is looked up
each time. One server is the only kind so far.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol, TypeVar

import redis.asyncio

from .config import redact

P = TypeVar("P", bound=asyncio.Protocol)


class Topology(Protocol):
    """Finds the server that the node's subscriptions belong on."""

    shown: str
    """Where that is, for logs; without the password."""
    username: str
    password: str | None
    database: int

    async def open(self, protocol: P) -> P:
        """Connect `protocol` to it. Raises OSError (which TimeoutError and ssl.SSLError are)."""


class Server:
    """One server at a fixed address: redis://, rediss:// or unix://, in redis-py's notation."""

    def __init__(self, url: str) -> None:
        self.shown = redact(url)
        pool = redis.asyncio.ConnectionPool.from_url(url)
        options = pool.connection_kwargs
        self.username: str = options.get("username") or "default"
        self.password: str | None = options.get("password")
        self.database = int(options.get("db", 0))
        self._path: str | None = options.get("path")
        self._host: str = options.get("host", "localhost")
        self._port = int(options.get("port", 6379))
        connection = pool.connection_class(**options)
        self._tls: ssl.SSLContext | None = None
        if isinstance(connection, redis.asyncio.SSLConnection):
            self._tls = connection.ssl_context.get()

    async def open(self, protocol: P) -> P:
        loop = asyncio.get_running_loop()
        if self._path is not None:
            await loop.create_unix_connection(lambda: protocol, self._path)
        else:
            await loop.create_connection(lambda: protocol, self._host, self._port, ssl=self._tls)
        return protocol
