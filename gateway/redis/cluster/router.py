"""Which node of a Cluster a result is published on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..pool import PUBLISHER_NAME, ConnectionPool
from ..server import Server
from ..url import Address, RedisURL
from .slots import ClusterView, SlotMap, key_slot, slot_map
from .topology import latest_views, read_view


class ClusterRouter:
    """The `Router` for a Cluster: a result goes to the node of its slot, where its subscribers are too."""

    command = "SPUBLISH"

    def __init__(self, url: RedisURL, name: str = PUBLISHER_NAME) -> None:
        """`name` is what CLIENT LIST shows."""
        self._url = url
        self._map: SlotMap | None = None
        self._masters: list[Address] = []
        self._servers: dict[Address, Server] = {}
        self._lock = asyncio.Lock()
        self.pool = ConnectionPool(name)

    async def servers(self, channels: Sequence[bytes]) -> Sequence[Server | None]:
        async with self._lock:
            if self._map is None:
                self._map = await self._look_up()
            owners = self._map.owners
        found = [owners[key_slot(channel)] for channel in channels]
        return [None if address is None else self.server_at(address) for address in found]

    def forget(self) -> None:
        self._map = None

    def use(self, url: RedisURL) -> None:
        self._url = url
        for address, server in self._servers.items():
            server.use(url.server(address))

    def server_at(self, address: Address) -> Server:
        if address not in self._servers:
            self._servers[address] = Server(self._url.server(address), in_cluster=True)
        return self._servers[address]

    async def close(self) -> None:
        await self.pool.close()

    async def _look_up(self) -> SlotMap:
        """The map. Raises ConnectionError when no node answers in time."""
        known = list(dict.fromkeys([*self._masters, *self._url.addresses]))
        try:
            views = await latest_views(known, self._view_of)
        except ConnectionError as error:
            raise ConnectionError(f"no node of the Cluster tells the slot map: {error}") from error
        found = slot_map(views[0].ranges)
        self._masters = found.masters
        return found

    async def _view_of(self, address: Address) -> ClusterView:
        return await read_view(await self.pool.get(self.server_at(address)), address)
