"""The WebSocket handshake (RFC 6455 section 4.2): its checks and the responses to it. Pure."""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

import orjson
from multidict import CIMultiDictProxy

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3

RETRY_AFTER_SECONDS: Final = "5"
"""Seconds that a rejected client should wait. Other nodes have room before this one does."""


class Handshake(NamedTuple):
    """A request to upgrade, and the address of the TCP peer it came from."""

    version: tuple[int, int]
    headers: CIMultiDictProxy[str]
    peer: str


class Rejection(NamedTuple):
    """A response that rejects a request. `code` is for programs, `message` for people."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = {}

    @property
    def body(self) -> bytes:
        return orjson.dumps({"error": {"code": self.code, "message": self.message}})

    @property
    def response(self) -> bytes:
        """The whole HTTP response. The connection is closed after it."""
        body = self.body
        fields = {
            "Content-Type": "application/json; charset=utf-8",
            "Content-Length": str(len(body)),
            "Connection": "Upgrade, close" if "Upgrade" in self.headers else "close",
            **self.headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n{head}\r\n".encode() + body


BUSY = Rejection(503, "busy", "too many handshakes are in progress", {"Retry-After": "1"})
STOPPING = Rejection(503, "stopping", "this node is shutting down", {"Retry-After": "1"})
CUT_OFF = Rejection(
    503, "cut_off", "this node receives no results at the moment, and the proxy wants one that does"
)
NODE_FULL = Rejection(503, "node_full", "this node is full", {"Retry-After": RETRY_AFTER_SECONDS})
ADDRESS_FULL = Rejection(
    429, "address_full", "too many sessions from your address", {"Retry-After": RETRY_AFTER_SECONDS}
)
ADDRESS_BUSY = Rejection(
    429, "address_busy", "too many requests from your address", {"Retry-After": RETRY_AFTER_SECONDS}
)
ORIGIN = Rejection(403, "origin_not_allowed", "pages from this origin may not connect")
NO_UPGRADE = Rejection(
    426,
    "upgrade_required",
    "this is a WebSocket endpoint: connect with a WebSocket client",
    {"Upgrade": "websocket"},
)
VERSION = Rejection(
    426, "unsupported_version", "only WebSocket version 13 is spoken here", {"Sec-WebSocket-Version": "13"}
)
NO_HOST = Rejection(400, "bad_handshake", "the handshake needs HTTP/1.1 and a Host header")
BAD_KEY = Rejection(400, "bad_handshake", "Sec-WebSocket-Key must be 16 bytes in base64")
MALFORMED = Rejection(400, "bad_request", "the request cannot be parsed as HTTP")
TWICE = Rejection(400, "bad_request", "a header that may occur once occurs more often")
DEEP_PATH = Rejection(414, "bad_request", "the path has too many slashes")
HANDSHAKE_BODY = Rejection(400, "bad_handshake", "a handshake has no body")
SLOW_BODY = Rejection(408, "request_timeout", "the request's body did not come in time")
BODY_TOO_LARGE = Rejection(413, "body_too_large", "the request's body is too large")
ENCODED_BODY = Rejection(
    415, "encoded_body", "send the body without Content-Encoding", {"Accept-Encoding": "identity"}
)
EXPECTATION = Rejection(417, "expectation_failed", "only Expect: 100-continue can be met")
TOO_LARGE = Rejection(431, "headers_too_large", "the request's headers are too large")
FAILED = Rejection(500, "internal_error", "the request failed; the node's log says why")
TRANSFER_CODING = Rejection(501, "transfer_coding", "only Transfer-Encoding: chunked is understood")

HTTP_REJECTIONS: Final = (
    MALFORMED,
    SLOW_BODY,
    BODY_TOO_LARGE,
    ENCODED_BODY,
    EXPECTATION,
    TOO_LARGE,
    TRANSFER_CODING,
)
"""Those of requests that are wrong on any port and path."""


def rejection_of(handshake: Handshake) -> Rejection | None:
    """Why a GET request without a body is no handshake of version 13 (section 4.2.1). None if it is one."""
    headers = handshake.headers
    if not (_lists(headers, "Upgrade", "websocket") and _lists(headers, "Connection", "upgrade")):
        return NO_UPGRADE
    if headers.get("Sec-WebSocket-Version") != "13":
        return VERSION
    if handshake.version < (1, 1) or not headers.get("Host"):
        return NO_HOST
    try:
        nonce = binascii.a2b_base64(headers.get("Sec-WebSocket-Key", ""), strict_mode=True)
    except ValueError:  # which binascii.Error is
        return BAD_KEY
    return None if len(nonce) == 16 else BAD_KEY


def _lists(headers: CIMultiDictProxy[str], name: str, token: str) -> bool:
    """Whether `token` is in the combined list of the headers with this name (RFC 9110 section 5.3)."""
    value = headers.get(name, "").lower()
    if value == token:  # nearly always
        return True
    return token in [part.strip() for part in ",".join(headers.getall(name, ())).lower().split(",")]


def subprotocol(headers: CIMultiDictProxy[str], spoken: Sequence[str]) -> str | None:
    """The first of `spoken` that the client offers (section 4.2.2). None if it offers none of them.

    The order of the client does not count: stompjs 2 and webstomp list their oldest version first.
    """
    offers = headers.getall("Sec-WebSocket-Protocol", ())
    if not offers:
        return None
    offered = {name.strip() for offer in offers for name in offer.split(",")}
    return next((name for name in spoken if name in offered), None)


def acceptance(handshake: Handshake, protocol: str | None) -> bytes:
    """The 101 response to a valid handshake. `protocol` is the chosen subprotocol, if any.

    No extension is ever accepted: compression would cost 32 KB for each session, and messages fit into one
    packet.
    """
    chosen = f"Sec-WebSocket-Protocol: {protocol}\r\n".encode() if protocol else b""
    key = accept_key(handshake.headers["Sec-WebSocket-Key"])
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (key, chosen)
    )


def accept_key(key: str) -> bytes:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key (section 4.2.2)."""
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False)
