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
"""Bytes of the next request that are read before the response. Browsers send none."""


class RequestConnection(BaseProtocol):
    """What aiohttp's requests and responses need of their connection, from the request to its response."""

    __slots__ = ("_counted", "_lost", "ended", "peername", "rest")

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
        self.rest = rest
        self.ended = False
        """The client has closed its half. It can still read the response."""
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        self.rest += data
        if len(self.rest) > MAX_READ_AHEAD and self.transport is not None:
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


def hijack(request: web.Request) -> tuple[asyncio.Transport, bytes]:
    """Take the connection of `request`, which must not be lost, with the bytes that followed the request.

    The handler must return `HIJACKED`.
    """
    connection = cast("RequestConnection", request.protocol)
    return connection.release(), connection.rest


def end_input(transport: asyncio.Transport) -> None:
    """Tell the connection's protocol that the client has closed its half, as the event loop would."""
    protocol = cast("asyncio.Protocol", transport.get_protocol())
    if not transport.is_closing() and not protocol.eof_received():
        transport.close()
