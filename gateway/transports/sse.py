"""Server-sent events: `GET /events?webSocketId=…` registers, and its response goes on for the results."""

from __future__ import annotations

import asyncio

from ..core.session import Session, SessionContext
from ..messages import CloseCode, Problem, Register, WatchStatus
from ..wire.sse import RECONNECT_DELAY, SSE_WIRE, close_comment
from . import http as stream
from .http import HttpConnection


class SSESession(Session, asyncio.Protocol):
    """The transport's protocol and the hub's member in one object, as with a WebSocket."""

    __slots__ = ("_connection",)

    transport = "eventsource"

    def __init__(self, node: SessionContext, address: str, connection: HttpConnection) -> None:
        super().__init__(node, SSE_WIRE, address)
        self._connection = connection._replace(lasting=False)  # the stream ends with it
        connection.transport.set_protocol(self)
        connection.transport.set_write_buffer_limits(high=node.config.write_buffer)
        stream.set_user_timeout(connection.transport, 2 * node.config.heartbeat)

    def begin(self, wanted: Register, also_had: str | None, headers: dict[str, str]) -> None:
        """Send the head of the response, and register. `also_had`: one more messageId of its past.

        Every client watches the status: a page that listens to no such event does not notice any.
        """
        head = stream.response_head(self._connection, headers) + stream.chunk(
            self._connection, RECONNECT_DELAY
        )
        stream.write(self._connection.transport, head)
        self._remember(also_had)
        for request in (wanted, WatchStatus()):
            self._handle(request)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """What comes behind the request means nothing: the response ends with the connection."""

    def eof_received(self) -> None:
        """Half-closed by the client; returning None lets the transport close the other half."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended()

    def pause_writing(self) -> None:
        """The transport holds more unsent bytes than `write_buffer`: the client does not read."""
        self.close(CloseCode.POLICY, "slow consumer")

    def resume_writing(self) -> None:
        """Nothing waits for it: a session that was too slow is closing already."""

    # Session

    def refuse(self, web_socket_id: bytes, problem: Problem) -> None:
        """As for every session; but this client cannot try another id."""
        super().refuse(web_socket_id, problem)
        self.close(CloseCode.POLICY, problem.message)

    def _write(self, message: bytes) -> None:
        stream.write(self._connection.transport, stream.chunk(self._connection, message))

    def _say_goodbye(self, code: CloseCode, reason: str) -> None:
        self._write(close_comment(code, reason))
        if self._connection.chunked:
            stream.write(self._connection.transport, stream.CHUNKS_END)
        self._connection.transport.close()

    def _probe(self) -> bool:
        self._write(SSE_WIRE.heartbeat)
        return True  # the kernel tells when nothing is acknowledged any more

    def abort(self) -> None:
        self._connection.transport.abort()
