"""The workers of a node as a source of answers: for health, metrics and the dashboard on the admin port."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from ..admin.dashboard import JsonObject
from .worker_slots import WorkerSlot

ANSWER_TIMEOUT: Final = 1.0
"""Seconds that a worker has for an answer; an orchestrator's probe waits no longer for all of them."""


class Workers:
    """All workers of a node, which the parent asks over their control connections."""

    def __init__(self, name: str, slots: Sequence[WorkerSlot]) -> None:
        """`name` is the node's."""
        self.name = name
        self.slots = slots
        self.draining = False
        """True as soon as the node is told to stop."""

    def accounts(self) -> list[dict[str, Any]]:
        """What the parent knows of each worker."""
        return [slot.account() for slot in self.slots]

    async def ask(self, what: str) -> list[Any]:
        """Every worker's answer, None where there is none."""
        return await asyncio.gather(*(_ask(slot, what) for slot in self.slots))

    async def snapshot(self) -> JsonObject | None:
        """What the dashboard shows: any worker knows it of all nodes."""
        return await self._ask_any("dashboard")

    async def look_up(self, web_socket_id: str) -> JsonObject | None:
        """Who holds an id: any worker can find it."""
        return await self._ask_any("session", web_socket_id)

    async def _ask_any(self, what: str, about: str = "") -> JsonObject | None:
        for slot in self.slots:
            answer: JsonObject | None = await _ask(slot, what, about)
            if answer is not None:
                return answer
        return None


async def _ask(slot: WorkerSlot, what: str, about: str = "") -> Any:
    process = slot.process
    if process is None or not process.listening or slot.heartbeat.silent:
        return None
    return await process.control.ask(what, ANSWER_TIMEOUT, about)
