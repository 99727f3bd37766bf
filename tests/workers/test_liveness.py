"""When a worker counts as hung, and when it is replaced."""

from __future__ import annotations

from gateway.workers.liveness import FIRST_PAUSE, HUNG, LAST_PAUSE, QUIET, STABLE, Backoff, Pulse


def test_a_pulse_that_stops() -> None:
    pulse = Pulse()
    looks = []
    for _ in range(HUNG + 1):
        pulse.look()
        looks.append((pulse.quiet, pulse.hung))
    assert looks.index((True, False)) == QUIET
    assert looks.index((True, True)) == HUNG
    pulse.beat()
    assert not pulse.quiet


def test_a_machine_that_stood_still_has_missed_one_look() -> None:
    pulse = Pulse()
    for _ in range(1_000):  # hours pass between two of them, for both
        pulse.look()
        assert not pulse.quiet
        pulse.beat()


def test_pauses_double_while_no_life_lasts() -> None:
    backoff = Backoff()
    pauses = [backoff.pause(1.0) for _ in range(12)]
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LAST_PAUSE
    assert backoff.pause(STABLE) == FIRST_PAUSE
    assert backoff.pause(1.0) == FIRST_PAUSE
    assert backoff.pause(1.0) == 2 * FIRST_PAUSE
