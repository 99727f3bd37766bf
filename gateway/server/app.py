"""The aiohttp applications of a node, and the public one: which path leads to which endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from ..core.session import SessionContext
from ..transports.sockjs import ResponseSink
from .access import AccessControl
from .dispatcher import UpgradeEndpoint
from .sockjs import SockJSEndpoints
from .sse import SSEEndpoint
from .websocket import WebSocketEndpoint
from .wires import WireTable

MAX_PUBLIC_BODY: Final = 65_536
"""Bytes of a request's body on the public port. A SockJS client sends a few hundred at once."""


class PublicApp:
    """The endpoints that clients reach: those of every wire, over every transport."""

    def __init__(
        self, context: SessionContext, access: AccessControl, wires: WireTable, sink: ResponseSink
    ) -> None:
        """`sink` takes each connection whose response is complete."""
        self._websockets = {
            path: WebSocketEndpoint(context, access, spoken) for path, spoken in wires.websocket.items()
        }
        self._sockjs = [
            SockJSEndpoints(context, access, sink, prefix, spoken) for prefix, spoken in wires.sockjs.items()
        ]
        self._sse = [SSEEndpoint(context, access, path, new_wire) for path, new_wire in wires.sse.items()]

    @property
    def unsent_close_frames(self) -> int:
        """Polling clients whose session was closed and that have not fetched the close frame yet."""
        return sum(each.unsent_close_frames for each in self._sockjs)

    def routes(self) -> list[web.RouteDef]:
        websockets = [web.route("*", path, _get_only) for path in self._websockets]
        sse = [route for each in self._sse for route in each.routes()]
        return [*websockets, *sse, *(route for each in self._sockjs for route in each.routes())]

    def endpoint(self, path: str) -> UpgradeEndpoint | None:
        """The WebSocket endpoint at `path`, if there is one."""
        found = self._websockets.get(path)
        if found is not None:
            return found
        return next((found for each in self._sockjs if (found := each.endpoint(path))), None)


async def _get_only(_request: web.Request) -> web.Response:
    """For the path of a WebSocket: the dispatcher has all GET requests answered by its endpoint."""
    return web.Response(status=405, headers={"Allow": "GET"})


async def on_response(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: send no software versions, and close the connection after an error."""
    response.headers.popall("Server", None)
    if response.status >= HTTPStatus.BAD_REQUEST:
        response.force_close()
        # aiohttp has written its own headers by now, and would close without saying so.
        response.headers["Connection"] = "Upgrade, close" if "Upgrade" in response.headers else "close"
        if isinstance(response, web.Response) and not response.body:  # aiohttp adds a type for no content
            response.headers.popall("Content-Type", None)


def web_app(
    routes: Sequence[web.RouteDef], max_body: int = MAX_PUBLIC_BODY, middlewares: Sequence[Middleware] = ()
) -> web.Application:
    """An aiohttp application with the settings that all ports share."""
    app = web.Application(client_max_size=max_body, middlewares=middlewares)
    app.add_routes(routes)
    app.on_response_prepare.append(on_response)
    return app
