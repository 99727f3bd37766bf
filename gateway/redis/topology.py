"""Where the server is that subscriptions belong on: at a fixed address, or where the Sentinels say.

A broker asks `Topology.find` again after every loss, and its probe asks once a second: a master that has
moved may leave a server behind that answers every PING and receives nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from ..errors import GatewayError
from . import url as redis_url
from .sentinel import Sentinels
from .server import Server
from .url import Address, RedisURL, redact

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at whether the server is still the right one, while something takes long."""

T = TypeVar("T")


class ServerMoved(GatewayError, ConnectionError):
    """The topology finds another server than the one that something is waiting for."""


class Topology(Protocol):
    """Finds the server that the node's subscriptions belong on."""

    display_url: str
    """The URL for logs, without the password."""
    only_masters: bool
    """Whether a server that says it is a replica is the wrong one."""

    async def find(self) -> Server:
        """The present server: the same object as long as it is the same server. Raises OSError."""

    def use(self, url: RedisURL) -> None:
        """Connect as `url` says from the next connection on. It leads to the same place."""

    async def close(self) -> None:
        """Close the connections that `find` keeps."""


class FixedTopology:
    """One server at one address, whichever machine that name leads to."""

    def __init__(self, url: str, *, only_masters: bool = False, in_cluster: bool = False) -> None:
        self._server = Server(url, in_cluster=in_cluster)
        self.display_url = self._server.display_url
        self.only_masters = only_masters

    async def find(self) -> Server:
        return self._server

    def use(self, url: RedisURL) -> None:
        self._server.use(url.text)
        self.display_url = self._server.display_url

    async def close(self) -> None:
        """There is nothing to close."""


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

    def use(self, url: RedisURL) -> None:
        self.display_url = redact(url.text)
        self._url = url
        self._sentinels.use(url)
        if self._found is not None:
            address, server = self._found
            server.use(url.server(address))

    async def close(self) -> None:
        await self._sentinels.close()


def topology_of(url: RedisURL) -> Topology:
    """How to find the one server that a URL means; not for a Cluster."""
    return SentinelTopology(url) if url.kind is redis_url.RedisKind.SENTINEL else FixedTopology(url.text)


async def while_current(
    topology: Topology,
    server: Server,
    work: Coroutine[Any, Any, T],
    discard: Callable[[T], object] = lambda _result: None,
) -> T:
    """The result of `work`, which waits for `server`.

    Raises ServerMoved as soon as the topology finds another server: a deposed master may be patiently waited
    for, but not longer than until there is a new one. `discard` gets a result that came when nobody waited
    for it any more, a connection for example.
    """
    working = asyncio.create_task(work)
    looking = asyncio.create_task(_moved_from(topology, server))
    wanted = False
    try:
        await asyncio.wait((working, looking), return_when=asyncio.FIRST_COMPLETED)
        wanted = working.done()
        if not wanted:
            raise ServerMoved(f"the master is {looking.result().display_url} now")
        return working.result()
    finally:
        working.cancel()
        looking.cancel()
        result, _ = await asyncio.gather(working, looking, return_exceptions=True)
        if not wanted and not isinstance(result, BaseException):
            discard(result)


async def _moved_from(topology: Topology, server: Server) -> Server:
    """Wait until the topology finds another server than `server`; returns that one."""
    found = server
    while found is server:
        await asyncio.sleep(LOOK_INTERVAL)
        with suppress(OSError):  # no Sentinel answers: nobody knows better
            found = await topology.find()
    return found
