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
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol, cast

import structlog

from ..core import admission
from ..core.timer_wheel import TimerWheel
from ..transports import http
from ..transports.connections import ConnectionLedger
from ..transports.sockets import reset
from ..wire.handshake import ADDRESS_FULL, BUSY, NODE_FULL, Rejection

MAX_HEAD: Final = 16_384
"""Bytes of a request's head. A browser sends 4 to 8 KB if its cookies are large."""

HEAD_END: Final = b"\r\n\r\n"

Dispatch = Callable[[asyncio.Transport, bytes], None]
"""Has the request answered that begins with these bytes. Its head is complete, or longer than MAX_HEAD."""

log = structlog.get_logger()


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
        ledger: ConnectionLedger,
        timeout: float,
        keep_alive: float,
        clock: Callable[[], float],
    ) -> None:
        """`ledger` counts the connections. In seconds of `clock`: `timeout` is for the head of a request,
        from the connection or the head's first byte on; `keep_alive` is for the first byte of the next
        request."""
        self._dispatch = dispatch
        self._timeout = timeout
        self._keep_alive = keep_alive
        self._clock = clock
        self._idle: dict[KeepAliveConnection, None] = {}  # the one that has waited longest first
        self.ledger = ledger
        self.deadlines: TimerWheel[Waiting] = TimerWheel()
        self.rejected: Counter[str] = Counter()
        """Connections that were closed unread, by the rejection's code."""

    @property
    def handshakes(self) -> int:
        """Connections that have not sent a request yet."""
        return self.ledger.handshakes.taken

    @property
    def idle(self) -> int:
        """Connections between two requests."""
        return len(self._idle)

    def __call__(self) -> PendingConnection:
        return PendingConnection(self, self._dispatch)

    def begin_handshake(self, connection: PendingConnection, source: str) -> Rejection | None:
        """Count a connection from `source` and start its deadline. Returns why it must be closed, if there is
        no room: then it is no handshake."""
        rejection = self._check(source)
        if rejection is None:
            verdict = self.ledger.handshakes.take(source)
            if verdict is admission.ADMITTED:
                self.deadlines.set(connection, self._clock() + self._timeout)
                return None
            rejection = BUSY if verdict is admission.NODE_FULL else ADDRESS_FULL
        self._count(rejection, source)
        return rejection

    def _check(self, source: str) -> Rejection | None:
        """Count a connection from `source`. Returns why it must be closed, if there is no room."""
        verdict = self.ledger.connections.open(source)
        if verdict is admission.ADMITTED:
            return None
        if verdict is admission.ADDRESS_FULL:
            return ADDRESS_FULL
        return None if self._close_idle() else NODE_FULL

    def _close_idle(self) -> bool:
        """Close the connection that is idle longest: any may be closed (RFC 9112 section 9.5). Returns False
        if there is none."""
        oldest = next(iter(self._idle), None)
        if oldest is not None:
            del self._idle[oldest]
            oldest.abort()
        return oldest is not None

    def _count(self, rejection: Rejection, source: str) -> None:
        self.rejected[rejection.code] += 1
        log.warning("connection rejected", kind=rejection.code, address=source)

    def end_handshake(self, connection: PendingConnection, source: str) -> None:
        """A counted connection has sent its request, or is lost."""
        self.ledger.handshakes.give_back(source)
        self.ledger.incoming.discard(connection)
        self.deadlines.discard(connection)

    def begin_idle(self, connection: KeepAliveConnection) -> None:
        """The connection waits for its next request."""
        self._idle[connection] = None
        self.deadlines.set(connection, self._clock() + self._keep_alive)

    def end_idle(self, connection: KeepAliveConnection) -> None:
        """Its next request is complete, or it is lost."""
        self._idle.pop(connection, None)
        self.ledger.incoming.discard(connection)
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

    def take_over(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Take a connection from another worker, which does not count it any more. `rest` is the start of its
        next request."""
        source = self.ledger.source(transport)
        rejection = self._check(source)
        if rejection is None:
            self.keep_alive(transport, rest)
        else:
            self._count(rejection, source)
            self.reject(transport, rejection)

    def lost(self, transport: asyncio.BaseTransport) -> None:
        """A connection was lost while its response was written."""
        self.ledger.lost(transport)

    def let_go(self, transport: asyncio.Transport) -> None:
        """Another worker has the connection: close this process's descriptor, and leave the socket as it
        is."""
        self.ledger.connections.close(self.ledger.source(transport))
        transport.set_protocol(asyncio.Protocol())
        transport.abort()

    def keep_alive(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Wait for the next request on a connection. `rest` is the start of this request."""
        KeepAliveConnection(self, self._dispatch, transport).begin(rest)

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

    __slots__ = ("_acceptor", "_dispatch", "_head", "_source", "_transport", "_waiting", "due")

    def __init__(self, acceptor: Acceptor, dispatch: Dispatch) -> None:
        self._acceptor = acceptor
        self._dispatch = dispatch
        self._head = b""
        self._source = ""
        self._waiting = False
        self._transport: asyncio.Transport
        self.due = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class is no subclass of asyncio's
        self._source = self._acceptor.ledger.source(transport)
        rejection = self._acceptor.begin_handshake(self, self._source)
        self._waiting = rejection is None
        if rejection is not None:  # a lingering close would keep what there is too much of
            self._transport.write(rejection.response)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._waiting:  # it has been rejected
            return
        # Empty lines before a request are ignored (RFC 9112 section 2.2).
        self._head = (self._head + data).lstrip(b"\r\n")
        if HEAD_END in self._head or len(self._head) > MAX_HEAD:
            self._end_wait()
            self._dispatch(self._transport, self._head)
        else:
            self._acceptor.ledger.incoming.add(self, len(data))

    # Sender

    @property
    def incomplete(self) -> int:
        return len(self._head)

    def drop_incomplete(self) -> None:
        self.abort()

    # asyncio.Protocol

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        self._acceptor.ledger.lost(self._transport)

    def deadline_passed(self) -> None:
        """The time for the request's head is over."""
        self.abort()

    def abort(self) -> None:
        reset(self._transport)

    def _end_wait(self) -> None:
        if self._waiting:
            self._waiting = False
            self._acceptor.end_handshake(self, self._source)


class UnreadResponse(asyncio.Protocol):
    """A connection whose response is complete, but not read: a `SlowReader`."""

    __slots__ = ()

    _acceptor: Acceptor
    _transport: asyncio.Transport

    @property
    def unread(self) -> int:
        return self._transport.get_write_buffer_size()

    def drop(self) -> None:
        reset(self._transport)

    def pause_writing(self) -> None:
        """The transport holds bytes that the client has not read."""
        self._acceptor.ledger.backlog.add(self, self.unread)

    def resume_writing(self) -> None:
        """The client has read everything."""
        self._acceptor.ledger.backlog.discard(self)


class KeepAliveConnection(PendingConnection, UnreadResponse):
    """A connection between two requests. It is not counted as a handshake: it has sent a request before."""

    __slots__ = ()

    def __init__(self, acceptor: Acceptor, dispatch: Dispatch, transport: asyncio.Transport) -> None:
        super().__init__(acceptor, dispatch)
        self._transport = transport
        transport.set_protocol(self)

    def begin(self, rest: bytes) -> None:
        """Wait for the next request, which begins with `rest`, as soon as the last response is sent: the
        responses to a client that reads none of them would fill the memory."""
        self._waiting = True
        self._acceptor.begin_idle(self)
        if self.unread:
            self._head = rest
            self._acceptor.ledger.incoming.add(self, len(rest))
            self._transport.pause_reading()
            self._transport.set_write_buffer_limits(high=0)
            self.pause_writing()
        elif rest:
            self.data_received(rest)

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

    def pause_writing(self) -> None:
        if self._waiting:  # else what is unread is the rejection, and the lingering close counts that
            super().pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self.data_received(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self._acceptor.ledger.backlog.discard(self)
        super().connection_lost(exc)

    def _end_wait(self) -> None:
        self._waiting = False
        self._acceptor.end_idle(self)


class LingeringClose(UnreadResponse):
    """A connection that is being closed: our half is, and what the client still sends is ignored.

    Closing both halves while the client's bytes are unread would reset the connection, and the reset could
    overtake the response (RFC 9112 section 9.6).
    """

    __slots__ = ("_acceptor", "_transport", "due")

    def __init__(self, acceptor: Acceptor, transport: asyncio.Transport) -> None:
        self._acceptor = acceptor
        self._transport = transport
        self.due = 0
        acceptor.ledger.connections.closing += 1
        transport.set_protocol(self)
        if self.unread:
            self.pause_writing()
        try:
            transport.write_eof()
        except (OSError, RuntimeError):  # the connection broke a moment ago
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._acceptor.deadlines.discard(self)
        self._acceptor.ledger.backlog.discard(self)
        self._acceptor.ledger.connections.closing -= 1
        self._acceptor.ledger.lost(self._transport)

    def deadline_passed(self) -> None:
        """The client has not read the bytes that are left, or does not close its half."""
        reset(self._transport, read=True)

    def abort(self) -> None:
        reset(self._transport)
