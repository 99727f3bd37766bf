"""The broker for a Redis Cluster: one `ServerBroker` for each master that serves slots.

    hub --subscribe--> ClusterBroker --by slot--> ServerBroker of a master --> ShardedSubscriberConnection
    hub <------------- ShardEventFilter (only for channels of this master) <--------------'

`ClusterTopology` says which master serves which slot. When a slot has moved, its channels are subscribed at
the new master, and their retained results read. What the old master still says about them is ignored, except
for results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog

from ..connection import ConnectionLost
from ..events import Slots, SubscriberEvents
from ..outage_notifier import OutageNotifier
from ..reminder import REMIND_EVERY
from ..server_broker import ALARM_AFTER, ServerBroker
from ..subscriber import SubscriberConnection
from ..topology import FixedTopology
from ..url import Address, RedisURL, parse_redis_url
from .slots import key_slot, name_in_slots_of, shown_ranges
from .subscriber import ShardedSubscriberConnection
from .topology import ClusterTopology

SLOTLESS_SECONDS: Final = 30.0
"""How long a node without slots keeps its connection: a slot is migrating to it."""

MISSING_AFTER: Final = 3.0
"""Seconds that slots are missing before the log names them: a failover takes less."""

log = structlog.get_logger()


class ShardEventFilter:
    """Forwards one master's events, but only for channels in its slots. A `ShardedSubscriberEvents`."""

    def __init__(self, cluster: ClusterBroker, events: SubscriberEvents, address: Address) -> None:
        self._cluster = cluster
        self._events = events
        self.address = address
        self.received = events.received  # a result is one, whichever master it comes from
        self._probe_channel: bytes | None = None

    def owns(self, name: bytes) -> bool:
        """Whether this master serves the channel's slot."""
        return self._cluster.topology.map.owners[key_slot(name)] == self.address

    def _own(self, slots: Slots | None) -> Slots:
        """The slots of this master, or those of them that are in `slots`."""
        own = self._cluster.topology.map.slots(self.address)
        return own if slots is None else set(slots).intersection(own)

    def probe_channel(self, stem: bytes) -> bytes | None:
        """A channel in one of this master's slots, the same as long as it is; None without slots."""
        if self._probe_channel is None or not self.owns(self._probe_channel):
            self._probe_channel = name_in_slots_of(stem, self._cluster.topology.map, self.address)
        return self._probe_channel

    def connected(self, slots: Slots | None = None) -> Sequence[bytes]:
        self._cluster.state_changed()
        return self._events.connected(self._own(slots))

    def disconnected(self, slots: Slots | None = None) -> None:
        self._events.disconnected(self._own(slots))
        self._cluster.state_changed()

    def degraded(self, slots: Slots | None = None) -> Iterator[None]:
        return self._events.degraded(self._own(slots))

    def confirmed(self, slots: Slots | None = None) -> Sequence[bytes]:
        return self._events.confirmed(self._own(slots))

    def count_confirmed(self, slots: Slots | None = None) -> int:
        return self._events.count_confirmed(self._own(slots))

    def is_confirmed(self, name: bytes) -> bool:
        return self.owns(name) and self._events.is_confirmed(name)

    def subscribed(self, name: bytes, retained: bytes | None) -> None:
        if self.owns(name):
            self._events.subscribed(name, retained)

    def unsubscribed(self, name: bytes) -> None:
        if self.owns(name):
            self._events.unsubscribed(name)

    def denied(self, name: bytes) -> bool:
        return self.owns(name) and self._events.denied(name)

    def retry(self, name: bytes) -> bool:
        return self.owns(name) and self._events.retry(name)

    def lost(self, name: bytes, *, answer: bool = False) -> None:
        if self.owns(name):
            self._events.lost(name, answer=answer)

    def moved(self, name: bytes, host: str, port: int) -> None:
        owner = Address(host or self.address.host, port)
        if self.owns(name) and owner != self.address:
            self._cluster.topology.claim(key_slot(name), owner)
        elif self.owns(name) and (connection := self._cluster.connection_for(name)) is not None:
            # No node redirects clients to itself: by now this address leads to another node.
            connection.abort(f"{owner} leads to another node")

    def migrating(self, name: bytes, host: str, port: int, on_read: Callable[[Any], object]) -> None:
        if self.owns(name):
            self._cluster.read_migrating(name, Address(host or self.address.host, port), on_read)


