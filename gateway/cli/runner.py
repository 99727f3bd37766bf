"""Run what a command starts: coroutines, nodes, and the embedded Valkey."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .. import embedded
from ..config import Config
from ..errors import ConfigError, EmbeddedError
from ..telemetry import logs
from .errors import CommandFailed

if TYPE_CHECKING:
    from ..server.listeners import ListenAddresses

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop, or on asyncio's own loop where uvloop is not installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        from uvloop import new_event_loop
    except ImportError:  # uvloop is installed only on systems where it works
        return None
    return new_event_loop


def run_node(
    config: Config,
    *,
    demo: Mapping[str, object] | None = None,
    announce: Callable[[ListenAddresses], None] | None = None,
) -> int:
    """Run a node until it is told to stop; returns the exit code for `leave`."""
    try:
        if config.workers > 1:
            from ..workers.supervisor import run as run_workers

            return run_workers(config, _loop_factory())
        from ..node import serve

        return _run_and_keep(serve(config, demo=demo, announce=announce))
    except ConfigError as error:  # a port that is taken, for example
        raise CommandFailed(str(error)) from None
    finally:
        logs.flush(at_once=True)


def _run_and_keep(main: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine, and leave its event loop open if it returns.

    The process then still handles a signal, instead of being killed by it at the very end. And closing the
    loop waits for its threads, one of which may look up a name at a server that is silent.
    """
    runner = asyncio.Runner(loop_factory=_loop_factory())
    try:
        return runner.run(main)
    except BaseException:
        runner.close()
        raise


def leave(code: int) -> NoReturn:
    """End the process of a node at once: Python's own end would wait for threads."""
    logs.close()
    os._exit(code)


@contextmanager
def embedded_valkey() -> Iterator[embedded.EmbeddedValkey]:
    """Run the embedded Valkey; its errors end the command with one message."""
    try:
        with embedded.valkey() as valkey:
            yield valkey
    except EmbeddedError as error:
        raise CommandFailed(str(error)) from None
