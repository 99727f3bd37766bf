"""Long HTTP responses, written directly to the transport after aiohttp has read the request.

A client that waits in aiohttp costs a request, a task, parsers and buffers: 15 KB, and none of them has
anything to do. As with a WebSocket (see `websocket`), the transport is taken from aiohttp, and one small
object waits.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
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


def take_connection(request: web.Request) -> HttpConnection:
    """Take the connection of `request`, whose body has been read, from aiohttp.

    The handler must return `HIJACKED`, and must not await anything before that.
    """
    chunked = request.version >= (1, 1)
    # Pipelined requests are lost with aiohttp's part of the connection. So the connection must end: a client
    # that pipelines repeats the requests that have no response (RFC 9112 section 9.3.2).
    lasting = chunked and request.keep_alive and not request.protocol._messages
    transport, _ = hijack(request)
    if not transport.is_reading():
        transport.resume_reading()
    return HttpConnection(transport, chunked, lasting)


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


def write_response(connection: HttpConnection, response: web.Response, *, without_body: bool) -> None:
    """Write a complete aiohttp response; `without_body` if it answers HEAD."""
    fields = {**response.headers, "Date": formatdate(usegmt=True)}
    body = response.body if isinstance(response.body, bytes) else b""
    if response.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        fields["Content-Length"] = str(len(body))
    if not connection.lasting:
        fields["Connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    status = f"HTTP/1.1 {response.status} {response.reason}\r\n"
    write(connection.transport, f"{status}{lines}\r\n".encode() + (b"" if without_body else body))


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