class ClusterBroker:
    """The `Broker` for a Cluster."""

    def __init__(
        self,
        url: RedisURL,
        events: SubscriberEvents,
        name: str,
        clock: Callable[[], float],
        max_result_size: int,
        probe_stem: bytes,
        *,
        announced: bool = False,
    ) -> None:
        """As a `ServerBroker`; the names of probe channels begin with `probe_stem`.

        `announced`: as in `ShardedSubscriberConnection`.
        """
        self._url = url
        self._events = events
        self._name = name
        self._clock = clock
        self._started = clock()
        self._max_result_size = max_result_size
        self._probe_stem = probe_stem
        self._announced = announced
        self.topology = ClusterTopology(url, name, clock, self._connection_to, self._map_changed)
        self._brokers: dict[Address, ServerBroker] = {}
        self._tasks: dict[Address, asyncio.Task[None]] = {}
        self._retired: set[asyncio.Task[None]] = set()
        self._slotless: dict[Address, float] = {}  # nodes that slots migrate to: until when they are kept
        self._connected = False
        self._outage_since: float | None = None
        self._past_outage_seconds = 0.0
        self._unserved_notifier = OutageNotifier(lambda: events.degraded(self.topology.map.slots(None)))
        self._repaired = 0  # by brokers that are retired
        self._ever_complete = False
        self._missing_logged_at: float | None = None
        self.ever_connected = False
        self.outages = 0
        """Times that some slot lost its connection: what was published there meanwhile is lost."""

    # The state, as `Broker` describes it

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def deaf(self) -> str:
        if not self._connected:
            return f"Redis is not connected for the slots {shown_ranges(self.missing_slots)}"
        masters = (self._brokers[address] for address in self.topology.map.masters)
        return next((broker.deaf for broker in masters if broker.deaf), "")

    @property
    def denied_channels(self) -> int:
        return sum(broker.denied_channels for broker in self._brokers.values())

    @property
    def missing_slots(self) -> Sequence[int]:
        if self._connected:
            return ()
        reached = {address for address, broker in self._brokers.items() if broker.connected}
        return [slot for slot, owner in enumerate(self.topology.map.owners) if owner not in reached]

    def outage_seconds(self) -> float:
        present = 0.0 if self._outage_since is None else self._clock() - self._outage_since
        return self._past_outage_seconds + present

    @property
    def repaired(self) -> int:
        return self._repaired + sum(broker.repaired for broker in self._brokers.values())

    @property
    def server_brokers(self) -> list[ServerBroker]:
        return list(self._brokers.values())

    @property
    def slots_moved(self) -> int:
        return self.topology.slots_moved

    @property
    def down_for(self) -> float | None:
        if self._connected:
            return None
        return self._clock() - (self._started if self._outage_since is None else self._outage_since)

    @property
    def probe_age(self) -> float | None:
        """As `Broker.probe_age`; a node without slots has no probe."""
        masters = (
            self._brokers[address] for address in self.topology.map.masters if address in self._brokers
        )
        return max((broker.probe_age for broker in masters if broker.probe_age is not None), default=None)

    @property
    def last_error(self) -> str:
        errors = [self.topology.last_error, *(broker.last_error for broker in self._brokers.values())]
        return next(filter(None, errors), "")

    # The requests

    def use(self, url: RedisURL) -> None:
        self._url = url
        self.topology.use(url)
        for address, broker in self._brokers.items():
            broker.use(parse_redis_url(url.server(address)))

    def _broker_for(self, name: bytes) -> ServerBroker | None:
        owner = self.topology.map.owners[key_slot(name)]
        return None if owner is None else self._brokers.get(owner)

    def connection_for(self, name: bytes) -> SubscriberConnection | None:
        broker = self._broker_for(name)
        return None if broker is None else broker.connection

    def reaches(self, name: bytes) -> bool:
        broker = self._broker_for(name)
        return broker is not None and broker.connected

    def degraded(self, name: bytes) -> bool:
        """As `Broker.degraded`; a slot that no node serves counts as an outage."""
        broker = self._broker_for(name)
        return self._unserved_notifier.notified if broker is None else broker.degraded(name)

    def subscribe(self, name: bytes) -> None:
        if (broker := self._broker_for(name)) is not None:
            broker.subscribe(name)

    def read(self, name: bytes) -> None:
        if (broker := self._broker_for(name)) is not None:
            broker.read(name)

    def unsubscribe(self, name: bytes) -> None:
        if (broker := self._broker_for(name)) is not None:
            broker.unsubscribe(name)

    def read_migrating(self, name: bytes, target: Address, on_read: Callable[[Any], object]) -> None:
        """Read the retained result of `name` at `target`, the node that its slot migrates to.

        `on_read` gets the reply. It is not called if there is no connection, or if that is lost.
        """
        self._slotless[target] = self._clock() + SLOTLESS_SECONDS
        connection = self._broker_at(target).connection
        if isinstance(connection, ShardedSubscriberConnection):
            with suppress(ConnectionLost):
                connection.read_migrating(name, on_read)

    # The brokers

    async def run(self) -> None:
        self._unserved_notifier.begin()
        try:
            while True:
                await self.topology.refresh()
                self._retire_idle()
                self._log_missing()
                await self.topology.wait_for_refresh(urgent=not self._connected)
                self._raise_crashes()
        finally:
            self._unserved_notifier.end()
            self.topology.close()
            while self._brokers or self._retired:  # a broker may name another node until it has ended
                for address in list(self._brokers):
                    self._retire(address)
                await asyncio.gather(*self._retired, return_exceptions=True)

    def _log_missing(self) -> None:
        """Say in the log, once in a while, which slots are missing for long."""
        down_for, now = self.down_for, self._clock()
        logged_at = self._missing_logged_at
        if down_for is None or down_for < MISSING_AFTER:
            return
        if self.ever_connected and (logged_at is None or now - logged_at >= REMIND_EVERY):
            self._missing_logged_at = now
            write = log.error if down_for >= ALARM_AFTER else log.warning
            write(
                "redis cluster slots missing",
                slots=shown_ranges(self.missing_slots),
                for_seconds=round(down_for, 1),
                hint="this node cannot reach the masters of these slots, or they are down without a replica; "
                "it serves the ids in all other slots",
            )

    def _raise_crashes(self) -> None:
        """Raise the exception of a broker that has ended; none ends without one."""
        for task in self._tasks.values():
            if task.done():
                task.result()

    def _connection_to(self, address: Address) -> SubscriberConnection | None:
        broker = self._brokers.get(address)
        return None if broker is None else broker.connection

    def _broker_at(self, address: Address) -> ServerBroker:
        """The broker of a node; a new one if the node has none yet."""
        broker = self._brokers.get(address)
        if broker is None:
            events = ShardEventFilter(self, self._events, address)
            broker = self._brokers[address] = ServerBroker(
                FixedTopology(self._url.server(address), only_masters=True, in_cluster=True),
                events,
                self._name,
                self._clock,
                partial(
                    ShardedSubscriberConnection, events, self._max_result_size, announced=self._announced
                ),
                partial(events.probe_channel, self._probe_stem),
            )
            self._tasks[address] = asyncio.create_task(broker.run(), name=f"broker of {address}")
        return broker

    def _map_changed(self, moved: frozenset[int]) -> None:
        """Have a broker for each master, and subscribe the channels of moved slots at their new masters."""
        for address in self.topology.map.masters:
            self._broker_at(address)
        if moved:
            self._events.disconnected(moved)
            reached = [slot for slot in moved if self._reaches_slot(slot)]
            for name in self._events.connected(reached):
                self.subscribe(name)
        self._retire_idle()
        self.state_changed()

    def _reaches_slot(self, slot: int) -> bool:
        owner = self.topology.map.owners[slot]
        return owner is not None and owner in self._brokers and self._brokers[owner].connected

    def _retire_idle(self) -> None:
        now = self._clock()
        masters = set(self.topology.map.masters)
        for address in list(self._brokers):
            if address not in masters and self._slotless.get(address, 0.0) <= now:
                self._retire(address)

    def _retire(self, address: Address) -> None:
        self._repaired += self._brokers.pop(address).repaired
        self._slotless.pop(address, None)
        task = self._tasks.pop(address)
        task.cancel()
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    def state_changed(self) -> None:
        """A connection came up or was lost, or the map changed: is every slot served and connected?"""
        owners = self.topology.map.owners
        unserved = None in owners
        self._connected = not unserved and all(
            address in self._brokers and self._brokers[address].connected
            for address in self.topology.map.masters
        )
        self.ever_connected = self.ever_connected or any(
            broker.connected for broker in self._brokers.values()
        )
        if self._connected:
            self._ever_complete = True
            self._past_outage_seconds = self.outage_seconds()
            self._outage_since = self._missing_logged_at = None
        elif self._ever_complete and self._outage_since is None:
            self.outages += 1
            self._outage_since = self._clock()
        if not self._connected:
            self.topology.request_refresh()
        if unserved:
            self._unserved_notifier.begin()
        else:
            self._unserved_notifier.end()
