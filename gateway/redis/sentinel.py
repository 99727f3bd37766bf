"""Which server is the master: what the Sentinels say, in bounded time.

All of them are asked at once, and the answer with the highest configuration epoch counts, so neither a dead
Sentinel nor one that slept through a failover decides anything. redis-py's own Sentinel class asks one after
the other and waits 58 s for a first one that is dead.

The answer is what Sentinels believe. A master that they have deposed may not know it yet, so whoever connects
asks for its ROLE.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

import redis.asyncio
from redis.exceptions import ConnectionError as Disconnected

from ..errors import NoMaster
from .majority import ask_all
from .url import Address, RedisURL

SENTINEL_TIMEOUT: Final = 0.5
"""Seconds for one look-up; Sentinels do nothing but answer such questions, in a millisecond."""

SENTINEL_GRACE: Final = 0.1
"""Seconds that the others have once most Sentinels have answered: one that is dead does not hold up all.

Most are not enough by themselves: right after a failover only the Sentinel that led it knows the new master,
until its next hello to the others, up to 2 s later."""


class SentinelView(NamedTuple):
    """What one Sentinel believes. The higher the epoch, the later the failover that it has heard of."""

    epoch: int
    master: Address


class Sentinels:
    """The Sentinels of a redis+sentinel:// URL. Their connections are kept: nodes ask once a second."""

    def __init__(self, url: RedisURL) -> None:
        self._service = url.service
        self._sentinels = [_SentinelClient(url.sentinel(address), address) for address in url.addresses]
        self._turn = asyncio.Lock()

    async def master(self) -> Address:
        """Where the master is, after TIMEOUT at the latest. Raises NoMaster, an OSError, with what each said.

        Callers take turns.
        """
        async with self._turn:
            answers = await ask_all(
                [sentinel.view(self._service) for sentinel in self._sentinels],
                SENTINEL_TIMEOUT,
                SENTINEL_GRACE,
            )
        views = [answer for answer in answers if isinstance(answer, SentinelView)]
        if views:
            return max(views, key=lambda view: view.epoch).master
        said = "; ".join(map(_failure, self._sentinels, answers))
        raise NoMaster(f"no Sentinel names the master of {self._service}: {said}")

    async def close(self) -> None:
        """Drop the connections."""
        for sentinel in self._sentinels:
            await sentinel.disconnect()


class _SentinelClient:
    """One of them, and the connection to it."""

    def __init__(self, url: str, address: Address) -> None:
        self.address = address
        # Plain RESP2 and no CLIENT SETINFO: a Sentinel's user need have no right but to SENTINEL.
        pool = redis.asyncio.ConnectionPool.from_url(url, protocol=2, driver_info=None)
        self._connection = pool.connection_class(**pool.connection_kwargs)

    async def view(self, service: str) -> SentinelView:
        """What it believes. Raises what redis-py raises, and NoMaster if it knows of no such service."""
        if self._connection.is_connected:
            try:
                return await self._ask(service)
            except Disconnected:  # it has restarted since, or idle connections are cut on the way
                pass
        return await self._ask(service)

    async def _ask(self, service: str) -> SentinelView:
        """Ask twice in one write. SENTINEL MASTER has the epoch, and the address only mostly.

        While the Sentinel that leads a failover reconfigures the other replicas, it shows the new epoch
        beside the old master's address there.
        """
        questions = [
            ("SENTINEL", "MASTER", service),
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service),
        ]
        connection = self._connection
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_packed_command(connection.pack_commands(questions))
            fields: list[bytes] = await connection.read_response()
            address: list[bytes] | None = await connection.read_response()
        except BaseException:  # a reply may be on its way still
            await self.disconnect()
            raise
        if address is None:
            raise NoMaster("it knows no such master")
        found = dict(zip(fields[::2], fields[1::2], strict=False))
        host, port = address
        return SentinelView(int(found[b"config-epoch"]), Address(host.decode(), int(port)))

    async def disconnect(self) -> None:
        await self._connection.disconnect(nowait=True)


def _failure(sentinel: _SentinelClient, answer: object) -> str:
    return f"{sentinel.address}: {str(answer).rstrip('.') or type(answer).__name__}"
