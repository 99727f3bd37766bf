"""What is known of a worker slot, and when it gets another worker."""

from __future__ import annotations

from gateway.workers.liveness import FIRST_RESTART_DELAY, MAX_RESTART_DELAY, STABLE_SECONDS
from gateway.workers.worker_slots import WorkerSlot


def test_an_account(slots: list[WorkerSlot]) -> None:
    assert slots[1].account() == {"worker": 2, "pid": 1, "restarts": 0, "responsive": True, "accepts": True}
    slots[1].process = None
    assert slots[1].account()["pid"] is None


def test_delays_double_while_no_worker_lives_for_long(slots: list[WorkerSlot]) -> None:
    slot = slots[0]
    delays = [slot.restart_delay(1.0) for _ in range(12)]
    assert delays[:3] == [FIRST_RESTART_DELAY, 2 * FIRST_RESTART_DELAY, 4 * FIRST_RESTART_DELAY]
    assert delays[-1] == MAX_RESTART_DELAY
    assert slot.restart_delay(STABLE_SECONDS) == FIRST_RESTART_DELAY
    assert slot.restart_delay(1.0) == 2 * FIRST_RESTART_DELAY
