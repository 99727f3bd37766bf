"""HTTP: liveness, readiness and metrics, of a node with one process or with several."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol

from aiohttp import web

from ..messages import code_label
from ..nodes.sources import Sources
from ..redis.probe import Probe
from ..telemetry import logs
from .metrics import CONTENT_TYPE, NodeMetrics
from .responses import PRIVATE_HEADERS, private_json

OK: Final = "ok"


class HealthSource(Protocol):
    """What answers: the process itself, or the parent for all its workers."""

    def health(self) -> dict[str, Any]:
        """The answer of /healthz; `status` is OK if nothing has to be restarted."""

    async def state(self) -> dict[str, Any]:
        """The answer of /readyz; `ready` says whether browsers should be sent here, `strict` the same for
        /readyz/strict."""

    async def metrics(self) -> bytes:
        """The answer of /metrics."""


class HealthEndpoints:
    """The paths that load balancers, orchestrators and Prometheus ask."""

    def __init__(self, source: HealthSource) -> None:
        self._source = source

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self.health),
            web.get("/readyz", self.ready),
            web.get("/readyz/strict", self.strictly_ready),
            web.get("/metrics", self.metrics),
        ]

    async def health(self, _request: web.Request) -> web.Response:
        """GET /healthz: 200 while the process (every worker) is responsive. Use it as the liveness probe."""
        body = self._source.health()
        return private_json(body, _status(ok=body["status"] == OK))

    async def ready(self, _request: web.Request) -> web.Response:
        """GET /readyz: 200 if browsers should be sent here, else 503. Use it as the readiness probe."""
        body = await self._source.state()
        return private_json(body, _status(ok=body["ready"]))

    async def strictly_ready(self, _request: web.Request) -> web.Response:
        """GET /readyz/strict: 200 if results are received, too. For balancers that can fall back to /readyz.

        While Redis is away, no node is strictly ready.
        """
        body = await self._source.state()
        strict = body["strict"]
        return private_json({**body, **strict}, _status(ok=strict["ready"]))

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=await self._source.metrics(), headers={**PRIVATE_HEADERS, "Content-Type": CONTENT_TYPE}
        )


def _status(*, ok: bool) -> HTTPStatus:
    return HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE


class LocalHealth:
    """The `HealthSource` of a node with one process."""

    def __init__(self, sources: Sources, metrics: NodeMetrics) -> None:
        self._sources = sources
        self._metrics = metrics

    def health(self) -> dict[str, Any]:
        """If the event loop hung, nobody would answer."""
        return {"status": OK, "node": self._sources.name}

    async def state(self) -> dict[str, Any]:
        return node_state(self._sources)

    async def metrics(self) -> bytes:
        return self._metrics.render()


def node_state(sources: Sources) -> dict[str, Any]:
    """The answer of /readyz for one process."""
    context, broker = sources.context, sources.broker
    reasons, strict_reasons = sources.readiness.reasons(), sources.readiness.strict_reasons()
    return {
        "ready": not reasons,
        "reasons": reasons,
        "strict": {"ready": not strict_reasons, "reasons": strict_reasons},
        "node": sources.name,
        "sessions": context.admission.sessions,
        "handshakes": sources.acceptor.handshakes,
        "unread_bytes": sources.context.ledger.backlog.unread,
        "channels": context.hub.channels,
        "delivered": context.hub.delivered,
        "log_lines_dropped": logs.dropped(),
        "connections": sources.connections(),
        "invalid": dict(context.hub.invalid),
        "rejected": dict(sources.access.rejected + sources.acceptor.rejected),
        "closed": {f"{code_label(code)} {reason}": count for (code, reason), count in context.ended.items()},
        "redis": {
            "connected": broker.connected,
            "outages": broker.outages,
            "outage_seconds": round(broker.outage_seconds(), 3),
            "probe_seconds": _round_trip([server.probe for server in broker.server_brokers]),
            "repaired": broker.repaired,
            "missing_slots": len(broker.missing_slots),
            "denied_channels": broker.denied_channels,
        },
    }


def _round_trip(probes: Sequence[Probe]) -> float | None:
    """The slowest of the latest probes; None unless there is one on every connection."""
    latest = [probe.round_trip for probe in probes]
    known = [seconds for seconds in latest if seconds is not None]
    return round(max(known), 6) if known and len(known) == len(latest) else None
