"""HTTP: the WebSocket handshake with all its refusals, health, and the demo page."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from .broker import Broker
from .door import Door, Endpoint
from .handshake import ADDRESS_FULL, NODE_FULL, ORIGIN, STOPPING, Handshake, Refusal, fault
from .limits import Verdict, client_address, is_trusted, origin_allowed
from .session import Node
from .websocket import HANDED_OVER, open_session, take_over
from .wire.json import JSON_WIRE

STATIC = Path(__file__).parent / "static"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

log = structlog.get_logger()


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

    def endpoints(self) -> dict[str, Endpoint]:
        """What the door answers itself."""
        return {"/ws": self.enter}

    def enter(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> Refusal | None:
        """GET /ws as a connection's first request: JSON messages over WebSocket."""
        address = self._client_address(handshake)
        refusal = self._refusal(handshake, address)
        if refusal is None:
            open_session(self._node, JSON_WIRE, address, handshake, transport, rest)
        return refusal

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """GET /ws on a connection that has carried other requests before, or that is no handshake."""
        if request.transport is None:  # the client has gone meanwhile
            return HANDED_OVER
        handshake = Handshake(request.version, request.headers, _peer(request.transport))
        address = self._client_address(handshake)
        refusal = self._refusal(handshake, address)
        if refusal is not None:
            return web.Response(
                status=refusal.status,
                body=refusal.body,
                content_type="application/json",
                charset="utf-8",
                headers=refusal.headers,
            )
        transport, rest = take_over(request)
        open_session(self._node, JSON_WIRE, address, handshake, transport, rest)
        return HANDED_OVER

    def _refusal(self, handshake: Handshake, address: str) -> Refusal | None:
        """Why there is no upgrade; None if there is, and then `address` has been admitted."""
        refusal = STOPPING if self.closing else fault(handshake) or self._origin_refusal(handshake)
        if refusal is None:
            verdict = self._node.admission.admit(address)
            if verdict is Verdict.ADMITTED:
                return None
            refusal = NODE_FULL if verdict is Verdict.NODE_FULL else ADDRESS_FULL
        self.refused[refusal.code] += 1
        return refusal

    def _origin_refusal(self, handshake: Handshake) -> Refusal | None:
        headers, config = handshake.headers, self._node.config
        origin = headers.get("Origin")
        if origin is None:
            return None
        trusted = is_trusted(handshake.peer, config.trusted_proxies)
        scheme = headers.get("X-Forwarded-Proto") if trusted else None
        if origin_allowed(origin, headers.get("Host", ""), scheme, config.allowed_origins):
            return None
        log.warning("handshake refused", kind=ORIGIN.code, origin=origin)
        return ORIGIN

    def _client_address(self, handshake: Handshake) -> str:
        peer, trusted = handshake.peer, self._node.config.trusted_proxies
        forwarded = handshake.headers.getall("X-Forwarded-For", ())
        if forwarded and not self._warned and not is_trusted(peer, trusted):
            self._warned = True
            log.warning(
                "X-Forwarded-For ignored: the limit per address counts the proxy. If the peer is a proxy of "
                "yours, name it in --trusted-proxies (GATEWAY_TRUSTED_PROXIES)",
                peer=peer,
            )
        return client_address(peer, forwarded, trusted)


def _peer(transport: asyncio.Transport) -> str:
    name = transport.get_extra_info("peername")
    return name[0] if name else ""


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


async def on_response(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: our software's versions stay our own, and errors end a connection."""
    response.headers.popall("Server", None)
    if response.status >= HTTPStatus.BAD_REQUEST:
        response.force_close()
        # aiohttp has written its own headers by now, and would close without a word.
        response.headers["Connection"] = "Upgrade, close" if "Upgrade" in response.headers else "close"
