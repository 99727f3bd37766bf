"""Take a connection out of aiohttp's hands once aiohttp has read a request on it."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web


class _Remainder:
    """Stands in for aiohttp's WebSocket parser: keeps what came behind the handshake."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """The connection ends with aiohttp's part of it."""


class _HijackedResponse(web.StreamResponse):
    """What a handler returns after `hijack`: nothing is left for aiohttp to send."""

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


HIJACKED: Final = _HijackedResponse()


def hijack(request: web.Request) -> tuple[asyncio.Transport, bytes]:
    """Take the connection of an upgrade request out of aiohttp's hands, with what followed the request.

    The handler returns `HIJACKED`, and must not wait before it does.
    """
    connection, transport = request.protocol, request.transport
    assert transport is not None
    remainder = _Remainder()
    connection.set_parser(remainder)  # type: ignore[arg-type]  # aiohttp names its own parser there
    # For aiohttp the connection ends here. It must not find the transport, or it would close it.
    connection.transport = None
    connection.connection_lost(None)
    return transport, remainder.data
