"""The gateway's lines to a Redis Cluster: a broker for each master, and the map of who serves which slot.

    hub --subscribe--> Cluster --by slot--> Broker of a master --> ShardLink
    hub <------------- Shard (only while the channel is its own) <-----'

The map is what the nodes say, and it is asked for every second, and sooner when something does not fit it.
When a slot has moved, its channels are asked for at the new master, with their retained results. What the old
one still says of them is not listened to, but for results.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, Final

import structlog

from ..connection import Connection, ConnectionLost
from ..events import Slots, SubscriberEvents
from ..majority import ask_all
from ..outage import OutageNotifier
from ..server_broker import ServerBroker
from ..subscriber import SubscriberConnection
from ..topology import FixedTopology, Server
from ..url import Address, RedisURL, redact
from . import slots as slot_maps
from .slots import ClusterView, Ranges, SlotMap, key_slot
from .subscriber import ShardedSubscriberConnection

REFRESH_INTERVAL: Final = 1.0
"""Seconds between two looks at the map while nothing seems wrong: a frozen master is replaced before its
silence is noticed."""

URGENT_REFRESH_INTERVAL: Final = 0.25
"""Seconds between two looks while a slot has no line, or a node has spoken against the map."""

MAP_TIMEOUT: Final = 1.0
"""Seconds for a node to say what it knows."""

MAP_GRACE: Final = 0.1
"""Seconds that the others have to say it once most have."""

NODES_PER_LOOKUP: Final = 3
"""Nodes asked in one look; the latest epoch among their answers counts, so one that slept decides nothing."""

REROUTE_AFTER: Final = 0.01
"""Seconds until what was asked at the wrong node is asked at the right one: while the nodes themselves do not
agree yet, each may name the other."""

SLOTLESS_SECONDS: Final = 30.0
"""How long a node without slots keeps its line: a slot is on its way there."""

log = structlog.get_logger()


class ShardEventFilter:
    """What one master's line hears, passed on as far as it is this master's to say. A `ShardEvents`."""

    def __init__(self, cluster: ClusterBroker, hub: SubscriberEvents, address: Address) -> None:
        self._cluster = cluster
        self._hub = hub
        self.address = address
        self.received = hub.received  # whoever says it, a result is one
        self._probed: bytes | None = None

    def owns(self, name: bytes) -> bool:
        """Whether this is the master for the channel."""
        return self._cluster.map.owners[key_slot(name)] == self.address

    def _own(self, slots: Slots | None) -> Slots:
        """Those of `slots`, or of all slots, that this master serves."""
        own = self._cluster.map.slots(self.address)
        return own if slots is None else set(slots).intersection(own)

    def probe_channel(self, stem: bytes) -> bytes | None:
        """A channel in one of this master's slots, the same as long as it is; None if it has no slots."""
        if self._probed is None or not self.owns(self._probed):
            self._probed = slot_maps.name_in_slots_of(stem, self._cluster.map, self.address)
        return self._probed

    def connected(self, slots: Slots | None = None) -> Sequence[bytes]:
        self._cluster.line_changed()
        return self._hub.connected(self._own(slots))

    def disconnected(self, slots: Slots | None = None) -> None:
        self._hub.disconnected(self._own(slots))
        self._cluster.line_changed()

    def degraded(self, slots: Slots | None = None) -> Iterator[None]:
        return self._hub.degraded(self._own(slots))

    def confirmed(self, slots: Slots | None = None) -> Sequence[bytes]:
        return self._hub.confirmed(self._own(slots))

    def count_confirmed(self, slots: Slots | None = None) -> int:
        return self._hub.count_confirmed(self._own(slots))

    def is_confirmed(self, name: bytes) -> bool:
        return self.owns(name) and self._hub.is_confirmed(name)

    def subscribed(self, name: bytes, retained: bytes | None) -> None:
        if self.owns(name):
            self._hub.subscribed(name, retained)

    def unsubscribed(self, name: bytes) -> None:
        if self.owns(name):
            self._hub.unsubscribed(name)

    def denied(self, name: bytes, reason: str) -> None:
        if self.owns(name):
            self._hub.denied(name, reason)

    def lost(self, name: bytes, *, answer: bool = False) -> None:
        if self.owns(name):
            self._hub.lost(name, answer=answer)

    def moved(self, name: bytes, host: str, port: int) -> None:
        owner = Address(host or self.address.host, port)
        if self.owns(name) and owner != self.address:
            self._cluster.claimed(key_slot(name), owner)
        elif self.owns(name) and (link := self._cluster.connection_for(name)) is not None:
            # No node sends clients to itself: by now another one is behind this address.
            link.abort(f"{owner} leads to another node")

    def migrating(self, name: bytes, host: str, port: int, read: Callable[[Any], object]) -> None:
        if self.owns(name):
            self._cluster.read_migrating(name, Address(host or self.address.host, port), read)


