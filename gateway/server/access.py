"""Access control, the same for every protocol: origins, limits, the client's address, a node that stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

import structlog
from aiohttp import web

from ..core import admission
from ..core.rates import TOO_LONG
from ..core.session import SessionContext
from ..transports.sockets import peer_address
from ..wire.handshake import (
    ADDRESS_BUSY,
    ADDRESS_FULL,
    CUT_OFF,
    NODE_FULL,
    ORIGIN,
    STOPPING,
    Handshake,
    Rejection,
    rejection_of,
)
from .client_address import client_address, is_trusted
from .origins import origin_allowed
from .rejections import Rejections

STRICT_HEADER: Final = "Gateway-Strict"
"""A request with this header is for a node that receives results; a proxy that cannot ask /readyz/strict sets
it, and tries again without it when every node says no."""

MAX_WAITING: Final = 32 << 20
"""Bytes of the requests that wait because their addresses have used up their budgets. A thousand from one
address can wait, for seconds, and their bodies and cookies could have 80 KB each."""

REQUEST_COST: Final = 8_192
"""Bytes of memory that a request costs besides its head and body."""

HEAD_COST: Final = 4
"""Bytes of memory for a byte of a head: it is kept as bytes, as text, and in parts."""

log = structlog.get_logger()


class AccessControl:
    """Decides for each request whether a session may be opened. Counts and logs every rejection."""

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._warned = False
        self._closed = False
        self._waiting = 0  # bytes
        self.rejections = Rejections(Counter())
        """Of the port: also the requests that are rejected before anybody asks for access."""
        self.reject = self.rejections.add

    @property
    def rejected(self) -> Counter[str]:
        """Rejected requests, by code."""
        return self.rejections.counts

    def close(self) -> None:
        """Open no session from now on: the node stops."""
        self._closed = True

    def check_upgrade(self, request: Handshake, address: str) -> Rejection | None:
        """The reason not to open a WebSocket. None if it may be opened; `address` is then admitted."""
        wrong = STOPPING if self._closed else rejection_of(request)
        if wrong is not None:
            return self.reject(wrong, address=address)
        if self._charge(address, 0) > TOO_LONG:
            return self.reject(ADDRESS_BUSY, address=address)
        return self.check_origin(request) or self.check_strict(request) or self.check_session(address)

    def check_strict(self, request: Handshake) -> Rejection | None:
        """The reason why this node does not do, if the proxy wants one that receives results."""
        if STRICT_HEADER in request.headers and self._context.hub.broker.deaf:
            return self.reject(CUT_OFF)
        return None

    async def pace(self, request: Handshake, size: int) -> Rejection | None:
        """Charge a request over HTTP to its client's address, and let it wait if that has used up its budget.

        `size` is the size of its body in bytes: they are held meanwhile. Returns the reason not to answer it.
        None if it may be answered.
        """
        address = self.address(request)
        delay = self._charge(address, size)
        if delay > TOO_LONG:
            return self.reject(ADDRESS_BUSY, address=address)
        return await self._wait(request, size, delay, address) if delay else None

    async def _wait(self, request: Handshake, body: int, delay: float, address: str) -> Rejection | None:
        head = sum(len(name) + len(value) for name, value in request.headers.items())
        size = REQUEST_COST + HEAD_COST * head + body
        if self._waiting + size > MAX_WAITING:
            return self.reject(ADDRESS_BUSY, address=address)
        self._waiting += size
        try:
            await asyncio.sleep(delay)
        finally:
            self._waiting -= size
        return None

    def _charge(self, address: str, size: int) -> float:
        context = self._context
        price = context.prices.request + size * context.prices.byte
        return context.budgets.charge(address, price, context.clock())

    def check_session(self, address: str) -> Rejection | None:
        """The reason not to open a session for `address`. None if it may be opened; it is then admitted."""
        if self._closed:
            return self.reject(STOPPING, address=address)
        verdict = self._context.admission.admit(address)
        if verdict is admission.ADMITTED:
            return None
        return self.reject(NODE_FULL if verdict is admission.NODE_FULL else ADDRESS_FULL, address=address)

    def check_origin(self, request: Handshake) -> Rejection | None:
        """The reason why a page from the request's origin may not connect. None if it may."""
        headers, config = request.headers, self._context.config
        origin = headers.get("Origin")
        if origin is None:
            return None
        trusted = is_trusted(request.peer, config.trusted_proxies)
        # With several proxies, the first value is from the proxy next to the browser: it knows the scheme.
        scheme = headers.get("X-Forwarded-Proto", "").partition(",")[0].strip() if trusted else ""
        # Origins are ASCII (RFC 6454 section 6.2). Others could not be echoed in a header.
        host = headers.get("Host", "")
        if origin.isascii() and origin_allowed(origin, host, scheme or None, config.allowed_origins):
            return None
        return self.reject(ORIGIN, origin=origin, host=host, address=self.address(request))

    def address(self, request: Handshake) -> str:
        """The client's address, by which sessions are limited."""
        peer, trusted = request.peer, self._context.config.trusted_proxies
        forwarded = request.headers.getall("X-Forwarded-For", ())
        if forwarded and not self._warned and not is_trusted(peer, trusted):
            self._warned = True
            log.warning(
                "X-Forwarded-For ignored",
                peer=peer,
                hint="sessions are limited by the address of the peer. If the peer is your proxy, name it in "
                "--trusted-proxies (GATEWAY_TRUSTED_PROXIES)",
            )
        return client_address(peer, forwarded, trusted)


def handshake_of(request: web.Request) -> Handshake:
    """The parts of an aiohttp request that access control needs."""
    transport = request.transport
    return Handshake(request.version, request.headers, "" if transport is None else peer_address(transport))
