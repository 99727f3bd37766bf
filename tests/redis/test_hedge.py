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
        await turns()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    counts()


@virtual
async def test_a_failure_ends_it_too() -> None:
    _, attempt = taking(1_000, ConnectionRefusedError("refused"))
    with pytest.raises(ConnectionRefusedError, match="refused"):
        await hedge(attempt, 1.5, print)
    await turns()
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
    made_first = await waiting
    await turns()
    assert {made_first, *discarded} == {1, 2}
    _, attempt = taking(1.0)
    waiting = asyncio.create_task(hedge(attempt, 1.5, discarded.append))
    await asyncio.sleep(1.0)
    waiting.cancel()
    await turns()
    assert waiting.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("turn", range(6))
def test_nothing_is_lost_at_whatever_moment_the_caller_gives_up(turn: int) -> None:
    @virtual
    async def gives_up() -> None:
        begun, ended = asyncio.Event(), list[str]()

        async def attempt() -> str:
            if begun.is_set():  # the second one is slow to end
                try:
                    await asyncio.sleep(1_000)
                finally:
                    await turns(3)
            begun.set()
            await asyncio.sleep(2)
            return "made"

        waiting = asyncio.create_task(hedge(attempt, 1.5, ended.append))
        await asyncio.sleep(2)
        await turns(turn)
        waiting.cancel()
        await turns(20)
        if not waiting.cancelled():
            ended.append(waiting.result())
        assert ended == ["made"], "returned or discarded"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    gives_up()
