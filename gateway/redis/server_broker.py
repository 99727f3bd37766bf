"""The broker for one server: keeps the node's connection to it up, and is the only one that reconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Final

import structlog

from ..backoff import Backoff
from .events import SubscriberEvents
from .hints import hint_for
from .history import ServerHistory
from .outage_notifier import OutageNotifier
from .probe import Probe
from .reconciler import Reconciler
from .reminder import REMIND_EVERY, Reminder
from .server import Server
from .subscriber import SubscriberConnection
from .topology import Topology, while_current
from .url import RedisURL

FIRST_RECONNECT_DELAY: Final = 0.05
MAX_RECONNECT_DELAY: Final = 0.5
"""Seconds between attempts, at most: a crashed Redis that is back is found within half a second."""

RECONNECT_JITTER: Final = 0.5
"""The random part of each delay, so that nodes do not reconnect at the same moment."""

STABLE_AFTER: Final = 5.0
"""Seconds that a connection must last before its end is followed by the first, short delay again."""

SILENT_AFTER: Final = 2.5
"""Seconds of silence after which the node counts as cut off: a PING has been unanswered for a second. The
connection is kept for 4 s, since a slow Redis must not lose its subscribers."""

ALARM_AFTER: Final = 10.0
"""Seconds without Redis after which the log line is an error: by then registrations time out."""

TOO_SMALL_BUFFER: Final = (
    "Redis closed it while it answered a batch: the next batches are smaller. If this repeats, raise Redis's "
    "client-output-buffer-limit pubsub, to 64mb for example"
)

log = structlog.get_logger()


class ServerBroker:
    """The `Broker` for one server, wherever the topology finds it."""

    def __init__(
        self,
        topology: Topology,
        events: SubscriberEvents,
        name: str,
        clock: Callable[[], float],
        new_connection: Callable[[ServerHistory], SubscriberConnection],
        probe_channel: Callable[[], bytes | None],
    ) -> None:
        """`name` is what CLIENT LIST shows; `clock` is monotonic, in seconds.

        The connections that `new_connection` makes tell `events` what happens, as this broker does.
        `probe_channel` chooses the channel for a probe; None skips it.
        """
        self._clock = clock
        self._topology = topology
        self._events = events
        self._name = name
        self._new_connection = new_connection
        self._probe_channel = probe_channel
        self._history = ServerHistory(clock)
        self._connection: SubscriberConnection | None = None
        self._lost_at: float | None = None
        self._connected_at = 0.0
        self._started = clock()
        self._backoff = Backoff(FIRST_RECONNECT_DELAY, MAX_RECONNECT_DELAY, RECONNECT_JITTER)
        self._last_error = ""
        self._reminder = Reminder(REMIND_EVERY)
        self.probe = Probe(topology, name, probe_channel)
        self.reconciler = Reconciler(events)
        self._notifier = OutageNotifier(events.degraded)
        self.outages = 0
        """Times that the connection was lost: what was published meanwhile without retention is lost."""
        self.past_outage_seconds = 0.0
        """Seconds of all outages that are over. The time before the first connection is no outage."""
        self.ever_connected = False

    def outage_seconds(self) -> float:
        present = 0.0 if self._lost_at is None else self._clock() - self._lost_at
        return self.past_outage_seconds + present

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def down_for(self) -> float | None:
        if self._connection is not None:
            return None
        return self._clock() - (self._started if self._lost_at is None else self._lost_at)

    @property
    def probe_age(self) -> float | None:
        if self._connection is None:
            return None
        return self._clock() - max(self._connected_at, self.probe.received_at or 0.0)

    @property
    def last_error(self) -> str:
        return self._last_error

    @property
    def server_brokers(self) -> list[ServerBroker]:
        return [self]

    @property
    def connection(self) -> SubscriberConnection | None:
        """The present connection, if there is one."""
        return self._connection

    def connection_for(self, _name: bytes) -> SubscriberConnection | None:
        return self._connection

    @property
    def repaired(self) -> int:
        return self.reconciler.repaired

    @property
    def display_url(self) -> str:
        """The server's URL without the password."""
        return self._topology.display_url

    @property
    def slots_moved(self) -> int:
        """There are no slots."""
        return 0

    def use(self, url: RedisURL) -> None:
        self._topology.use(url)

    def reaches(self, _name: bytes) -> bool:
        return self._connection is not None

    def subscribe(self, name: bytes) -> None:
        if self._connection is not None:
            self._connection.subscribe(name)

    def read(self, name: bytes) -> None:
        if self._connection is not None:
            self._connection.read(name)

    def unsubscribe(self, name: bytes) -> None:
        if self._connection is not None:
            self._connection.unsubscribe(name)

    def degraded(self, name: bytes) -> bool:
        return self._notifier.notified or (self._connection is not None and self._connection.denies(name))

    @property
    def deaf(self) -> str:
        connection = self._connection
        if connection is None:
            return ": ".join(filter(None, ("Redis is not connected", self._last_error)))
        if connection.silent_for > SILENT_AFTER:
            return f"Redis has been silent for {connection.silent_for:.1f} s"
        refusal = connection.refuses_service(self._probe_channel())
        return f"Redis refuses the channel of the node's own probe: {refusal}" if refusal else ""

    @property
    def denied_channels(self) -> int:
        return 0 if self._connection is None else self._connection.denied_channels

    @property
    def missing_slots(self) -> Sequence[int]:
        """There are no slots."""
        return ()

    async def run(self) -> None:
        connection: SubscriberConnection | None = None
        self._notifier.begin()
        try:
            while True:
                connected = await self._connect()
                if connected is not None:
                    connection, server = connected
                    started = self._clock()
                    self._connection_up(connection, server, started)
                    reason = await self._monitor(connection, server)
                    self._connection_down(server, reason, self._clock())
                    if self._clock() - started >= STABLE_AFTER:
                        self._backoff.reset()
                await asyncio.sleep(self._backoff.next())
        finally:
            self._notifier.end()
            if connection is not None:
                connection.abort("the node stops")
            self._connection = None
            await self._topology.close()

    async def _connect(self) -> tuple[SubscriberConnection, Server] | None:
        """A connection to the server that the topology finds; None if that fails."""
        try:
            server = await self._topology.find()
            only_masters = self._topology.only_masters
            new_connection = partial(self._new_connection, self._history)
            connecting = server.connect(new_connection, self._name, only_master=only_masters)
            connection = await while_current(self._topology, server, connecting, _abandon)
        except OSError as error:
            self._log_unreachable(str(error) or type(error).__name__, self._clock())
        else:
            return connection, server
        return None

    async def _monitor(self, connection: SubscriberConnection, server: Server) -> str:
        """Wait until the connection is lost; returns the reason. Meanwhile the probe and reconciler run."""
        monitors = [
            asyncio.create_task(_run_monitor(self.probe.run(connection, server))),
            asyncio.create_task(_run_monitor(self.reconciler.run(connection))),
        ]
        try:
            # Others wait for `closed` too: cancelling this task must not cancel it.
            return await asyncio.shield(connection.closed)
        finally:
            for monitor in monitors:
                monitor.cancel()
            await asyncio.gather(*monitors, return_exceptions=True)

    def _connection_up(self, connection: SubscriberConnection, server: Server, now: float) -> None:
        outage = 0.0 if self._lost_at is None else now - self._lost_at
        self.past_outage_seconds += outage
        self._lost_at = None
        self._connected_at = now
        self.ever_connected = True
        self._last_error = ""
        self._connection = connection
        self._notifier.end()
        facts = {"after_seconds": round(outage, 3), "outages": self.outages} if self.outages else {}
        log.info("redis connected", redis=server.display_url, **facts)
        connection.start()

    def _connection_down(self, server: Server, reason: str, now: float) -> None:
        self._connection = None
        self._lost_at = now
        self._notifier.begin()
        self.outages += 1
        facts = {"hint": TOO_SMALL_BUFFER} if self._history.lost_within_batch else {}
        log.warning(
            "redis connection lost", redis=server.display_url, reason=reason, outages=self.outages, **facts
        )
        self._events.disconnected()

    def _log_unreachable(self, reason: str, now: float) -> None:
        self._last_error = reason
        if not self._reminder.is_due(reason, now):
            return
        seconds = self.down_for or 0.0
        write = log.error if seconds >= ALARM_AFTER else log.warning
        url = self._topology.display_url
        hint = hint_for(reason)
        facts = {} if hint is None else {"hint": hint}
        write("redis unreachable", redis=url, reason=reason, for_seconds=round(seconds, 1), **facts)


def _abandon(connection: SubscriberConnection) -> None:
    connection.abort("nobody waits for this connection any more")


async def _run_monitor(monitor: Coroutine[None, None, None]) -> None:
    """Run the probe or the reconciler. If it crashes, that is logged, and the connection goes on without."""
    try:
        await monitor
    except Exception:
        log.exception("probe or reconciler crashed; connection unmonitored")
