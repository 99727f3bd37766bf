"""Health and metrics of a node with several workers, together and one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..telemetry import logs
from .aggregate import aggregate
from .health import OK
from .metrics import merge

PARENT = "parent"
"""The label `worker` of the parent's own metrics."""


class WorkerGroup(Protocol):
    """The workers, as their parent knows them."""

    name: str
    draining: bool

    def accounts(self) -> list[dict[str, Any]]:
        """What the parent knows of each."""

    async def ask(self, what: str) -> list[Any]:
        """The answer of each, None where there is none."""


class WorkersHealth:
    """The `HealthSource` of a node with several workers."""

    def __init__(self, workers: WorkerGroup, metrics: Callable[[], bytes]) -> None:
        """`metrics` renders the parent's own."""
        self._workers = workers
        self._metrics = metrics

    def health(self) -> dict[str, Any]:
        """A worker that hangs or has ended is replaced within seconds, and the node stays healthy meanwhile.

        It is "stuck" when a worker gives no sign of life for longer than a replacement takes.
        """
        stuck = [account["worker"] for account in self._workers.accounts() if not account["responsive"]]
        return {"status": "stuck" if stuck else OK, "node": self._workers.name, "stuck": stuck}

    async def state(self) -> dict[str, Any]:
        states = await self._workers.ask("state")
        body = aggregate(states, self._workers.name, draining=self._workers.draining)
        body["log_lines_dropped"] += logs.dropped()  # the parent's own
        accounts = zip(self._workers.accounts(), states, strict=True)
        return {**body, "workers": [{**account, "state": state} for account, state in accounts]}

    async def metrics(self) -> bytes:
        """Those of each worker that answers, by its number, and those of the parent."""
        answers = enumerate(await self._workers.ask("metrics"), 1)
        texts = {str(number): text.encode() for number, text in answers if text is not None}
        return merge({**texts, PARENT: self._metrics()})
