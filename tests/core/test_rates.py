"""What clients pay, and how long an address that has paid too much must wait; time is an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Config
from gateway.core.rates import BURST, MAX_DELAY, TOO_LONG, AddressBudgets, Prices

from ..wire import strategies  # noqa: F401 - sets hypothesis up

PRICES = Prices.of(Config())
REGISTRATION = 4 * PRICES.message + 800 * PRICES.byte + PRICES.request
"""CONNECT, two SUBSCRIBE and SEND on a new connection."""


def test_prices_of_the_default_settings() -> None:
    assert pytest.approx(Prices(0.05, 1 / 32_768, 0.05 / 16, 0.2, 0.975)) == PRICES


@given(st.floats(1, 10_000), st.integers(1_024, 1_048_576))
def test_the_largest_message_costs_half_a_second_whatever_the_settings(rate: float, size: int) -> None:
    prices = Prices.of(Config(messages_per_second=rate, max_message_size=size))
    assert prices.byte * size == pytest.approx(0.5)
    assert 0 < prices.early < 1


def test_all_sessions_that_an_address_may_have_register_at_once() -> None:
    budgets = AddressBudgets(1_000)
    assert {budgets.charge("a", REGISTRATION, 5.0) for _ in range(1_000)} == {0.0}


def test_they_answer_their_pings_for_ever() -> None:
    budgets = AddressBudgets(1_000)
    assert {budgets.charge("a", PRICES.message, now / 40) for now in range(100_000)} == {0.0}


def test_an_address_that_sends_too_much_waits_and_no_other() -> None:
    budgets = AddressBudgets(1_000)
    flood = [budgets.charge("a", PRICES.message, 5.0) for _ in range(11_000)]
    assert flood[9_000] == 0.0
    assert flood[-1] == pytest.approx(1.0), "a thousand messages too many, at a thousand a second"
    assert budgets.charge("b", PRICES.message, 5.0) == 0.0
    assert budgets.charge("a", PRICES.message, 7.0) == 0.0


def test_nobody_pays_for_long_after_an_attack() -> None:
    budgets = AddressBudgets(1_000)
    for _ in range(1_000):
        budgets.charge("a", 1_000.0, 5.0)
    assert TOO_LONG < budgets.charge("a", PRICES.message, 5.0) < MAX_DELAY + 1e-9
    assert budgets.charge("a", PRICES.message, 5.0 + MAX_DELAY + 1) == 0.0


def test_a_small_limit_of_sessions_leaves_a_budget_for_ten() -> None:
    budgets = AddressBudgets(1)
    assert {budgets.charge("a", 1.0, 5.0) for _ in range(int(10 * BURST))} == {0.0}
    assert budgets.charge("a", 1.0, 5.0) > 0


def test_without_a_limit_of_sessions_nobody_waits_and_nothing_is_kept() -> None:
    budgets = AddressBudgets(0)
    assert budgets.charge("a", 1_000_000.0, 5.0) == 0.0
    assert len(budgets) == 0


def test_addresses_that_have_paid_are_forgotten() -> None:
    budgets = AddressBudgets(1_000)
    for number in range(100_000):
        budgets.charge(str(number), PRICES.message, number / 1_000)
    assert len(budgets) <= 1_100
    for number in range(100_000):
        budgets.charge(str(number), 100.0, 1_000.0)
    assert len(budgets) >= 100_000, "these have not"
