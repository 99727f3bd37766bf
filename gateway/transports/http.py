"""Long HTTP responses, written directly to the transport.

A client that waits in a handler of aiohttp costs a request, a task and buffers, and none of them has anything
to do. As with a WebSocket (see `websocket`), one small object has the transport and waits.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from email.utils import formatdate
from typing import Final, NamedTuple

from aiohttp import web

from .hijack import hijack

CHUNKS_END: Final = b"0\r\n\r\n"

NO_STORE: Final = "no-store, no-cache, no-transform, must-revalidate, max-age=0"
"""As in the SockJS protocol. `no-transform` stops proxies from compressing, which would buffer."""


class HttpConnection(NamedTuple):
    """A connection whose request has been read, and whose response is written here."""

    transport: asyncio.Transport
    chunked: bool
    """The client understands chunks: HTTP/1.1. For an older client, the response ends with the connection."""
    lasting: bool
    """The connection may carry another request afterwards."""
    rest: bytes = b""
    """What was read after the request: the start of the next one."""


def take_connection(request: web.Request) -> HttpConnection:
    """Take the connection of `request`, which must not be lost, from aiohttp.

    The handler must return `HIJACKED`.
    """
    chunked = request.version >= (1, 1)
    transport, rest = hijack(request)
    lasting = chunked and bool(request.keep_alive) and rest is not None
    return HttpConnection(transport, chunked, lasting, rest or b"")


def response_head(connection: HttpConnection, headers: Mapping[str, str], length: int | None = None) -> bytes:
    """Status line and headers of a 200. Without `length` the size of the body is open."""
    fields = {**headers, "Date": formatdate(usegmt=True)}
    if length is not None:
        fields["Content-Length"] = str(length)
    elif connection.chunked:
        fields["Transfer-Encoding"] = "chunked"
    if not connection.lasting:
        fields["Connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode()


def chunk(connection: HttpConnection, data: bytes) -> bytes:
    """`data` as the next piece of a response without a length."""
    # A chunk of no bytes would end the response (RFC 9112 section 7.1).
    return b"%x\r\n%b\r\n" % (len(data), data) if connection.chunked and data else data


def write(transport: asyncio.Transport, data: bytes) -> None:
    """Write, unless the connection broke a moment ago: then uvloop raises until it reports the loss."""
    try:  # noqa: SIM105 - faster, as in `websocket`
        transport.write(data)
    except RuntimeError:
        pass


def set_user_timeout(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel drop the connection if sent bytes stay without a TCP ACK for `seconds`.

    A client that only listens sends nothing. Without this timeout, a client whose network is gone would be
    kept for a quarter of an hour, while TCP retransmits.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
