"""A connection while one of aiohttp's handlers answers its request, and how the handler takes it over.

aiohttp parses nothing and reads nothing here: the request is complete before its handler starts (see
`server.dispatcher`). So a handler that takes the connection gets all that was read from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol

MAX_READ_AHEAD: Final = 16_384
"""Bytes of the next request that are kept until the response. Browsers send none. The event loop reads up to
256 KB at once, so more may come: see `RequestConnection.overrun`."""


class RequestConnection(BaseProtocol):
    """What aiohttp's requests and responses need of their connection, from the request to its response."""

    __slots__ = ("_counted", "_lost", "ended", "overrun", "peername", "rest")

    # aiohttp's requests ask for them. Neither port speaks TLS, and HTTP/1.1 requests name their host.
    ssl_context = None
    sockname = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        rest: bytes,
        lost: Callable[[asyncio.BaseTransport], None],
    ) -> None:
        """`rest` is what was read after the request. `lost` is called if the connection is lost here."""
        super().__init__(loop)
        self._counted = transport
        self._lost = lost
        self.transport = transport
        self.peername = transport.get_extra_info("peername")
        self.rest = b""
        self.ended = False
        """The client has closed its half. It can still read the response."""
        self.overrun = False
        """More has come than is kept. The connection must end with the response, and the client repeats what
        it has pipelined (RFC 9112 section 9.3.2)."""
        transport.set_protocol(self)
        self.data_received(rest)

    def data_received(self, data: bytes) -> None:
        if self.transport is None:  # lost, or given away
            return
        self.rest += data
        if len(self.rest) > MAX_READ_AHEAD:
            self.rest, self.overrun = b"", True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """True keeps the other half open, for the response."""
        self.ended = True
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._lost(self._counted)  # also if it was given away, and nobody has taken it, as it was closing

    def release(self) -> asyncio.Transport:
        """Give the connection away. It must not be lost yet."""
        transport, self.transport = self.transport, None
        assert transport is not None
        if not transport.is_reading() and not self.ended:
            transport.resume_reading()
        return transport


class _HijackedResponse(web.StreamResponse):
    """The return value of a handler after `hijack`: aiohttp has nothing to send."""


HIJACKED: Final = _HijackedResponse()


def hijack(request: web.Request) -> tuple[asyncio.Transport, bytes | None]:
    """Take the connection of `request`, which must not be lost, with the bytes that followed the request.
    None instead of them: there were too many, and the connection must end with the response.

    The handler must return `HIJACKED`.
    """
    connection = cast("RequestConnection", request.protocol)
    return connection.release(), None if connection.overrun else connection.rest


def end_input(transport: asyncio.Transport) -> None:
    """Tell the connection's protocol that the client has closed its half, as the event loop would."""
    protocol = cast("asyncio.Protocol", transport.get_protocol())
    if not transport.is_closing() and not protocol.eof_received():
        transport.close()
