"""The public port: it listens, stops to listen when the node drains, and drops what is left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from aiohttp import web

from ..server.acceptor import Acceptor
from ..server.app import PublicApp
from ..server.handoff import Handoff


class PublicPort:
    """What browsers connect to."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        backlog: int,
        runner: web.AppRunner,
        app: PublicApp,
        acceptor: Acceptor,
        handoff: Handoff | None,
    ) -> None:
        """`handoff` exchanges connections with the other workers, if there are any."""
        self._listeners = listeners
        self._backlog = backlog
        self._runner = runner
        self._app = app
        self._acceptor = acceptor
        self._handoff = handoff
        self._servers: list[asyncio.Server] = []

    @property
    def untold(self) -> int:
        """Clients that have not heard yet that their sessions were closed."""
        return self._app.untold

    async def open(self) -> None:
        """Serve the connections that come."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            server = await loop.create_server(self._acceptor, sock=listener, backlog=self._backlog)
            self._servers.append(server)
        if self._handoff is not None:
            self._handoff.open()

    def reject_new(self) -> None:
        """Accept no more connections, and no more sessions on those that there are."""
        self._app.gate.closing = True
        self._stop_listening()

    def drop(self) -> None:
        """Drop the connections that are no sessions yet."""
        self._stop_listening()
        if self._handoff is not None:
            self._handoff.close()
        for connection in list(self._acceptor.deadlines):
            connection.deadline_passed()

    async def close(self) -> None:
        """Wait for the responses that are under way."""
        await self._runner.cleanup()

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.close()
