"""When a worker counts as hung, and when it is replaced."""

from __future__ import annotations

from gateway.workers.liveness import (
    FIRST_PAUSE,
    HUNG_AFTER,
    LAST_PAUSE,
    SILENT_AFTER,
    STABLE_SECONDS,
    Backoff,
    Heartbeat,
)


def test_a_pulse_that_stops() -> None:
    pulse = Heartbeat()
    looks = []
    for _ in range(HUNG_AFTER + 1):
        pulse.look()
        looks.append((pulse.quiet, pulse.hung))
    assert looks.index((True, False)) == SILENT_AFTER
    assert looks.index((True, True)) == HUNG_AFTER
    pulse.beat()
    assert not pulse.quiet


def test_a_machine_that_stood_still_has_missed_one_look() -> None:
    pulse = Heartbeat()
    for _ in range(1_000):  # hours pass between two of them, for both
        pulse.look()
        assert not pulse.quiet
        pulse.beat()


def test_pauses_double_while_no_life_lasts() -> None:
    backoff = Backoff()
    pauses = [backoff.pause(1.0) for _ in range(12)]
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LAST_PAUSE
    assert backoff.pause(STABLE_SECONDS) == FIRST_PAUSE
    assert backoff.pause(1.0) == FIRST_PAUSE
    assert backoff.pause(1.0) == 2 * FIRST_PAUSE
