"""The public port: connections that have yet to finish their handshake, counted and timed.

aiohttp waits for a request's headers as long as the client likes, so each connection gets a deadline
when it arrives, and there may only be so many of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from aiohttp import web

from .limits import Deadlines

KEEP_ALIVE = 75.0
"""Seconds an idle HTTP connection is kept, also one that dribbles its next request; proxies reuse them."""

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


class Door:
    """Makes the protocol of each new connection; hand it to `loop.create_server`."""

    def __init__(
        self, server: web.Server, max_handshakes: int, timeout: float, clock: Callable[[], float]
    ) -> None:
        """`timeout` is in seconds of `clock`, from the connection to the end of its first request's head."""
        self._server = server
        self._max = max_handshakes
        self._timeout = timeout
        self._clock = clock
        self._waiting: set[Connection] = set()
        self.deadlines: Deadlines[Connection] = Deadlines()
        self.refused = 0
        """Connections closed because too many handshakes were under way."""

    def __call__(self) -> Connection:
        return Connection(self, self._server)

    @property
    def handshakes(self) -> int:
        """Connections that have not finished their handshake."""
        return len(self._waiting)

    def arrived(self, connection: Connection) -> bool:
        """Count `connection` in and start its deadline; False if there are too many."""
        if len(self._waiting) >= self._max:
            self.refused += 1
            return False
        self._waiting.add(connection)
        self.deadlines.set(connection, self._clock() + self._timeout)
        return True

    def passed(self, connection: Connection) -> None:
        """`connection` has sent its request, or is gone."""
        if connection in self._waiting:
            self._waiting.remove(connection)
            self.deadlines.discard(connection)


class Connection(web.RequestHandler):
    """aiohttp's side of a connection to the public port, known to the door."""

    __slots__ = ("_door", "due")

    def __init__(self, door: Door, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp's own runner turns it off
            keepalive_timeout=KEEP_ALIVE,
        )
        self._door = door
        self.due = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._door.arrived(self):
            super().connection_made(transport)
            return
        self.close()  # what it sends is not even parsed
        refused = cast(asyncio.Transport, transport)  # uvloop's own class is none of asyncio's
        refused.write(_BUSY)
        refused.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._door.passed(self)
        super().connection_lost(exc)

    def passed(self) -> None:
        """Its request is being answered: it waits at the door no longer."""
        self._door.passed(self)

    def deadline_passed(self) -> None:
        """The handshake's time is over."""
        self._door.passed(self)
        if self.transport is not None:
            self.transport.abort()