class ClusterBroker:
    """Subscribes and reads on behalf of `hub` at the masters of a Cluster: many brokers that are one."""

    def __init__(
        self,
        url: RedisURL,
        hub: SubscriberEvents,
        name: str,
        clock: Callable[[], float],
        max_result_size: int,
        probe_stem: bytes,
    ) -> None:
        """As for a Broker; the channels of probes begin with `probe_stem`."""
        self._url = url
        self._hub = hub
        self._name = name
        self._clock = clock
        self._started = clock()
        self._max_result_size = max_result_size
        self._probe_stem = probe_stem
        self.map = slot_maps.UNKNOWN_MAP
        self._ranges: Ranges | None = None  # of which the map was made, unless nodes have said more since
        self._lines: dict[Address, ServerBroker] = {}
        self._tasks: dict[Address, asyncio.Task[None]] = {}
        self._retired: set[asyncio.Task[None]] = set()
        self._guests: dict[Address, float] = {}  # masters without slots, and until when they keep their lines
        self._claims: dict[int, Address] = {}
        self._believing: asyncio.TimerHandle | None = None
        self._believed: dict[int, Address] = {}  # of them, since the nodes have been asked
        self._look = asyncio.Event()
        self._looked_at = -inf
        self._whole = False
        self._outage_since: float | None = None
        self._past_outage_seconds = 0.0
        self._said = ""
        self._unserved = OutageNotifier(lambda: hub.degraded(self.map.slots(None)))
        self._repaired = 0  # on lines that are no more
        self.ever_connected = False
        self.outages = 0
        """Times that some slot ceased to have a line: what was published there meanwhile is gone."""
        self.slots_moved = 0
        """Slots that another node serves than before, all together."""

    # As a Broker

    @property
    def connected(self) -> bool:
        """Whether every slot has its line."""
        return self._whole

    def outage_seconds(self) -> float:
        """Seconds during which some slot had no line, after all had had theirs."""
        present = 0.0 if self._outage_since is None else self._clock() - self._outage_since
        return self._past_outage_seconds + present

    @property
    def repaired(self) -> int:
        """Channels that audits have found to differ; it should stay 0."""
        return self._repaired + sum(line.repaired for line in self._lines.values())

    @property
    def server_brokers(self) -> list[ServerBroker]:
        """The lines that there are at present."""
        return list(self._lines.values())

    @property
    def down_for(self) -> float | None:
        """Seconds during which some slot has had no line, up to now; None while all have theirs."""
        if self._whole:
            return None
        return self._clock() - (self._started if self._outage_since is None else self._outage_since)

    @property
    def probe_age(self) -> float | None:
        """As Broker.unheard, of the line where it is longest. A master without slots has no probe."""
        lines = [self._lines[address] for address in self.map.masters if address in self._lines]
        return max((line.probe_age for line in lines if line.probe_age is not None), default=None)

    @property
    def last_error(self) -> str:
        """What nodes of the Cluster say when none of them can be asked, or why a line is not up."""
        return self._said or next((line.last_error for line in self._lines.values() if line.last_error), "")

    def _line(self, name: bytes) -> ServerBroker | None:
        owner = self.map.owners[key_slot(name)]
        return None if owner is None else self._lines.get(owner)

    def connection_for(self, name: bytes) -> SubscriberConnection | None:
        """As Broker.link_to."""
        line = self._line(name)
        return None if line is None else line.connection

    def reaches(self, name: bytes) -> bool:
        """Whether there is a link to ask about a channel."""
        line = self._line(name)
        return line is not None and line.connected

    def degraded(self, name: bytes) -> bool:
        """As Broker.degraded; a slot that nobody serves counts as one whose line is down."""
        line = self._line(name)
        return self._unserved.given if line is None else line.degraded(name)

    def subscribe(self, name: bytes) -> None:
        """As Broker.subscribe, where the channel's slot is served."""
        if (line := self._line(name)) is not None:
            line.subscribe(name)

    def read(self, name: bytes) -> None:
        """As Broker.read."""
        if (line := self._line(name)) is not None:
            line.read(name)

    def unsubscribe(self, name: bytes) -> None:
        """As Broker.unsubscribe."""
        if (line := self._line(name)) is not None:
            line.unsubscribe(name)

    async def run(self) -> None:
        """Keep the lines up, and the map true, until cancelled."""
        self._unserved.begin()
        try:
            while True:
                await self._refresh()
                await self._pause()
        finally:
            self._unserved.end()
            if self._believing is not None:
                self._believing.cancel()
            while self._lines or self._retired:  # a line may name another node until it has ended
                for address in list(self._lines):
                    self._retire(address)
                await asyncio.gather(*self._retired, return_exceptions=True)

    # The map

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(REFRESH_INTERVAL):
                if self._whole:
                    await self._look.wait()
        except TimeoutError:
            pass
        self._look.clear()
        await asyncio.sleep(max(0.0, self._looked_at + URGENT_REFRESH_INTERVAL - self._clock()))
        for task in self._tasks.values():
            if task.done():  # none ends by itself; this raises what ended it
                task.result()

    async def _refresh(self) -> None:
        """Ask some nodes who serves what, and act on the latest of their answers."""
        self._looked_at = self._clock()
        self._believed = {}
        answers = await ask_all([self._ask(address) for address in self._to_ask()], MAP_TIMEOUT, MAP_GRACE)
        views = [answer for answer in answers if isinstance(answer, ClusterView)]
        self._retire_idle()
        if views:
            self._said = ""
            latest = max(view.epoch for view in views)
            # Nodes that have heard of the same epoch may still differ. While one agrees with us, wait.
            drawn = [view.ranges for view in views if view.epoch == latest]
            if self._ranges not in drawn:
                self._ranges = None if self._believed else drawn[0]
                self._adopt(slot_maps.slot_map(drawn[0]).with_owners(self._believed))
        else:
            why = "; ".join(sorted({str(answer) for answer in answers}))
            if why != self._said:
                self._said = why
                log.warning("redis cluster unreachable", redis=redact(self._url.text), why=why)

    def _to_ask(self) -> list[Address]:
        """Some masters, and those nodes that the settings name when no master has answered last time.

        They may be gone by now, so the masters are asked besides.
        """
        known = self.map.masters
        some = random.sample(known, min(len(known), NODES_PER_LOOKUP))
        return list(dict.fromkeys([*some, *self._url.addresses])) if self._said or not some else some

    async def _ask(self, address: Address) -> ClusterView:
        """What the node at `address` says. Raises OSError."""
        line = self._lines.get(address)
        try:
            if line is not None and line.connection is not None:
                return await _view(line.connection, address)
            return await self._ask_stranger(address)
        except (OSError, ConnectionLost) as error:
            raise OSError(f"{address}: {error}") from error

    async def _ask_stranger(self, address: Address) -> ClusterView:
        server = Server(self._url.server(address))
        connection = Connection()
        try:
            await server.open(connection)
            await connection.hello(server.username, server.password, 0, self._name)
            return await _view(connection, address)
        finally:
            connection.abort("no longer needed")

    def claimed(self, number: int, owner: Address) -> None:
        """A node says that `owner` serves the slot, which is news: act on it, with what else is said soon."""
        if not self._claims:
            self._believing = asyncio.get_running_loop().call_later(REROUTE_AFTER, self._believe)
        self._claims[number] = owner

    def _believe(self) -> None:
        claims, self._claims = self._claims, {}
        self._believed |= claims
        self._ranges = None
        self._adopt(self.map.with_owners(claims))
        self._look.set()

    def _adopt(self, after: SlotMap) -> None:
        """Have a line to each master; move the channels whose slots have moved."""
        before, self.map = self.map, after
        moved = slot_maps.moved_slots(before, after)
        if before is not slot_maps.UNKNOWN_MAP:
            self.slots_moved += len(moved)
        masters = after.masters
        for address in masters:
            self._have_line(address)
        if moved:
            log.info("redis cluster", masters=len(masters), moved_slots=len(moved))
            self._hub.disconnected(moved)
            reached = [number for number in moved if self._reaches_slot(number)]
            for name in self._hub.connected(reached):
                self.subscribe(name)
        self._retire_idle()
        self.line_changed()

    def _reaches_slot(self, number: int) -> bool:
        owner = self.map.owners[number]
        return owner is not None and owner in self._lines and self._lines[owner].connected

    # The lines

    def _have_line(self, address: Address) -> ServerBroker:
        line = self._lines.get(address)
        if line is None:
            shard = ShardEventFilter(self, self._hub, address)
            line = self._lines[address] = ServerBroker(
                FixedTopology(self._url.server(address), only_masters=True),
                shard,
                self._name,
                self._clock,
                partial(ShardedSubscriberConnection, shard, self._max_result_size),
                partial(shard.probe_channel, self._probe_stem),
            )
            self._tasks[address] = asyncio.create_task(line.run(), name=f"line to {address}")
        return line

    def _retire_idle(self) -> None:
        now = self._clock()
        masters = set(self.map.masters)
        for address in list(self._lines):
            if address not in masters and self._guests.get(address, 0.0) <= now:
                self._retire(address)

    def _retire(self, address: Address) -> None:
        self._repaired += self._lines.pop(address).repaired
        self._guests.pop(address, None)
        task = self._tasks.pop(address)
        task.cancel()
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    def line_changed(self) -> None:
        """A line has come up or gone, or the map is another."""
        self._whole = None not in self.map.owners and all(
            address in self._lines and self._lines[address].connected for address in self.map.masters
        )
        if self._whole:
            self.ever_connected = True
            self._past_outage_seconds = self.outage_seconds()
            self._outage_since = None
        elif self.ever_connected and self._outage_since is None:
            self.outages += 1
            self._outage_since = self._clock()
        if not self._whole:
            self._look.set()
        if None in self.map.owners:
            self._unserved.begin()
        else:
            self._unserved.end()

    def read_migrating(self, name: bytes, target: Address, read: Callable[[Any], object]) -> None:
        """Read the retained result of `name` at `target`, where its slot is on its way to.

        `read` gets Redis's answer, if there is a line and nothing happens to it.
        """
        self._guests[target] = self._clock() + SLOTLESS_SECONDS
        link = self._have_line(target).connection
        if isinstance(link, ShardedSubscriberConnection):
            with suppress(ConnectionLost):
                link.read_migrating(name, read)


async def _view(connection: Connection, address: Address) -> ClusterView:
    information = await connection.execute("CLUSTER", "INFO")
    ranges = await connection.execute("CLUSTER", "SLOTS")
    return slot_maps.parse_view(information, ranges, address)
