"""The one interface to Redis for the rest of the node, whatever the topology is.

`factory.new_broker` makes the broker that a Redis URL asks for. A new topology implements this protocol, and
nothing outside `gateway/redis/` changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .server_broker import ServerBroker
from .subscriber import SubscriberConnection
from .url import RedisURL


class Broker(Protocol):
    """Subscribes channels and reads retained results for a `SubscriberEvents`, and keeps the connections up.

    A channel whose server is not connected is not subscribed: `subscribe`, `read` and `unsubscribe` do
    nothing then. The next connection begins with all channels that `SubscriberEvents.connected` names.
    """

    outages: int
    """Outages so far: what was published meanwhile without retention is lost."""
    ever_connected: bool
    """Whether a server was connected at least once: the only one, or any master of a Cluster."""

    async def run(self) -> None:
        """Keep the connections up until cancelled."""

    def use(self, url: RedisURL) -> None:
        """Connect as `url` says from the next connection on. It leads to the same place, with other
        credentials or options."""

    def subscribe(self, name: bytes) -> None:
        """Subscribe a channel and read its retained result; `events.subscribed` or `denied` follows."""

    def read(self, name: bytes) -> None:
        """Read the retained result of a subscribed channel; `events.subscribed` or `denied` follows."""

    def unsubscribe(self, name: bytes) -> None:
        """Unsubscribe a channel; `events.unsubscribed` follows."""

    def reaches(self, name: bytes) -> bool:
        """Whether the server of a channel is connected."""

    def degraded(self, name: bytes) -> bool:
        """Whether the members of a channel have been told that no results come: after `events.degraded`, or
        while Redis denies the channel."""

    def connection_for(self, name: bytes) -> SubscriberConnection | None:
        """The connection to the server of a channel; None while that is not connected."""

    @property
    def server_brokers(self) -> Sequence[ServerBroker]:
        """The brokers of single servers: this one, or one for each master of a Cluster."""

    @property
    def connected(self) -> bool:
        """Whether every server is connected and, in a Cluster, every slot served."""

    @property
    def deaf(self) -> str:
        """Why results cannot be received at this moment, for some channels at least; empty if all are well.

        It is noticed sooner than `connected` turns False, so another node should get the new browsers. It may
        be wrong for a moment.
        """

    @property
    def denied_channels(self) -> int:
        """Channels that Redis denies this node at present."""

    @property
    def missing_slots(self) -> Sequence[int]:
        """Slots of a Cluster that are not connected, or that no node serves."""

    @property
    def down_for(self) -> float | None:
        """Seconds since `connected` was last true, or since the start; None while it is true."""

    def outage_seconds(self) -> float:
        """Seconds of all outages so far, the present one included."""

    @property
    def probe_age(self) -> float | None:
        """Seconds since the latest probe came through, for the server where that is longest ago.

        A new connection counts as a probe. None without a connection.
        """

    @property
    def last_error(self) -> str:
        """Why the latest attempt to connect failed; empty while all is well."""

    @property
    def repaired(self) -> int:
        """Channels that reconcilers have found to differ. It should stay 0."""

    @property
    def slots_moved(self) -> int:
        """Slots of a Cluster that another server has taken over, so far."""
