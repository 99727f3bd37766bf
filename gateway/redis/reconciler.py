"""Compares, once a minute, the channels that Redis has subscribed with the channels of the table.

They should always be the same; each confirmation is checked when it arrives. But a login depends on each of
these channels, so Redis is asked as well. Two numbers are compared while no command is open: the channels of
the connection (CLIENT INFO), and for a part of the ids whether anybody has subscribed them at all (PUBSUB
NUMSUB). A missing id is subscribed again, and its retained result read. If Redis has more channels than the
table, nothing tells which they are: the connection is dropped, and the next one subscribes everything again.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any, Final

import structlog

from .connection import ConnectionLost, ReplyError
from .events import SubscriberEvents
from .history import SUBSCRIBE_BATCH
from .subscriber import SubscriberConnection

RECONCILE_INTERVAL: Final = 60.0
"""Seconds between two runs."""

BATCHES_PER_RUN: Final = 20
"""Batches of ids in one run: 10,000 ids, some 5 ms of Redis's time in all. The next run has the next ones."""

IDLE_POLL: Final = 0.05
"""Seconds between two looks at whether a command is open."""

CONFIRMATIONS: Final = 3
"""Consecutive mismatches needed before acting."""

RECHECK_DELAY: Final = 0.5
"""Seconds between two of them: when a slot has moved, its old master takes a moment to drop the channels."""

log = structlog.get_logger()


class Reconciler:
    """Checks one connection after another."""

    def __init__(self, events: SubscriberEvents) -> None:
        self._events = events
        self._position = 0
        self.runs = 0
        """Runs so far."""
        self.repaired = 0
        """Channels that differed, so far. It should stay 0."""

    async def run(self, connection: SubscriberConnection) -> None:
        """Check `connection` once a minute until it is lost, or until Redis denies the commands."""
        while not connection.closed.done():
            await asyncio.sleep(RECONCILE_INTERVAL)
            try:
                await self.run_once(connection)
            except ReplyError as error:
                numsub = connection.commands.numsub.lower()
                hint = f"give the node's Redis user +client|info and +pubsub|{numsub}"
                log.warning("reconciler: command denied", reason=str(error), hint=hint)
                return
            except ConnectionLost:
                return

    async def run_once(self, connection: SubscriberConnection) -> None:
        """One run. Raises ConnectionLost, and ReplyError when the node's user may not run the commands."""
        tries = 1
        while (surplus := await self._surplus(connection)) and tries < CONFIRMATIONS:
            tries += 1
            await asyncio.sleep(RECHECK_DELAY)
        missing = await self._missing(connection, everybody=surplus != 0)
        for name in missing:
            self._events.lost(name)
        self.repaired += len(missing)
        self.runs += 1
        if missing:
            log.error("reconciler: subscriptions missing", ids=len(missing))
        difference = surplus + len(missing)
        if difference:  # if negative, another node has the missing id too, so that Redis does not tell which
            self.repaired += abs(difference)
            log.error("reconciler: subscription count differs from Redis", channels=difference)
            which = "more" if difference > 0 else "fewer"
            connection.abort(f"Redis has {which} channels subscribed on it than the node")

    async def _surplus(self, connection: SubscriberConnection) -> int:
        """How many channels the connection has in Redis beyond those of the table."""
        while True:
            while not connection.idle:  # noqa: ASYNC110 - the hot path signals no event for this rare check
                await asyncio.sleep(IDLE_POLL)
            compare = partial(self._compare, connection)
            surplus: int | None = await connection.execute("CLIENT", "INFO", decode=compare)
            if surplus is not None:
                return surplus

    def _compare(self, connection: SubscriberConnection, information: bytes) -> int | None:
        """The surplus at the moment of the reply; None if another command is open, which may change it."""
        found = re.search(re.escape(connection.commands.info_field) + rb"([0-9]+)", information)
        if found is None or not connection.idle:
            return None if found else 0
        return int(found[1]) - self._events.count_confirmed() - len(connection.service_channels)

    async def _missing(self, connection: SubscriberConnection, *, everybody: bool) -> list[bytes]:
        """The ids without a subscriber in Redis, among the next part of the ids or among all of them."""
        names = self._events.confirmed()
        first = 0 if everybody or self._position >= len(names) else self._position
        last = len(names) if everybody else min(len(names), first + BATCHES_PER_RUN * SUBSCRIBE_BATCH)
        self._position = last
        missing: list[bytes] = []
        for start in range(first, last, SUBSCRIBE_BATCH):
            batch = names[start : min(last, start + SUBSCRIBE_BATCH)]
            numsub, decode = connection.commands.numsub, self._without_subscriber
            missing += await connection.execute("PUBSUB", numsub, *batch, decode=decode)
        return missing

    def _without_subscriber(self, reply: dict[bytes, int] | list[Any]) -> list[bytes]:
        """The channels without subscribers that should have this node, at the moment of the reply."""
        counts = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        return [name for name, count in counts if not count and self._events.is_confirmed(name)]
