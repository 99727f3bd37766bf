"""One question to several servers at once, when a majority of the answers is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def gather_majority(
    coroutines: Collection[Coroutine[Any, Any, T]], seconds: float, grace: float
) -> list[T | Exception]:
    """What each coroutine returned or raised, in their order; TimeoutError for those that were too slow.

    It takes `seconds` at most, and less when a majority has returned: then the others have `grace`
    seconds more, so that a dead server does not delay everything.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await _wait(tasks, seconds, grace)
        return [_outcome(task) for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait(tasks: Collection[asyncio.Task[Any]], seconds: float, grace: float) -> None:
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    waiting = set(tasks)
    while waiting and (left := end - clock()) > 0:
        _, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if 2 * sum(task.done() and task.exception() is None for task in tasks) > len(tasks):
            end = min(end, clock() + grace)


def _outcome(task: asyncio.Task[T]) -> T | Exception:
    if not task.done():
        return TimeoutError("no answer")
    error = task.exception()
    if error is None:
        return task.result()
    if not isinstance(error, Exception):
        raise error
    return error
