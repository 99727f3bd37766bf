"""One question to several servers at once, when a majority of the answers is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Patience(NamedTuple):
    """Seconds to wait for answers."""

    first: float
    """For the first one. A slow network needs several round trips for a new connection."""
    others: float
    """More for the others when there is one, besides the time that it took: they are as far away."""
    rest: float
    """More for the rest when most have answered, so that a dead server does not delay everything."""


async def gather_majority(
    coroutines: Collection[Coroutine[Any, Any, T]], patience: Patience
) -> list[T | Exception]:
    """What each coroutine returned or raised, in their order; TimeoutError for those that were too slow."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await _wait(tasks, patience)
        return [_outcome(task) for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait(tasks: Collection[asyncio.Task[Any]], patience: Patience) -> None:
    clock = asyncio.get_running_loop().time
    start = clock()
    end = start + patience.first
    waiting = set(tasks)
    while waiting and (left := end - clock()) > 0:
        _, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        returned = sum(task.done() and task.exception() is None for task in tasks)
        if 2 * returned > len(tasks):
            end = min(end, clock() + patience.rest)
        elif returned:
            end = min(end, 2 * clock() - start + patience.others)


def _outcome(task: asyncio.Task[T]) -> T | Exception:
    if not task.done():
        return TimeoutError("no answer")
    error = task.exception()
    if error is None:
        return task.result()
    if not isinstance(error, Exception):
        raise error
    return error
