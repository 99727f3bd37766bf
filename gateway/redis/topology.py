"""Where the server is that subscriptions belong on: at a fixed address, or where the Sentinels say.

A broker asks `Topology.find` again after every loss, and its probe asks once a second: a master that has
moved may leave a server behind that answers every PING and receives nothing.
"""

from __future__ import annotations

from typing import Protocol

from . import url as redis_url
from .sentinel import Sentinels
from .server import Server
from .url import Address, RedisURL, redact


class Topology(Protocol):
    """Finds the server that the node's subscriptions belong on."""

    display_url: str
    """The URL for logs, without the password."""
    only_masters: bool
    """Whether a server that says it is a replica is the wrong one."""

    async def find(self) -> Server:
        """The present server: the same object as long as it is the same server. Raises OSError."""

    async def close(self) -> None:
        """Close the connections that `find` keeps."""


class FixedTopology:
    """One server at one address, whichever machine that name leads to."""

    def __init__(self, url: str, *, only_masters: bool = False) -> None:
        self._server = Server(url)
        self.display_url = self._server.display_url
        self.only_masters = only_masters

    async def find(self) -> Server:
        return self._server

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

    async def close(self) -> None:
        await self._sentinels.close()


def topology_of(url: RedisURL) -> Topology:
    """How to find the one server that a URL means; not for a Cluster."""
    return SentinelTopology(url) if url.kind is redis_url.RedisKind.SENTINEL else FixedTopology(url.text)
