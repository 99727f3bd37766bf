"""What is known of a worker's place."""

from __future__ import annotations

from gateway.workers.slots import WorkerSlot


def test_an_account(posts: list[WorkerSlot]) -> None:
    assert posts[1].account() == {"worker": 2, "pid": 1, "restarts": 0, "turns": True, "serves": True}
    posts[1].life = None
    assert posts[1].account()["pid"] is None
