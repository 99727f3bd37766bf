"""What signals mean to a node: real ones, sent to the test's own process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.config import Config, build
from gateway.node.signals import UNUSED_SIGNALS, StopOrder, handle_stop_signals, reread

SECONDS = 5.0
HANDLED = (signal.SIGTERM, signal.SIGINT, *UNUSED_SIGNALS)


@pytest.fixture
def config() -> Config:
    return build({"drain_delay": 3, "drain_seconds": 7})


@pytest.fixture
def orders(config: Config) -> Iterator[asyncio.Queue[StopOrder]]:
    yield asyncio.Queue()
    assert not [number for number in HANDLED if signal.getsignal(number) is signal.SIG_IGN]


async def test_each_stop_signal_is_an_order(config: Config, orders: asyncio.Queue[StopOrder]) -> None:
    handle_stop_signals(config, orders.put_nowait)
    try:
        async with asyncio.timeout(SECONDS):
            os.kill(os.getpid(), signal.SIGTERM)
            assert await orders.get() == StopOrder(3, 7)
            os.kill(os.getpid(), signal.SIGINT)
            assert await orders.get() == StopOrder(0, 0)
            with capture_logs() as lines:
                for number in UNUSED_SIGNALS:
                    os.kill(os.getpid(), number)
                os.kill(os.getpid(), signal.SIGTERM)
                await orders.get()
        assert {line["signal"] for line in lines} == {"SIGUSR1", "SIGUSR2"}
    finally:
        for number in HANDLED:
            asyncio.get_running_loop().remove_signal_handler(number)


def test_files_are_read_again(tmp_path: Path) -> None:
    token, redis = tmp_path / "token", tmp_path / "redis"
    token.write_text("a-token-that-is-long-enough")
    redis.write_text("redis://node:secret@127.0.0.1:1/0")
    config = build({"publish_token_file": str(token), "redis_file": str(redis), "port": 1234})
    token.write_text("another-token-that-is-long-enough\n")
    with capture_logs() as lines:
        found = reread(config)
        assert found is not None
        assert (found.config.token(), found.config.redis, found.config.port, found.redis) == (
            "another-token-that-is-long-enough",
            config.redis,
            1234,
            None,
        )
        redis.write_text("redis://node:renewed@127.0.0.1:1/0")
        found = reread(config)
        assert found is not None
        assert found.redis is not None
        assert "renewed" in found.redis.text == found.config.redis
        redis.write_text("redis://node:renewed@127.0.0.2:1/0")
        found = reread(found.config)
        assert found is not None
        assert found.redis is None
        assert "127.0.0.1" in found.config.redis, "a worker that is replaced belongs on the same Redis"
        redis.write_text("http://127.0.0.1")
        assert reread(config) is None
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("files read again", "info"),
        ("files read again", "info"),
        ("redis url changed", "info"),
        ("files read again", "info"),
        ("redis url changed", "warning"),
        ("files not read again", "error"),
    ]
    assert "--redis-file" in lines[-1]["reason"]
    assert "renewed" not in str(lines)


def test_a_broken_file_of_keys_holds_up_no_other_file(tmp_path: Path) -> None:
    keys, token = tmp_path / "keys", tmp_path / "token"
    keys.write_text("a-secret-that-only-the-backend-and-the-nodes-have")
    token.write_text("a-token-that-is-long-enough")
    settings = {"registration": "signed", "registration_keys": str(keys), "publish_token_file": str(token)}
    config = build(settings)
    keys.write_text("broken")
    token.write_text("another-token-that-is-long-enough")
    with capture_logs() as lines:
        found = reread(config)
    assert found is not None
    assert found.config.token() == "another-token-that-is-long-enough"
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("files not read again", "error"),
        ("files read again", "info"),
    ]
    assert "--registration-keys" in lines[0]["reason"]
    assert "has 6 bytes" in lines[0]["reason"]
    assert "the other files" in lines[0]["hint"]
