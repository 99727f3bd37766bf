"""One Redis server at a fixed address, and the one way to connect to it."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, TypeVar

import redis.asyncio

from .connection import Connection, ConnectionLost, ReplyError
from .url import redact

RETRYABLE_REPLIES: Final = ("LOADING", "BUSY", "ERR max number of clients")
"""Errors at login that will pass: the server starts, runs a script, or has too many clients."""

P = TypeVar("P", bound=asyncio.Protocol)
C = TypeVar("C", bound=Connection)


class Server:
    """A server at a redis://, rediss:// or unix:// URL, in redis-py's notation."""

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

    async def connect(self, connection: C, name: str, *, only_master: bool = False) -> C:
        """Connect `connection` and log in; `name` is what CLIENT LIST shows.

        Raises OSError: PermissionError when the server rejects the login, so that a retry does not help;
        ConnectionLost when the login fails otherwise, or with `only_master` when the server is a replica.
        """
        try:
            await self.open(connection)
            await connection.log_in(self.username, self.password, self.database, name)
        except BaseException as error:
            connection.abort("not connected")
            if isinstance(error, ReplyError) and not error.reply.startswith(RETRYABLE_REPLIES):
                raise PermissionError(str(error)) from None
            raise
        if only_master and not connection.is_master:
            connection.abort("not the master")
            raise ConnectionLost(f"{self.display_url} is a replica; the master is needed")
        return connection

    async def open(self, protocol: P) -> P:
        """Connect `protocol` without a login. Raises OSError (which TimeoutError and ssl.SSLError are)."""
        loop = asyncio.get_running_loop()
        if self._path is not None:
            await loop.create_unix_connection(lambda: protocol, self._path)
        else:
            await loop.create_connection(lambda: protocol, self.host, self._port, ssl=self._tls)
        return protocol
