"""A session over server-sent events: a GET request registers, and its response brings the results."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ..core.session import OPEN, Session, SessionContext
from ..messages import NOT_AUTHORIZED, SLOW_CONSUMER, UNKNOWN_ID, CloseCode, Register, WatchStatus
from ..wire import Wire
from ..wire.sse import close_comment
from . import http
from .http import HttpConnection
from .slow_reader import prompt, slow
from .sockets import peer_address, reset


class SSESession(Session, asyncio.Protocol):
    """The transport's protocol and the hub's member in one object, as with a WebSocket."""

    __slots__ = ("_connection",)

    transport = "eventsource"

    def __init__(self, context: SessionContext, wire: Wire, address: str, connection: HttpConnection) -> None:
        super().__init__(context, wire, address)
        self._connection = connection._replace(lasting=False)  # the connection ends with the stream
        connection.transport.set_protocol(self)
        context.ledger.became_session(peer_address(connection.transport))
        connection.transport.set_write_buffer_limits(high=0)
        http.set_user_timeout(connection.transport, 2 * context.config.heartbeat)

    def begin(self, wanted: Register, also_had: str | None, headers: Mapping[str, str]) -> None:
        """Send the head of the response and the greeting, and register.

        `also_had` is one more messageId that the client has had. Every client watches the status: a page that
        does not listen to this event does not notice it.
        """
        head = http.response_head(self._connection, headers)
        greeting = self._wire.greeting
        if greeting is not None:
            head += http.chunk(self._connection, greeting)
        http.write(self._connection.transport, head)
        self._remember(also_had)
        self._handle(wanted)
        if self.state is OPEN:  # refused, and the request is over: nobody can register on this connection
            self.close(CloseCode.POLICY, NOT_AUTHORIZED.code)
        else:
            self._handle(WatchStatus())

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Bytes after the request are ignored: the connection ends with this response."""

    def eof_received(self) -> None:
        """The client has closed its half. Returning None lets the transport close the other half."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        self._context.ledger.session_lost(self._connection.transport)
        self.ended()

    def pause_writing(self) -> None:
        transport = slow(self._context, self._connection.transport, self)
        self._connection = self._connection._replace(transport=transport)

    def resume_writing(self) -> None:
        transport = prompt(self._context, self._connection.transport, self)
        self._connection = self._connection._replace(transport=transport)

    # SlowReader

    @property
    def unread(self) -> int:
        return self._connection.transport.get_write_buffer_size()

    def too_slow(self) -> None:
        self.close(CloseCode.POLICY, SLOW_CONSUMER)

    def drop(self) -> None:
        self._end = (CloseCode.ABNORMAL, SLOW_CONSUMER)
        self.abort()

    # Session

    def _write(self, message: bytes) -> None:
        http.write(self._connection.transport, http.chunk(self._connection, message))

    def _send_close(self, code: CloseCode, reason: str) -> None:
        self._write(close_comment(code, reason))
        if self._connection.chunked:
            http.write(self._connection.transport, http.CHUNKS_END)
        self._connection.transport.close()

    def refuse_unknown(self, web_socket_id: bytes) -> bool:
        """As in `Session`; but the request is over, and nobody can register again on this connection.

        An EventSource reconnects, names `REJECTED_EVENT_ID`, and is told to stop.
        """
        refused = super().refuse_unknown(web_socket_id)
        if refused:
            self.close(CloseCode.POLICY, UNKNOWN_ID.code)
        return refused

    def _ping(self) -> bool:
        self._write(self._wire.heartbeat)
        return True  # the kernel reports a client that is gone: see `set_user_timeout`

    def abort(self) -> None:
        reset(self._connection.transport)
