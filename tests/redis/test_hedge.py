"""Attempts one after another, the first of which counts. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.redis.hedge import hedge

from ..fakes import turns, virtual


def taking(*seconds: float | Exception) -> tuple[list[float], Callable[[], Coroutine[Any, Any, int]]]:
    """Attempts that take so long, or fail at once; and when each has begun."""
    began: list[float] = []

    async def attempt() -> int:
        began.append(now())
        number = len(began) - 1
        if isinstance(takes := seconds[number], Exception):
            raise takes
        await asyncio.sleep(takes)
        return number

    return began, attempt


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_a_fast_attempt_is_the_only_one() -> None:
    began, attempt = taking(1.0)
    assert await hedge(attempt, 1.5, print) == 0
    assert len(began) == 1


@pytest.mark.parametrize(
    ("seconds", "winner", "after"), [((2.0, 9), 0, 2.0), ((1_000, 0.5), 1, 2.0), ((9, 9, 9, 0.1), 3, 4.6)]
)
def test_the_first_to_end_counts(seconds: tuple[float, ...], winner: int, after: float) -> None:
    @virtual
    async def counts() -> None:
        start = now()
        began, attempt = taking(*seconds)
        assert await hedge(attempt, 1.5, print) == winner
        assert now() - start == pytest.approx(after)
        assert began == [start + 1.5 * number for number in range(len(began))]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    counts()


@virtual
async def test_a_failure_ends_it_too() -> None:
    _, attempt = taking(1_000, ConnectionRefusedError("refused"))
    with pytest.raises(ConnectionRefusedError, match="refused"):
        await hedge(attempt, 1.5, print)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual
async def test_what_is_made_and_not_returned_is_discarded() -> None:
    discarded: list[int] = []
    go, made = asyncio.Event(), iter((1, 2))

    async def held() -> int:
        await go.wait()
        return next(made)

    waiting = asyncio.create_task(hedge(held, 1.5, discarded.append))
    await asyncio.sleep(2)
    go.set()
    assert {await waiting, *discarded} == {1, 2}
    _, attempt = taking(1.0)
    waiting = asyncio.create_task(hedge(attempt, 1.5, discarded.append))
    await asyncio.sleep(1.0)
    waiting.cancel()
    await turns()
    assert waiting.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
