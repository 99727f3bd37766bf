"""Logs bugs by their place.

An exception's text is left out: it may hold what a client has sent, a token perhaps.
"""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import structlog

log = structlog.get_logger()


def log_failure(event: str, error: BaseException, **facts: str) -> None:
    """Log `event` with the class of `error` and the lines of code that led to it."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error(event, error=type(error).__name__, exception=where, **facts)


def log_loop_failure(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For `loop.set_exception_handler`: what no code has handled, in a callback, a protocol or a task."""
    # asyncio's messages name a callback with its arguments: Exception in callback Name.of(b'...').
    what = str(context.get("message", "")).partition("(")[0]
    error = context.get("exception")
    if isinstance(error, BaseException):
        log_failure("callback failed", error, what=what)
    else:
        log.error("callback failed", what=what)
