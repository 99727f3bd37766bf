"""The slot map of a Cluster: which node serves which slot, as the nodes themselves say.

Nodes may disagree for a while. The latest configuration epoch among the answers counts, so that a node that
missed a change decides nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from typing import Any, Final

import structlog

from ..connection import Connection, ConnectionLost, ReplyError
from ..majority import Patience, gather_majority
from ..server import Server
from ..url import Address, RedisURL, redact
from . import slots
from .slots import ClusterView, Ranges, SlotMap

REFRESH_INTERVAL: Final = 1.0
"""Seconds between two refreshes while all is well: a frozen master is replaced before its silence is
noticed."""

URGENT_REFRESH_INTERVAL: Final = 0.25
"""Seconds between two refreshes while a slot has no connection, or a node contradicts the map."""

MAP_PATIENCE: Final = Patience(first=5.0, others=0.5, rest=0.1)
"""For the nodes of a Cluster that are asked at once."""

_NO_CLUSTER: Final = ("ERR This instance has cluster support disabled", "ERR unknown command")

NODES_PER_REFRESH: Final = 3
"""Nodes asked in one refresh."""

REPORT_INTERVAL: Final = 30.0
"""Seconds between log lines while no node answers."""

CLAIM_DELAY: Final = 0.01
"""Seconds until a claim changes the map: while the nodes do not agree yet, each may name the other."""

log = structlog.get_logger()


async def read_view(connection: Connection, address: Address) -> ClusterView:
    """What the node at `address` says, over a connection to it. Raises ConnectionLost."""
    try:
        information, ranges = await connection.execute_all([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")])
        return slots.parse_view(information, ranges, address)
    except ReplyError as error:
        if error.reply.startswith(_NO_CLUSTER):
            url = f"redis://{address}, or rediss:// with TLS"
            raise ConnectionLost(f"this is no node of a Cluster: write {url}") from None
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        connection.abort("Redis sent an unexpected reply about its slots")
        what = type(error).__name__
        raise ConnectionLost(f"its reply about slots has an unexpected form: {what}") from None


async def latest_views(
    addresses: Sequence[Address],
    view_of: Callable[[Address], Coroutine[Any, Any, ClusterView]],
    patience: Patience = MAP_PATIENCE,
) -> list[ClusterView]:
    """Ask several nodes at once; returns the views with the latest epoch, at least one.

    Raises ConnectionError with what each node said if none answers in time.
    """
    answers = await gather_majority([view_of(address) for address in addresses], patience)
    views = [answer for answer in answers if isinstance(answer, ClusterView)]
    if not views:
        failures = (f"{address}: {answer}" for address, answer in zip(addresses, answers, strict=True))
        raise ConnectionError("; ".join(sorted(failures)))
    latest = max(view.epoch for view in views)
    return [view for view in views if view.epoch == latest]


class ClusterTopology:
    """Keeps the slot map true: asks nodes for it, and believes what nodes say when they redirect."""

    def __init__(
        self,
        url: RedisURL,
        name: str,
        clock: Callable[[], float],
        connection_to: Callable[[Address], Connection | None],
        map_changed: Callable[[frozenset[int]], None],
    ) -> None:
        """`connection_to` returns a connection that is open anyway; without one, a new one is made.

        `map_changed` is called after each change with the slots that another node serves than before.
        """
        self._url = url
        self._name = name
        self._clock = clock
        self._connection_to = connection_to
        self._map_changed = map_changed
        self.map = slots.UNKNOWN_MAP
        self._ranges: Ranges | None = None  # the view that the map was made from; None after a claim
        self._claims: dict[int, Address] = {}
        self._claims_timer: asyncio.TimerHandle | None = None
        self._claimed_since_refresh: dict[int, Address] = {}
        self._wake = asyncio.Event()
        self._refreshed_at = self._reported_at = -inf
        self.last_error = ""
        """Why no node could be asked in the latest refresh; empty if one could."""
        self.slots_moved = 0
        """Slots that another node serves than before, so far."""

    def use(self, url: RedisURL) -> None:
        """Connect as `url` says from now on."""
        self._url = url

    async def refresh(self) -> None:
        """Ask some nodes for the map, and adopt the latest of their answers."""
        self._refreshed_at = self._clock()
        self._claimed_since_refresh = {}
        try:
            views = await latest_views(self._nodes_to_ask(), self._view_of)
        except ConnectionError as error:
            # Which nodes were asked is random, so the text changes although nothing else does.
            if not self.last_error or self._refreshed_at - self._reported_at >= REPORT_INTERVAL:
                self._reported_at = self._refreshed_at
                log.warning("redis cluster unreachable", redis=redact(self._url.text), reason=str(error))
            self.last_error = str(error)
            return
        self.last_error = ""
        # Nodes of the same epoch may still differ. The map stays while one of them agrees with it.
        ranges = [view.ranges for view in views]
        if self._ranges not in ranges:
            self._ranges = None if self._claimed_since_refresh else ranges[0]
            self._adopt(slots.slot_map(ranges[0]).with_owners(self._claimed_since_refresh))

    async def wait_for_refresh(self, *, urgent: bool) -> None:
        """Wait until the next refresh is due: at once when `urgent` or requested, but not too often."""
        try:
            async with asyncio.timeout(REFRESH_INTERVAL):
                if not urgent:
                    await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        await asyncio.sleep(max(0.0, self._refreshed_at + URGENT_REFRESH_INTERVAL - self._clock()))

    def request_refresh(self) -> None:
        """Refresh the map soon."""
        self._wake.set()

    def claim(self, slot: int, owner: Address) -> None:
        """A node says that `owner` serves the slot: change the map, with other claims that come soon."""
        if not self._claims:
            self._claims_timer = asyncio.get_running_loop().call_later(CLAIM_DELAY, self._apply_claims)
        self._claims[slot] = owner

    def close(self) -> None:
        """Forget the claims that have not changed the map yet."""
        if self._claims_timer is not None:
            self._claims_timer.cancel()

    def _apply_claims(self) -> None:
        claims, self._claims = self._claims, {}
        self._claimed_since_refresh |= claims
        self._ranges = None
        self._adopt(self.map.with_owners(claims))
        self.request_refresh()

    def _adopt(self, after: SlotMap) -> None:
        before, self.map = self.map, after
        moved = slots.moved_slots(before, after)
        if before is not slots.UNKNOWN_MAP:
            self.slots_moved += len(moved)
        if moved:
            log.info("redis cluster slots moved", masters=len(after.masters), slots=len(moved))
        self._map_changed(moved)

    def _nodes_to_ask(self) -> list[Address]:
        """Some masters; and the nodes of the URL too if no master answered last time.

        The nodes of the URL may have left the Cluster by now, so the masters are always asked.
        """
        masters = self.map.masters
        some = random.sample(masters, min(len(masters), NODES_PER_REFRESH))
        return list(dict.fromkeys([*some, *self._url.addresses])) if self.last_error or not some else some

    async def _view_of(self, address: Address) -> ClusterView:
        """What the node at `address` says. Raises OSError."""
        connection = self._connection_to(address)
        if connection is not None:
            return await read_view(connection, address)
        server = Server(self._url.server(address), in_cluster=True)
        connection = await server.connect(Connection, self._name)
        try:
            return await read_view(connection, address)
        finally:
            connection.abort("no longer needed")
