"""Durations in histograms: above all, of a result from publishing to the socket. Pure.

Results that arrive together are timed together, once all of them are written: one reading of the clock a
batch, and the time of the last result counts for all of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from ..messages import Origin

BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. A result takes half a millisecond through an idle Redis and an idle node."""

MAX_LATENCY: Final = 60.0
"""Seconds that a result can have taken: a connection that is silent for 4 s is dropped, and Redis drops a
subscriber that is slower than this. If a result seems to have taken longer, clocks differ."""


class Histogram:
    """Durations in seconds: how many were up to each bound, and their sum."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float] = BOUNDS) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """Count `count` durations of `seconds` each."""
        self._counts[bisect_left(self.bounds, seconds)] += count
        self.sum += seconds * count

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """For each bound, infinity at the end, the number of durations up to it."""
        return zip((*self.bounds, float("inf")), accumulate(self._counts), strict=True)


class Latency:
    """From publishing to the socket, for results that are not retained. Before a delivery, the caller does:

        if not latency.running:
            latency.begin()
        latency.under_way += 1
        if result.origin is not None:
            latency.origins.append(result.origin)

    On this hot path, these lines cost a third of a call.
    """

    __slots__ = (
        "_clock",
        "_soon",
        "_start",
        "_trace",
        "_wall",
        "clock_skews",
        "from_arrival",
        "from_publisher",
        "origins",
        "running",
        "under_way",
    )

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], float],
        wall: Callable[[], float],
        trace: Callable[[Origin, float, float], None] | None = None,
    ) -> None:
        """`soon` calls a function after what is written now has reached the kernel.

        `clock` is monotonic and `wall` the time since 1970, both in seconds and finer than a millisecond.
        `trace` gets each result's origin, and when it arrived and was written, in seconds since 1970.
        """
        self._trace = trace
        self._soon = soon
        self._clock = clock
        self._wall = wall
        self._start = 0.0
        self.running = False
        """Whether results are being written that are not timed yet."""
        self.under_way = 0
        """Their number."""
        self.origins: list[Origin] = []
        """The origins of those that have one."""
        self.from_publisher = Histogram()
        """Of results that say when they were published."""
        self.from_arrival = Histogram()
        """Of all others, since Redis's bytes reached the node."""
        self.clock_skews = 0
        """Results whose publisher's clock differs from this node's."""

    def begin(self) -> None:
        """Begin a batch: its first result is about to be written."""
        self.running = True
        self._start = self._clock()
        self._soon(self._written)

    def _written(self) -> None:
        taken = self._clock() - self._start
        count, origins = self.under_way, self.origins
        self.running, self.under_way = False, 0
        if origins:
            self.origins = []
            count -= self._observe_all(origins, taken)
        if count:
            self.from_arrival.observe(taken, count)

    def _observe_all(self, origins: list[Origin], taken: float) -> int:
        """Time the results that have an origin; returns how many of them say when they were published."""
        wall = self._wall()
        stamps = [origin.published_at for origin in origins if origin.published_at is not None]
        for published_at in stamps:
            self._observe(wall - published_at, taken)
        if self._trace is not None:
            for origin in origins:
                self._trace(origin, wall - taken, wall)
        return len(stamps)

    def _observe(self, total: float, in_node: float) -> None:
        """Count a result that took `total` seconds by two clocks, `in_node` of them by this node's alone.

        Even good clocks differ by milliseconds. If `total` is less than `in_node` or impossibly long,
        `in_node` counts.
        """
        if in_node <= total <= MAX_LATENCY:
            self.from_publisher.observe(total)
        else:
            self.clock_skews += 1
            self.from_publisher.observe(in_node)
