"""Receives the bodies of requests, completely, before anybody answers.

Handlers that read for themselves would each need a limit and a deadline, and the end of a body that one of
them does not read would stand in front of the connection's next request. A body is kept as it was sent, and
is dropped as soon as it is too large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp.http import RawRequestMessage

from ..core.admission import Backlog
from ..transports.sockets import reset
from ..wire.body import BodyReader, MalformedBody
from ..wire.handshake import BUSY, MALFORMED, SLOW_BODY, Rejection
from .acceptor import Acceptor

MAX_INCOMPLETE: Final = 32 << 20
"""Bytes of all bodies, on one port, that have begun and are not complete. Browsers send theirs at once. The
largest are rejected first: whoever waits for the rest of a small body pays for no one else's large ones."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

Answer = Callable[[asyncio.Transport, RawRequestMessage, bytes | None, bytes], None]
"""Has a request answered, whose body is this, or None if it is too large. What follows it comes last."""

Reject = Callable[[asyncio.Transport, Rejection], None]


class Bodies:
    """The bodies of one port that are being received."""

    def __init__(self, acceptor: Acceptor, max_body: int, answer: Answer, reject: Reject) -> None:
        """`max_body` is in bytes. Each body has as much time as a request's head has at `acceptor`."""
        self._acceptor = acceptor
        self.max_body = max_body
        self.answer = answer
        self.reject = reject
        self._incomplete = Backlog(MAX_INCOMPLETE)

    @property
    def incomplete(self) -> int:
        """Bytes of the bodies that have begun and are not complete."""
        return self._incomplete.unread

    def receive(
        self,
        transport: asyncio.Transport,
        message: RawRequestMessage,
        reader: BodyReader,
        data: bytes,
        *,
        asked: bool,
    ) -> None:
        """Receive the body that begins with `data`. `asked`: the client waits for 100 (Continue)."""
        connection = ReceivingConnection(self, transport, message, reader)
        connection.data_received(data)
        if connection.waiting:
            transport.set_protocol(connection)
            self._acceptor.set_deadline(connection)
            if asked and not data:
                transport.write(CONTINUE)

    def add(self, connection: ReceivingConnection, size: int) -> None:
        """So many more bytes of an incomplete body have come. If all together are now too large, the largest
        of them are rejected: perhaps this one."""
        self._incomplete.add(connection, size)

    def end(self, connection: ReceivingConnection) -> None:
        """The connection does not wait any more."""
        self._acceptor.deadlines.discard(connection)
        self._incomplete.discard(connection)

    def lost(self, transport: asyncio.BaseTransport) -> None:
        """A connection was lost while its body was received."""
        self._acceptor.lost(transport)


class ReceivingConnection(asyncio.Protocol):
    """A connection until the body of its request is complete."""

    __slots__ = ("_bodies", "_message", "_reader", "_transport", "due", "waiting")

    def __init__(
        self, bodies: Bodies, transport: asyncio.Transport, message: RawRequestMessage, reader: BodyReader
    ) -> None:
        self._bodies = bodies
        self._transport = transport
        self._message = message
        self._reader = reader
        self.waiting = True
        self.due = 0

    def data_received(self, data: bytes) -> None:
        try:
            rest = self._reader.feed(data)
        except MalformedBody:
            self._reject(MALFORMED)
            return
        if self._reader.size > self._bodies.max_body:
            self._answer(None, b"")
        elif rest is not None:
            self._answer(bytes(self._reader.data), rest)
        else:
            self._bodies.add(self, len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._bodies.lost(self._transport)

    def deadline_passed(self) -> None:
        """The time for the body is over."""
        self._reject(SLOW_BODY)

    def abort(self) -> None:
        """The node stops."""
        reset(self._transport)

    # SlowReader: of the client's bytes, by this node

    @property
    def unread(self) -> int:
        return len(self._reader.data)

    def drop(self) -> None:
        """All incomplete bodies together are too large, and this is one of the largest."""
        self._reject(BUSY)

    def _answer(self, body: bytes | None, rest: bytes) -> None:
        self._end()
        if self._transport.get_write_buffer_size():
            # The client does not read the 100 (Continue) that it has asked for. A session on this connection
            # would not be told that its client is slow, and no limit would hold.
            reset(self._transport)
            return
        self._bodies.answer(self._transport, self._message, body, rest)

    def _reject(self, rejection: Rejection) -> None:
        self._end()
        self._bodies.reject(self._transport, rejection)

    def _end(self) -> None:
        self.waiting = False
        self._bodies.end(self)
