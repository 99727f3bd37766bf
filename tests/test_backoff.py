"""Delays double, stay below the longest, and begin again after a success."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.backoff import Backoff


@given(st.integers(min_value=1, max_value=2_000), st.floats(0, 1))
def test_no_delay_is_longer_than_the_longest(tries: int, jitter: float) -> None:
    backoff = Backoff(0.5, 30, jitter)
    assert all(0 <= backoff.next() <= 30 for _ in range(tries))
    backoff.reset()
    assert backoff.next() <= 0.5


def test_without_jitter_delays_double() -> None:
    backoff = Backoff(0.1, 1.0, jitter=0)
    assert [backoff.next() for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_jitter_is_a_part_of_the_delay() -> None:
    ranges: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        ranges.append((low, high))
        return high

    backoff = Backoff(2.0, 4.0, jitter=0.25, draw=draw)
    backoff.next(), backoff.next()
    assert ranges == [(1.5, 2.0), (3.0, 4.0)]
