"""Which of many reports of trouble are worth a line in the log. Pure."""

from __future__ import annotations

from typing import Final

REMIND_EVERY: Final = 30.0
"""Seconds between log lines about the same trouble."""

MAX_REASONS: Final = 5
"""Different reasons that are logged in that time: where each one differs a little, they count as one."""


class Reminder:
    """Lets each reason through once in a while, also when several alternate."""

    def __init__(self, interval: float) -> None:
        """`interval` is in seconds."""
        self._interval = interval
        self._logged: dict[str, float] = {}

    def is_due(self, reason: str, now: float) -> bool:
        """Whether to log `reason` now, which then counts as logged."""
        self._logged = {text: at for text, at in self._logged.items() if now - at < self._interval}
        if reason in self._logged or len(self._logged) >= MAX_REASONS:
            return False
        self._logged[reason] = now
        return True
