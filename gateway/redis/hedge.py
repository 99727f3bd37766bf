"""Attempts that begin one after another while none has succeeded: hedged requests.

A new connection may get through where an old one waits in vain: the name leads elsewhere by now, or a packet
filter or a service address sends new connections elsewhere, but never the packets of an old one. And an old
one may only be slow, so it is not given up for a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


async def hedge(
    attempt: Callable[[], Coroutine[Any, Any, T]], after: float, discard: Callable[[T], object]
) -> T:
    """The result of the first attempt that ends, or its exception.

    Another attempt begins each `after` seconds. `discard` gets the results that are not returned.
    """
    attempts: list[asyncio.Task[T]] = []
    first: asyncio.Task[T] | None = None
    try:
        while first is None:
            attempts.append(asyncio.create_task(attempt()))
            done, _ = await asyncio.wait(attempts, timeout=after, return_when=asyncio.FIRST_COMPLETED)
            first = next(iter(done), None)
        return first.result()
    finally:
        for task in attempts:
            if task is not first:
                task.cancel()
                task.add_done_callback(partial(_discard, discard))


def _discard(discard: Callable[[T], object], task: asyncio.Task[T]) -> None:
    """Discard what an abandoned attempt has made at this very moment."""
    if not task.cancelled() and task.exception() is None:
        discard(task.result())
