"""The proof that a link hears: what is published where publishers publish has to come through it.

A server that answers PING proves only itself. One that was a master until a moment ago answers as well, and
so does one behind a name that leads publishers elsewhere by now. So each node publishes a word of its own to
a channel of its own, over a connection that it has found and opened as a publisher would.

A link is deaf only when it has had its chance: the PUBLISH was answered, a PING that was sent over the link
after that has come back, and GRACE later the word is still not there. A link is no less well when nothing can
be published at all: then silence proves nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

import structlog

from .connection import Connection, ConnectionLost, ReplyError
from .subscriber import SubscriberConnection
from .topology import Server, Topology

PROBE_INTERVAL: Final = 1.0
"""Seconds between two probes: a failover is noticed within two of them."""

PROBE_TIMEOUT: Final = 1.0
"""Seconds to find the server, to connect, and to have one PUBLISH answered, each."""

PROBE_GRACE: Final = 1.0
"""Seconds for the word to come after its PING: a replica's lag, where the link leads to one."""

MAX_PROBE_GRACE: Final = 64.0
"""Links that turn out deaf one after another mean that the way of the probe is broken, not each of them: the
grace doubles up to this, so that clients are not resubscribed for ever for the sake of a proof."""

RENEW_AFTER: Final = 10
"""Probes over one connection; then a new one shows whether the way still leads to the same server."""

log = structlog.get_logger()


class NotReceiving(Exception):
    """Why a link cannot be relied on, though it answers."""


class Probe:
    """Proves one link after another, all of them to the server that `topology` finds."""

    def __init__(
        self,
        topology: Topology,
        name: str,
        channel: Callable[[], bytes | None],
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`name` is what CLIENT LIST shows. `channel` chooses the channel for a link; None for no probe.

        `stopwatch` times round trips: uvloop's own clock has milliseconds, and they take a part of one.
        """
        self._stopwatch = stopwatch
        self._topology = topology
        self._name = name
        self._channel = channel
        self._clock = asyncio.get_running_loop().time
        self._publisher: Connection | None = None
        self._used = 0
        self._word = b""
        self._heard = asyncio.Event()
        self._grace = PROBE_GRACE
        self.last_error = ""
        """Why the latest probe could not be published; empty if it could."""
        self.round_trip: float | None = None
        """Seconds from before the latest PUBLISH until the word was heard; None before the first."""
        self.received_at: float | None = None
        """When that was, by the loop's clock."""
        self.received = 0
        """Probes that came through."""
        self.not_published = 0
        """Probes that could not be published, which says nothing about the link."""
        self.missed = 0
        """Links that turned out to hear nothing."""

    async def run(self, link: SubscriberConnection, server: Server) -> None:
        """Probe `link`, which leads to `server`, until it is lost; abort it when it is deaf."""
        try:
            while True:
                due = self._clock() + PROBE_INTERVAL * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
                try:
                    await self._probe(link, server)
                except NotReceiving as why:
                    self.missed += 1
                    link.abort(str(why))
                    return
                except (OSError, ConnectionLost) as error:
                    if link.closed.done():
                        return
                    self._failed(error)
                # A master that hangs costs a probe TIMEOUT, and meanwhile there may be another.
                await asyncio.sleep(max(0.0, due - self._clock()))
        finally:
            self._drop()

    async def _probe(self, link: SubscriberConnection, server: Server) -> None:
        """Once. Raises Deaf, and OSError or LinkLost for what proves nothing."""
        async with asyncio.timeout(PROBE_TIMEOUT):
            found = await self._topology.find()
        if found is not server:
            raise NotReceiving(f"the master is {found.display_url} now")
        channel = await self._service_channels(link)
        if channel is None:
            return
        start = self._stopwatch()
        await self._publish(link, found, channel)
        if not await self._listens(link, channel):
            return
        self.round_trip = self._stopwatch() - start
        self.received_at = self._clock()
        self.received += 1
        self._grace = PROBE_GRACE
        self.last_error = ""

    async def _service_channels(self, link: SubscriberConnection) -> bytes | None:
        channel = self._channel()
        if channel is not None and channel not in link.service_channels:
            await link.subscribe_service(channel, self._hear)
        return channel

    def _hear(self, word: bytes) -> None:
        if word == self._word:
            self._heard.set()

    async def _publish(self, link: SubscriberConnection, server: Server, channel: bytes) -> None:
        self._word = b"%016x" % random.getrandbits(64)
        self._heard.clear()
        if self._used >= RENEW_AFTER:
            self._drop()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                if self._publisher is None:
                    self._publisher = await self._open(server)
                self._used += 1
                await self._publisher.execute(link.commands.publish, channel, self._word)
        except ReplyError:  # it is the word that is refused, such as MOVED or NOPERM
            raise
        except (OSError, ConnectionLost):
            self._drop()
            raise

    async def _open(self, server: Server) -> Connection:
        connection = Connection()
        try:
            await server.open(connection)
            await connection.hello(server.username, server.password, server.database, self._name)
        except BaseException:
            connection.abort("not connected")
            raise
        return connection

    async def _listens(self, link: SubscriberConnection, channel: bytes) -> bool:
        """Whether the word was heard; not if the channel was taken away meanwhile. Raises Deaf."""
        if self._heard.is_set():
            return True
        await link.execute("PING")  # however long it takes: the link itself notices when it is dead
        try:
            async with asyncio.timeout(self._grace):
                await self._heard.wait()
        except TimeoutError:
            if channel not in link.service_channels:  # its slot has moved, and may be back
                return False
            self._grace = min(2 * self._grace, MAX_PROBE_GRACE)
            raise NotReceiving("what is published is not heard on it") from None
        return True

    def _drop(self) -> None:
        if self._publisher is not None:
            self._publisher.abort("no longer needed")
            self._publisher = None
        self._used = 0

    def _failed(self, error: Exception) -> None:
        self.not_published += 1
        why = str(error) or f"no answer within {PROBE_TIMEOUT:g} s"
        if why != self.last_error:
            self.last_error = why
            log.warning("probe not published", why=why)
