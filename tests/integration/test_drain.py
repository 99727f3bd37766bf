"""How a node ends: real signals to real processes."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis.asyncio

from ..processes import Node, Valkey
from .conftest import complaints
from .here import readiness
from .load import HANDSHAKE, SECONDS, Backend, crowd, frame, until, without_theirs
from .raw import Raw

SOON = 2.0  # seconds: what takes no time, on a machine that is busy
DELAY, DRAIN = 2.0, 1.5
BROWSERS = 90


@contextmanager
def draining_node(valkey: Valkey, delay: float, seconds: float, *options: str) -> Iterator[Node]:
    """A node with these drain times, whose log must be free of complaints however it ends."""
    with Node(valkey.url, "--drain-delay", str(delay), "--drain-seconds", str(seconds), *options) as node:
        yield node
    node._reader.join(SECONDS)
    assert not complaints(node.logs)
    assert node.logged("stopped")


async def exit_of(node: Node) -> int:
    """The exit code, once there is one."""
    return await asyncio.to_thread(node.process.wait, SECONDS)


async def test_sigterm_drains(valkey: Valkey) -> None:
    names = [f"drained-{number}" for number in range(BROWSERS)]
    with draining_node(valkey, DELAY, DRAIN) as node:
        async with (
            crowd([node.port], names) as browsers,
            Backend.on(valkey.url) as backend,
            Raw.connected(node.port) as slow,
        ):
            slow.send(HANDSHAKE.encode())  # all but its end
            node.signal(signal.SIGTERM)
            start = time.monotonic()
            await until(lambda: node.logged("draining"), "the node has heard")
            status, body = await readiness(node.admin_port)
            assert (status, body["ready"], body["reasons"]) == (503, False, ["draining"])

            # The balancer has not noticed yet: browsers still come, and results too.
            async with Raw.registered(node.port, "drained-late") as late:
                await backend.publish_plainly([*names, "drained-late"])
                assert (await late.message())["authResult"]
                await until(lambda: not without_theirs(browsers), "results arrive while the node drains")
                assert not any(browser.close_code for browser in browsers)

                await until(lambda: any(browser.close_code for browser in browsers), "the first is closed")
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection("127.0.0.1", node.port)
                slow.send(b"\r\n")
                status, headers, content = await slow.answer()
                assert (status, json.loads(content)["error"]["code"]) == (503, "stopping")
                assert headers["retry-after"]
                assert (await readiness(node.admin_port))[0] == 503
                assert await late.closed() == (1012, "service restart")
                late.send(frame(8, b"\x03\xf4"))

            assert await exit_of(node) == 0
            took = time.monotonic() - start
            await until(lambda: all(browser.lost_at for browser in browsers), "all connections have ended")
        assert {browser.close_code for browser in browsers} == {1012}
        closed = sorted(browser.lost_at - start for browser in browsers if browser.lost_at)
        for number, moment in enumerate(closed):  # a busy machine may be late, and must not be early
            assert moment >= DELAY + DRAIN * number / BROWSERS - 0.15, f"{number} are closed too soon"
        assert DELAY + DRAIN - 0.15 < took < DELAY + DRAIN + SOON


async def test_a_client_that_neither_reads_nor_answers_holds_nothing_up(
    valkey: Valkey, backend: redis.asyncio.Redis
) -> None:
    with draining_node(valkey, 0, 0, "--close-timeout", "0.5", "--write-buffer", "16777216") as node:
        async with (
            Raw.registered(node.port, "mute"),
            Raw.registered(node.port, "stuffed", receive_buffer=4096),
            Raw.connected(node.port),  # has not sent a byte
        ):
            for _ in range(150):  # 9 MB: more than the kernel takes, less than the write buffer
                await backend.publish(
                    "websocket:stuffed", json.dumps({"authResult": "A", "data": "x" * 60_000})
                )
            start = time.monotonic()
            node.signal(signal.SIGTERM)
            assert await exit_of(node) == 0
            assert 0.5 <= time.monotonic() - start < 1.5 + SOON


async def test_a_second_sigterm_ends_it_at_once(valkey: Valkey) -> None:
    with draining_node(valkey, 30, 30) as node:
        async with Raw.registered(node.port, "twice") as browser:
            node.signal(signal.SIGTERM)
            await until(lambda: node.logged("draining"), "the first is heard")
            start = time.monotonic()
            node.signal(signal.SIGTERM)
            assert await exit_of(node) == 0
            assert time.monotonic() - start < SOON
            assert await browser.rest() == b""


async def test_sigint_waits_for_no_balancer(valkey: Valkey) -> None:
    with draining_node(valkey, 30, 30) as node:
        async with Raw.registered(node.port, "interrupted") as browser:
            start = time.monotonic()
            node.signal(signal.SIGINT)
            assert await browser.closed() == (1012, "service restart")
            browser.send(frame(8, b"\x03\xf4"))
            assert await exit_of(node) == 0
            assert time.monotonic() - start < SOON


async def test_sigterm_while_redis_is_away() -> None:
    with await asyncio.to_thread(Valkey) as valkey, draining_node(valkey, 0, 0) as node:
        await asyncio.to_thread(valkey.kill)
        async with Raw.upgraded(node.port) as browser:
            start = time.monotonic()
            node.signal(signal.SIGTERM)
            assert await browser.closed() == (1012, "service restart")
            browser.send(frame(8, b"\x03\xf4"))
            assert await exit_of(node) == 0
            assert time.monotonic() - start < SOON
