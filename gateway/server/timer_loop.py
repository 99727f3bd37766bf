"""Run the deadlines of sessions and handshakes, and measure how late the event loop is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from ..core.timer_wheel import TimerWheel
from ..telemetry import logs
from ..telemetry.failures import log_failure
from ..telemetry.latency import Histogram

TIMERS_PER_TURN: Final = 200
"""Deadlines handled before others get the loop: 200 pings take some 2 ms."""


async def run_timers(
    deadlines: TimerWheel[Any], clock: Callable[[], float], lag: Histogram | None = None
) -> None:
    """Handle each deadline that has passed, for ever. `lag` gets how late each tick of the wheel was."""
    while True:
        slept_at = time.monotonic()
        await asyncio.sleep(TimerWheel.TICK)
        if lag is not None:
            lag.observe(max(0.0, time.monotonic() - slept_at - TimerWheel.TICK))
        logs.flush()
        for count, item in enumerate(deadlines.expired(clock()), 1):
            try:
                item.deadline_passed()
            except Exception as error:
                log_failure("deadline failed", error)
            if not count % TIMERS_PER_TURN:
                await asyncio.sleep(0)
