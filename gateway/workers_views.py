"""HTTP: what a node of several workers answers on its admin port, where its parent listens."""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import web

from .health import together


class Workers(Protocol):
    """The workers, as these views know them; see `supervisor.Supervisor`."""

    name: str
    draining: bool

    def accounts(self) -> list[dict[str, Any]]:
        """What the parent knows of each."""

    async def ask(self, what: str) -> list[Any]:
        """The answer of each, None where there is none."""


class WorkersViews:
    """Health of the workers together and one by one."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/healthz", self.health), web.get("/readyz", self.ready)]

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
        body = together(states, self._workers.name, draining=self._workers.draining)
        accounts = zip(self._workers.accounts(), states, strict=True)
        body["workers"] = [{**account, "state": state} for account, state in accounts]
        return web.json_response(body, status=200 if body["ready"] else 503)
