"""How long things take, counted in buckets: a result from its publishing to the socket. Pure.

Results that arrive together are timed together, once all of them are written: one look at the clock for each
batch, and the time of the last for each of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from .messages import Result

BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. A result takes half a millisecond through Redis and the node when both are idle."""

LONGEST: Final = 60.0
"""Seconds that a live result can have been on its way: a link that is silent for 4 s is dropped, and Redis
drops a subscriber that is slower than this. What seems to have taken longer was stamped by a wrong clock."""


class Histogram:
    """Durations in seconds: how many were up to each bound, and their sum."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float] = BOUNDS) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """`count` of them took `seconds` each."""
        self._counts[bisect_left(self.bounds, seconds)] += count
        self.sum += seconds * count

    @property
    def count(self) -> int:
        return sum(self._counts)

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """For each bound, infinity at the end, how many were not longer."""
        return zip((*self.bounds, float("inf")), accumulate(self._counts), strict=True)


class Latency:
    """From publishing to the socket: hand each live result to it, just before it is written."""

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`soon` calls a function when what is being written now is with the kernel.

        `clock` is monotonic and `wall` the time since 1970, both in seconds and finer than a millisecond.
        """
        self._soon = soon
        self._clock = clock
        self._wall = wall
        self._arrived = 0.0
        self._results: list[Result] = []
        self.from_publisher = Histogram()
        """Of results that say when they were published."""
        self.from_arrival = Histogram()
        """Of all others, from when Redis's bytes reached the node."""
        self.wrong_clocks = 0
        """Results whose publisher's clock, or this node's, was seen to be wrong."""

    def __call__(self, result: Result) -> None:
        if not self._results:
            self._arrived = self._clock()
            self._soon(self._written)
        self._results.append(result)

    def _written(self) -> None:
        results, self._results = self._results, []
        taken, wall = self._clock() - self._arrived, self._wall()
        stamped = [result.published_at for result in results if result.published_at is not None]
        for published_at in stamped:
            self._observe(wall - published_at, taken)
        if len(stamped) < len(results):
            self.from_arrival.observe(taken, len(results) - len(stamped))

    def _observe(self, on_its_way: float, in_node: float) -> None:
        """It has been on its way so long by two clocks, and in this node for so long by one.

        Clocks differ by milliseconds even where they are kept well. Nothing can have taken less than its time
        in the node, so that is what counts then; likewise when it seems to have taken for ever.
        """
        if in_node <= on_its_way <= LONGEST:
            self.from_publisher.observe(on_its_way)
        else:
            self.wrong_clocks += 1
            self.from_publisher.observe(in_node)
