"""HTTP: server-sent events at /events."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from ..core.session import Node
from ..messages import Rejected, as_message_id, registration
from ..transports import http as stream
from ..transports.hijack import HANDED_OVER
from ..transports.sse import EventsSession
from ..wire.handshake import Refusal
from ..wire.sse import REFUSED
from .access import Gate, answer, asked, cors

HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": stream.NO_STORE,
    "X-Accel-Buffering": "no",
}


class EventsViews:
    """What is at /events."""

    def __init__(self, node: Node, gate: Gate) -> None:
        self._node = node
        self._gate = gate

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/events", self.listen)]

    async def listen(self, request: web.Request) -> web.StreamResponse:
        """GET /events: register, and stay."""
        if request.method != "GET":
            return web.Response(status=405, headers={"Allow": "GET"})
        if request.transport is None:  # the client has gone meanwhile
            return HANDED_OVER
        asking = asked(request)
        address = self._gate.address(asking)
        # The browser itself says what it has had last when it connects again, and a page may, at any time.
        wanted = registration(request.query.get("webSocketId"), request.headers.get("Last-Event-ID"))
        also_had = as_message_id(request.query.get("lastEventId"))
        refusal = self._gate.refuse_origin(asking)
        if refusal is not None:
            return answer(refusal)
        origin = cors(request.headers.get("Origin"))
        last_ids = (request.headers.get("Last-Event-ID"), request.query.get("lastEventId"))
        if REFUSED in last_ids:  # its registration failed, and it comes again only because browsers do
            return web.Response(status=204, headers=origin)
        if isinstance(wanted, Rejected):
            return answer(self._gate.count(Refusal(400, *wanted.problem)), origin)
        refusal = self._gate.refuse_session(address)
        if refusal is not None:
            return answer(refusal, origin)
        session = EventsSession(self._node, address, stream.take(request))
        session.begin(wanted, also_had, {**HEADERS, **origin})
        return HANDED_OVER
