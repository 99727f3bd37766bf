"""Reads requests, and decides who answers: a sibling worker, a WebSocket endpoint, or a handler of aiohttp's.

    head ---> sibling's? ---> parse, check ---> body ---> WebSocket endpoint
                                   |             |  \\---> aiohttp's handler (see `requests`)
                                   +--4xx, 5xx---+

Every request of every connection takes this way, on both ports. So a connection's later requests are under
the same rules as its first.

A WebSocket handshake is answered without aiohttp's tasks, requests and buffers: that saves two fifths of the
cost of a registration (docs/benchmark.md).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final, Protocol

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy

from ..transports.sockets import peer_address
from ..wire.body import BodyReader, ChunkedBody, FixedBody
from ..wire.handshake import (
    BODY_TOO_LARGE,
    DEEP_PATH,
    ENCODED_BODY,
    EXPECTATION,
    HANDSHAKE_BODY,
    MALFORMED,
    TOO_LARGE,
    TRANSFER_CODING,
    TWICE,
    Handshake,
    Rejection,
)
from .acceptor import HEAD_END, MAX_HEAD, Acceptor
from .bodies import Bodies
from .rejections import Rejections

MAX_FIELDS: Final = 128
"""Headers of a request. Browsers and proxies send about 30."""

MAX_SLASHES: Final = 32
"""Slashes of a path; those of SockJS have four. aiohttp's router tries a path again without its last part, as
long as there is one: for 16,000 slashes it would need 55 ms, in which nobody else is served."""

ONCE: Final = (
    "Authorization",
    "Content-Encoding",
    "Expect",
    "Last-Event-ID",
    "Origin",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
)
"""Headers on which a decision rests, so they may occur once: a proxy and this node might each read another of
the two. The parser does the same for Host, Content-Length and others."""

_PLAIN = re.compile(r"/[^%#]*\Z")
"""A path that needs no decoding. Others have escapes, or are a whole URL (RFC 9112 section 3.2.2)."""

NO_BODY_READ: Final = ("GET", "HEAD", "OPTIONS")
"""Methods whose handlers ignore a body. The others answer themselves if it is too large."""


class UpgradeEndpoint(Protocol):
    """Opens WebSockets at a path."""

    def __call__(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> Rejection | None:
        """Take over `transport`, with the bytes that followed the handshake. Or return why not."""


class Server(Protocol):
    """Answers the requests that are for no WebSocket endpoint: see `requests.RequestServer`."""

    max_body: int
    """Bytes of a request's body."""

    def serve(
        self, transport: asyncio.Transport, message: RawRequestMessage, body: bytes | None, rest: bytes
    ) -> None:
        """Answer a request. `body` is None if it is too large; `rest` is what was read after the request."""


HandOff = Callable[[asyncio.Transport, bytes], bool]
"""Hands a connection, whose next request begins with these bytes, to the worker that owns this request.
Returns False if that is this worker."""


def no_endpoint(_path: str) -> UpgradeEndpoint | None:
    """For a port without WebSockets."""
    return None


