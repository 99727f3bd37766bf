"""Sessions are closed evenly over the drain time, and waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.messages import CloseCode
from gateway.node.draining import CLOSES_PER_TURN, DRAIN_STEP, close_sessions

from ..fakes import virtual


class Closing:
    """A session that notes when it was told to close."""

    def __init__(self) -> None:
        self.closed: tuple[float, CloseCode, str] | None = None

    def close(self, code: CloseCode, reason: str) -> None:
        self.closed = (asyncio.get_running_loop().time(), code, reason)


async def drained(
    count: int, seconds: float, unfinished: list[int], close_timeout: float = 2.0
) -> list[float]:
    """Close so many sessions; returns when each was closed, and at last when all was over."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    sessions: list[Any] = [Closing() for _ in range(count)]
    await close_sessions(list(sessions), seconds, loop.time, lambda: unfinished.pop(0), close_timeout)
    told = [session.closed for session in sessions if session.closed is not None]
    assert {(code, reason) for _, code, reason in told} <= {(CloseCode.SERVICE_RESTART, "service restart")}
    return [*(at - start for at, _, _ in told), loop.time() - start]


@virtual
async def test_sessions_are_closed_evenly() -> None:
    *times, end = await drained(100, 10.0, [0])
    assert len(times) == 100
    for tenth in range(10):
        in_this_second = sum(tenth <= at < tenth + 1 for at in times)
        assert 8 <= in_this_second <= 12
    assert end <= 10.0 + 2 * DRAIN_STEP


@virtual
async def test_without_a_time_all_are_closed_at_once() -> None:
    assert await drained(3, 0.0, [0]) == pytest.approx([0.0] * 4)


@virtual
async def test_while_many_are_closed_others_get_the_loop() -> None:
    turns: list[int] = []

    async def other() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    await drained(10 * CLOSES_PER_TURN, 0.0, [0])
    running.cancel()
    assert len(turns) >= 10


@virtual
async def test_what_is_unfinished_is_waited_for() -> None:
    assert await drained(0, 0.0, [2, 1, 0]) == pytest.approx([2 * DRAIN_STEP])


@virtual
async def test_but_not_for_ever() -> None:
    (end,) = await drained(0, 0.0, [1] * 1_000, close_timeout=2.0)
    assert 2.0 < end < 3.0
