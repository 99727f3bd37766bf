"""Checks again and again until SIGTERM or SIGINT, and serves metrics of them."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from aiohttp import web

from ..admin.metrics import CONTENT_TYPE
from ..admin.responses import PRIVATE_HEADERS
from ..config import Config
from ..server.app import web_app
from ..server.http_port import HTTPPort
from .check import Outcome
from .metrics import CanaryMetrics

MAX_CONNECTIONS: Final = 50
"""Of the port with the metrics. Prometheus needs one."""

MAX_BODY: Final = 1_024
"""Bytes of a request's body, which nobody needs."""

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

RunCheck = Callable[[], Awaitable[Outcome]]
Listener = Callable[[Outcome], None]


async def serve(
    run: RunCheck, every: float, on_outcome: Listener, config: Config, listeners: Sequence[socket.socket]
) -> None:
    """Check every so many seconds until SIGTERM or SIGINT. `on_outcome` hears of each check.

    The metrics are at /metrics on `listeners`, with the timeouts of `config`; without any there are none.
    """
    metrics = CanaryMetrics()

    def note(outcome: Outcome) -> None:
        metrics.add(outcome)
        on_outcome(outcome)

    port = await _metrics_port(metrics, config, listeners)
    repeating = asyncio.create_task(repeat(run, every, note))
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, repeating.cancel)
    try:
        await port.open()
        with suppress(asyncio.CancelledError):
            await repeating
    finally:
        repeating.cancel()
        await asyncio.gather(repeating, return_exceptions=True)
        await port.close()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def repeat(run: RunCheck, every: float, on_outcome: Listener) -> None:
    """Begin a check every so many seconds, for ever. The next one waits for one that takes longer."""
    clock = asyncio.get_running_loop().time
    while True:
        next_at = clock() + every
        on_outcome(await run())
        await asyncio.sleep(max(0.0, next_at - clock()))


async def _metrics_port(
    metrics: CanaryMetrics, config: Config, listeners: Sequence[socket.socket]
) -> HTTPPort:
    async def show(_request: web.Request) -> web.Response:
        headers = {**PRIVATE_HEADERS, "Content-Type": CONTENT_TYPE}
        return web.Response(body=metrics.render(), headers=headers)

    app = web_app([web.get("/metrics", show)], MAX_BODY)
    return await HTTPPort.build(config, app, listeners, MAX_CONNECTIONS, MAX_BODY, Counter())
