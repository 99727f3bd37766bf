"""Decides who answers a request: a sibling worker, a WebSocket endpoint, or aiohttp.

A WebSocket handshake is answered here. It needs aiohttp's parser, but none of the tasks, requests and buffers
that aiohttp makes for a handler: that saves two fifths of the cost of a registration (docs/benchmark.md).
Every other request goes to aiohttp, together with its connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError

from ..wire.handshake import MALFORMED, TOO_LARGE, Handshake, Rejection
from .acceptor import MAX_HEAD, reject


class UpgradeEndpoint(Protocol):
    """Opens WebSockets at a path."""

    def __call__(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> Rejection | None:
        """Take over `transport`, with the bytes that followed the handshake. Or return why not."""


HandOff = Callable[[asyncio.Transport, bytes], bool]
"""Hands a connection, whose next request begins with these bytes, to the worker that owns this request.
Returns False if that is this worker."""


class Dispatcher:
    """Finds who answers each request, and hands the connection over."""

    def __init__(
        self,
        resolve: Callable[[str], UpgradeEndpoint | None],
        server: Callable[[], asyncio.Protocol],
        hand_off: HandOff | None = None,
    ) -> None:
        """`resolve` finds the WebSocket endpoint at a path. `server` makes aiohttp's protocol for every
        other request. `hand_off` is needed where several workers serve the port."""
        self._resolve = resolve
        self._server = server
        self._hand_off = hand_off
        self._loop = asyncio.get_running_loop()
        self._no_body = BaseProtocol(self._loop)  # the parser needs one, for bodies that are not used

    def dispatch(self, transport: asyncio.Transport, head: bytes) -> None:
        """Have the request answered that begins with `head`."""
        if self._hand_off is not None and self._hand_off(transport, head):
            return
        try:
            parser = HttpRequestParser(self._no_body, self._loop, MAX_HEAD)
            messages, upgrade, rest = parser.feed_data(head)
        except HttpProcessingError:
            reject(transport, MALFORMED)
            return
        if not messages:
            reject(transport, MALFORMED)
        elif len(head) > MAX_HEAD and len(head.partition(b"\r\n\r\n")[0]) > MAX_HEAD:
            reject(transport, TOO_LARGE)
        elif not upgrade or len(messages) > 1:
            self._serve(transport, head)
        else:
            self._upgrade(transport, head, messages[0][0], rest)

    def _upgrade(
        self, transport: asyncio.Transport, head: bytes, message: RawRequestMessage, rest: bytes
    ) -> None:
        endpoint = self._resolve(message.path.partition("?")[0])
        if endpoint is None or message.method != "GET" or _has_body(message):
            self._serve(transport, head)
            return
        peer = transport.get_extra_info("peername")
        handshake = Handshake(message.version, message.headers, peer[0] if peer else "")
        rejection = endpoint(handshake, transport, rest)
        if rejection is not None:
            reject(transport, rejection)

    def _serve(self, transport: asyncio.Transport, head: bytes) -> None:
        """Give the connection to aiohttp."""
        connection = self._server()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(head)


def _has_body(message: RawRequestMessage) -> bool:
    return message.chunked or "Content-Length" in message.headers
