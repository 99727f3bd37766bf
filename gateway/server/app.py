"""HTTP: which path leads where, health, and the demo page."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from ..core.session import SessionContext
from ..transports import http as stream
from ..transports.hijack import HIJACKED
from ..transports.websocket import open_session
from ..wire.handshake import Handshake, subprotocol
from ..wire.json import JSON_WIRE
from ..wire.stomp import SUBPROTOCOLS, StompWire
from .acceptor import KEEP_ALIVE_SECONDS, Acceptor, UpgradeEndpoint
from .access import AccessControl, Endpoint
from .sockjs import SockJSEndpoints
from .sse import SSEEndpoint

SOCKJS_PATH = "/websocket"
"""Below this path SockJS is spoken."""


class PublicApp:
    """What browsers reach."""

    def __init__(self, node: SessionContext) -> None:
        self._node = node
        self.gate = AccessControl(node)
        beat = int(node.config.heartbeat * 1000)
        self._stomp = partial(StompWire, node.config.max_message_size, (beat, beat))
        self._websocket = Endpoint(self.gate, self._open)
        self._sockjs = SockJSEndpoints(node, self.gate, SOCKJS_PATH, self._stomp)
        self._events = SSEEndpoint(node, self.gate)

    def attach(self, door: Acceptor) -> None:
        """`door` resolves paths by `endpoint`, and has the connections back whose responses are complete."""
        self._sockjs.door = door
        self._door = door

    @web.middleware
    async def one_at_a_time(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer, and give the connection back to the door: its next request may be for another worker.

        Errors end a connection anyway, and so does a body that nobody has read.
        """
        response = await handler(request)
        if request.transport is None or not isinstance(response, web.Response):
            return response
        if response.status >= HTTPStatus.BAD_REQUEST or not request.content.is_eof():
            response.force_close()
            return response
        connection = stream.take_connection(request)
        stream.write_response(connection, response, without_body=request.method == "HEAD")
        if connection.lasting:
            self._door.readmit(connection.transport, b"")
        else:
            self._door.see_out(connection.transport)
        return HIJACKED

    @property
    def untold(self) -> int:
        """Clients that have not heard yet that their sessions were closed."""
        return self._sockjs.untold

    def routes(self) -> list[web.RouteDef]:
        websocket = web.get("/ws", self._websocket.serve, allow_head=False)
        return [websocket, *self._events.routes(), *self._sockjs.routes()]

    def endpoint(self, path: str) -> UpgradeEndpoint | None:
        """What the door answers itself at `path`."""
        return self._websocket if path == "/ws" else self._sockjs.endpoint(path)

    def _open(self, address: str, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> None:
        """JSON messages over WebSocket, or STOMP for who offers it."""
        protocol = subprotocol(handshake.headers, SUBPROTOCOLS)
        wire = JSON_WIRE if protocol is None else self._stomp()
        open_session(self._node, wire, address, handshake, transport, rest, protocol)


async def on_response(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: our software's versions stay our own, and errors end a connection."""
    response.headers.popall("Server", None)
    if response.status >= HTTPStatus.BAD_REQUEST:
        response.force_close()
        # aiohttp has written its own headers by now, and would close without a word.
        response.headers["Connection"] = "Upgrade, close" if "Upgrade" in response.headers else "close"
        if isinstance(response, web.Response) and not response.body:  # of which aiohttp would name a type
            response.headers.popall("Content-Type", None)


MAX_PUBLIC_BODY: Final = 65_536
"""Bytes of a request's body on the public port; what a SockJS client sends at once is a few hundred."""


HTTP_SHUTDOWN: Final = 1.0
"""Seconds for HTTP requests under way to end when the node stops."""


def web_app(
    routes: Sequence[web.RouteDef], max_body: int = MAX_PUBLIC_BODY, middlewares: Sequence[Middleware] = ()
) -> web.Application:
    """An application of aiohttp's with what all of ours have in common."""
    app = web.Application(client_max_size=max_body, middlewares=middlewares)
    app.add_routes(routes)
    app.on_response_prepare.append(on_response)
    return app


async def start_runner(app: web.Application) -> web.AppRunner:
    """A runner of `app`, set up as all of ours are."""
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        shutdown_timeout=HTTP_SHUTDOWN,
        lingering_time=0,  # a body that nobody wants is not waited for
    )
    await runner.setup()
    return runner
