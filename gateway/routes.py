"""Which server a result is published on: the only one, the Sentinels' master, the Cluster's for its slot.

A route is asked before every publication, and remembers what it knows until it is told to `doubt` it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol

import hiredis
from redis.crc import key_slot

from .errors import NoMaster
from .line import Line, Lines
from .redis_url import Address, Kind, RedisURL, parse
from .sentinels import Sentinels

SLOTS: Final = 16_384

ASK_AGAIN: Final = 1.0
"""Seconds after which the Sentinels are asked again: a master that is cut off from them, but not from us,
would take results that its successor never hears of."""


class Route(Protocol):
    """Finds the servers; `lines` are the connections to them."""

    lines: Lines
    command: str
    """PUBLISH or SPUBLISH."""

    async def urls(self, channels: Sequence[str]) -> Sequence[str]:
        """The redis:// URL of the server for each of the channels. Raises OSError if that is unknown."""

    def doubt(self) -> None:
        """Look anew before the next answer."""

    def elsewhere(self, address: Address) -> str | None:
        """The URL of a server that another has pointed to; None where only a Cluster's would."""

    async def close(self) -> None:
        """Drop all connections."""


def route(url: str) -> Route:
    """The route that a Redis URL asks for. Raises ValueError if it is none."""
    found = parse(url)
    if found.kind is Kind.SENTINEL:
        return SentinelRoute(found)
    return ClusterRoute(found) if found.kind is Kind.CLUSTER else ServerRoute(found)


class ServerRoute:
    """One server at a fixed address."""

    command = "PUBLISH"

    def __init__(self, url: RedisURL) -> None:
        self._url = url.text
        self.lines = Lines(_any_server_will_do)

    async def urls(self, channels: Sequence[str]) -> Sequence[str]:
        return [self._url] * len(channels)

    def doubt(self) -> None:
        """There is no other."""

    def elsewhere(self, address: Address) -> str | None:
        return None

    async def close(self) -> None:
        self.lines.close()


class SentinelRoute:
    """The server that the Sentinels call the master."""

    command = "PUBLISH"

    def __init__(self, url: RedisURL) -> None:
        self._url = url
        self._sentinels = Sentinels(url)
        self._master: str | None = None
        self._asked = 0.0
        self.lines = Lines(_must_be_master)

    async def urls(self, channels: Sequence[str]) -> Sequence[str]:
        now = asyncio.get_running_loop().time()
        if self._master is None:
            self._master = self._url.server(await self._sentinels.master())
            self._asked = now
        elif now - self._asked >= ASK_AGAIN:
            self._asked = now
            await self._follow(self._master)
        return [self._master] * len(channels)

    async def _follow(self, present: str) -> None:
        """Go over to another master if there is one; without Sentinels the present one has to do."""
        try:
            master = self._url.server(await self._sentinels.master())
        except NoMaster:
            return
        if master != present:
            self.lines.drop(present)
            self._master = master

    def doubt(self) -> None:
        if self._master is not None:
            self.lines.drop(self._master)
        self._master = None

    def elsewhere(self, address: Address) -> str | None:
        return None

    async def close(self) -> None:
        self.lines.close()
        await self._sentinels.close()


class ClusterRoute:
    """The node that has the channel's slot, on which its sharded subscribers are too."""

    command = "SPUBLISH"

    def __init__(self, url: RedisURL) -> None:
        self._url = url
        self._nodes: dict[Address, None] = dict.fromkeys(url.addresses)
        self._slots: list[Address] = []
        self._reading = asyncio.Lock()
        self.lines = Lines(_any_server_will_do)

    async def urls(self, channels: Sequence[str]) -> Sequence[str]:
        async with self._reading:
            if not self._slots:
                self._slots = await self._read_slots()
        return [self._url.server(self._slots[key_slot(channel.encode())]) for channel in channels]

    def doubt(self) -> None:
        self._slots = []

    def elsewhere(self, address: Address) -> str | None:
        return self._url.server(address)

    async def close(self) -> None:
        self.lines.close()

    async def _read_slots(self) -> list[Address]:
        """Who has which slot, from the node that answers first: a dead or frozen one holds nothing up.

        An outdated answer is put right by the MOVED that follows from it.
        """
        asking = [asyncio.create_task(self._ask(address)) for address in self._nodes]
        why: Exception | None = None
        try:
            for first in asyncio.as_completed(asking):
                try:
                    slots = await first
                except (OSError, ValueError) as error:
                    why = error
                else:
                    self._nodes = dict.fromkeys([*self._url.addresses, *slots])
                    return slots
            raise ConnectionError(f"no node of the Cluster tells who has which slot: {why}")
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, address: Address) -> list[Address]:
        line = await self.lines.to(self._url.server(address))
        (reply,) = await line.ask([("CLUSTER", "SLOTS")])
        if isinstance(reply, hiredis.ReplyError):
            raise ConnectionError(f"{address} answered CLUSTER SLOTS with: {reply}")
        return read_slots(reply, address)


def read_slots(reply: Sequence[Any], asked: Address) -> list[Address]:
    """The master of each slot, from the answer to CLUSTER SLOTS. Raises ValueError if slots have none.

    A node that does not know its own host, or does not give it away, is at the host that was `asked`.
    """
    masters: dict[int, Address] = {}
    for first, last, (host, port, *_), *_ in reply:
        address = Address(host.decode() if host else asked.host, port)
        masters.update(dict.fromkeys(range(first, last + 1), address))
    if len(masters) < SLOTS:
        raise ValueError(f"{asked} knows of no node for {SLOTS - len(masters)} of the {SLOTS} slots")
    return [masters[slot] for slot in range(SLOTS)]


async def _any_server_will_do(_line: Line) -> None:
    pass


async def _must_be_master(line: Line) -> None:
    """A master that was deposed, or a replica, answers ROLE with another word."""
    (reply,) = await line.ask([("ROLE",)])
    if isinstance(reply, hiredis.ReplyError):
        raise PermissionError(f"it answered ROLE with: {reply}")
    if reply[0] != b"master":
        raise ConnectionError("the Sentinels' master does not know that it is one, or not any more")
