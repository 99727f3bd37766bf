"""Worker slots for tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.server.listeners import listen
from gateway.workers.control import Control
from gateway.workers.worker_slots import WorkerProcess, WorkerSlot


@pytest.fixture
def slots() -> Iterator[list[WorkerSlot]]:
    """Two slots on a port, with workers that listen; nobody accepts."""
    found = [
        WorkerSlot(number, group) for number, group in enumerate(listen("port", ("127.0.0.1",), 0, 100, 2), 1)
    ]
    for slot in found:
        slot.process = WorkerProcess(1, Control(lambda _message: None, lambda: None))
        slot.process.listening = True
    yield found
    for slot in found:
        slot.inbox.close()
        for listener in slot.listeners:
            listener.close()
