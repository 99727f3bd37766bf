"""Server-sent events over HTTP: the endpoint at one path."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from ..core.session import SessionContext
from ..messages import InvalidRegistration, as_message_id, parse_registration
from ..transports import http
from ..transports.hijack import HIJACKED
from ..transports.sse import SSESession
from ..wire import WireFactory
from ..wire.handshake import Rejection
from ..wire.sse import REJECTED_EVENT_ID
from .access import AccessControl, handshake_of
from .responses import (
    EVENT_STREAM,
    cors_headers,
    preflight_response,
    rejection_response,
    stream_headers,
)

METHODS: Final = ("OPTIONS", "GET")

MAX_PARAMETERS: Final = 32
"""Parameters of a query. There are three, and a page may add its own. To parse 8,000 takes 3 ms."""

TOO_MANY_PARAMETERS: Final = Rejection(400, "bad_request", "the query has too many parameters")


class SSEEndpoint:
    """`GET /events?webSocketId=…` opens a session and registers the id."""

    def __init__(
        self, context: SessionContext, access: AccessControl, path: str, new_wire: WireFactory
    ) -> None:
        self._context = context
        self._access = access
        self._path = path
        self._new_wire = new_wire

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", self._path, self.listen)]

    async def listen(self, request: web.Request) -> web.StreamResponse:
        """Open a session, and register the id in the query.

        A client that fetches the events itself sends Last-Event-ID across origins only after a preflight.
        """
        if request.method not in METHODS:
            return web.Response(status=405, headers={"Allow": ", ".join(METHODS)})
        handshake = handshake_of(request)
        address = self._access.address(handshake)
        rejection = self._access.check_origin(handshake)
        if rejection is not None:
            return rejection_response(rejection)
        origin = request.headers.get("Origin")
        cors = cors_headers(origin)
        rejection = await self._access.pace(handshake, request.content.total_bytes)
        if rejection is not None:
            return rejection_response(rejection, cors)
        if request.method == "OPTIONS":
            return preflight_response(request, METHODS)
        if request.transport is None:  # the client has disconnected
            return HIJACKED
        if request.rel_url.raw_query_string.count("&") >= MAX_PARAMETERS:
            return rejection_response(self._access.reject(TOO_MANY_PARAMETERS, address=address), cors)
        # A browser that reconnects sends Last-Event-ID. A page may also send lastEventId at any time.
        last_ids = (request.headers.get("Last-Event-ID"), request.query.get("lastEventId"))
        if REJECTED_EVENT_ID in last_ids:  # 204 is the only way to keep the browser from reconnecting again
            return web.Response(status=204, headers=cors)
        wanted = parse_registration(request.query.get("webSocketId"), last_ids[0], request.query.get("token"))
        if isinstance(wanted, InvalidRegistration):
            rejection = self._access.reject(Rejection(400, *wanted.problem))
            return rejection_response(rejection, cors)
        rejection = self._access.check_strict(handshake) or self._access.check_session(address)
        if rejection is not None:
            return rejection_response(rejection, cors)
        session = SSESession(self._context, self._new_wire(), address, http.take_connection(request))
        session.requested_with(request.headers)
        session.begin(wanted, as_message_id(last_ids[1]), stream_headers(EVENT_STREAM, origin))
        return HIJACKED
