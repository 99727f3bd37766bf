"""What was published and what arrived: a plain record, from which all figures of a drill come. Pure.

Times are seconds on one monotonic clock; they are arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True, eq=False)
class LedgerEntry:
    """One published result on its way."""

    web_socket_id: str
    message_id: str
    attempted: float
    """When the backend first tried to publish it."""
    acknowledged: float | None = None
    """When Redis had accepted it."""
    delivered: float | None = None
    """When it first reached its client."""
    part: int = 0
    """Through which of the places that clients connect to it came."""
    copies: int = 0

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.acknowledged is not None and self.delivered is not None


class Late(NamedTuple):
    """Seconds from the first attempt to publish until the client had it."""

    p50: float
    p99: float
    max: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.3f} s, p99 {self.p99:.3f} s, max {self.max:.3f} s"


class Ledger:
    """Every result of a drill."""

    def __init__(self) -> None:
        self.results: dict[str, LedgerEntry] = {}
        self.strays = 0
        """Results that reached a client for whom they were not: must not happen, whatever breaks."""
        self.published = 0
        self.delivered = 0
        self.duplicates = 0
        self._settled = 0
        self._recent: deque[LedgerEntry] = deque()

    def attempt(self, web_socket_id: str, now: float) -> LedgerEntry:
        """A new result for this client."""
        message_id = f"drill-{len(self.results) + 1}"
        result = self.results[message_id] = LedgerEntry(web_socket_id, message_id, now)
        return result

    def acknowledge(self, result: LedgerEntry, now: float) -> None:
        """Redis has accepted it."""
        result.acknowledged = now
        self.published += 1
        self._settled += result.settled

    def deliver(self, web_socket_id: str, message_id: str, now: float, part: int) -> LedgerEntry | None:
        """A client got a result; returns it if it is its first copy."""
        result = self.results.get(message_id)
        if result is None or result.web_socket_id != web_socket_id:
            self.strays += 1
            return None
        result.copies += 1
        if result.copies > 1:
            self.duplicates += 1
            return None
        result.delivered, result.part = now, part
        self.delivered += 1
        self._settled += result.settled
        self._recent.append(result)
        return result

    @property
    def lost(self) -> list[LedgerEntry]:
        """Those that Redis has accepted and no client got; to be asked once everything has settled."""
        return [r for r in self.results.values() if r.acknowledged is not None and r.delivered is None]

    @property
    def unsettled(self) -> int:
        """How many are on their way."""
        return len(self.results) - self._settled

    @property
    def unaccepted(self) -> int:
        """How many Redis has not accepted."""
        return len(self.results) - self.published

    def late(
        self, start: float = 0.0, end: float = float("inf"), without: Container[str] = frozenset()
    ) -> Late:
        """How late those were that were first tried from `start` until before `end`, but for some clients."""
        return late(
            result.delivered - result.attempted
            for result in self.results.values()
            if result.delivered is not None
            and start <= result.attempted < end
            and result.web_socket_id not in without
        )

    def recently_late(self, since: float) -> Late | None:
        """How late those were that have come since that moment, which never goes back; None if none has."""
        while self._recent and _delivered(self._recent[0]) < since:
            self._recent.popleft()
        return (
            late(_delivered(result) - result.attempted for result in self._recent) if self._recent else None
        )

    def heard_again(
        self, since: float, parts: Sequence[int], about: Callable[[str], bool] = lambda _: True
    ) -> list[float | None]:
        """For each part the seconds after `since` at which it first delivered a result accepted after that.

        `about` chooses the ids that count. None for a part that has delivered none.
        """
        first: dict[int, float] = {}
        for result in self._accepted(since, float("inf")):
            if result.delivered is not None and about(result.web_socket_id):
                first[result.part] = min(first.get(result.part, float("inf")), result.delivered)
        return [first[part] - since if part in first else None for part in parts]

    def longest_way(self, start: float, end: float, about: Callable[[str], bool]) -> float:
        """The longest time from Redis's acceptance to the client, of results first tried in that time."""
        return max(
            (
                result.delivered - result.acknowledged
                for result in self._accepted(start, float("inf"))
                if result.delivered is not None
                and result.acknowledged is not None
                and result.attempted < end
                and about(result.web_socket_id)
            ),
            default=0.0,
        )

    def _accepted(self, start: float, end: float) -> Iterator[LedgerEntry]:
        return (
            result
            for result in self.results.values()
            if result.acknowledged is not None and start <= result.acknowledged < end
        )


def _delivered(result: LedgerEntry) -> float:
    assert result.delivered is not None
    return result.delivered


def late(seconds: Iterable[float]) -> Late:
    """Percentiles by nearest rank; zeros for none."""
    ordered = sorted(seconds)
    if not ordered:
        return Late(0.0, 0.0, 0.0)
    return Late(_rank(ordered, 0.50), _rank(ordered, 0.99), ordered[-1])


def _rank(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def busiest_second(moments: Iterable[float]) -> int:
    """The most of these moments that lie within one second."""
    ordered = sorted(moments)
    most = begin = 0
    for end, moment in enumerate(ordered):
        while ordered[begin] <= moment - 1.0:
            begin += 1
        most = max(most, end - begin + 1)
    return most
