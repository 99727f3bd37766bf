"""Now and then: is what Redis has subscribed for a link what the table believes?

It should be, always; each confirmation is checked as it comes. But a login hangs on each of these channels,
and Redis can be asked. Two answers are held against the table, at a moment when no question is open: how many
channels the connection has (CLIENT INFO), and for a share of the ids whether anybody has subscribed them at
all (PUBSUB NUMSUB). An id that is missing is subscribed again, and its retained result read. With more
channels than there should be, it is unknown which, so the link is given up and the next one begins anew.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any, Final

import structlog

from .connection import ConnectionLost, ReplyError
from .events import SubscriberEvents
from .subscriber import SUBSCRIBE_BATCH, SubscriberConnection

RECONCILE_INTERVAL: Final = 60.0
"""Seconds between two audits of a link."""

BATCHES_PER_RUN: Final = 20
"""Batches of ids in one audit: 10,000, some 5 ms of Redis's time in all. The next audit has the next ones."""

IDLE_POLL: Final = 0.05
"""Seconds after which it looks again whether a question is open."""

CONFIRMATIONS: Final = 3
"""Numbers that must differ one after another before they are believed to."""

RECHECK_DELAY: Final = 0.5
"""Seconds between two of them: when a slot has moved, its old master takes a moment to let go of channels."""

log = structlog.get_logger()


class Reconciler:
    """Of one link after another."""

    def __init__(self, events: SubscriberEvents) -> None:
        self._events = events
        self._position = 0
        self.runs = 0
        """Audits so far."""
        self.repaired = 0
        """Channels that differed, so far. It should stay 0."""

    async def run(self, link: SubscriberConnection) -> None:
        """Audit `link` every now and then until it is lost, or until Redis forbids to ask."""
        while not link.closed.done():
            await asyncio.sleep(RECONCILE_INTERVAL)
            try:
                await self.run_once(link)
            except ReplyError as refusal:
                log.warning("audit not possible", why=str(refusal))
                return
            except ConnectionLost:
                return

    async def run_once(self, link: SubscriberConnection) -> None:
        """Once. Raises LinkLost, and Refusal when the node's user may not ask."""
        tries = 1
        while (surplus := await self._surplus(link)) and tries < CONFIRMATIONS:
            tries += 1
            await asyncio.sleep(RECHECK_DELAY)
        missing = await self._missing(link, everybody=surplus != 0)
        for name in missing:
            self._events.lost(name)
        self.repaired += len(missing)
        self.runs += 1
        if missing:
            log.error("audit: ids that were not subscribed are again", ids=len(missing))
        differ = surplus + len(missing)
        if differ:  # too few: somebody else holds the id that is missing, so that Redis does not tell which
            self.repaired += abs(differ)
            word = "more" if differ > 0 else "less"
            log.error("audit: another number is subscribed than should be", channels=differ)
            link.abort(f"{word} is subscribed on it than should be")

    async def _surplus(self, link: SubscriberConnection) -> int:
        """How many channels more the connection has than the table believes."""
        while True:
            while not link.idle:  # noqa: ASYNC110 - somebody registers; the link has nobody to tell
                await asyncio.sleep(IDLE_POLL)
            surplus: int | None = await link.execute("CLIENT", "INFO", decode=partial(self._compare, link))
            if surplus is not None:
                return surplus

    def _compare(self, link: SubscriberConnection, information: bytes) -> int | None:
        """The same at the moment of the answer; None if a question is open again, so that it says nothing."""
        found = re.search(re.escape(link.commands.info_field) + rb"([0-9]+)", information)
        if found is None or not link.idle:
            return None if found else 0
        return int(found[1]) - self._events.count_confirmed() - len(link.service_channels)

    async def _missing(self, link: SubscriberConnection, *, everybody: bool) -> list[bytes]:
        """Of the ids whose turn it is, or of everybody's, those that Redis has no subscriber for."""
        names = self._events.confirmed()
        first = 0 if everybody or self._position >= len(names) else self._position
        last = len(names) if everybody else min(len(names), first + BATCHES_PER_RUN * SUBSCRIBE_BATCH)
        self._position = last
        missing: list[bytes] = []
        for start in range(first, last, SUBSCRIBE_BATCH):
            batch = names[start : min(last, start + SUBSCRIBE_BATCH)]
            missing += await link.execute("PUBSUB", link.commands.numsub, *batch, decode=self._unheard)
        return missing

    def _unheard(self, answer: dict[bytes, int] | list[Any]) -> list[bytes]:
        """The channels without subscribers that should have us, at the moment of the answer."""
        numbers = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
        return [name for name, number in numbers if not number and self._events.is_confirmed(name)]
