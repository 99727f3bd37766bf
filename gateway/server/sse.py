"""HTTP: server-sent events at /events."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from ..core.session import SessionContext
from ..messages import InvalidRegistration, as_message_id, parse_registration
from ..transports import http as stream
from ..transports.hijack import HIJACKED
from ..transports.sse import SSESession
from ..wire.handshake import Rejection
from ..wire.sse import REJECTED_EVENT_ID
from .access import AccessControl, cors_headers, handshake_of, to_response

SSE_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": stream.NO_STORE,
    "X-Accel-Buffering": "no",
}


class SSEEndpoint:
    """What is at /events."""

    def __init__(self, node: SessionContext, gate: AccessControl) -> None:
        self._node = node
        self._gate = gate

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/events", self.listen)]

    async def listen(self, request: web.Request) -> web.StreamResponse:
        """GET /events: register, and stay."""
        if request.method != "GET":
            return web.Response(status=405, headers={"Allow": "GET"})
        if request.transport is None:  # the client has gone meanwhile
            return HIJACKED
        asking = handshake_of(request)
        address = self._gate.address(asking)
        # The browser itself says what it has had last when it connects again, and a page may, at any time.
        wanted = parse_registration(request.query.get("webSocketId"), request.headers.get("Last-Event-ID"))
        also_had = as_message_id(request.query.get("lastEventId"))
        refusal = self._gate.refuse_origin(asking)
        if refusal is not None:
            return to_response(refusal)
        origin = cors_headers(request.headers.get("Origin"))
        last_ids = (request.headers.get("Last-Event-ID"), request.query.get("lastEventId"))
        if (
            REJECTED_EVENT_ID in last_ids
        ):  # its registration failed, and it comes again only because browsers do
            return web.Response(status=204, headers=origin)
        if isinstance(wanted, InvalidRegistration):
            return to_response(self._gate.count(Rejection(400, *wanted.problem)), origin)
        refusal = self._gate.refuse_session(address)
        if refusal is not None:
            return to_response(refusal, origin)
        session = SSESession(self._node, address, stream.take_connection(request))
        session.begin(wanted, also_had, {**SSE_HEADERS, **origin})
        return HIJACKED
