"""Proves that a connection receives what is published: it must get back what the node publishes itself.

A PING proves only that the server is alive. A server that was the master until a moment ago answers as well,
and so does one behind a name that leads publishers elsewhere by now. So each node publishes a random token to
its own channel, over a second connection, which it finds and opens as a publisher would.

A connection counts as not receiving only after a fair chance: the PUBLISH was answered, then a PING over the
connection was answered, and PROBE_GRACE later the token is still missing. If nothing can be published at all,
silence proves nothing, and the connection stays.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

import structlog

from ..errors import GatewayError
from .connection import Connection, ReplyError
from .reminder import REMIND_EVERY, Reminder
from .server import Server
from .subscriber import SubscriberConnection
from .topology import ServerMoved, Topology, while_current

PROBE_INTERVAL: Final = 1.0
"""Seconds between two probes: a failover is noticed within two of them."""

PROBE_TIMEOUT: Final = 5.0
"""Seconds for each of: find the server, and get one PUBLISH answered. The connection itself may be silent for
nearly as long."""

PROBE_GRACE: Final = 1.0
"""Seconds for the token to arrive after the reply to PING: the lag of a replica, where the connection leads
to one."""

MAX_PROBE_GRACE: Final = 64.0
"""If several connections in a row do not receive, the path of the probe is broken rather than each of them:
the grace doubles up to this, so that clients are not resubscribed for ever."""

RENEW_AFTER: Final = 10
"""Probes over one publishing connection. A new one then shows whether the address still leads to the same
server."""

log = structlog.get_logger()


class NotReceiving(GatewayError):
    """A connection does not receive what is published, although its server answers."""


class Probe:
    """Probes one connection after another, all of them to the server that `topology` finds."""

    def __init__(
        self,
        topology: Topology,
        name: str,
        channel: Callable[[], bytes | None],
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`name` is what CLIENT LIST shows. `channel` chooses the channel for each probe; None skips it.

        `stopwatch` times round trips: the clock of uvloop has milliseconds, and a round trip takes less.
        """
        self._stopwatch = stopwatch
        self._topology = topology
        self._name = name
        self._channel = channel
        self._clock = asyncio.get_running_loop().time
        self._publisher: Connection | None = None
        self._publisher_uses = 0
        self._token = b""
        self._arrived = asyncio.Event()
        self._grace = PROBE_GRACE
        self.last_error = ""
        """Why the latest probe could not be published; empty if it could."""
        self.round_trip: float | None = None
        """Seconds from the latest PUBLISH to the arrival of its token; None before the first."""
        self.received_at: float | None = None
        """When the latest token arrived, by the loop's clock."""
        self.received = 0
        """Probes that came through."""
        self.not_published = 0
        """Probes that could not be published, which says nothing about the connection."""
        self._reminder = Reminder(REMIND_EVERY)
        self.missed = 0
        """Connections that were dropped because they did not receive a probe."""

    async def run(self, connection: SubscriberConnection, server: Server) -> None:
        """Probe `connection` to `server` until it is lost; abort it when it does not receive."""
        try:
            while True:
                due = self._clock() + PROBE_INTERVAL * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
                try:
                    await self._probe(connection, server)
                except NotReceiving as error:
                    self.missed += 1
                    connection.abort(str(error))
                    return
                except OSError as error:
                    if connection.closed.done():
                        return
                    self._note_not_published(error)
                # A master that hangs costs PROBE_TIMEOUT; the next probe follows at once then.
                await asyncio.sleep(max(0.0, due - self._clock()))
        finally:
            self._drop_publisher()

    async def _probe(self, connection: SubscriberConnection, server: Server) -> None:
        """One probe. Raises NotReceiving, and OSError for what proves nothing."""
        async with asyncio.timeout(PROBE_TIMEOUT):
            found = await self._topology.find()
        if found is not server:
            raise NotReceiving(f"the master is {found.display_url} now")
        channel = await self._subscribed_channel(connection)
        if channel is None:
            return
        start = self._stopwatch()
        try:
            await while_current(self._topology, server, self._publish(connection, found, channel))
        except ServerMoved as error:
            raise NotReceiving(str(error)) from None
        if not await self._arrives(connection, channel):
            return
        self.round_trip = self._stopwatch() - start
        self.received_at = self._clock()
        self.received += 1
        self._grace = PROBE_GRACE
        self.last_error = ""

    async def _subscribed_channel(self, connection: SubscriberConnection) -> bytes | None:
        channel = self._channel()
        if channel is not None and channel not in connection.service_channels:
            await connection.subscribe_service(channel, self._on_message)
        return channel

    def _on_message(self, token: bytes) -> None:
        if token == self._token:
            self._arrived.set()

    async def _publish(self, connection: SubscriberConnection, server: Server, channel: bytes) -> None:
        self._token = b"%016x" % random.getrandbits(64)
        self._arrived.clear()
        if self._publisher_uses >= RENEW_AFTER:
            self._drop_publisher()
        try:
            if self._publisher is None:
                self._publisher = await server.connect(Connection, self._name)
            self._publisher_uses += 1
            async with asyncio.timeout(PROBE_TIMEOUT):
                await self._publisher.execute(connection.commands.publish, channel, self._token)
        except ReplyError:  # Redis refuses this PUBLISH, with MOVED or NOPERM; the connection is fine
            raise
        except BaseException:  # also when the wait is given up: an answer may be on its way
            self._drop_publisher()
            raise

    async def _arrives(self, connection: SubscriberConnection, channel: bytes) -> bool:
        """Whether the token arrived; False if Redis dropped the channel meanwhile. Raises NotReceiving."""
        if self._arrived.is_set():
            return True
        await connection.execute(
            "PING"
        )  # without a timeout: the connection notices by itself when it is dead
        try:
            async with asyncio.timeout(self._grace):
                await self._arrived.wait()
        except TimeoutError:
            if channel not in connection.service_channels:  # its slot has moved, and may be back
                return False
            self._grace = min(2 * self._grace, MAX_PROBE_GRACE)
            raise NotReceiving("a published probe did not arrive on it") from None
        return True

    def _drop_publisher(self) -> None:
        if self._publisher is not None:
            self._publisher.abort("no longer needed")
            self._publisher = None
        self._publisher_uses = 0

    def _note_not_published(self, error: OSError) -> None:
        self.not_published += 1
        reason = str(error) or f"no answer within {PROBE_TIMEOUT:g} s"
        self.last_error = reason
        if self._reminder.is_due(reason, self._clock()):
            log.warning("probe not published", reason=reason)
