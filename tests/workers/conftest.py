"""Worker slots for tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.workers.control import Control
from gateway.workers.listeners import listen
from gateway.workers.slots import WorkerProcess, WorkerSlot


@pytest.fixture
def posts() -> Iterator[list[WorkerSlot]]:
    """Two posts on a port, with workers that listen; nobody accepts."""
    found = [WorkerSlot(number, group) for number, group in enumerate(listen("127.0.0.1", 0, 2, 100), 1)]
    for post in found:
        post.life = WorkerProcess(1, Control(lambda _message: None, lambda: None))
        post.life.listening = True
    yield found
    for post in found:
        post.inbox.close()
        for listener in post.listeners:
            listener.close()
