"""WebSockets on the public port: the endpoint at a path, and the wire that a client's subprotocols choose."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..core.session import SessionContext
from ..transports.websocket import WebSocketSession, open_session
from ..wire import WireFactory
from ..wire.handshake import NO_UPGRADE, Handshake, Rejection, subprotocol
from .access import AccessControl


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
        """An `UpgradeEndpoint`, for each GET request at its path."""
        address = self._access.address(handshake)
        rejection = self._access.check_upgrade(handshake, address)
        if rejection is None:
            self._open(address, handshake, transport, rest)
        return self._no_upgrade if rejection is NO_UPGRADE else rejection

    def _open(self, address: str, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> None:
        wires = self._wires
        protocol = subprotocol(handshake.headers, wires.subprotocols)
        new_wire = wires.default if protocol is None else wires.by_subprotocol[protocol]
        open_session(self._context, new_wire(), address, handshake, transport, rest, protocol, self._session)
