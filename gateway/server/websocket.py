"""WebSockets on the public port: the endpoint at a path, and the wire that a client's subprotocols choose."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiohttp import web

from ..core.session import SessionContext
from ..transports.hijack import HIJACKED, hijack
from ..transports.websocket import WebSocketSession, open_session
from ..wire import WireFactory
from ..wire.handshake import NO_UPGRADE, Handshake, Rejection, subprotocol
from .access import AccessControl, handshake_of
from .responses import rejection_response


class SpokenWires(NamedTuple):
    """The wires at one path."""

    default: WireFactory
    by_subprotocol: Mapping[str, WireFactory]
    """Those that a client chooses by a WebSocket subprotocol."""
    subprotocols: Sequence[str]
    """The same subprotocols, in the order in which the gateway prefers them."""


class WebSocketEndpoint:
    """Opens a WebSocket session for each handshake that access control lets pass."""

    def __init__(
        self,
        context: SessionContext,
        access: AccessControl,
        wires: SpokenWires,
        session: type[WebSocketSession] = WebSocketSession,
        no_upgrade: Rejection = NO_UPGRADE,
    ) -> None:
        """`session` is the class of the sessions. `no_upgrade` answers requests that are no handshake."""
        self._context = context
        self._access = access
        self._wires = wires
        self._session = session
        self._no_upgrade = no_upgrade

    def __call__(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> Rejection | None:
        """An `UpgradeEndpoint`: for a handshake that is its connection's first request."""
        address = self._access.address(handshake)
        rejection = self._access.check_upgrade(handshake, address)
        if rejection is None:
            self._open(address, handshake, transport, rest)
        return rejection

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """For aiohttp: a request that is no handshake, or that follows others on its connection."""
        if request.transport is None:  # the client has disconnected
            return HIJACKED
        handshake = handshake_of(request)
        address = self._access.address(handshake)
        rejection = self._access.check_upgrade(handshake, address)
        if rejection is not None:
            return rejection_response(self._no_upgrade if rejection is NO_UPGRADE else rejection)
        transport, rest = hijack(request)
        self._open(address, handshake, transport, rest)
        return HIJACKED

    def _open(self, address: str, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> None:
        wires = self._wires
        protocol = subprotocol(handshake.headers, wires.subprotocols)
        new_wire = wires.default if protocol is None else wires.by_subprotocol[protocol]
        open_session(self._context, new_wire(), address, handshake, transport, rest, protocol, self._session)
