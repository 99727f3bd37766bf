"""Liveness, readiness and metrics of a node with one process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from gateway.admin.aggregate import aggregate
from gateway.admin.health import HealthEndpoints, LocalHealth, node_state

from .test_metrics import Scene


def probes(scene: Scene, *round_trips: float | None) -> None:
    """The latest probe of each server's connection."""
    scene.broker.server_brokers = [
        SimpleNamespace(probe=SimpleNamespace(round_trip=seconds))  # type: ignore[misc]
        for seconds in round_trips
    ]


async def test_the_endpoints(aiohttp_client: Any) -> None:
    scene = Scene()
    app = web.Application()
    app.add_routes(HealthEndpoints(LocalHealth(scene.sources, scene.metrics)).routes())
    client: TestClient[web.Request, web.Application] = await aiohttp_client(app)

    async def get(path: str) -> tuple[int, dict[str, Any]]:
        answer = await client.get(path)
        return answer.status, await answer.json()

    assert await get("/healthz") == (200, {"status": "ok", "node": "node-1"})
    status, body = await get("/readyz")
    assert (status, body) == (200, node_state(scene.sources))
    answer = await client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "gateway_ready 1.0" in await answer.text()

    assert (await get("/readyz/strict"))[0] == 200

    scene.broker.deaf = "Redis is not connected"
    status, body = await get("/readyz/strict")
    assert (status, body["ready"], body["reasons"]) == (503, False, ["Redis is not connected"])
    status, body = await get("/readyz")
    assert (status, body["ready"], body["reasons"]) == (200, True, [])
    assert body["strict"] == {"ready": False, "reasons": ["Redis is not connected"]}

    scene.readiness.draining = True
    status, body = await get("/readyz")
    assert (status, body["ready"], body["reasons"]) == (503, False, ["draining"])
    assert body["strict"]["reasons"] == ["draining", "Redis is not connected"]


async def test_a_node_is_ready_once_it_has_reached_redis() -> None:
    scene = Scene()
    scene.broker.connected = False
    assert node_state(scene.sources)["ready"], "all nodes share Redis, so an outage makes none unready"
    scene.broker.ever_connected = False
    assert node_state(scene.sources)["reasons"] == ["Redis has not been reached yet"]


@pytest.mark.parametrize(
    ("round_trips", "expected"), [([0.002, 0.001], 0.002), ([0.002, None], None), ([], None)]
)
async def test_the_slowest_probe_counts(round_trips: list[float | None], expected: float | None) -> None:
    scene = Scene()
    probes(scene, *round_trips)
    assert node_state(scene.sources)["redis"]["probe_seconds"] == expected


async def test_workers_together_have_the_same_form() -> None:
    state = node_state(Scene().sources)
    assert list(aggregate([state], "node-1", draining=False)) == list(state)
