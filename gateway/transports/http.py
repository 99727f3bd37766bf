"""HTTP responses that last: written on the bare transport, once aiohttp has read the request.

A waiting client of aiohttp's costs a request, a task, parsers and buffers, 15 KB in all, and none of them
has anything to do. As with a WebSocket (see `websocket`) the transport is taken over, and what waits is one
small object.
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
"""In the words of SockJS's protocol. `no-transform` keeps proxies from compressing, which buffers."""


class HttpConnection(NamedTuple):
    """A connection whose request has been read and whose response is ours to write."""

    transport: asyncio.Transport
    chunked: bool
    """The client knows chunks: HTTP/1.1. For an older one, the response ends with the connection."""
    lasting: bool
    """It may carry another request afterwards."""


def take_connection(request: web.Request) -> HttpConnection:
    """Take the connection of `request`, whose body has been read, out of aiohttp's hands.

    The handler returns `websocket.HANDED_OVER`, and must not wait before it does.
    """
    chunked = request.version >= (1, 1)
    # What is pipelined behind this request is lost with aiohttp's part of the connection, so it ends: a
    # client that pipelines sends again what has no response (RFC 9112 section 9.3.2).
    lasting = chunked and request.keep_alive and not request.protocol._messages
    transport, _ = hijack(request)
    if not transport.is_reading():
        transport.resume_reading()
    return HttpConnection(transport, chunked, lasting)


def response_head(connection: HttpConnection, headers: Mapping[str, str], length: int | None = None) -> bytes:
    """Status line and headers of a 200; with `length` bytes of body, or as many as will come."""
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
    """Write a response of aiohttp's whole, `without_body` if it answers HEAD."""
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
    """`data` as the next piece of a response without a length; it is not empty."""
    return b"%x\r\n%b\r\n" % (len(data), data) if connection.chunked else data


def write(transport: asyncio.Transport, data: bytes) -> None:
    """Write, unless the connection broke a moment ago: uvloop raises then, until it reports the loss."""
    try:  # noqa: SIM105 - as in websocket, for its speed
        transport.write(data)
    except RuntimeError:
        pass


def set_user_timeout(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel report a client as lost that has left sent bytes unacknowledged for `seconds`.

    Nothing comes back from a client that only listens: without this, one whose network is gone would be
    kept for the quarter of an hour for which TCP repeats itself.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
