"""Who is let in, whatever they want to speak: origins, limits, the client's address, a node that stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import structlog
from aiohttp import web

from ..core.admission import Verdict
from ..core.session import SessionContext
from ..transports.hijack import HIJACKED, hijack
from ..wire.handshake import (
    ADDRESS_FULL,
    NO_UPGRADE,
    NODE_FULL,
    ORIGIN,
    STOPPING,
    Handshake,
    Rejection,
    rejection_of,
)
from .client_address import client_address, is_trusted
from .origins import origin_allowed

log = structlog.get_logger()


class AccessControl:
    """Says of each request whether a session may come of it."""

    def __init__(self, node: SessionContext) -> None:
        self._node = node
        self._warned = False
        self.closing = False
        """Set once the node closes its sessions: nobody new is let in."""
        self.refused: Counter[str] = Counter()
        """Requests refused, by code."""

    def refuse_upgrade(self, request: Handshake, address: str) -> Rejection | None:
        """Why this is no WebSocket; None if it may be one, and then `address` has been admitted."""
        wrong = STOPPING if self.closing else rejection_of(request)
        return (
            self.count(wrong, address=address)
            if wrong
            else self.refuse_origin(request) or self.refuse_session(address)
        )

    def refuse_session(self, address: str) -> Rejection | None:
        """Why there is no session for `address`; None if there is, and then it has been admitted."""
        if self.closing:
            return self.count(STOPPING, address=address)
        verdict = self._node.admission.admit(address)
        if verdict is Verdict.ADMITTED:
            return None
        return self.count(NODE_FULL if verdict is Verdict.NODE_FULL else ADDRESS_FULL, address=address)

    def count(self, refusal: Rejection, **about: str) -> Rejection:
        """Count a refusal and log it with what it is `about`, and return it."""
        self.refused[refusal.code] += 1
        log.warning("refused", kind=refusal.code, status=refusal.status, **about)
        return refusal

    def refuse_origin(self, request: Handshake) -> Rejection | None:
        """Why a page from the request's origin may not speak to this node; None if it may."""
        headers, config = request.headers, self._node.config
        origin = headers.get("Origin")
        if origin is None:
            return None
        trusted = is_trusted(request.peer, config.trusted_proxies)
        # Of several proxies the first, which stands before the browser, knows its scheme.
        scheme = headers.get("X-Forwarded-Proto", "").partition(",")[0].strip() if trusted else ""
        # Origins are ASCII (RFC 6454 section 6.2); what is not could not even be echoed.
        host = headers.get("Host", "")
        if origin.isascii() and origin_allowed(origin, host, scheme or None, config.allowed_origins):
            return None
        return self.count(ORIGIN, origin=origin, host=host, address=self.address(request))

    def address(self, request: Handshake) -> str:
        """The client's address, by which limits are counted."""
        peer, trusted = request.peer, self._node.config.trusted_proxies
        forwarded = request.headers.getall("X-Forwarded-For", ())
        if forwarded and not self._warned and not is_trusted(peer, trusted):
            self._warned = True
            log.warning(
                "X-Forwarded-For ignored: the limit per address counts the proxy. If the peer is a proxy of "
                "yours, name it in --trusted-proxies (GATEWAY_TRUSTED_PROXIES)",
                peer=peer,
            )
        return client_address(peer, forwarded, trusted)


OpenSession = Callable[[str, Handshake, asyncio.Transport, bytes], None]
"""Makes a connection a session of an address that is admitted; the bytes followed the handshake."""


class Endpoint:
    """A path at which WebSockets open."""

    def __init__(
        self, gate: AccessControl, open_session: OpenSession, no_upgrade: Rejection = NO_UPGRADE
    ) -> None:
        """`no_upgrade` is the answer to what is no handshake."""
        self._gate = gate
        self._open = open_session
        self._no_upgrade = no_upgrade

    def __call__(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> Rejection | None:
        """For the door: a handshake that is a connection's first request."""
        address = self._gate.address(handshake)
        refusal = self._gate.refuse_upgrade(handshake, address)
        if refusal is None:
            self._open(address, handshake, transport, rest)
        return refusal

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """For aiohttp: a request on a connection that has carried others before, or that is no handshake."""
        if request.transport is None:  # the client has gone meanwhile
            return HIJACKED
        handshake = handshake_of(request)
        address = self._gate.address(handshake)
        refusal = self._gate.refuse_upgrade(handshake, address)
        if refusal is not None:
            return to_response(self._no_upgrade if refusal is NO_UPGRADE else refusal)
        transport, rest = hijack(request)
        self._open(address, handshake, transport, rest)
        return HIJACKED


def handshake_of(request: web.Request) -> Handshake:
    """What the gate has to know of a request that aiohttp has read."""
    transport = request.transport
    name = transport.get_extra_info("peername") if transport is not None else None
    return Handshake(request.version, request.headers, name[0] if name else "")


def to_response(refusal: Rejection, headers: Mapping[str, str] = MappingProxyType({})) -> web.Response:
    """The refusal as a response of aiohttp's, with these headers besides its own."""
    return web.Response(
        status=refusal.status,
        body=refusal.body,
        content_type="application/json",
        charset="utf-8",
        headers={**refusal.headers, **headers},
    )


@lru_cache(1024)  # a few pages bring everybody
def cors_headers(origin: str | None) -> Mapping[str, str]:
    """The headers that let a page from `origin`, which the gate has let pass, read the response."""
    if origin is None:
        return MappingProxyType({"Vary": "Origin"})
    return MappingProxyType(
        {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Vary": "Origin",
        }
    )
