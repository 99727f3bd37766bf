"""Health over HTTP, with the workers played by the test."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient

from gateway.admin.health import HealthEndpoints
from gateway.admin.workers import WorkersHealth

from .test_aggregate import state

METRICS = "# HELP sessions Open.\n# TYPE sessions gauge\nsessions 2.0\n"
PARENTS = (
    b'# HELP restarts_total Of a worker.\n# TYPE restarts_total counter\nrestarts_total{worker="2"} 7.0\n'
)


class Workers:
    """Two of them, the second of which may have trouble."""

    name = "n"

    def __init__(self) -> None:
        self.draining = False
        self.second: dict[str, Any] | None = state()
        self.responsive = True

    def accounts(self) -> list[dict[str, Any]]:
        return [{"worker": 1, "responsive": True}, {"worker": 2, "responsive": self.responsive}]

    async def ask(self, what: str) -> list[Any]:
        if what == "metrics":
            return [None if each is None else METRICS for each in (state(), self.second)]
        assert what == "state"
        return [state(), self.second]


async def test_health(aiohttp_client: Any) -> None:
    workers = Workers()
    app = web.Application()
    app.add_routes(HealthEndpoints(WorkersHealth(workers, lambda: PARENTS)).routes())
    client: TestClient[web.Request, web.Application] = await aiohttp_client(app)

    async def get(path: str) -> tuple[int, dict[str, Any]]:
        answer = await client.get(path)
        return answer.status, await answer.json()

    assert await get("/healthz") == (200, {"status": "ok", "node": "n", "stuck": []})
    status, body = await get("/readyz")
    assert (status, body["sessions"], [each["worker"] for each in body["workers"]]) == (200, 4, [1, 2])

    workers.responsive, workers.second = False, None
    assert await get("/healthz") == (503, {"status": "stuck", "node": "n", "stuck": [2]})
    status, body = await get("/readyz")
    assert (status, body["sessions"], body["workers"][1]["state"]) == (200, 2, None)

    answer = await client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = [line for line in (await answer.text()).splitlines() if not line.startswith("#")]
    assert samples == ['sessions{worker="1"} 2.0', 'restarts_total{worker="2"} 7.0'], "who is ill has none"

    workers.draining = True
    status, body = await get("/readyz")
    assert (status, body["reasons"]) == (503, ["draining"])
