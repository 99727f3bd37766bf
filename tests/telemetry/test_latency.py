"""What is timed, from when, and what wrong clocks do to it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.messages import Origin
from gateway.telemetry.latency import BOUNDS, MAX_LATENCY, Histogram, Latency

from ..wire import strategies  # noqa: F401 - sets hypothesis up

WALL = 1_700_000_000.0


class Scene:
    """A latency on clocks of the test's own; `write` is the end of the loop's turn."""

    def __init__(self) -> None:
        self.now = 5.0
        self.wall = WALL
        self.soon: list[Callable[[], None]] = []
        self.latency = Latency(self.soon.append, lambda: self.now, lambda: self.wall)

    def arrive(self, published_at: float | None = None) -> None:
        """As the hub does."""
        if not self.latency.running:
            self.latency.begin()
        self.latency.under_way += 1
        if published_at is not None:
            self.latency.origins.append(Origin(published_at, None))

    def write(self, after: float) -> None:
        self.now += after
        self.wall += after
        (call,) = self.soon
        self.soon.clear()
        call()


def count(histogram: Histogram) -> int:
    """How many durations it has."""
    return list(histogram.cumulative())[-1][1]


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_histogram_counts_what_is_not_longer_than_each_bound(durations: list[float]) -> None:
    histogram = Histogram()
    for seconds in durations:
        histogram.observe(seconds)
    expected = [(bound, sum(each <= bound for each in durations)) for bound in (*BOUNDS, math.inf)]
    assert list(histogram.cumulative()) == expected
    assert count(histogram) == len(durations)
    assert histogram.sum == pytest.approx(sum(durations))


def test_results_that_came_together_took_as_long_as_the_last() -> None:
    scene = Scene()
    for _ in range(3):
        scene.arrive()
    scene.write(0.004)
    scene.arrive()
    scene.write(0.3)
    assert count(scene.latency.from_arrival) == 4
    assert scene.latency.from_arrival.sum == pytest.approx(0.312)
    assert count(scene.latency.from_publisher) == 0


def test_what_says_when_it_was_published_is_timed_from_then() -> None:
    scene = Scene()
    scene.arrive(WALL - 0.2)
    scene.arrive()
    scene.write(0.01)
    assert scene.latency.from_publisher.sum == pytest.approx(0.21)
    assert (count(scene.latency.from_publisher), count(scene.latency.from_arrival)) == (1, 1)
    assert scene.latency.clock_skews == 0


@pytest.mark.parametrize("published_at", [WALL + 0.5, WALL - MAX_LATENCY - 1, 0.001, -math.inf, 1e300])
def test_no_clock_makes_a_result_faster_than_its_time_in_the_node_or_take_for_ever(
    published_at: float,
) -> None:
    scene = Scene()
    scene.arrive(published_at)
    scene.write(0.01)
    assert scene.latency.from_publisher.sum == pytest.approx(0.01)
    assert count(scene.latency.from_publisher) == 1
    assert scene.latency.clock_skews == 1
