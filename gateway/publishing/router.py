"""Which server a result is published on: the one that the topology finds, or the Cluster's for its slot.

A route is asked before every publication, and remembers what it knows until it is told to `doubt` it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import hiredis

from ..redis.cluster import slots
from ..redis.cluster.slots import ClusterView, SlotMap, slot_map
from ..redis.majority import ask_all
from ..redis.pool import ConnectionPool
from ..redis.topology import Server, topology_of
from ..redis.url import Address, RedisKind, RedisURL, parse_redis_url

LOOKUP_INTERVAL: Final = 1.0
"""Seconds after which the Sentinels are asked again: a master that is cut off from them, but not from us,
would take results that its successor never hears of."""

LOOKUP_TIMEOUT: Final = 0.5
"""Seconds for the nodes of a Cluster to say who serves what."""

LOOKUP_GRACE: Final = 0.1
"""Seconds that the others have to say it once most have."""


class Router(Protocol):
    """Finds the servers; `lines` are the connections to them."""

    lines: ConnectionPool
    command: str
    """PUBLISH or SPUBLISH."""

    async def servers(self, channels: Sequence[bytes]) -> Sequence[Server | None]:
        """The server for each of the channels; None if nobody serves it. Raises OSError."""

    def doubt(self) -> None:
        """Look anew before the next answer."""

    def elsewhere(self, address: Address) -> Server | None:
        """The server that another has pointed to; None where only a node of a Cluster would."""

    async def close(self) -> None:
        """Drop all connections."""


def router_of(url: str) -> Router:
    """The route that a Redis URL asks for. Raises ValueError if it is none."""
    found = parse_redis_url(url)
    return ClusterRouter(found) if found.kind is RedisKind.CLUSTER else ServerRouter(found)


class ServerRouter:
    """The server at a fixed address, or the one that the Sentinels call the master."""

    command = "PUBLISH"

    def __init__(self, url: RedisURL) -> None:
        self._topology = topology_of(url)
        self._found: Server | None = None
        self._asked = 0.0
        self._turn = asyncio.Lock()
        self.lines = ConnectionPool(only_masters=self._topology.only_masters)

    async def servers(self, channels: Sequence[bytes]) -> Sequence[Server | None]:
        async with self._turn:  # one look-up for all who wait; Sentinels take 0.1 s when one is dead
            return [await self._server()] * len(channels)

    async def _server(self) -> Server:
        now = asyncio.get_running_loop().time()
        if self._found is None:
            self._found = await self._topology.find()
            self._asked = now
        elif now - self._asked >= LOOKUP_INTERVAL:
            self._asked = now
            self._found = await self._look_again(self._found)
        return self._found

    async def _look_again(self, present: Server) -> Server:
        try:
            found = await self._topology.find()
        except OSError:  # without Sentinels the present one has to do
            return present
        if found is not present:
            self.lines.drop(present)
        return found

    def doubt(self) -> None:
        self._found = None

    def elsewhere(self, address: Address) -> Server | None:
        return None

    async def close(self) -> None:
        self.lines.close()
        await self._topology.close()


class ClusterRouter:
    """The node that serves the channel's slot, on which its sharded subscribers are too."""

    command = "SPUBLISH"

    def __init__(self, url: RedisURL) -> None:
        self._url = url
        self._map: SlotMap | None = None
        self._masters: list[Address] = []
        self._servers: dict[Address, Server] = {}
        self._turn = asyncio.Lock()
        self.lines = ConnectionPool()

    async def servers(self, channels: Sequence[bytes]) -> Sequence[Server | None]:
        async with self._turn:
            if self._map is None:
                self._map = await self._draw()
            owners = self._map.owners
        found = [owners[slots.key_slot(channel)] for channel in channels]
        return [None if address is None else self._server(address) for address in found]

    def doubt(self) -> None:
        self._map = None

    def elsewhere(self, address: Address) -> Server | None:
        return self._server(address)

    def _server(self, address: Address) -> Server:
        if address not in self._servers:
            self._servers[address] = Server(self._url.server(address))
        return self._servers[address]

    async def close(self) -> None:
        self.lines.close()

    async def _draw(self) -> SlotMap:
        """The map, by the node that has heard of the latest change among those that answer in time."""
        known = list(dict.fromkeys([*self._masters, *self._url.addresses]))
        answers = await ask_all([self._view(address) for address in known], LOOKUP_TIMEOUT, LOOKUP_GRACE)
        views = [answer for answer in answers if isinstance(answer, ClusterView)]
        if not views:
            said = "; ".join(f"{address}: {answer}" for address, answer in zip(known, answers, strict=True))
            raise ConnectionError(f"no node of the Cluster says who serves what: {said}")
        drawn = slot_map(max(views, key=lambda view: view.epoch).ranges)
        self._masters = drawn.masters
        return drawn

    async def _view(self, address: Address) -> ClusterView:
        line = await self.lines.to(self._server(address))
        information, ranges = await line.ask_all([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")])
        for reply in (information, ranges):
            if isinstance(reply, hiredis.ReplyError):
                raise ConnectionError(str(reply))
        return slots.parse_view(information, ranges, address)
