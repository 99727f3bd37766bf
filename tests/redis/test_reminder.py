"""Which trouble is worth a line."""

from __future__ import annotations

from gateway.redis.reminder import MAX_REASONS, Reminder


def test_each_reason_once_in_the_interval_also_when_two_alternate() -> None:
    reminder = Reminder(30.0)
    logged = [(now, reason) for now in range(90) for reason in ("a", "b") if reminder.is_due(reason, now)]
    assert logged == [(now, reason) for now in (0, 30, 60) for reason in ("a", "b")]


def test_reasons_that_differ_each_time_are_not_all_logged() -> None:
    reminder = Reminder(30.0)
    assert sum(reminder.is_due(f"from port {now}", now) for now in range(60)) == 2 * MAX_REASONS
