"""Deadlines are handled in batches, and a failing one does not stop the others."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from gateway.core.timer_wheel import TimerWheel
from gateway.server.timer_loop import TIMERS_PER_TURN, run_timers
from gateway.telemetry.latency import Histogram

from ..fakes import virtual


class Timed:
    """Something with a deadline, which may fail."""

    def __init__(self, *, fails: bool = False) -> None:
        self.due = 0
        self.passed = 0
        self._fails = fails

    def deadline_passed(self) -> None:
        self.passed += 1
        if self._fails:
            raise RuntimeError("no")


@virtual
async def test_each_deadline_that_has_passed_is_handled() -> None:
    loop = asyncio.get_running_loop()
    wheel: TimerWheel[Timed] = TimerWheel()
    bad, many = Timed(fails=True), [Timed() for _ in range(2 * TIMERS_PER_TURN)]
    later = Timed()
    for item in (bad, *many):
        wheel.set(item, loop.time())
    wheel.set(later, loop.time() + 60)
    lag = Histogram((0.01,))
    with capture_logs() as lines:
        running = asyncio.create_task(run_timers(wheel, loop.time, lag))
        await asyncio.sleep(4 * TimerWheel.TICK)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert [item.passed for item in (bad, *many)] == [1] * (1 + len(many))
    assert later.passed == 0
    assert [line["event"] for line in lines] == ["deadline failed"]
    assert [count for _, count in lag.cumulative()][-1] >= 1
