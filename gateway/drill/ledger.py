"""What was published and what was delivered: all figures of a drill come from this record. Pure.

Times are seconds on one monotonic clock, passed as arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True, eq=False)
class LedgerEntry:
    """One published result."""

    web_socket_id: str
    message_id: str
    attempted: float
    """When the backend first tried to publish it."""
    accepted: float | None = None
    """When Redis accepted it."""
    delivered: float | None = None
    """When it first reached its client."""
    via: int = 0
    """The address through which it came, as an index into those that clients connect to."""
    copies: int = 0

    @property
    def settled(self) -> bool:
        """Whether it is both accepted and delivered."""
        return self.accepted is not None and self.delivered is not None


class LatencySummary(NamedTuple):
    """Percentiles of the seconds from the first attempt to publish to the delivery."""

    p50: float
    p99: float
    max: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.3f} s, p99 {self.p99:.3f} s, max {self.max:.3f} s"


class Ledger:
    """All results of a drill."""

    def __init__(self) -> None:
        self.results: dict[str, LedgerEntry] = {}
        self.strays = 0
        """Results that reached the wrong client. Must stay 0, whatever breaks."""
        self.published = 0
        self.delivered = 0
        self.duplicates = 0
        self._settled = 0
        self._recent: deque[LedgerEntry] = deque()

    def attempt(self, web_socket_id: str, now: float) -> LedgerEntry:
        """Record a new result for this client."""
        message_id = f"drill-{len(self.results) + 1}"
        result = self.results[message_id] = LedgerEntry(web_socket_id, message_id, now)
        return result

    def accept(self, result: LedgerEntry, now: float) -> None:
        """Record that Redis has accepted it."""
        result.accepted = now
        self.published += 1
        self._settled += result.settled

    def deliver(self, web_socket_id: str, message_id: str, now: float, via: int) -> LedgerEntry | None:
        """Record that a client received a result. Returns the result if this is its first copy."""
        result = self.results.get(message_id)
        if result is None or result.web_socket_id != web_socket_id:
            self.strays += 1
            return None
        result.copies += 1
        if result.copies > 1:
            self.duplicates += 1
            return None
        result.delivered, result.via = now, via
        self.delivered += 1
        self._settled += result.settled
        self._recent.append(result)
        return result

    @property
    def lost(self) -> list[LedgerEntry]:
        """Accepted and not delivered. Read it once everything has settled."""
        return [r for r in self.results.values() if r.accepted is not None and r.delivered is None]

    @property
    def in_flight(self) -> int:
        """How many are not settled yet."""
        return len(self.results) - self._settled

    @property
    def unaccepted(self) -> int:
        """How many Redis has not accepted yet."""
        return len(self.results) - self.published

    def latency(
        self, start: float = 0.0, end: float = float("inf"), without: Container[str] = frozenset()
    ) -> LatencySummary:
        """Of results first attempted from `start` until before `end`, leaving out some clients."""
        return summary(
            result.delivered - result.attempted
            for result in self.results.values()
            if result.delivered is not None
            and start <= result.attempted < end
            and result.web_socket_id not in without
        )

    def recent_latency(self, since: float) -> LatencySummary | None:
        """Of results delivered since that moment, which must never go back. None if there are none."""
        while self._recent and _delivered_at(self._recent[0]) < since:
            self._recent.popleft()
        return (
            summary(_delivered_at(result) - result.attempted for result in self._recent)
            if self._recent
            else None
        )

    def first_deliveries_after(
        self, since: float, addresses: Sequence[int], counts: Callable[[str], bool] = lambda _: True
    ) -> list[float | None]:
        """For each address, the seconds after `since` at which it first delivered a result accepted after it.

        `counts` says which ids count. None for an address that has delivered none.
        """
        first: dict[int, float] = {}
        for result in self._accepted(since, float("inf")):
            if result.delivered is not None and counts(result.web_socket_id):
                first[result.via] = min(first.get(result.via, float("inf")), result.delivered)
        return [first[via] - since if via in first else None for via in addresses]

    def longest_delivery(self, start: float, end: float, counts: Callable[[str], bool]) -> float:
        """The longest time from acceptance by Redis to delivery, of results first attempted in that time."""
        return max(
            (
                result.delivered - result.accepted
                for result in self._accepted(start, float("inf"))
                if result.delivered is not None
                and result.accepted is not None
                and result.attempted < end
                and counts(result.web_socket_id)
            ),
            default=0.0,
        )

    def _accepted(self, start: float, end: float) -> Iterator[LedgerEntry]:
        return (
            result
            for result in self.results.values()
            if result.accepted is not None and start <= result.accepted < end
        )


def _delivered_at(result: LedgerEntry) -> float:
    assert result.delivered is not None
    return result.delivered


def summary(seconds: Iterable[float]) -> LatencySummary:
    """Percentiles by nearest rank; zeros if there are none."""
    ordered = sorted(seconds)
    if not ordered:
        return LatencySummary(0.0, 0.0, 0.0)
    return LatencySummary(_rank(ordered, 0.50), _rank(ordered, 0.99), ordered[-1])


def _rank(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def busiest_second(moments: Iterable[float]) -> int:
    """The largest number of these moments within one second."""
    ordered = sorted(moments)
    most = begin = 0
    for end, moment in enumerate(ordered):
        while ordered[begin] <= moment - 1.0:
            begin += 1
        most = max(most, end - begin + 1)
    return most
