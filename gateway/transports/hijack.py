"""Takes a connection from aiohttp after aiohttp has read a request on it."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web


class _Remainder:
    """Replaces aiohttp's WebSocket parser: keeps the bytes that followed the handshake."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Nothing to do: aiohttp's part of the connection ends here anyway."""


class _HijackedResponse(web.StreamResponse):
    """The return value of a handler after `hijack`: aiohttp has nothing to send."""

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


HIJACKED: Final = _HijackedResponse()


def hijack(request: web.Request) -> tuple[asyncio.Transport, bytes]:
    """Take the connection of `request` from aiohttp, with the bytes that followed the request.

    The handler must return `HIJACKED`, and must not await anything before that.
    """
    connection, transport = request.protocol, request.transport
    assert transport is not None
    remainder = _Remainder()
    connection.set_parser(remainder)  # type: ignore[arg-type]  # aiohttp names its own parser there
    # For aiohttp the connection ends here. aiohttp would close the transport if it found it.
    connection.transport = None
    connection.connection_lost(None)
    return transport, remainder.data
