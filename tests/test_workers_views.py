"""gateway.workers_views: health over HTTP, with the workers played by the test."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient

from gateway.workers_views import WorkersViews

from .test_health import state


class Workers:
    """Two of them, the second of which may have trouble."""

    name = "n"

    def __init__(self) -> None:
        self.draining = False
        self.second: dict[str, Any] | None = state()
        self.turns = True

    def accounts(self) -> list[dict[str, Any]]:
        return [{"worker": 1, "turns": True}, {"worker": 2, "turns": self.turns}]

    async def ask(self, what: str) -> list[Any]:
        assert what == "state"
        return [state(), self.second]


async def test_health(aiohttp_client: Any) -> None:
    workers = Workers()
    app = web.Application()
    app.add_routes(WorkersViews(workers).routes())
    client: TestClient[web.Request, web.Application] = await aiohttp_client(app)

    async def get(path: str) -> tuple[int, dict[str, Any]]:
        answer = await client.get(path)
        return answer.status, await answer.json()

    assert await get("/healthz") == (200, {"status": "ok", "node": "n", "stuck": []})
    status, body = await get("/readyz")
    assert (status, body["sessions"], [each["worker"] for each in body["workers"]]) == (200, 4, [1, 2])

    workers.turns, workers.second = False, None
    assert await get("/healthz") == (503, {"status": "stuck", "node": "n", "stuck": [2]})
    status, body = await get("/readyz")
    assert (status, body["sessions"], body["workers"][1]["state"]) == (200, 2, None)

    workers.draining = True
    status, body = await get("/readyz")
    assert (status, body["reasons"]) == (503, ["draining"])