class Dispatcher:
    """Finds who answers each request, and hands the connection over."""

    def __init__(
        self,
        acceptor: Acceptor,
        server: Server,
        rejections: Rejections,
        resolve: Callable[[str], UpgradeEndpoint | None] = no_endpoint,
        hand_off: HandOff | None = None,
    ) -> None:
        """`acceptor` takes the connections that end, and holds deadlines. `rejections` counts requests that
        nobody answers. `resolve` finds the WebSocket endpoint at a path. `hand_off` is needed where several
        workers serve the port."""
        self._acceptor = acceptor
        self._server = server
        self._rejections = rejections
        self._resolve = resolve
        self._hand_off = hand_off
        self._bodies = Bodies(acceptor, server.max_body, self._answer, self._reject)
        self._loop = asyncio.get_running_loop()
        self._no_body = BaseProtocol(self._loop)  # the parser needs one, for bodies that it never gets

    def dispatch(self, transport: asyncio.Transport, data: bytes) -> None:
        """Have the request answered that begins with `data`.

        Its head is complete, or longer than MAX_HEAD.
        """
        end = data.find(HEAD_END) + len(HEAD_END)
        if not len(HEAD_END) <= end <= MAX_HEAD:
            self._reject(transport, TOO_LARGE)
            return
        if self._hand_off is not None and self._hand_off(transport, data):
            return
        try:
            message = self._parse(data[:end])
        except HttpProcessingError as error:
            too_many = data.count(b"\r\n", 0, end) > MAX_FIELDS + 2  # besides the request line and the end
            # The error's text holds what the client has sent, a token perhaps. Its class says enough.
            self._reject(transport, TOO_LARGE if too_many else MALFORMED, error=type(error).__name__)
            return
        rejection = _rejection_of(message)
        if rejection is not None:
            self._reject(transport, rejection)
            return
        asked = "Expect" in message.headers
        if asked:  # aiohttp would answer it once more
            message = _without_expectation(message)
        reader = _body_reader(message)
        if reader is None:
            self._answer(transport, message, b"", data[end:])
        else:
            self._receive(transport, message, reader, data[end:], asked=asked)

    def _parse(self, head: bytes) -> RawRequestMessage:
        """The request with this head. Raises HttpProcessingError."""
        parser = HttpRequestParser(
            self._no_body,
            self._loop,
            MAX_HEAD,
            max_line_size=MAX_HEAD,
            max_headers=MAX_FIELDS,
            max_field_size=MAX_HEAD,
            auto_decompress=False,
        )
        messages, _, _ = parser.feed_data(head)
        if not messages:
            raise HttpProcessingError
        return messages[0][0]

    def _receive(
        self,
        transport: asyncio.Transport,
        message: RawRequestMessage,
        reader: BodyReader,
        data: bytes,
        *,
        asked: bool,
    ) -> None:
        if message.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            # Inflating would let a client take 1,000 times the memory that it sends.
            self._reject(transport, ENCODED_BODY)
            return
        # A client of HTTP/1.0 would take 100 (Continue) for the response (RFC 9110 section 10.1.1).
        self._bodies.receive(transport, message, reader, data, asked=asked and message.version >= (1, 1))

    def _answer(
        self, transport: asyncio.Transport, message: RawRequestMessage, body: bytes | None, rest: bytes
    ) -> None:
        """Have a complete request answered. `body` is None if it is too large."""
        if body is None and message.method in NO_BODY_READ:
            self._reject(transport, BODY_TOO_LARGE)
            return
        if body is None:
            self._rejections.add(BODY_TOO_LARGE, peer=peer_address(transport))
        endpoint = self._endpoint(message) if message.method == "GET" else None
        if endpoint is None:
            self._server.serve(transport, message, body, rest)
        elif body:
            self._reject(transport, HANDSHAKE_BODY)
        else:
            handshake = Handshake(message.version, message.headers, peer_address(transport))
            rejection = endpoint(handshake, transport, rest)
            if rejection is not None:
                self._acceptor.reject(transport, rejection)

    def _endpoint(self, message: RawRequestMessage) -> UpgradeEndpoint | None:
        path = message.path.partition("?")[0]
        found = self._resolve(path)
        if found is None and not _PLAIN.match(path):
            found = self._resolve(message.url.path)
        return found

    def _reject(self, transport: asyncio.Transport, rejection: Rejection, **facts: str) -> None:
        self._rejections.add(rejection, peer=peer_address(transport), **facts)
        self._acceptor.reject(transport, rejection)


def _rejection_of(message: RawRequestMessage) -> Rejection | None:
    """What is wrong with a request that the parser lets pass."""
    headers = message.headers
    if message.version.major != 1:  # after CONNECT without a target the parser takes 0.9, and names no URL
        return MALFORMED
    if message.path.count("/") > MAX_SLASHES < message.path.partition("?")[0].count("/"):
        return DEEP_PATH
    if len(set(headers)) != len(headers) and any(len(headers.getall(name, ())) > 1 for name in ONCE):
        return TWICE
    if message.chunked:
        if headers["Transfer-Encoding"].strip().lower() != "chunked":
            return TRANSFER_CODING
        if message.version < (1, 1):  # RFC 9112 section 6.1: its length cannot be trusted
            return MALFORMED
    if "Expect" in headers and headers["Expect"].strip().lower() != "100-continue":
        return EXPECTATION
    return None


def _body_reader(message: RawRequestMessage) -> BodyReader | None:
    """Reads the request's body. None if there is none: a header that says so is no body."""
    if message.chunked:
        return ChunkedBody()
    # The parser takes what fits into 64 bits, with any number of zeros before it. int takes 4,300 digits at
    # most.
    length = message.headers.get("Content-Length")
    if length is None:  # nearly always
        return None
    length = length.lstrip("0")
    return FixedBody(int(length)) if length else None


def _without_expectation(message: RawRequestMessage) -> RawRequestMessage:
    headers = CIMultiDict(message.headers)
    headers.popall("Expect")
    return message._replace(headers=CIMultiDictProxy(headers))
