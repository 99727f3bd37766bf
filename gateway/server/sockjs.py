"""SockJS over HTTP: the paths below its prefix, with the headers that its protocol asks for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Final, NamedTuple

from aiohttp import web

from ..core.session import SessionContext
from ..errors import WireError
from ..messages import CloseCode
from ..transports import http as stream
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
from ..transports.websocket import WebSocketSession, open_session
from ..wire import Wire, sockjs
from ..wire.handshake import NO_UPGRADE, Handshake, subprotocol
from ..wire.sockjs import SockJSPath
from ..wire.stomp import SUBPROTOCOLS
from .access import AccessControl, Endpoint, cors_headers, handshake_of, to_response

YEAR: Final = 31_536_000
"""Seconds that answers may be cached which never change."""

PLAIN: Final = "text/plain; charset=UTF-8"
"""The charset in these letters: clients compare them."""

SCRIPT: Final = "application/javascript; charset=UTF-8"

Handler = Callable[[web.Request, SockJSPath], Awaitable[web.StreamResponse]]


class Resource(NamedTuple):
    """What answers at a path: by which methods, and how."""

    methods: tuple[str, ...]
    handler: Handler


class SockJSEndpoints:
    """What is below the prefix. Its sessions speak the protocol that `wire` makes codecs of."""

    def __init__(
        self,
        node: SessionContext,
        gate: AccessControl,
        prefix: str,
        wire: Callable[[], Wire],
        *,
        response_limit: int = RESPONSE_LIMIT,
    ) -> None:
        """`prefix` begins with a slash and ends with none. Set `door` before the first request."""
        self._node = node
        self._gate = gate
        self._prefix = prefix
        self._wire = wire
        self._limit = response_limit
        self._sessions = SockJSSessions(node.clock)
        self._iframe = sockjs.iframe(node.config.sockjs_url)
        self._etag = f'"{hashlib.sha256(self._iframe).hexdigest()[:32]}"'
        self._resources = {
            sockjs.GREETING: Resource(("GET", "HEAD"), self._greet),
            sockjs.INFO: Resource(("OPTIONS", "GET", "HEAD"), self._inform),
            sockjs.IFRAME: Resource(("GET", "HEAD"), self._frame),
            sockjs.XHR: Resource(("OPTIONS", "POST"), self._listen),
            sockjs.XHR_STREAMING: Resource(("OPTIONS", "POST"), self._listen),
            sockjs.EVENTSOURCE: Resource(("GET",), self._listen),
            sockjs.XHR_SEND: Resource(("OPTIONS", "POST"), self._send),
        }
        # SockJS's clients expect 400 where HTTP would have 426.
        no_upgrade = NO_UPGRADE._replace(status=400, headers={})
        self._entrances = {
            name: Endpoint(gate, partial(self._open, kind), no_upgrade)
            for name, kind in ((sockjs.RAW_WEBSOCKET, WebSocketSession), (sockjs.WEBSOCKET, SockJSWebSocket))
        }
        self.door: ResponseSink

    @property
    def untold(self) -> int:
        """Clients by polls that have not heard yet that their sessions were closed."""
        return self._sessions.untold

    def routes(self) -> list[web.RouteDef]:
        return [
            web.route("*", self._prefix, self.serve),
            web.route("*", self._prefix + "/{rest:.*}", self.serve),
        ]

    def endpoint(self, path: str) -> Endpoint | None:
        """Where the WebSocket opens that a connection's first request asks for at `path`."""
        if not path.startswith(self._prefix):
            return None
        place = sockjs.parse_path(path[len(self._prefix) :])
        return self._entrances.get(place.name) if place else None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Find what is at the path, and have it answer, if the page's origin may ask."""
        place = sockjs.parse_path(request.rel_url.raw_path[len(self._prefix) :])
        if place is None:
            raise web.HTTPNotFound
        entrance = self._entrances.get(place.name)
        methods = self._resources[place.name].methods if entrance is None else ("GET",)
        if request.method not in methods:
            return web.Response(status=405, headers={"Allow": ", ".join(methods)})
        if entrance is not None:
            return await entrance.serve(request)
        refusal = self._gate.refuse_origin(handshake_of(request))
        if refusal is not None:
            return to_response(refusal)
        if request.method == "OPTIONS":
            return self._allow(request, methods)
        return await self._resources[place.name].handler(request, place)

    # Resources

    async def _greet(self, request: web.Request, _place: SockJSPath) -> web.StreamResponse:
        return web.Response(body=b"Welcome to SockJS!\n", headers={"Content-Type": PLAIN})

    async def _inform(self, request: web.Request, _place: SockJSPath) -> web.StreamResponse:
        """What this server can do. Browsers once had no good source of random numbers of their own."""
        body = {
            "websocket": True,
            "cookie_needed": False,
            "origins": ["*:*"],
            "entropy": random.SystemRandom().getrandbits(32),
        }
        kind = "application/json; charset=UTF-8"
        return web.Response(body=json.dumps(body).encode(), headers=headers_for(kind, _origin(request)))

    async def _frame(self, request: web.Request, _place: SockJSPath) -> web.StreamResponse:
        headers = {**_lasting(), "ETag": self._etag}
        if self._etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        # What the page in the iframe asks for comes from our own origin, whoever has embedded it.
        ancestors = [
            "'self'" if each == "same-origin" else each for each in self._node.config.allowed_origins
        ]
        headers["Content-Security-Policy"] = f"frame-ancestors {' '.join(ancestors)}"
        headers["Content-Type"] = "text/html; charset=UTF-8"
        return web.Response(body=self._iframe, headers=headers)

    def _allow(self, request: web.Request, methods: tuple[str, ...]) -> web.Response:
        """The answer to a browser that asks before it sends a request to another origin."""
        headers = {**_lasting(), **cors_headers(_origin(request))}
        headers["Access-Control-Allow-Methods"] = ", ".join(methods)
        headers["Access-Control-Max-Age"] = str(YEAR)
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        if wanted and wanted.isascii():
            headers["Access-Control-Allow-Headers"] = wanted
        return web.Response(status=204, headers=headers)

    # WebSocket

    def _open(
        self,
        kind: type[WebSocketSession],
        address: str,
        handshake: Handshake,
        transport: asyncio.Transport,
        rest: bytes,
    ) -> None:
        protocol = subprotocol(handshake.headers, SUBPROTOCOLS)
        open_session(self._node, self._wire(), address, handshake, transport, rest, protocol, kind)

    # Sessions over HTTP

    async def _listen(self, request: web.Request, place: SockJSPath) -> web.StreamResponse:
        """The client listens: from now on to a new session, if it has none by that name."""
        await self._read(request)
        if request.transport is None:  # the client has gone meanwhile
            return HIJACKED
        farewell = self._sessions.farewell(place.session)
        if farewell:
            self._receiver(request, place.name).end(farewell)
            self._sessions.heard(place.session)
            return HIJACKED
        session = self._sessions.get(place.session)
        if session is None:
            address = self._gate.address(handshake_of(request))
            refusal = self._gate.refuse_session(address)
            if refusal is not None:
                return to_response(refusal, cors_headers(_origin(request)))
            session = SockJSSession(
                self._node, self._wire(), address, place.session, self._sessions, place.name
            )
        session.attach(self._receiver(request, place.name))
        return HIJACKED

    def _receiver(self, request: web.Request, transport: str) -> HttpReceiver:
        connection = stream.take_connection(request)
        if transport == sockjs.XHR:
            return PollReceiver(connection, self.door, headers_for(SCRIPT, _origin(request)))
        stream.set_user_timeout(connection.transport, 2 * self._node.config.heartbeat)
        if transport == sockjs.XHR_STREAMING:
            kind, frame, prelude = SCRIPT, sockjs.line, sockjs.line(sockjs.PRELUDE)
        else:
            kind, frame, prelude = "text/event-stream", sockjs.event, sockjs.EVENTS_PRELUDE
        connection.transport.set_write_buffer_limits(high=self._node.config.write_buffer)
        headers = headers_for(kind, _origin(request))
        return StreamReceiver(connection, self.door, headers, frame, prelude, self._limit)

    async def _send(self, request: web.Request, place: SockJSPath) -> web.StreamResponse:
        """The client says something. Without a session it learns so, and connects anew."""
        headers = headers_for(PLAIN, _origin(request))
        session = self._sessions.get(place.session)
        if session is None:
            heard_by_nobody = 204 if self._sessions.farewell(place.session) else 404
            return web.Response(status=heard_by_nobody, headers=headers)
        try:
            body = await self._read(request)
        except web.HTTPRequestEntityTooLarge:
            session.fail(WireError(CloseCode.TOO_BIG, "too many messages at once"))
            return web.Response(status=413, headers=headers)
        try:
            messages = sockjs.parse_request_body(body)
        except sockjs.InvalidPayload as error:
            return web.Response(status=500, body=str(error).encode(), headers=headers)
        session.receive(messages)
        return web.Response(status=204, headers=headers)

    async def _read(self, request: web.Request) -> bytes:
        """The request's body, which may take its time no more than the head."""
        if not request.can_read_body:
            return b""
        try:
            async with asyncio.timeout(self._node.config.handshake_timeout):
                return await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout from None


@lru_cache(1024)  # a few pages bring everybody
def headers_for(kind: str, origin: str | None) -> Mapping[str, str]:
    """The headers of a response that no cache and no proxy keeps back."""
    headers = {"Content-Type": kind, "Cache-Control": stream.NO_STORE, "X-Accel-Buffering": "no"}
    return MappingProxyType({**headers, **cors_headers(origin)})


def _lasting() -> dict[str, str]:
    """The headers of a response that stays as it is."""
    return {
        "Cache-Control": f"public, max-age={YEAR}",
        "Expires": formatdate(time.time() + YEAR, usegmt=True),
    }


def _origin(request: web.Request) -> str | None:
    return request.headers.get("Origin")
