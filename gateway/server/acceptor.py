"""The public port, up to the end of a connection's first request.

A WebSocket handshake is answered here, on the spot: aiohttp's parser reads it, and none of the tasks,
requests and buffers that aiohttp makes for a handler's sake are needed, which takes two fifths off the
cost of a registration (docs/benchmark.md). Any other request goes to aiohttp with its connection.

aiohttp would wait for a request's head as long as the client likes. Here each connection has a deadline,
and there may only be so many that have not met it.

A connection that aiohttp has handed over (see `stream`) comes back here when it has its response. Where
several workers serve the port, all do, since the next request may belong to a sibling (see `handover`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError

from ..core.timer_wheel import TimerWheel
from ..wire.handshake import BUSY, MALFORMED, TOO_LARGE, Handshake, Rejection

MAX_HEAD: Final = 16_384
"""Bytes of a first request's head; a browser's, with large cookies, has 4 to 8 KB."""

KEEP_ALIVE_SECONDS: Final = 75.0
"""Seconds an idle HTTP connection is kept, also one that dribbles its next request; proxies reuse them."""


class UpgradeEndpoint(Protocol):
    """What lets a WebSocket in, or not."""

    def __call__(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> Rejection | None:
        """Take `transport` over, with the bytes that followed the handshake; or say why not."""


HandOff = Callable[[asyncio.Transport, bytes], bool]
"""Sends a connection to whom its next request, which begins with these bytes, belongs; False for nobody."""


class Acceptor:
    """Makes the protocol of each new connection: hand it to `loop.create_server`."""

    def __init__(
        self,
        resolve: Callable[[str], UpgradeEndpoint | None],
        server: Callable[[], asyncio.Protocol],
        max_handshakes: int,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        """`resolve` finds a path's endpoint, if any; `server` makes aiohttp's protocol for everything else.

        `timeout` is in seconds of `clock`, from the connection to the end of its first request's head.
        """
        self._resolve = resolve
        self._server = server
        self._max = max_handshakes
        self._timeout = timeout
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._no_body = BaseProtocol(self._loop)  # the parser wants one, for bodies that are not used
        self._waiting = 0
        self.pass_on: HandOff | None = None
        """Set where there are siblings."""
        self.deadlines: TimerWheel[PendingConnection | LingeringClose] = TimerWheel()
        self.refused = 0
        """Connections closed because too many handshakes were under way."""

    def __call__(self) -> PendingConnection:
        return PendingConnection(self)

    @property
    def handshakes(self) -> int:
        """Connections that have not sent a request yet."""
        return self._waiting

    def arrived(self, visitor: PendingConnection) -> bool:
        """Count `visitor` in and start its deadline; False if there are too many."""
        if self._waiting >= self._max:
            self.refused += 1
            return False
        self._waiting += 1
        self.deadlines.set(visitor, self._clock() + self._timeout)
        return True

    def passed(self, visitor: PendingConnection) -> None:
        """`visitor`, once counted in, has sent its request or is gone."""
        self._waiting -= 1
        self.deadlines.discard(visitor)

    def welcome(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Take in a new connection that was accepted elsewhere; `rest` has come of its first request."""
        visitor = PendingConnection(self)
        transport.set_protocol(visitor)
        visitor.connection_made(transport)
        if rest:
            visitor.data_received(rest)

    def readmit(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Wait for the next request on a connection that has its response; `rest` has come of it already."""
        visitor = KeepAliveConnection(self, transport)
        self.deadlines.set(visitor, self._clock() + KEEP_ALIVE_SECONDS)
        if rest:
            visitor.data_received(rest)

    def see_out(self, transport: asyncio.Transport) -> None:
        """Close a connection once its last bytes are sent, or when that takes too long."""
        self.deadlines.set(LingeringClose(self, transport), self._clock() + self._timeout)
        transport.close()

    def answer(self, transport: asyncio.Transport, head: bytes) -> None:
        """Answer the request that begins with `head`, or have a sibling or aiohttp do it."""
        if self.pass_on is not None and self.pass_on(transport, head):
            return
        try:
            answered = self._upgraded(transport, head)
        except HttpProcessingError:
            reject(transport, MALFORMED)
            return
        if not answered:
            connection = self._server()
            transport.set_protocol(connection)
            connection.connection_made(transport)
            connection.data_received(head)

    def _upgraded(self, transport: asyncio.Transport, head: bytes) -> bool:
        """Whether `head` was a handshake, and has been answered. Raises HttpProcessingError."""
        parser = HttpRequestParser(self._no_body, self._loop, MAX_HEAD)
        messages, upgrade, rest = parser.feed_data(head)
        if not messages or len(head.partition(b"\r\n\r\n")[0]) > MAX_HEAD:
            reject(transport, TOO_LARGE if messages else MALFORMED)
            return True
        if not upgrade or len(messages) != 1:
            return False
        message: RawRequestMessage = messages[0][0]
        endpoint = self._resolve(message.path.partition("?")[0])
        if endpoint is None or message.method != "GET" or _has_body(message):
            return False
        peer = transport.get_extra_info("peername")
        handshake = Handshake(message.version, message.headers, peer[0] if peer else "")
        refusal = endpoint(handshake, transport, rest)
        if refusal is not None:
            reject(transport, refusal)
        return True


def reject(transport: asyncio.Transport, refusal: Rejection) -> None:
    """Say why, and close."""
    transport.write(refusal.response)
    transport.close()


def _has_body(message: RawRequestMessage) -> bool:
    return message.chunked or "Content-Length" in message.headers


class PendingConnection(asyncio.Protocol):
    """A connection until its first request is there."""

    __slots__ = ("_door", "_head", "_transport", "_waiting", "due")

    def __init__(self, door: Acceptor) -> None:
        self._door = door
        self._head = b""
        self._waiting = False
        self._transport: asyncio.Transport
        self.due = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is none of asyncio's
        self._waiting = self._door.arrived(self)
        if not self._waiting:
            reject(self._transport, BUSY)

    def data_received(self, data: bytes) -> None:
        if not self._waiting:  # it has its refusal
            return
        # Empty lines before a request mean nothing (RFC 9112 section 2.2), and are none.
        self._head = (self._head + data).lstrip(b"\r\n")
        if b"\r\n\r\n" in self._head:
            self._pass()
            self._door.answer(self._transport, self._head)
        elif len(self._head) > MAX_HEAD:
            self._pass()
            reject(self._transport, TOO_LARGE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pass()

    def deadline_passed(self) -> None:
        """The time for the request's head is over."""
        self._transport.abort()

    def _pass(self) -> None:
        if self._waiting:
            self._waiting = False
            self._door.passed(self)


class KeepAliveConnection(PendingConnection):
    """A connection between two requests. It has shown what it is for, so it does not count as a visitor."""

    __slots__ = ()

    def __init__(self, door: Acceptor, transport: asyncio.Transport) -> None:
        super().__init__(door)
        self._transport = transport
        self._waiting = True
        transport.set_protocol(self)

    def _pass(self) -> None:
        self._waiting = False
        self._door.deadlines.discard(self)


class LingeringClose(asyncio.Protocol):
    """A connection that is being closed, to its end."""

    __slots__ = ("_door", "_transport", "due")

    def __init__(self, door: Acceptor, transport: asyncio.Transport) -> None:
        self._door = door
        self._transport = transport
        self.due = 0
        transport.set_protocol(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.deadlines.discard(self)

    def deadline_passed(self) -> None:
        """It does not read what is left for it."""
        self._transport.abort()
