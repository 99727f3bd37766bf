"""The connections of a port while no request is being answered on them.

    new ---> PendingConnection ---request---> dispatch (see `dispatcher`)
                                                  |
             KeepAliveConnection <--response------+
                     |  |                         |
    dispatch <-------+  +--> LingeringClose <-----+

Each connection has a deadline, and the number of new connections that have not sent a request yet is limited.
A connection comes back here when its response is complete, and its next request is dispatched like its first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from ..core.timer_wheel import TimerWheel
from ..transports import http
from ..wire.handshake import BUSY, Rejection

MAX_HEAD: Final = 16_384
"""Bytes of a request's head. A browser sends 4 to 8 KB if its cookies are large."""

HEAD_END: Final = b"\r\n\r\n"

Dispatch = Callable[[asyncio.Transport, bytes], None]
"""Has the request answered that begins with these bytes. Its head is complete, or longer than MAX_HEAD."""


class Waiting(Protocol):
    """A connection that waits for something, until its deadline."""

    due: int
    """For the timer wheel."""

    def deadline_passed(self) -> None: ...

    def abort(self) -> None:
        """Drop the connection: the node stops."""


class Acceptor:
    """Makes the protocol of each new connection: pass it to `loop.create_server`."""

    def __init__(
        self,
        dispatch: Dispatch,
        max_handshakes: int,
        timeout: float,
        keep_alive: float,
        clock: Callable[[], float],
    ) -> None:
        """In seconds of `clock`: `timeout` is for the head of a request, from the connection or the head's
        first byte on; `keep_alive` is for the first byte of the next request."""
        self._dispatch = dispatch
        self._max = max_handshakes
        self._timeout = timeout
        self._keep_alive = keep_alive
        self._clock = clock
        self.handshakes = 0
        """Connections that have not sent a request yet."""
        self.deadlines: TimerWheel[Waiting] = TimerWheel()
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
        self.set_deadline(connection)
        return True

    def end_handshake(self, connection: PendingConnection) -> None:
        """A counted connection has sent its request, or is lost."""
        self.handshakes -= 1
        self.deadlines.discard(connection)

    def set_deadline(self, connection: Waiting) -> None:
        """The connection has as much time as a request's head."""
        self.deadlines.set(connection, self._clock() + self._timeout)

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
        self.deadlines.set(connection, self._clock() + self._keep_alive)
        if rest:
            connection.data_received(rest)

    def close_gracefully(self, transport: asyncio.Transport) -> None:
        """Close a connection when the client has read its last bytes, or when that takes too long."""
        if not transport.is_closing():
            self.set_deadline(LingeringClose(self, transport))

    def reject(self, transport: asyncio.Transport, rejection: Rejection) -> None:
        """Send `rejection`, and close as `close_gracefully` does."""
        http.write(transport, rejection.response)
        self.close_gracefully(transport)

    def abort_all(self) -> None:
        """Drop every connection that waits here: the node stops."""
        for connection in list(self.deadlines):
            connection.abort()


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
        if not self._waiting:  # a lingering close would keep what there is too much of
            self._transport.write(BUSY.response)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._waiting:  # it has been rejected
            return
        # Empty lines before a request are ignored (RFC 9112 section 2.2).
        self._head = (self._head + data).lstrip(b"\r\n")
        if HEAD_END in self._head or len(self._head) > MAX_HEAD:
            self._end_wait()
            self._dispatch(self._transport, self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()

    def deadline_passed(self) -> None:
        """The time for the request's head is over."""
        self.abort()

    def abort(self) -> None:
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

    def data_received(self, data: bytes) -> None:
        begins = not self._head
        super().data_received(data)
        if begins and self._head and self._waiting:
            self._acceptor.set_deadline(self)

    def eof_received(self) -> bool:
        """The client has closed its half, and may not have read the last response yet."""
        self._end_wait()
        self._acceptor.close_gracefully(self._transport)
        return False

    def _end_wait(self) -> None:
        self._waiting = False
        self._acceptor.deadlines.discard(self)


class LingeringClose(asyncio.Protocol):
    """A connection that is being closed: our half is, and what the client still sends is ignored.

    Closing both halves while the client's bytes are unread would reset the connection, and the reset could
    overtake the response (RFC 9112 section 9.6).
    """

    __slots__ = ("_acceptor", "_transport", "due")

    def __init__(self, acceptor: Acceptor, transport: asyncio.Transport) -> None:
        self._acceptor = acceptor
        self._transport = transport
        self.due = 0
        transport.set_protocol(self)
        try:
            transport.write_eof()
        except (OSError, RuntimeError):  # the connection broke a moment ago
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._acceptor.deadlines.discard(self)

    def deadline_passed(self) -> None:
        """The client has not read the bytes that are left, or does not close its half."""
        self.abort()

    def abort(self) -> None:
        self._transport.abort()
