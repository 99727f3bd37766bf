"""HTTP: which path leads where, health, and the demo page."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import web

from ..admin.metrics import CONTENT_TYPE as METRICS
from ..core.session import Node
from ..redis.broker import Broker
from ..redis.cluster.broker import Cluster
from ..redis.probe import Probe
from ..transports import http as stream
from ..transports.sse import EventsViews
from ..transports.websocket import HANDED_OVER, open_session
from ..wire.handshake import Handshake, subprotocol
from ..wire.json import JSON_WIRE
from ..wire.stomp import SUBPROTOCOLS, StompWire
from .acceptor import Door, Endpoint
from .access import Entrance, Gate
from .sockjs import SockJSViews

SOCKJS = "/websocket"
"""Below this path SockJS is spoken."""

STATIC = Path(__file__).parents[1] / "static"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class PublicViews:
    """What browsers reach."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.gate = Gate(node)
        beat = int(node.config.heartbeat * 1000)
        self._stomp = partial(StompWire, node.config.max_message_size, (beat, beat))
        self._websocket = Entrance(self.gate, self._open)
        self._sockjs = SockJSViews(node, self.gate, SOCKJS, self._stomp)
        self._events = EventsViews(node, self.gate)

    def attach(self, door: Door) -> None:
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
        connection = stream.take(request)
        stream.respond(connection, response, without_body=request.method == "HEAD")
        if connection.lasting:
            self._door.readmit(connection.transport, b"")
        else:
            self._door.see_out(connection.transport)
        return HANDED_OVER

    @property
    def untold(self) -> int:
        """Clients that have not heard yet that their sessions were closed."""
        return self._sockjs.untold

    def routes(self) -> list[web.RouteDef]:
        websocket = web.get("/ws", self._websocket.serve, allow_head=False)
        return [websocket, *self._events.routes(), *self._sockjs.routes()]

    def endpoint(self, path: str) -> Endpoint | None:
        """What the door answers itself at `path`."""
        return self._websocket if path == "/ws" else self._sockjs.endpoint(path)

    def _open(self, address: str, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> None:
        """JSON messages over WebSocket, or STOMP for who offers it."""
        protocol = subprotocol(handshake.headers, SUBPROTOCOLS)
        wire = JSON_WIRE if protocol is None else self._stomp()
        open_session(self._node, wire, address, handshake, transport, rest, protocol)


class AdminViews:
    """What operators and load balancers reach."""

    def __init__(
        self, node: Node, broker: Broker | Cluster, door: Door, refused: Mapping[str, int], name: str
    ) -> None:
        """`refused` counts requests by why they were."""
        self._node = node
        self._refused = refused
        self._broker = broker
        self._door = door
        self._name = name
        self.draining = False
        """Set as soon as the node is asked to stop: no new browsers should be sent here."""
        self.metrics: Callable[[], bytes] = bytes
        """Renders the node's metrics."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self.health),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.measure),
        ]

    async def measure(self, _request: web.Request) -> web.Response:
        """GET /metrics: what Prometheus scrapes."""
        return web.Response(body=self.metrics(), headers={"Content-Type": METRICS})

    def reasons(self) -> list[str]:
        """Why no browsers should be sent here; empty if they should."""
        reasons = []
        if self.draining:
            reasons.append("draining")
        if not self._broker.ever_connected:
            reasons.append("Redis has not been reached yet")
        return reasons

    async def health(self, _request: web.Request) -> web.Response:
        """GET /healthz: 200 as long as the event loop turns; what else could answer?"""
        return web.json_response({"status": "ok", "node": self._name})

    async def ready(self, _request: web.Request) -> web.Response:
        """GET /readyz: whether browsers should be sent to this node, and how it is."""
        state = self.state()
        return web.json_response(state, status=200 if state["ready"] else 503)

    def state(self) -> dict[str, Any]:
        """How the node is, for /readyz.

        It stays ready while Redis is away, for however long: all nodes share Redis, and turning every one of
        them away would end the logins that only have to wait.
        """
        reasons = self.reasons()
        return {
            "ready": not reasons,
            "reasons": reasons,
            "node": self._name,
            "sessions": self._node.admission.sessions,
            "handshakes": self._door.handshakes,
            "channels": self._node.hub.channels,
            "delivered": self._node.hub.delivered,
            "invalid": dict(self._node.hub.invalid),
            "refused": dict(self._refused),
            "ended": {f"{code} {reason}": count for (code, reason), count in self._node.ended.items()},
            "redis": {
                "connected": self._broker.connected,
                "gaps": self._broker.gaps,
                "blind_seconds": round(self._broker.blind_so_far(), 3),
                "probe_seconds": _round_trip(self._broker.probes),
                "mended": self._broker.mended,
            },
        }


def _round_trip(probes: Sequence[Probe]) -> float | None:
    """The longest of the latest; None unless there is one on every line."""
    latest = [probe.round_trip for probe in probes]
    known = [seconds for seconds in latest if seconds is not None]
    return round(max(known), 6) if known and len(known) == len(latest) else None


class DemoViews:
    """The demo page, served by `dev` only. `info` is what it shows of this node."""

    def __init__(self, info: Callable[[], Mapping[str, Any]]) -> None:
        self._info = info

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page),
            web.get("/demo/info", self.describe),
            web.get(r"/demo/{file:[a-z]+\.(?:css|js|svg|png)}", self.asset),
        ]

    async def page(self, _request: web.Request) -> web.StreamResponse:
        return file_response("index.html")

    async def asset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["file"]
        if not (STATIC / name).is_file():
            raise web.HTTPNotFound
        return file_response(name)

    async def describe(self, _request: web.Request) -> web.Response:
        return web.json_response(self._info(), headers={"Cache-Control": "no-store"})


def file_response(name: str) -> web.FileResponse:
    """A file of `STATIC`, for a page that loads nothing from elsewhere."""
    return web.FileResponse(
        STATIC / name,
        headers={
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


async def on_response(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: our software's versions stay our own, and errors end a connection."""
    response.headers.popall("Server", None)
    if response.status >= HTTPStatus.BAD_REQUEST:
        response.force_close()
        # aiohttp has written its own headers by now, and would close without a word.
        response.headers["Connection"] = "Upgrade, close" if "Upgrade" in response.headers else "close"
        if isinstance(response, web.Response) and not response.body:  # of which aiohttp would name a type
            response.headers.popall("Content-Type", None)
