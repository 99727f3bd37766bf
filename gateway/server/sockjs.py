"""SockJS over HTTP: the endpoints below a prefix, with the headers that the SockJS protocol requires."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from aiohttp import web

from ..core.session import SessionContext
from ..errors import WireError
from ..messages import CloseCode
from ..transports import http
from ..transports.hijack import HIJACKED
from ..transports.sockjs import (
    RESPONSE_LIMIT,
    HttpReceiver,
    PollReceiver,
    ResponseSink,
    SockJSSession,
    SockJSSessions,
    SockJSWebSocket,
    StreamReceiver,
)
from ..transports.websocket import WebSocketSession
from ..wire import sockjs
from ..wire.handshake import NO_UPGRADE
from ..wire.sockjs import SockJSPath
from .access import AccessControl, handshake_of
from .origins import frame_ancestors
from .responses import (
    EVENT_STREAM,
    cacheable_headers,
    cors_headers,
    preflight_response,
    rejection_response,
    stream_headers,
)
from .websocket import SpokenWires, WebSocketEndpoint

PLAIN: Final = "text/plain; charset=UTF-8"
"""The charset is in upper case because clients compare it."""

SCRIPT: Final = "application/javascript; charset=UTF-8"

Handler = Callable[[web.Request, SockJSPath], Awaitable[web.StreamResponse]]


class Resource(NamedTuple):
    """An endpoint: its HTTP methods and its handler."""

    methods: tuple[str, ...]
    handler: Handler


class SockJSEndpoints:
    """The endpoints below one prefix, where the wires are spoken inside SockJS's envelope."""

    def __init__(
        self,
        context: SessionContext,
        access: AccessControl,
        sink: ResponseSink,
        prefix: str,
        wires: SpokenWires,
        *,
        response_limit: int = RESPONSE_LIMIT,
    ) -> None:
        """`sink` takes each connection whose response is complete.

        `prefix` begins with a slash and does not end with one. `wires` are those of a raw WebSocket; over
        HTTP there are no subprotocols, so its default is spoken.
        """
        self._context = context
        self._access = access
        self._sink = sink
        self._prefix = prefix
        self._wires = wires
        self._limit = response_limit
        self._sessions = SockJSSessions(context.clock)
        self._iframe = sockjs.iframe(context.config.sockjs_url)
        self._etag = f'"{hashlib.sha256(self._iframe).hexdigest()[:32]}"'
        self._resources = {
            sockjs.GREETING: Resource(("GET", "HEAD"), self._greet),
            sockjs.INFO: Resource(("OPTIONS", "GET", "HEAD"), self._info),
            sockjs.IFRAME: Resource(("GET", "HEAD"), self._serve_iframe),
            sockjs.XHR: Resource(("OPTIONS", "POST"), self._listen),
            sockjs.XHR_STREAMING: Resource(("OPTIONS", "POST"), self._listen),
            sockjs.EVENTSOURCE: Resource(("GET",), self._listen),
            sockjs.XHR_SEND: Resource(("OPTIONS", "POST"), self._send),
        }
        # SockJS clients expect 400 where HTTP would have 426.
        no_upgrade = NO_UPGRADE._replace(status=400, headers={})
        self._websockets = {
            name: WebSocketEndpoint(context, access, wires, session, no_upgrade)
            for name, session in (
                (sockjs.RAW_WEBSOCKET, WebSocketSession),
                (sockjs.WEBSOCKET, SockJSWebSocket),
            )
        }

    @property
    def unsent_close_frames(self) -> int:
        """Polling clients whose session was closed and that have not fetched the close frame yet."""
        return self._sessions.unsent_close_frames

    def routes(self) -> list[web.RouteDef]:
        return [
            web.route("*", self._prefix, self.serve),
            web.route("*", self._prefix + "/{rest:.*}", self.serve),
        ]

    def endpoint(self, path: str) -> WebSocketEndpoint | None:
        """The WebSocket endpoint at `path`, if there is one."""
        if not path.startswith(self._prefix):
            return None
        found = sockjs.parse_path(path[len(self._prefix) :])
        return self._websockets.get(found.name) if found else None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a request below the prefix, if its origin is allowed."""
        found = sockjs.parse_path(request.rel_url.raw_path[len(self._prefix) :])
        if found is None:
            raise web.HTTPNotFound
        # GET requests for a WebSocket never come here: the dispatcher has them answered by their endpoint.
        resource = self._resources.get(found.name)
        methods = ("GET",) if resource is None else resource.methods
        if resource is None or request.method not in methods:
            return web.Response(status=405, headers={"Allow": ", ".join(methods)})
        handshake = handshake_of(request)
        rejection = self._access.check_origin(handshake)
        if rejection is not None:
            return rejection_response(rejection)
        rejection = await self._access.pace(handshake, request.content.total_bytes)
        if rejection is not None:
            return rejection_response(rejection, cors_headers(_origin(request)))
        if request.method == "OPTIONS":
            return preflight_response(request, methods)
        return await resource.handler(request, found)

    # Resources

    async def _greet(self, request: web.Request, _path: SockJSPath) -> web.StreamResponse:
        return web.Response(body=b"Welcome to SockJS!\n", headers={"Content-Type": PLAIN})

    async def _info(self, request: web.Request, _path: SockJSPath) -> web.StreamResponse:
        """What this server can do. Old browsers had no good random numbers: `entropy` is for them."""
        body = {
            "websocket": True,
            "cookie_needed": False,
            "origins": ["*:*"],
            "entropy": random.SystemRandom().getrandbits(32),
        }
        headers = stream_headers("application/json; charset=UTF-8", _origin(request))
        return web.Response(body=json.dumps(body).encode(), headers=headers)

    async def _serve_iframe(self, request: web.Request, _path: SockJSPath) -> web.StreamResponse:
        headers = {**cacheable_headers(), "ETag": self._etag}
        if self._etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        # The iframe's requests come from the gateway's own origin. So the pages that embed it are limited
        # here.
        ancestors = frame_ancestors(self._context.config.allowed_origins)
        headers["Content-Security-Policy"] = f"frame-ancestors {ancestors}"
        headers["Content-Type"] = "text/html; charset=UTF-8"
        return web.Response(body=self._iframe, headers=headers)

    # Sessions over HTTP

    async def _listen(self, request: web.Request, path: SockJSPath) -> web.StreamResponse:
        """The client listens to its session. If there is none with that name, a new one opens."""
        await request.read()  # polls have no body; one that is too large is no poll
        if request.transport is None:  # the client has disconnected
            return HIJACKED
        close_frame = self._sessions.close_frame(path.session)
        if close_frame:
            self._receiver(request, path.name).end(close_frame)
            self._sessions.close_frame_sent(path.session)
            return HIJACKED
        session = self._sessions.get(path.session)
        if session is None:
            address = self._access.address(handshake_of(request))
            rejection = self._access.check_session(address)
            if rejection is not None:
                return rejection_response(rejection, cors_headers(_origin(request)))
            session = SockJSSession(
                self._context, self._wires.default(), address, path.session, self._sessions, path.name
            )
            session.requested_with(request.headers)
            session.opened()
        session.attach(self._receiver(request, path.name))
        return HIJACKED

    def _receiver(self, request: web.Request, transport: str) -> HttpReceiver:
        connection = http.take_connection(request)
        if transport == sockjs.XHR:
            return PollReceiver(connection, self._sink, stream_headers(SCRIPT, _origin(request)))
        http.set_user_timeout(connection.transport, 2 * self._context.config.heartbeat)
        if transport == sockjs.XHR_STREAMING:
            content_type, frame, prelude = SCRIPT, sockjs.line, sockjs.line(sockjs.PRELUDE)
        else:
            content_type, frame, prelude = EVENT_STREAM, sockjs.event, sockjs.EVENTS_PRELUDE
        headers = stream_headers(content_type, _origin(request))
        return StreamReceiver(connection, self._sink, headers, frame, prelude, self._limit)

    async def _send(self, request: web.Request, path: SockJSPath) -> web.StreamResponse:
        """The client sends messages. If it has no session, 404 makes it connect anew."""
        headers = stream_headers(PLAIN, _origin(request))
        session = self._sessions.get(path.session)
        if session is None:
            status = 204 if self._sessions.close_frame(path.session) else 404
            return web.Response(status=status, headers=headers)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            session.fail(WireError(CloseCode.TOO_BIG, "too many messages at once"))
            return web.Response(status=413, headers=headers)
        try:
            session.receive(body)
        except sockjs.InvalidPayload as error:
            return web.Response(status=400, body=str(error).encode(), headers=headers)
        return web.Response(status=204, headers=headers)


def _origin(request: web.Request) -> str | None:
    return request.headers.get("Origin")
