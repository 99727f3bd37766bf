"""The connections of the public port while no request is being answered on them.

    new ---> PendingConnection ---request---> dispatch (see `dispatcher`)
                                                  |
             KeepAliveConnection <--response------+
                     |  |                         |
    dispatch <-------+  +--> LingeringClose <-----+

aiohttp would wait for a request's head as long as the client likes. Here each connection has a deadline, and
the number of new connections that have not sent a request yet is limited.

A connection that was taken from aiohttp (see `transports.http`) comes back here when its response is
complete. Where several workers serve the port, all connections come back, because a connection's next request
may belong to another worker (see `handoff`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from ..core.timer_wheel import TimerWheel
from ..wire.handshake import BUSY, TOO_LARGE, Rejection

MAX_HEAD: Final = 16_384
"""Bytes of a first request's head. A browser sends 4 to 8 KB if its cookies are large."""

KEEP_ALIVE_SECONDS: Final = 75.0
"""Seconds for the complete head of the next request on an idle HTTP connection. Proxies reuse connections."""

Dispatch = Callable[[asyncio.Transport, bytes], None]
"""Has the request answered that begins with these bytes."""


class Acceptor:
    """Makes the protocol of each new connection: pass it to `loop.create_server`."""

    def __init__(
        self, dispatch: Dispatch, max_handshakes: int, timeout: float, clock: Callable[[], float]
    ) -> None:
        """`timeout` is in seconds of `clock`, from the connection to the end of its first request's head."""
        self._dispatch = dispatch
        self._max = max_handshakes
        self._timeout = timeout
        self._clock = clock
        self.handshakes = 0
        """Connections that have not sent a request yet."""
        self.deadlines: TimerWheel[PendingConnection | LingeringClose] = TimerWheel()
        self.rejected = 0
        """Connections that were closed because too many handshakes were in progress."""

    def __call__(self) -> PendingConnection:
        return PendingConnection(self, self._dispatch)

    def begin_handshake(self, connection: PendingConnection) -> bool:
        """Count the connection and start its deadline. Returns False if there are too many."""
        if self.handshakes >= self._max:
            self.rejected += 1
            return False
        self.handshakes += 1
        self.deadlines.set(connection, self._clock() + self._timeout)
        return True

    def end_handshake(self, connection: PendingConnection) -> None:
        """A counted connection has sent its request, or is lost."""
        self.handshakes -= 1
        self.deadlines.discard(connection)

    def accept(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Take a new connection that another process accepted. `rest` is the start of its first request."""
        connection = PendingConnection(self, self._dispatch)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if rest:
            connection.data_received(rest)

    def keep_alive(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Wait for the next request on a connection. `rest` is the start of this request."""
        connection = KeepAliveConnection(self, self._dispatch, transport)
        self.deadlines.set(connection, self._clock() + KEEP_ALIVE_SECONDS)
        if rest:
            connection.data_received(rest)

    def close_gracefully(self, transport: asyncio.Transport) -> None:
        """Close a connection when its last bytes are sent, or when that takes too long."""
        self.deadlines.set(LingeringClose(self, transport), self._clock() + self._timeout)
        transport.close()

    def abort_all(self) -> None:
        """Drop every connection that waits here: the node stops."""
        for connection in list(self.deadlines):
            connection.deadline_passed()


def reject(transport: asyncio.Transport, rejection: Rejection) -> None:
    """Send `rejection`, and close."""
    transport.write(rejection.response)
    transport.close()


class PendingConnection(asyncio.Protocol):
    """A connection until the head of its first request is complete."""

    __slots__ = ("_acceptor", "_dispatch", "_head", "_transport", "_waiting", "due")

    def __init__(self, acceptor: Acceptor, dispatch: Dispatch) -> None:
        self._acceptor = acceptor
        self._dispatch = dispatch
        self._head = b""
        self._waiting = False
        self._transport: asyncio.Transport
        self.due = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class is no subclass of asyncio's
        self._waiting = self._acceptor.begin_handshake(self)
        if not self._waiting:
            reject(self._transport, BUSY)

    def data_received(self, data: bytes) -> None:
        if not self._waiting:  # it has been rejected
            return
        # Empty lines before a request are ignored (RFC 9112 section 2.2).
        self._head = (self._head + data).lstrip(b"\r\n")
        if b"\r\n\r\n" in self._head:
            self._end_wait()
            self._dispatch(self._transport, self._head)
        elif len(self._head) > MAX_HEAD:
            self._end_wait()
            reject(self._transport, TOO_LARGE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()

    def deadline_passed(self) -> None:
        """The time for the request's head is over."""
        self._transport.abort()

    def _end_wait(self) -> None:
        if self._waiting:
            self._waiting = False
            self._acceptor.end_handshake(self)


class KeepAliveConnection(PendingConnection):
    """A connection between two requests. It is not counted as a handshake: it has sent a request before."""

    __slots__ = ()

    def __init__(self, acceptor: Acceptor, dispatch: Dispatch, transport: asyncio.Transport) -> None:
        super().__init__(acceptor, dispatch)
        self._transport = transport
        self._waiting = True
        transport.set_protocol(self)

    def _end_wait(self) -> None:
        self._waiting = False
        self._acceptor.deadlines.discard(self)


class LingeringClose(asyncio.Protocol):
    """A connection that is being closed, until it is gone."""

    __slots__ = ("_acceptor", "_transport", "due")

    def __init__(self, acceptor: Acceptor, transport: asyncio.Transport) -> None:
        self._acceptor = acceptor
        self._transport = transport
        self.due = 0
        transport.set_protocol(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._acceptor.deadlines.discard(self)

    def deadline_passed(self) -> None:
        """The client has not read the bytes that are left."""
        self._transport.abort()
