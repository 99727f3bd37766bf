"""HTTP: the WebSocket handshake with all its refusals, health, and the demo page."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from aiohttp import web

from .broker import Broker
from .door import Connection, Door
from .limits import Verdict, client_address, is_trusted, origin_allowed
from .session import Node
from .websocket import take_over
from .wire.json import JSON_WIRE

STATIC = Path(__file__).parent / "static"

RETRY_AFTER = "5"
"""Seconds a refused client is asked to wait; the other nodes have room before this one does."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

log = structlog.get_logger()


class Refusal(NamedTuple):
    """Why a handshake gets no upgrade: `code` is for programs, `message` for people."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = {}

    def response(self) -> web.Response:
        body = {"error": {"code": self.code, "message": self.message}}
        return web.json_response(body, status=self.status, headers=self.headers)


STOPPING = Refusal(503, "stopping", "this node is shutting down", {"Retry-After": "1"})
NODE_FULL = Refusal(503, "node_full", "this node is full", {"Retry-After": RETRY_AFTER})
ADDRESS_FULL = Refusal(
    429, "address_full", "too many sessions from your address", {"Retry-After": RETRY_AFTER}
)
ORIGIN = Refusal(403, "origin_not_allowed", "pages from this origin may not connect")
NO_UPGRADE = Refusal(
    426,
    "upgrade_required",
    "this is a WebSocket endpoint: connect with a WebSocket client",
    {"Upgrade": "websocket", "Connection": "Upgrade"},
)
VERSION = Refusal(
    426, "unsupported_version", "only WebSocket version 13 is spoken here", {"Sec-WebSocket-Version": "13"}
)
NO_HOST = Refusal(400, "bad_handshake", "the handshake needs HTTP/1.1 and a Host header")
BAD_KEY = Refusal(400, "bad_handshake", "Sec-WebSocket-Key must be 16 bytes in base64")


class PublicViews:
    """What browsers reach."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._warned = False
        self.closing = False
        """Set once the node closes its sessions: nobody new is let in."""
        self.refused: Counter[str] = Counter()
        """Handshakes refused, by code."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/ws", self.websocket, allow_head=False)]

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """GET /ws: the handshake (RFC 6455 section 4.2), then JSON messages."""
        refusal = STOPPING if self.closing else handshake_refusal(request) or self._origin_refusal(request)
        if refusal is None:
            address = self._client_address(request)
            verdict = self._node.admission.admit(address)
            if verdict is Verdict.ADMITTED:
                return take_over(request, self._node, JSON_WIRE, address, None)
            refusal = NODE_FULL if verdict is Verdict.NODE_FULL else ADDRESS_FULL
        self.refused[refusal.code] += 1
        return refusal.response()

    def _origin_refusal(self, request: web.Request) -> Refusal | None:
        headers, config = request.headers, self._node.config
        origin = headers.get("Origin")
        if origin is None:
            return None
        trusted = is_trusted(_peer(request), config.trusted_proxies)
        scheme = headers.get("X-Forwarded-Proto") if trusted else None
        if origin_allowed(origin, headers.get("Host", ""), scheme, config.allowed_origins):
            return None
        log.warning("handshake refused", kind=ORIGIN.code, origin=origin)
        return ORIGIN

    def _client_address(self, request: web.Request) -> str:
        peer, config = _peer(request), self._node.config
        forwarded = request.headers.getall("X-Forwarded-For", ())
        if forwarded and not self._warned and not is_trusted(peer, config.trusted_proxies):
            self._warned = True
            log.warning(
                "X-Forwarded-For ignored: the limit per address counts the proxy. If the peer is a proxy of "
                "yours, name it in --trusted-proxies (GATEWAY_TRUSTED_PROXIES)",
                peer=peer,
            )
        return client_address(peer, forwarded, config.trusted_proxies)


def _peer(request: web.Request) -> str:
    assert request.transport is not None
    name = request.transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else "unix"


def handshake_refusal(request: web.Request) -> Refusal | None:
    """Why `request` is no handshake of version 13 (RFC 6455 section 4.2.1); None if it is one.

    aiohttp would also take HTTP/1.0 and the drafts 7 and 8.
    """
    headers = request.headers
    if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in _tokens(headers, "Connection"):
        return NO_UPGRADE
    if headers.get("Sec-WebSocket-Version") != "13":
        return VERSION
    if request.version < (1, 1) or not headers.get("Host"):
        return NO_HOST
    try:
        nonce = base64.b64decode(headers.get("Sec-WebSocket-Key", ""), validate=True)
    except ValueError:  # which binascii.Error is
        return BAD_KEY
    return None if len(nonce) == 16 else BAD_KEY


def _tokens(headers: Mapping[str, str], name: str) -> list[str]:
    return [token.strip() for token in headers.get(name, "").lower().split(",")]


class AdminViews:
    """What operators and load balancers reach."""

    def __init__(self, node: Node, broker: Broker, door: Door, name: str) -> None:
        self._node = node
        self._broker = broker
        self._door = door
        self._name = name
        self.draining = False
        """Set as soon as the node is asked to stop: no new browsers should be sent here."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/healthz", self.health), web.get("/readyz", self.ready)]

    async def health(self, _request: web.Request) -> web.Response:
        """GET /healthz: 200 as long as the event loop turns; what else could answer?"""
        return web.json_response({"status": "ok", "node": self._name})

    async def ready(self, _request: web.Request) -> web.Response:
        """GET /readyz: whether browsers should be sent to this node, and how it is.

        It stays ready while Redis is away: all nodes share Redis, and turning every one of them away
        would end the logins that only have to wait.
        """
        reasons = []
        if self.draining:
            reasons.append("draining")
        if not self._broker.ever_connected:
            reasons.append("Redis has not been reached yet")
        body = {
            "ready": not reasons,
            "reasons": reasons,
            "node": self._name,
            "sessions": self._node.admission.sessions,
            "handshakes": self._door.handshakes,
            "channels": self._node.hub.channels,
            "redis": {
                "connected": self._broker.connected,
                "gaps": self._broker.gaps,
                "blind_seconds": round(self._broker.blind_seconds, 3),
            },
        }
        return web.json_response(body, status=503 if reasons else 200)


class DemoViews:
    """The demo page, served by `dev` only. `info` is what it shows of this node."""

    def __init__(self, info: Callable[[], Mapping[str, Any]]) -> None:
        self._info = info

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page),
            web.get("/demo/info", self.describe),
            web.get(r"/demo/{file:[a-z]+\.(?:css|js|svg|png)}", self.asset),
        ]

    async def page(self, _request: web.Request) -> web.StreamResponse:
        return _file("index.html")

    async def asset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["file"]
        if not (STATIC / name).is_file():
            raise web.HTTPNotFound
        return _file(name)

    async def describe(self, _request: web.Request) -> web.Response:
        return web.json_response(self._info(), headers={"Cache-Control": "no-store"})


def _file(name: str) -> web.FileResponse:
    return web.FileResponse(
        STATIC / name,
        headers={
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


async def on_response(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: the handshake is over, and our software's versions stay our own."""
    if isinstance(request.protocol, Connection):
        request.protocol.passed()
    response.headers.popall("Server", None)
