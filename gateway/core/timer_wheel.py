"""Who is due when: one timer for everybody, whatever the clock. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class TimerEntry(Protocol):
    """What a deadline can be kept for; `due` belongs to the queue, and is 0 while the item does not wait."""

    due: int


T = TypeVar("T", bound=TimerEntry)


class TimerWheel(Generic[T]):
    """Who is due when, in seconds of any clock, to a quarter of a second and never early.

    A wheel of sets: one timer for everybody instead of one each, and moving a deadline costs the
    same whether ten or a hundred thousand wait.
    """

    TICK = 0.25

    __slots__ = ("_wheel",)

    def __init__(self) -> None:
        self._wheel: dict[int, set[T]] = {}

    def set(self, item: T, when: float) -> None:
        """Make `item` due at `when`, and no longer at the time it was due before."""
        due = int(when / self.TICK) + 1
        if item.due == due:
            return
        if item.due:
            self.discard(item)
        item.due = due
        self._wheel.setdefault(due, set()).add(item)

    def discard(self, item: T) -> None:
        """Forget `item`; no harm if it is not waiting."""
        bucket = self._wheel.get(item.due)
        if bucket is not None:
            bucket.discard(item)
            if not bucket:
                del self._wheel[item.due]
        item.due = 0

    def expired(self, now: float) -> Iterator[T]:
        """Take out, one by one, those that are due; what happens meanwhile may move or forget others."""
        last = int(now / self.TICK)
        for tick in sorted(tick for tick in self._wheel if tick <= last):
            bucket = self._wheel.get(tick)
            while bucket:
                item = bucket.pop()
                item.due = 0
                yield item
            self._wheel.pop(tick, None)

    def __iter__(self) -> Iterator[T]:
        """All that wait, soonest first; a snapshot."""
        return iter([item for tick in sorted(self._wheel) for item in self._wheel[tick]])
