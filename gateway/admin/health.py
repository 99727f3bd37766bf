"""HTTP: health and metrics of a node with one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from ..core.session import SessionContext
from ..redis.broker import Broker
from ..redis.probe import Probe
from ..server.acceptor import Acceptor
from .metrics import CONTENT_TYPE as METRICS


class HealthEndpoints:
    """What operators and load balancers reach."""

    def __init__(
        self,
        node: SessionContext,
        broker: Broker,
        door: Acceptor,
        refused: Mapping[str, int],
        name: str,
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
                "outages": self._broker.outages,
                "outage_seconds": round(self._broker.outage_seconds(), 3),
                "probe_seconds": _round_trip([server.probe for server in self._broker.server_brokers]),
                "repaired": self._broker.repaired,
            },
        }


def _round_trip(probes: Sequence[Probe]) -> float | None:
    """The longest of the latest; None unless there is one on every line."""
    latest = [probe.round_trip for probe in probes]
    known = [seconds for seconds in latest if seconds is not None]
    return round(max(known), 6) if known and len(known) == len(latest) else None
