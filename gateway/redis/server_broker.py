"""The gateway's one line to Redis: keeps a link up, and is the only one that reconnects."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Final

import structlog

from .connection import ConnectionLost
from .events import SubscriberEvents
from .outage import OutageNotifier
from .probe import Probe
from .reconciler import Reconciler
from .subscriber import SubscriberConnection
from .topology import Server, Topology

CONNECT_TIMEOUT: Final = 2.0
"""Seconds for TCP, TLS and HELLO together; a frozen Redis accepts connections and says nothing."""

FIRST_RECONNECT_DELAY: Final = 0.05
MAX_RECONNECT_DELAY: Final = 0.5
"""Seconds between attempts, at most: a crashed Redis that is back is found within half a second."""

STABLE_AFTER: Final = 5.0
"""Seconds a link must have lived for its end to be answered with the first, short pause again."""

REMIND_EVERY: Final = 30.0
"""Seconds between log lines while Redis stays away for one and the same reason."""

ALARM_AFTER: Final = 10.0
"""Seconds without Redis that are worth waking somebody for: by then registrations time out."""

log = structlog.get_logger()


class ServerBroker:
    """Subscribes and reads on behalf of `events`, and tells it what Redis says.

    While there is no link, `subscribe`, `read` and `unsubscribe` do nothing: the next link begins with
    all that `events.connected` names, and the last one took every subscription with it.
    """

    def __init__(
        self,
        topology: Topology,
        events: SubscriberEvents,
        name: str,
        clock: Callable[[], float],
        new_link: Callable[[], SubscriberConnection],
        probe_channel: Callable[[], bytes | None],
    ) -> None:
        """`name` is what CLIENT LIST shows; `clock` is monotonic, in seconds.

        `new_link` makes the links, whose events go to `events` too. `probe_channel` chooses where a link's
        probes go; None for no probe.
        """
        self._clock = clock
        self._topology = topology
        self._events = events
        self._name = name
        self._new_link = new_link
        self._link: SubscriberConnection | None = None
        self._lost_at: float | None = None
        self._up_at = 0.0
        self._started = clock()
        self._attempts = 0
        self._reminded: tuple[str, float] = ("", 0.0)
        self.probe = Probe(topology, name, probe_channel)
        self.reconciler = Reconciler(events)
        self._notice = OutageNotifier(events.degraded)
        self.outages = 0
        """Times that a link was lost: whatever was published meanwhile without retention is gone."""
        self.past_outage_seconds = 0.0
        """How long there was no link, after there had been one, all gaps together."""
        self.ever_connected = False

    def outage_seconds(self) -> float:
        """`outage_seconds`, with the gap that goes on at present."""
        present = 0.0 if self._lost_at is None else self._clock() - self._lost_at
        return self.past_outage_seconds + present

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def down_for(self) -> float | None:
        """Seconds without a link, up to now; None while there is one."""
        if self._link is not None:
            return None
        return self._clock() - (self._started if self._lost_at is None else self._lost_at)

    @property
    def probe_age(self) -> float | None:
        """Seconds since the present link was proved to hear, or came up; None without one."""
        if self._link is None:
            return None
        return self._clock() - max(self._up_at, self.probe.received_at or 0.0)

    @property
    def last_error(self) -> str:
        """Why the latest attempt to connect failed; empty while there is a link."""
        return self._reminded[0]

    @property
    def server_brokers(self) -> list[ServerBroker]:
        """As `Broker.server_brokers`."""
        return [self]

    @property
    def connection(self) -> SubscriberConnection | None:
        """The present link, if there is one."""
        return self._link

    def connection_for(self, _name: bytes) -> SubscriberConnection | None:
        """The link on which a channel is heard and published, if there is one at present."""
        return self._link

    @property
    def repaired(self) -> int:
        """Channels that audits have found to differ; it should stay 0."""
        return self.reconciler.repaired

    @property
    def display_url(self) -> str:
        """Where it leads, for people; without the password."""
        return self._topology.display_url

    @property
    def slots_moved(self) -> int:
        """There are no slots."""
        return 0

    def reaches(self, _name: bytes) -> bool:
        """Whether there is a link to ask about a channel."""
        return self._link is not None

    def subscribe(self, name: bytes) -> None:
        """SUBSCRIBE `name` and then read its retained result; `events.subscribed` or `denied` follows."""
        if self._link is not None:
            self._link.subscribe(name)

    def read(self, name: bytes) -> None:
        """Read the retained result of a subscribed `name`; `events.subscribed` or `denied` follows."""
        if self._link is not None:
            self._link.read(name)

    def unsubscribe(self, name: bytes) -> None:
        """UNSUBSCRIBE `name`; `events.unsubscribed` follows."""
        if self._link is not None:
            self._link.unsubscribe(name)

    def degraded(self, _name: bytes) -> bool:
        """Whether a channel cannot be heard, for so long that `events.degraded` has been called."""
        return self._notice.given

    async def run(self) -> None:
        """Keep a link up until cancelled."""
        link: SubscriberConnection | None = None
        self._notice.begin()
        try:
            while True:
                link = self._new_link()
                server = await self._open(link)
                if server is not None:
                    started = self._clock()
                    self._up(link, server, started)
                    lost = await self._watch_over(link, server)
                    self._down(server, str(lost), self._clock())
                    if self._clock() - started >= STABLE_AFTER:
                        self._attempts = 0
                await asyncio.sleep(self._pause())
        finally:
            self._notice.end()
            if link is not None:
                link.abort("the node stops")
            self._link = None
            await self._topology.close()

    async def _open(self, link: SubscriberConnection) -> Server | None:
        """Connect `link`; returns the server it leads to, or None."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                server = await self._topology.find()
                await server.open(link)
                await self._introduce(link, server)
        except TimeoutError:
            self._remind(f"no answer within {CONNECT_TIMEOUT:g} s", self._clock())
        except (OSError, ConnectionLost) as error:
            self._remind(str(error) or type(error).__name__, self._clock())
        else:
            return server
        link.abort("not connected")
        return None

    async def _introduce(self, link: SubscriberConnection, server: Server) -> None:
        await link.hello(server.username, server.password, server.database, self._name)
        if self._topology.only_masters and not link.is_master:
            raise ConnectionLost(f"{server.display_url} is a replica")

    async def _watch_over(self, link: SubscriberConnection, server: Server) -> ConnectionLost:
        """Why `link`, which leads to `server`, was lost, once it is. Meanwhile it is probed and audited."""
        guards = [
            asyncio.create_task(_run_monitor(self.probe.run(link, server))),
            asyncio.create_task(_run_monitor(self.reconciler.run(link))),
        ]
        try:
            return await asyncio.shield(link.closed)  # who else waits for it hears of the end, not of ours
        finally:
            for guard in guards:
                guard.cancel()
            await asyncio.gather(*guards, return_exceptions=True)

    def _up(self, link: SubscriberConnection, server: Server, now: float) -> None:
        blind = 0.0 if self._lost_at is None else now - self._lost_at
        self.past_outage_seconds += blind
        self._lost_at = None
        self._up_at = now
        self.ever_connected = True
        self._reminded = ("", 0.0)
        self._link = link
        self._notice.end()
        about = {"after_seconds": round(blind, 3), "outages": self.outages} if self.outages else {}
        log.info("redis connected", redis=server.display_url, **about)
        link.start()

    def _down(self, server: Server, why: str, now: float) -> None:
        self._link = None
        self._lost_at = now
        self._notice.begin()
        self.outages += 1
        log.warning("redis lost", redis=server.display_url, why=why, outages=self.outages)
        self._events.disconnected()

    def _pause(self) -> float:
        """Seconds to the next attempt: doubling, and random, so that nodes do not come in step."""
        longest: float = min(MAX_RECONNECT_DELAY, FIRST_RECONNECT_DELAY * 2 ** min(self._attempts, 10))
        self._attempts += 1
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards no secret

    def _remind(self, why: str, now: float) -> None:
        said, when = self._reminded
        if why != said or now - when >= REMIND_EVERY:
            self._reminded = (why, now)
            missing = self.down_for or 0.0
            say = log.error if missing >= ALARM_AFTER else log.warning
            say("redis unreachable", redis=self._topology.display_url, why=why, for_seconds=round(missing, 1))


async def _run_monitor(watching: Coroutine[None, None, None]) -> None:
    """Run a guard of a link. One that fails is told of and missed, and nothing else ends with it."""
    try:
        await watching
    except Exception:
        log.exception("a guard of the link failed")
