"""Deadlines of many objects, with one timer for all of them. Pure: the time is an argument."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar


class TimerEntry(Protocol):
    """An object with a deadline. The wheel owns `due`, which is 0 while the object has no deadline."""

    due: int


T = TypeVar("T", bound=TimerEntry)


class TimerWheel(Generic[T]):
    """Deadlines in seconds of any clock, to a quarter of a second and never early.

    A wheel of sets: the cost of moving a deadline does not depend on the number of objects.
    """

    TICK: Final = 0.25

    __slots__ = ("_wheel",)

    def __init__(self) -> None:
        self._wheel: dict[int, set[T]] = {}

    def set(self, item: T, when: float) -> None:
        """Set the deadline of `item` to `when`, instead of an earlier one."""
        due = int(when / self.TICK) + 1
        if item.due == due:
            return
        if item.due:
            self.discard(item)
        item.due = due
        bucket = self._wheel.get(due)
        if bucket is None:
            bucket = self._wheel[due] = set()
        bucket.add(item)

    def discard(self, item: T) -> None:
        """Remove the deadline of `item`. It does no harm if there is none."""
        bucket = self._wheel.get(item.due)
        if bucket is not None:
            bucket.discard(item)
            if not bucket:
                del self._wheel[item.due]
        item.due = 0

    def expired(self, now: float) -> Iterator[T]:
        """Remove and yield those that are due, one by one. Deadlines may change between two of them."""
        last = int(now / self.TICK)
        for tick in sorted(tick for tick in self._wheel if tick <= last):
            bucket = self._wheel.get(tick)
            while bucket:
                item = bucket.pop()
                item.due = 0
                yield item
            self._wheel.pop(tick, None)

    def __iter__(self) -> Iterator[T]:
        """A snapshot of all objects with a deadline, soonest first."""
        return iter([item for tick in sorted(self._wheel) for item in self._wheel[tick]])
