"""Where Redis is: turns the URL in the settings into open connections.

The broker asks `Topology.find` anew after every loss, and once a second besides: a master that has moved may
leave a server behind that answers every PING and hears nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol, TypeVar

import redis.asyncio

from . import url as redis_url
from .sentinel import Sentinels
from .url import Address, RedisURL, redact

P = TypeVar("P", bound=asyncio.Protocol)


class Server:
    """One server at a fixed address: redis://, rediss:// or unix://, in redis-py's notation."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.display_url = redact(url)
        pool = redis.asyncio.ConnectionPool.from_url(url)
        options = pool.connection_kwargs
        self.username: str = options.get("username") or "default"
        self.password: str | None = options.get("password")
        self.database = int(options.get("db", 0))
        self._path: str | None = options.get("path")
        self.host: str = options.get("host", "localhost")
        self._port = int(options.get("port", 6379))
        connection = pool.connection_class(**options)
        self._tls: ssl.SSLContext | None = None
        if isinstance(connection, redis.asyncio.SSLConnection):
            self._tls = connection.ssl_context.get()

    async def open(self, protocol: P) -> P:
        """Connect `protocol` to it. Raises OSError (which TimeoutError and ssl.SSLError are)."""
        loop = asyncio.get_running_loop()
        if self._path is not None:
            await loop.create_unix_connection(lambda: protocol, self._path)
        else:
            await loop.create_connection(lambda: protocol, self.host, self._port, ssl=self._tls)
        return protocol


class Topology(Protocol):
    """Finds the server that the node's subscriptions belong on."""

    display_url: str
    """Where that is looked for, for logs; without the password."""
    only_masters: bool
    """Whether a server that says it is a replica is the wrong one."""

    async def find(self) -> Server:
        """The server at present: the same object as long as it is the same server. Raises OSError."""

    async def close(self) -> None:
        """Let go of what `find` has kept open."""


class FixedTopology:
    """One server, wherever its name leads."""

    def __init__(self, url: str, *, only_masters: bool = False) -> None:
        self._server = Server(url)
        self.display_url = self._server.display_url
        self.only_masters = only_masters

    async def find(self) -> Server:
        return self._server

    async def close(self) -> None:
        """Nothing is open."""


class SentinelTopology:
    """The master that the Sentinels name."""

    only_masters = True

    def __init__(self, url: RedisURL) -> None:
        self.display_url = redact(url.text)
        self._url = url
        self._sentinels = Sentinels(url)
        self._found: tuple[Address, Server] | None = None

    async def find(self) -> Server:
        address = await self._sentinels.master()
        if self._found is None or self._found[0] != address:
            self._found = address, Server(self._url.server(address))
        return self._found[1]

    async def close(self) -> None:
        await self._sentinels.close()


def topology_of(url: RedisURL) -> Topology:
    """How to find the one server that a URL means; not for a Cluster."""
    return SentinelTopology(url) if url.kind is redis_url.RedisKind.SENTINEL else FixedTopology(url.text)
