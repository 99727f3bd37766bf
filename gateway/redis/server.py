"""One Redis server at a fixed address, and the one way to connect to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import redis.asyncio

from .connection import Connection, ConnectionLost, LoginRejected, ReplyError
from .dial import dial
from .hedge import hedge
from .reply_limits import UnexpectedReply, printable
from .tls import ClientTLS
from .url import Address, redact

STEP_TIMEOUT: Final = 5.0
"""Seconds for each step of connecting: the look-up with TCP, TLS, the login. A slow network is as good for a
new connection as for an old one, which may be silent for nearly as long."""

AGAIN_AFTER: Final = 1.5
"""Seconds until another attempt begins beside a slow one."""

RETRYABLE_REPLIES: Final = ("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "ERR max number of clients")
"""Errors at login that will pass: the server starts, runs a script, has lost its master, or has too many
clients."""

P = TypeVar("P", bound=asyncio.Protocol)
C = TypeVar("C", bound=Connection)


class Server:
    """A server at a redis://, rediss:// or unix:// URL, in redis-py's notation."""

    def __init__(self, url: str, *, in_cluster: bool = False) -> None:
        """With `in_cluster` it is expected to be a node of a Cluster; otherwise such a node is rejected."""
        self.in_cluster = in_cluster
        self.use(url)

    def use(self, url: str) -> None:
        """Connect as `url` says from the next connection on. Its user, password and options may be others."""
        self.url = url
        self.display_url = redact(url)
        pool = redis.asyncio.ConnectionPool.from_url(url)
        options = pool.connection_kwargs
        self.username: str = options.get("username") or "default"
        self.password: str | None = options.get("password")
        self.database = int(options.get("db", 0))
        self._path: str | None = options.get("path")
        self.host: str = options.get("host", "localhost")
        self.port = int(options.get("port", 6379))
        self.scheme = "redis"
        """redis or rediss: how another URL for the same machine begins."""
        self._tls: ClientTLS | None = None
        if issubclass(pool.connection_class, redis.asyncio.SSLConnection):
            self._tls = ClientTLS(options)
            self.scheme = "rediss"

    async def connect(self, new_connection: Callable[[], C], name: str, *, only_master: bool = False) -> C:
        """A new connection that is logged in; `name` is what CLIENT LIST shows.

        Raises OSError: LoginRejected, a PermissionError, when a retry does not help, because the server
        rejects the login or is not what the URL says; ConnectionLost when the login fails otherwise, or
        with `only_master` when the server is a replica; TimeoutError after STEP_TIMEOUT in any step.
        """
        return await hedge(
            lambda: self._connect(new_connection(), name, only_master=only_master),
            AGAIN_AFTER,
            lambda connection: connection.abort("another one was faster"),
        )

    async def _connect(self, connection: C, name: str, *, only_master: bool) -> C:
        try:
            await self.open(connection)
            # A server without room says so at once and resets the connection. What has arrived is read in the
            # next turn of the loop; a failed write would come before it.
            await asyncio.sleep(0)
            async with _patience("HELLO"):
                await connection.log_in(self.username, self.password, self.database, name)
            self._check_mode(connection.mode)
        except BaseException as error:
            connection.abort("not connected")
            if isinstance(error, ReplyError):  # such as for a command that Sentinels do not know
                self._check_mode(connection.mode)
            if isinstance(error, ReplyError) and not error.reply.startswith(RETRYABLE_REPLIES):
                raise LoginRejected(str(error)) from None
            if isinstance(error, Exception) and not isinstance(error, OSError):
                raise ConnectionLost(_unexpected(error)) from error
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
            return protocol
        tls = None if self._tls is None else self._tls.context()
        async with _patience("TCP"):
            connected = await dial(self.host, self.port)
        if tls is None:
            await loop.create_connection(lambda: protocol, sock=connected)
        else:
            await loop.create_connection(
                lambda: protocol,
                sock=connected,
                ssl=tls,
                server_hostname=self.host,
                ssl_handshake_timeout=STEP_TIMEOUT,
            )
        return protocol

    def _check_mode(self, mode: object) -> None:
        """Raises LoginRejected if the server is of another kind than the URL says, with the URL to write.

        A server that is not in a Cluster may still answer as one, so that only its slots can tell.
        """
        address = "HOST:PORT" if self._path is not None else Address(self.host, self.port)
        if mode == b"sentinel":
            raise LoginRejected(
                f"this is a Sentinel: write {self.scheme}+sentinel://{address}/NAME-OF-THE-MASTER"
            )
        if mode == b"cluster" and not self.in_cluster:
            raise LoginRejected(f"this is a node of a Cluster: write {self.scheme}+cluster://{address}")


def _unexpected(error: Exception) -> str:
    """An error that is none of the network's: the server has said what nobody expects."""
    what = str(error) if isinstance(error, UnexpectedReply) else f"{type(error).__name__}: {error}"
    return f"Redis sent an unexpected reply: {printable(what)}"


@asynccontextmanager
async def _patience(step: str) -> AsyncIterator[None]:
    """Limit a step of connecting. Raises TimeoutError, which names the step."""
    try:
        async with asyncio.timeout(STEP_TIMEOUT):
            yield
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer to {step} within {STEP_TIMEOUT:g} s") from None
