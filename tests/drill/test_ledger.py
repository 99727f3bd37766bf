"""The record from which the figures of a drill come."""

from __future__ import annotations

import pytest

from gateway.drill.ledger import LatencySummary, Ledger, LedgerEntry, busiest_second, summary


def published(ledger: Ledger, name: str, at: float, took: float = 0.0) -> LedgerEntry:
    """A result for `name` that Redis has accepted `took` seconds after the first attempt."""
    result = ledger.attempt(name, at)
    ledger.accept(result, at + took)
    return result


def arrived(ledger: Ledger, result: LedgerEntry, at: float, via: int = 0) -> LedgerEntry | None:
    return ledger.deliver(result.web_socket_id, result.message_id, at, via)


def test_a_result_is_in_flight_until_it_is_both_accepted_and_delivered() -> None:
    ledger = Ledger()
    result = ledger.attempt("a", 1.0)
    assert (ledger.in_flight, ledger.unaccepted) == (1, 1)
    assert arrived(ledger, result, 1.1) is result
    assert ledger.in_flight == 1, "the backend has no answer yet, and tries again"
    ledger.accept(result, 1.2)
    assert (ledger.in_flight, ledger.unaccepted, ledger.published, ledger.delivered) == (0, 0, 1, 1)
    published(ledger, "b", 2.0)
    assert ledger.in_flight == 1


def test_what_was_accepted_and_never_came_is_lost() -> None:
    ledger = Ledger()
    lost, came = published(ledger, "a", 1.0), published(ledger, "b", 1.0)
    ledger.attempt("c", 1.0)  # Redis never took it: nothing was promised
    arrived(ledger, came, 1.5)
    assert ledger.lost == [lost]


def test_second_copies_and_other_peoples_results_are_told_apart() -> None:
    ledger = Ledger()
    result = published(ledger, "a", 1.0)
    assert arrived(ledger, result, 1.1) is result
    assert arrived(ledger, result, 1.2) is None
    assert (ledger.delivered, ledger.duplicates, ledger.strays) == (1, 1, 0)
    assert result.delivered == 1.1
    assert ledger.deliver("b", result.message_id, 1.3, 0) is None
    assert ledger.deliver("a", "unheard-of", 1.3, 0) is None
    assert (ledger.delivered, ledger.duplicates, ledger.strays) == (1, 1, 2)


def test_latency_counts_from_the_first_attempt() -> None:
    ledger = Ledger()
    for at, took, name in [(1.0, 0.1, "a"), (2.0, 3.0, "b"), (6.0, 0.2, "c")]:
        arrived(ledger, published(ledger, name, at, took), at + took)
    published(ledger, "never", 7.0)
    assert ledger.latency().max == pytest.approx(3.0)
    assert ledger.latency(1.0, 2.0).max == pytest.approx(0.1), "the end is not within"
    assert ledger.latency(without={"b"}).max == pytest.approx(0.2)
    assert ledger.latency(100.0) == LatencySummary(0.0, 0.0, 0.0)


def test_recent_latency_forgets() -> None:
    ledger = Ledger()
    assert ledger.recent_latency(0.0) is None
    arrived(ledger, published(ledger, "a", 1.0), 1.5)
    arrived(ledger, published(ledger, "b", 2.0), 2.25)
    both = ledger.recent_latency(1.0)
    assert both is not None
    assert both.max == 0.5
    assert ledger.recent_latency(2.0) == LatencySummary(0.25, 0.25, 0.25)
    assert ledger.recent_latency(3.0) is None


def test_the_first_delivery_of_a_result_accepted_after_the_moment() -> None:
    ledger = Ledger()
    arrived(ledger, published(ledger, "before", 9.0), 10.1, via=0)  # accepted before: says nothing
    arrived(ledger, published(ledger, "a", 8.0, took=2.1), 10.4, via=0)
    arrived(ledger, published(ledger, "b", 10.2), 10.3, via=0)
    arrived(ledger, published(ledger, "c", 10.5), 10.7, via=1)
    published(ledger, "d", 10.5)
    assert ledger.first_deliveries_after(10.0, [0, 1, 2]) == [pytest.approx(0.3), pytest.approx(0.7), None]
    assert ledger.first_deliveries_after(10.0, [0], lambda name: name == "a") == [pytest.approx(0.4)]


def test_the_longest_delivery_is_from_redis_to_the_client() -> None:
    ledger = Ledger()
    arrived(ledger, published(ledger, "a", 1.0, took=5.0), 6.2)
    arrived(ledger, published(ledger, "b", 2.0), 2.1)
    arrived(ledger, published(ledger, "other", 2.0), 9.0)
    arrived(ledger, published(ledger, "afterwards", 4.0), 9.0)
    assert ledger.longest_delivery(1.0, 3.0, lambda name: name != "other") == pytest.approx(0.2)
    assert ledger.longest_delivery(1.0, 3.0, lambda _: False) == 0.0


def test_percentiles_are_by_nearest_rank() -> None:
    assert summary(number / 100 for number in range(1, 101)) == LatencySummary(0.51, 1.0, 1.0)
    assert summary([7.0]) == LatencySummary(7.0, 7.0, 7.0)
    assert str(LatencySummary(0.0, 0.0126, 3.0)) == "p50 0.000 s, p99 0.013 s, max 3.000 s"


@pytest.mark.parametrize(
    ("moments", "most"),
    [([], 0), ([5.0], 1), ([0.0, 0.5, 0.99, 1.5, 9.0], 3), ([3.0, 1.0, 2.0], 1), ([0.4, 0.9, 1.3, 1.39], 4)],
)
def test_busiest_second(moments: list[float], most: int) -> None:
    assert busiest_second(moments) == most
