"""When a worker counts as silent, and when as hung."""

from __future__ import annotations

from gateway.workers.liveness import HUNG_AFTER, SILENT_AFTER, Heartbeat


def test_a_heartbeat_that_stops() -> None:
    heartbeat = Heartbeat()
    checks = []
    for _ in range(HUNG_AFTER + 1):
        heartbeat.check()
        checks.append((heartbeat.silent, heartbeat.hung))
    assert checks.index((True, False)) == SILENT_AFTER
    assert checks.index((True, True)) == HUNG_AFTER
    heartbeat.beat()
    assert not heartbeat.silent


def test_a_machine_that_stood_still_has_missed_one_heartbeat() -> None:
    heartbeat = Heartbeat()
    for _ in range(1_000):  # hours pass between two of them, for both
        heartbeat.check()
        assert not heartbeat.silent
        heartbeat.beat()
