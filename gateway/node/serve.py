"""Run a node until a signal stops it."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable
from typing import Final

import structlog

from ..config import Config
from ..errors import ConfigError
from ..server.listeners import ListenAddresses
from ..telemetry import logs
from ..telemetry.failures import log_loop_failure
from .composition import DemoInfo, build
from .node import Node
from .signals import StopOrder, handle_stop_signals

log = structlog.get_logger()


EXIT_DRAIN_CUT: Final = 5
"""The exit code when the node stopped as told, but a worker ended before it had closed its sessions."""


async def serve(
    config: Config,
    *,
    demo: DemoInfo | None = None,
    announce: Callable[[ListenAddresses], None] | None = None,
) -> int:
    """Run a node until SIGTERM or SIGINT; returns the exit code.

    SIGTERM drains as configured, SIGINT without delay, a second signal of either kind ends the node at
    once. SIGHUP has the files read again that settings name; with `demo` it is a SIGINT, since the terminal
    has been closed. `announce` is called when the node listens. Raises ConfigError if it cannot.
    """
    orders: asyncio.Queue[StopOrder] = asyncio.Queue()
    handle_stop_signals(config, orders.put_nowait)
    try:
        node = await build(config, demo=demo)
    except ConfigError as error:
        log.error("cannot start", reason=str(error))  # noqa: TRY400 - the reason says all
        raise
    loop = asyncio.get_running_loop()
    if demo is None:
        loop.add_signal_handler(signal.SIGHUP, node.reload)
    else:
        loop.add_signal_handler(signal.SIGHUP, orders.put_nowait, StopOrder(0, 0))
    try:
        logs.configure(config.log_level, config.log_format, node.name)
        await node.start()
        if announce is not None:
            announce(node.listening)
        return await until_stopped(node, orders)
    finally:
        await node.stop()


async def until_stopped(node: Node, orders: asyncio.Queue[StopOrder]) -> int:
    """Let a started node serve until a stop order arrives, then drain it; returns the exit code.

    A second order ends the node at once.
    """
    tune_collector()
    asyncio.get_running_loop().set_exception_handler(log_loop_failure)
    watching = asyncio.create_task(node.watch())
    stopping = asyncio.create_task(_drain_on_order(node, orders))
    try:
        done, _ = await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        stopping.cancel()
    if watching in done:
        log.critical("background task ended", error=repr(watching.exception()))
        return 1
    return 0


async def _drain_on_order(node: Node, orders: asyncio.Queue[StopOrder]) -> None:
    order = await orders.get()
    draining = asyncio.create_task(node.drain(order.delay, order.seconds))
    second_order = asyncio.create_task(orders.get())
    _, pending = await asyncio.wait((draining, second_order), return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()


def tune_collector() -> None:
    """Make full collections rare: over many live sessions they would double the cost of a registration.

    What exists now lives as long as the process. Sessions and requests die by reference counting.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 100)
