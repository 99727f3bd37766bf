"""A port for HTTP alone: no WebSockets, no other workers. It has the bounds and checks of the public port."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Final, Self

from aiohttp import web

from ..config import Config
from ..core.admission import Admission, Backlog, Connections, FairPool
from ..transports.connections import ConnectionLedger
from .acceptor import Acceptor
from .dispatcher import Dispatcher
from .listeners import Serving
from .rejections import Rejections
from .requests import RequestServer
from .timer_loop import run_timers

MAX_UNREAD: Final = 16 << 20
"""Bytes of responses that all clients of the port together may leave unread."""


class HTTPPort:
    """Serves an aiohttp application on sockets that listen."""

    def __init__(self, serving: Serving, acceptor: Acceptor, server: RequestServer) -> None:
        """`build` makes the parts, which `close` releases."""
        self._serving = serving
        self._acceptor = acceptor
        self._server = server
        self._timers: asyncio.Task[None] | None = None

    @classmethod
    async def build(
        cls,
        config: Config,
        app: web.Application,
        listeners: Sequence[socket.socket],
        connections: int,
        max_body: int,
        rejected: Counter[str],
    ) -> Self:
        """The timeouts are those of `config`. The port has at most so many `connections`, so that they do not
        use up the descriptors; no address gets more than it leaves to others. `rejected` counts requests that
        are rejected, by reason."""

        def dispatch(transport: asyncio.Transport, data: bytes) -> None:
            dispatcher.dispatch(transport, data)

        ledger = ConnectionLedger(
            Connections(connections, connections, Admission(0, 0), str),
            FairPool(connections),
            Backlog(MAX_UNREAD),
            config.close_timeout,
        )
        clock = asyncio.get_running_loop().time
        acceptor = Acceptor(dispatch, ledger, config.handshake_timeout, config.keep_alive, clock)
        server = await RequestServer.build(app, acceptor, max_body)
        dispatcher = Dispatcher(acceptor, server, Rejections(rejected))
        return cls(Serving(listeners, config.backlog), acceptor, server)

    async def open(self) -> None:
        """Serve the connections that come."""
        clock = asyncio.get_running_loop().time
        self._timers = asyncio.create_task(run_timers(self._acceptor.deadlines, clock), name="http timers")
        await self._serving.start(self._acceptor)

    def stop_listening(self) -> None:
        """Accept no more connections."""
        self._serving.stop()

    async def close(self) -> None:
        """Stop listening, and wait for the responses that are in progress."""
        self.stop_listening()
        await self._server.close()
        self._acceptor.abort_all()
        self._acceptor.ledger.close()
        if self._timers is not None:
            self._timers.cancel()
            await asyncio.gather(self._timers, return_exceptions=True)
