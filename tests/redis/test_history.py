"""How much is asked of a server at once, after what its connections have shown."""

from __future__ import annotations

from structlog.testing import capture_logs

from gateway.redis.history import (
    GROW_AFTER,
    MAX_PENDING_BATCHES,
    MAX_READ,
    SUBSCRIBE_BATCH,
    ServerHistory,
)
from gateway.redis.reminder import REMIND_EVERY

from ..fakes import Clock


def test_batches_are_halved_down_to_a_floor() -> None:
    history = ServerHistory(Clock())
    assert (history.batch, history.window(), history.max_read(1_000)) == (
        SUBSCRIBE_BATCH,
        MAX_PENDING_BATCHES,
        MAX_READ,
    )
    history.connection_ended(1, within_batch=True)
    assert history.lost_within_batch
    assert (history.batch, history.window(), history.max_read(1_000)) == (250, 4, MAX_READ // 2)
    for _ in range(20):
        history.connection_ended(1, within_batch=True)
    assert (history.batch, history.window(), history.window(1_000)) == (3, 1, 7)
    assert history.max_read(65_536) == 65_537, "at least one result fits"


def test_they_grow_back_while_connections_last() -> None:
    history = ServerHistory(Clock())
    for _ in range(3):
        history.connection_ended(1, within_batch=True)
    history.connection_ended(GROW_AFTER - 1, within_batch=False)
    assert history.batch == SUBSCRIBE_BATCH // 8
    history.connection_ended(2 * GROW_AFTER, within_batch=False)
    assert history.batch == SUBSCRIBE_BATCH // 2
    history.connection_ended(100 * GROW_AFTER, within_batch=True)
    assert history.batch == SUBSCRIBE_BATCH // 2


def test_a_denial_is_logged_once_in_a_while() -> None:
    clock = Clock()
    history = ServerHistory(clock)
    with capture_logs() as logs:
        for _ in range(100):
            history.denied(b"websocket:1", "NOPERM No permissions to access a channel")
        clock.now += REMIND_EVERY
        history.denied(b"websocket:1", "NOPERM No permissions to access a channel")
    assert [line["hint"] for line in logs] == ["give the node's Redis user &websocket:*"] * 2
