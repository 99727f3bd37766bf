"""How long things take, counted in buckets: a result from its publishing to the socket. Pure.

Results that arrive together are timed together, once all of them are written: one look at the clock for each
batch, and the time of the last for each of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from ..messages import Origin

BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. A result takes half a millisecond through Redis and the node when both are idle."""

MAX_LATENCY: Final = 60.0
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
    """From publishing to the socket, for live results. Whoever delivers one says so just before:

        if not latency.running:
            latency.begin()
        latency.under_way += 1
        if result.origin is not None:
            latency.origins.append(result.origin)

    It is a hot path, and these lines cost a third of a call.
    """

    __slots__ = (
        "_clock",
        "_soon",
        "_start",
        "_trace",
        "_wall",
        "from_arrival",
        "from_publisher",
        "origins",
        "running",
        "under_way",
        "wrong_clocks",
    )

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], float],
        wall: Callable[[], float],
        trace: Callable[[Origin, float, float], None] | None = None,
    ) -> None:
        """`soon` calls a function when what is being written now is with the kernel.

        `clock` is monotonic and `wall` the time since 1970, both in seconds and finer than a millisecond.
        `trace` gets each result's origin, and when it arrived and was written, in seconds since 1970.
        """
        self._trace = trace
        self._soon = soon
        self._clock = clock
        self._wall = wall
        self._start = 0.0
        self.running = False
        """Whether results are being written, whose time is not known yet."""
        self.under_way = 0
        """How many they are."""
        self.origins: list[Origin] = []
        """What some of them say of where they come from."""
        self.from_publisher = Histogram()
        """Of results that say when they were published."""
        self.from_arrival = Histogram()
        """Of all others, from when Redis's bytes reached the node."""
        self.wrong_clocks = 0
        """Results whose publisher's clock, or this node's, was seen to be wrong."""

    def begin(self) -> None:
        """The first of the results that have come together is about to be written."""
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
        """How many of them say when they were published."""
        wall = self._wall()
        stamps = [origin.published_at for origin in origins if origin.published_at is not None]
        for published_at in stamps:
            self._observe(wall - published_at, taken)
        if self._trace is not None:
            for origin in origins:
                self._trace(origin, wall - taken, wall)
        return len(stamps)

    def _observe(self, on_its_way: float, in_node: float) -> None:
        """It has been on its way so long by two clocks, and in this node for so long by one.

        Clocks differ by milliseconds even where they are kept well. Nothing can have taken less than its time
        in the node, so that is what counts then; likewise when it seems to have taken for ever.
        """
        if in_node <= on_its_way <= MAX_LATENCY:
            self.from_publisher.observe(on_its_way)
        else:
            self.wrong_clocks += 1
            self.from_publisher.observe(in_node)
