"""When a worker counts as silent, and when as hung."""

from __future__ import annotations

import pytest

from gateway.workers.liveness import (
    GIVEN_UP_AFTER,
    HEARTBEAT_INTERVAL,
    HUNG_AFTER,
    SILENT_AFTER,
    Heartbeat,
    ProcessState,
)


def checks_until_hung(states: str, share: float) -> int:
    """How many checks a worker survives, whose threads are in `states`, and which gets so much of a core."""
    heartbeat = Heartbeat()
    heartbeat.beat()
    heartbeat.check(ProcessState(states, 7.0))
    heartbeat.beat()
    for count in range(1, GIVEN_UP_AFTER + 2):
        heartbeat.check(ProcessState(states, 7.0 + count * share * HEARTBEAT_INTERVAL))
        if heartbeat.hung:
            return count
    raise AssertionError


@pytest.mark.parametrize(
    ("states", "share", "checks"),
    [
        ("SS", 0.0, HUNG_AFTER),
        ("TT", 0.0, HUNG_AFTER),
        ("RS", 0.98, HUNG_AFTER),
        ("SR", 0.98, HUNG_AFTER),
        ("RS", 0.1, GIVEN_UP_AFTER + 1),
        ("SR", 0.1, GIVEN_UP_AFTER + 1),
        ("DS", 0.0, GIVEN_UP_AFTER + 1),
        ("tt", 0.0, GIVEN_UP_AFTER + 1),
    ],
    ids=[
        "it sleeps: a deadlock",
        "it is stopped",
        "it runs: an endless loop",
        "another of its threads runs and holds the lock",
        "it waits for a processor",
        "the thread with the lock waits for a processor",
        "it waits for a disk",
        "somebody debugs it",
    ],
)
def test_only_what_a_worker_can_help_is_held_against_it(states: str, share: float, checks: int) -> None:
    assert checks_until_hung(states, share) == checks


def test_a_hung_worker_is_found_within_three_seconds() -> None:
    """Its heartbeat may have come just before, and the check just before that."""
    assert (HUNG_AFTER + 1) * HEARTBEAT_INTERVAL <= 3.0


def test_a_heartbeat_that_stops() -> None:
    heartbeat = Heartbeat()
    checks = []
    for _ in range(GIVEN_UP_AFTER + 1):
        heartbeat.check(None)
        checks.append((heartbeat.silent, heartbeat.hung, heartbeat.given_up))
    assert checks.index((True, False, False)) == SILENT_AFTER
    assert checks.index((True, True, True)) == GIVEN_UP_AFTER
    heartbeat.beat()
    assert not heartbeat.silent


def test_a_worker_that_is_being_built_has_more_time() -> None:
    heartbeat = Heartbeat()
    heartbeat.beat()
    heartbeat.restart()
    for _ in range(GIVEN_UP_AFTER):
        heartbeat.check(ProcessState("S", 0.0))
        assert not heartbeat.hung


def test_a_heartbeat_forgives_what_was_before() -> None:
    heartbeat = Heartbeat()
    for _ in range(100):
        heartbeat.beat()
        for _ in range(HUNG_AFTER - 1):
            heartbeat.check(ProcessState("S", 0.0))
        assert not heartbeat.hung


def test_a_machine_that_stood_still_has_missed_one_heartbeat() -> None:
    heartbeat = Heartbeat()
    for _ in range(1_000):  # hours pass between two of them, for both
        heartbeat.check(ProcessState("S", 0.0))
        assert not heartbeat.silent
        heartbeat.beat()
