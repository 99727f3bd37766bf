"""Which node of a Cluster a result is published on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import hiredis

from ..majority import ask_all
from ..pool import ConnectionPool
from ..topology import Server
from ..url import Address, RedisURL
from . import slots
from .slots import ClusterView, SlotMap, slot_map

LOOKUP_TIMEOUT: Final = 0.5
"""Seconds for the nodes of a Cluster to say who serves what."""

LOOKUP_GRACE: Final = 0.1
"""Seconds that the others have to say it once most have."""


class ClusterRouter:
    """The node that serves the channel's slot, on which its sharded subscribers are too."""

    command = "SPUBLISH"

    def __init__(self, url: RedisURL) -> None:
        self._url = url
        self._map: SlotMap | None = None
        self._masters: list[Address] = []
        self._servers: dict[Address, Server] = {}
        self._turn = asyncio.Lock()
        self.pool = ConnectionPool()

    async def servers(self, channels: Sequence[bytes]) -> Sequence[Server | None]:
        async with self._turn:
            if self._map is None:
                self._map = await self._draw()
            owners = self._map.owners
        found = [owners[slots.key_slot(channel)] for channel in channels]
        return [None if address is None else self._server(address) for address in found]

    def forget(self) -> None:
        self._map = None

    def server_at(self, address: Address) -> Server | None:
        return self._server(address)

    def _server(self, address: Address) -> Server:
        if address not in self._servers:
            self._servers[address] = Server(self._url.server(address))
        return self._servers[address]

    async def close(self) -> None:
        self.pool.close()

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
        line = await self.pool.to(self._server(address))
        information, ranges = await line.ask_all([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")])
        for reply in (information, ranges):
            if isinstance(reply, hiredis.ReplyError):
                raise ConnectionError(str(reply))
        return slots.parse_view(information, ranges, address)
