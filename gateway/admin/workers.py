"""HTTP: what a node of several workers answers on its admin port, where its parent listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import web

from .aggregate import aggregate
from .metrics import CONTENT_TYPE, merge

PARENT = "parent"
"""What stands in the label `worker` of the parent's own metrics."""


class WorkerGroup(Protocol):
    """The workers, as these views know them; see `supervisor.Supervisor`."""

    name: str
    draining: bool

    def accounts(self) -> list[dict[str, Any]]:
        """What the parent knows of each."""

    async def ask(self, what: str) -> list[Any]:
        """The answer of each, None where there is none."""


class WorkersHealthEndpoints:
    """Health and metrics of the workers together and one by one."""

    def __init__(self, workers: WorkerGroup, metrics: Callable[[], bytes]) -> None:
        """`metrics` renders the parent's own."""
        self._workers = workers
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self.health),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.measure),
        ]

    async def measure(self, _request: web.Request) -> web.Response:
        """GET /metrics: of each worker that answers, by its number, and of the parent."""
        answers = enumerate(await self._workers.ask("metrics"), 1)
        texts = {str(number): text.encode() for number, text in answers if text is not None}
        body = merge({**texts, PARENT: self._metrics()})
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def health(self, _request: web.Request) -> web.Response:
        """GET /healthz: 200 as long as the loops of all workers turn.

        One that hangs or has ended is replaced within seconds, and the node is well all the while; 503 says
        that this has been in vain for longer than it takes.
        """
        still = [account["worker"] for account in self._workers.accounts() if not account["turns"]]
        body = {"status": "stuck" if still else "ok", "node": self._workers.name, "stuck": still}
        return web.json_response(body, status=503 if still else 200)

    async def ready(self, _request: web.Request) -> web.Response:
        """GET /readyz: whether browsers should be sent to this node, and how it and each worker is."""
        states = await self._workers.ask("state")
        body = aggregate(states, self._workers.name, draining=self._workers.draining)
        accounts = zip(self._workers.accounts(), states, strict=True)
        body["workers"] = [{**account, "state": state} for account, state in accounts]
        return web.json_response(body, status=200 if body["ready"] else 503)
