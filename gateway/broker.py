"""The gateway's one line to Redis: keeps a link up, and is the only one that reconnects."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

import structlog

from .link import BrokerEvents, Link, LinkLost
from .topology import Topology

CONNECT_TIMEOUT: Final = 2.0
"""Seconds for TCP, TLS and HELLO together; a frozen Redis accepts connections and says nothing."""

FIRST_RETRY: Final = 0.05
LAST_RETRY: Final = 0.5
"""Seconds between attempts, at most: a crashed Redis that is back is found within half a second."""

STABLE_AFTER: Final = 5.0
"""Seconds a link must have lived for its end to be answered with the first, short pause again."""

REMIND_EVERY: Final = 30.0
"""Seconds between log lines while Redis stays away for one and the same reason."""

ALARM_AFTER: Final = 10.0
"""Seconds without Redis that are worth waking somebody for: by then registrations time out."""

STATUS_AFTER: Final = 3.0
"""Seconds without Redis after which clients are told: a restart passes within them, and pages that watch for
it begin to poll, all of them."""

log = structlog.get_logger()


class Broker:
    """Subscribes and reads on behalf of `events`, and tells it what Redis says.

    While there is no link, `subscribe`, `read` and `unsubscribe` do nothing: the next link begins with
    all that `events.connected` names, and the last one took every subscription with it.
    """

    def __init__(
        self,
        topology: Topology,
        events: BrokerEvents,
        name: str,
        clock: Callable[[], float],
        max_result_size: int = 65_536,
    ) -> None:
        """`name` is what CLIENT LIST shows; `clock` is monotonic, in seconds.

        `max_result_size` is in bytes; of a longer retained result `events` gets one byte more.
        """
        self._clock = clock
        self._max_result_size = max_result_size
        self._topology = topology
        self._events = events
        self._name = name
        self._link: Link | None = None
        self._lost_at: float | None = None
        self._started = clock()
        self._attempts = 0
        self._reminded: tuple[str, float] = ("", 0.0)
        self._degraded = False
        self._telling: asyncio.Task[None] | None = None
        self.gaps = 0
        """Times that a link was lost: whatever was published meanwhile without retention is gone."""
        self.blind_seconds = 0.0
        """How long there was no link, after there had been one, all gaps together."""
        self.ever_connected = False

    def blind_so_far(self) -> float:
        """`blind_seconds`, with the gap that goes on at present."""
        present = 0.0 if self._lost_at is None else self._clock() - self._lost_at
        return self.blind_seconds + present

    @property
    def connected(self) -> bool:
        return self._link is not None

    def subscribe(self, name: bytes) -> None:
        """SUBSCRIBE `name` and then read its retained result; `events.subscribed` or `refused` follows."""
        if self._link is not None:
            self._link.subscribe(name)

    def read(self, name: bytes) -> None:
        """Read the retained result of a subscribed `name`; `events.subscribed` or `refused` follows."""
        if self._link is not None:
            self._link.read(name)

    def unsubscribe(self, name: bytes) -> None:
        """UNSUBSCRIBE `name`; `events.unsubscribed` follows."""
        if self._link is not None:
            self._link.unsubscribe(name)

    def degraded(self, name: bytes) -> bool:
        """Whether `name` cannot be heard, for so long that `events.degraded` has been called."""
        return self._degraded

    async def run(self) -> None:
        """Keep a link up until cancelled."""
        link: Link | None = None
        self._telling = asyncio.create_task(self._tell(), name="tell that push is degraded")
        try:
            while True:
                link = Link(self._events, self._max_result_size)
                if await self._open(link):
                    started = self._clock()
                    self._up(link, started)
                    lost = await link.closed
                    self._down(str(lost), self._clock())
                    if self._clock() - started >= STABLE_AFTER:
                        self._attempts = 0
                await asyncio.sleep(self._pause())
        finally:
            self._telling.cancel()
            if link is not None:
                link.abort("the node stops")
            self._link = None

    async def _open(self, link: Link) -> bool:
        server = self._topology
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await server.open(link)
                await link.hello(server.username, server.password, server.database, self._name)
        except TimeoutError:
            self._remind(f"no answer within {CONNECT_TIMEOUT:g} s", self._clock())
        except (OSError, LinkLost) as error:
            self._remind(str(error) or type(error).__name__, self._clock())
        else:
            return True
        link.abort("not connected")
        return False

    async def _tell(self) -> None:
        """Unless a link is there in time: tell whoever waits, in shares that leave the loop to others."""
        await asyncio.sleep(STATUS_AFTER)
        self._degraded = True
        for _ in self._events.degraded(lambda _name: True):
            await asyncio.sleep(0)

    def _up(self, link: Link, now: float) -> None:
        blind = 0.0 if self._lost_at is None else now - self._lost_at
        self.blind_seconds += blind
        self._lost_at = None
        self.ever_connected = True
        self._reminded = ("", 0.0)
        self._link = link
        self._degraded = False
        if self._telling is not None:
            self._telling.cancel()
        about = {"after_seconds": round(blind, 3), "gaps": self.gaps} if self.gaps else {}
        log.info("redis connected", redis=self._topology.shown, **about)
        link.start()

    def _down(self, why: str, now: float) -> None:
        self._link = None
        self._lost_at = now
        self._telling = asyncio.create_task(self._tell(), name="tell that push is degraded")
        self.gaps += 1
        log.warning("redis lost", redis=self._topology.shown, why=why, gaps=self.gaps)
        self._events.disconnected()

    def _pause(self) -> float:
        """Seconds to the next attempt: doubling, and random, so that nodes do not come in step."""
        longest: float = min(LAST_RETRY, FIRST_RETRY * 2 ** min(self._attempts, 10))
        self._attempts += 1
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards no secret

    def _remind(self, why: str, now: float) -> None:
        said, when = self._reminded
        if why != said or now - when >= REMIND_EVERY:
            self._reminded = (why, now)
            missing = now - (self._started if self._lost_at is None else self._lost_at)
            say = log.error if missing >= ALARM_AFTER else log.warning
            say("redis unreachable", redis=self._topology.shown, why=why, for_seconds=round(missing, 1))
