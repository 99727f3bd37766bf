"""How a node ends: real signals to real processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import pytest
import redis.asyncio

from gateway.drill.fleet import NodeProcess, ValkeyProcess

from .conftest import complaints
from .in_process import readiness
from .load import (
    HANDSHAKE,
    SECONDS,
    Backend,
    frame,
    load_clients,
    result_of,
    text,
    until,
    without_their_result,
)
from .raw import Raw

SOON = 8.0  # seconds: what takes no time, on a machine that is very busy; a hang takes longer
DELAY, DRAIN = 2.0, 1.5
BROWSERS = 90
TOKEN = "a-token-that-is-long-enough"


@contextmanager
def draining_node(
    valkey: ValkeyProcess, delay: float, seconds: float, *options: str
) -> Iterator[NodeProcess]:
    """A node with these drain times, whose log must be free of complaints however it ends."""
    with NodeProcess(
        valkey.url, "--drain-delay", str(delay), "--drain-seconds", str(seconds), *options
    ) as node:
        yield node
    node._reader.join(SECONDS)
    assert not complaints(node.logs)
    assert node.logged("stopped")


async def exit_of(node: NodeProcess) -> int:
    """The exit code, once there is one."""
    return await asyncio.to_thread(node.process.wait, SECONDS)


async def test_sigterm_drains(valkey: ValkeyProcess) -> None:
    names = [f"drained-{number}" for number in range(BROWSERS)]
    with draining_node(valkey, DELAY, DRAIN) as node:
        async with (
            load_clients([node.port], names) as browsers,
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
                await backend.publish_once([*names, "drained-late"])
                assert (await late.message())["authResult"]
                await until(
                    lambda: not without_their_result(browsers), "results arrive while the node drains"
                )
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
            await until(lambda: all(browser.closed_at for browser in browsers), "all connections have ended")
        assert {browser.close_code for browser in browsers} == {1012}
        closed = sorted(browser.closed_at - start for browser in browsers if browser.closed_at)
        for number, moment in enumerate(closed):  # a busy machine may be late, and must not be early
            assert moment >= DELAY + DRAIN * number / BROWSERS - 0.15, f"{number} are closed too soon"
        assert DELAY + DRAIN - 0.15 < took < DELAY + DRAIN + SOON


async def test_a_client_that_neither_reads_nor_answers_holds_nothing_up(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis
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


async def test_a_second_sigterm_ends_it_at_once(valkey: ValkeyProcess) -> None:
    with draining_node(valkey, 30, 30) as node:
        async with Raw.registered(node.port, "twice") as browser:
            node.signal(signal.SIGTERM)
            await until(lambda: node.logged("draining"), "the first is heard")
            start = time.monotonic()
            node.signal(signal.SIGTERM)
            assert await exit_of(node) == 0
            assert time.monotonic() - start < SOON
            assert await browser.rest() == b""


async def test_sigint_waits_for_no_balancer(valkey: ValkeyProcess) -> None:
    with draining_node(valkey, 30, 30) as node:
        async with Raw.registered(node.port, "interrupted") as browser:
            start = time.monotonic()
            node.signal(signal.SIGINT)
            assert await browser.closed() == (1012, "service restart")
            browser.send(frame(8, b"\x03\xf4"))
            assert await exit_of(node) == 0
            assert time.monotonic() - start < SOON


async def test_sigterm_while_redis_is_away() -> None:
    with await asyncio.to_thread(ValkeyProcess) as valkey, draining_node(valkey, 0, 0) as node:
        await asyncio.to_thread(valkey.kill)
        async with Raw.upgraded(node.port) as browser:
            start = time.monotonic()
            node.signal(signal.SIGTERM)
            assert await browser.closed() == (1012, "service restart")
            browser.send(frame(8, b"\x03\xf4"))
            assert await exit_of(node) == 0
            assert time.monotonic() - start < SOON


# Clients that make it hard

WORKERS = pytest.mark.parametrize("workers", ["1", "2"], ids=["one process", "two workers"])

MUTE, PATIENCE = "0.5", 1.5
"""--close-timeout, and what that leaves for the end: it and HTTP_SHUTDOWN."""


def sockjs(session: str, transport: str, body: bytes = b"") -> bytes:
    line = f"POST /websocket/000/{session}/{transport} HTTP/1.1\r\n"
    return f"{line}Host: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@WORKERS
async def test_each_protocol_says_it_in_its_own_way(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, workers: str
) -> None:
    """All are told to come back, which each protocol has a way to say."""
    with draining_node(valkey, 0, 0.5, "--workers", workers) as node:
        async with (
            Raw.connected(node.port) as polls,
            Raw.connected(node.port) as streams,
            Raw.connected(node.port) as events,
            Raw.connected(node.port) as later,
        ):
            polls.send(sockjs("drained-polls", "xhr"))
            assert (await polls.answer())[2] == b"o\n"
            polls.send(sockjs("drained-polls", "xhr"))
            later.send(sockjs("drained-later", "xhr"))
            assert (await later.answer())[2] == b"o\n"
            streams.send(sockjs("drained-streams", "xhr_streaming"))
            await streams.until(b"o\n")
            events.send(b"GET /events?webSocketId=drained-events HTTP/1.1\r\nHost: x\r\n\r\n")
            await events.until(b"registrationSucceeded")
            node.signal(signal.SIGTERM)
            close_frame = b'c[1012,"service restart"]\n'
            assert (await polls.answer())[2] == close_frame
            await streams.until(close_frame)
            # The end of the response is what makes a browser's EventSource connect anew.
            assert (await events.rest()).endswith(b"0\r\n\r\n")
            later.send(sockjs("drained-later", "xhr"))
            assert (await later.answer())[2] == close_frame, "who comes late hears it too"
            assert await exit_of(node) == 0


@WORKERS
async def test_clients_that_do_nothing_right_hold_nothing_up(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, workers: str
) -> None:
    with draining_node(
        valkey, 0, 0, "--close-timeout", MUTE, "--write-buffer", "16777216", "--workers", workers
    ) as node:
        async with contextlib.AsyncExitStack() as opened:

            async def connected(**options: int) -> Raw:
                return await opened.enter_async_context(Raw.connected(node.port, **options))

            for half in (
                b"",
                b"GET /ws HTTP/1.1\r\n",
                HANDSHAKE.encode(),
                sockjs("half", "xhr", b"x" * 99)[:-9],
            ):
                (await connected()).send(half)
            for name in ("hard-mute", "hard-stuffed"):
                await opened.enter_async_context(Raw.registered(node.port, name, receive_buffer=4096))
            stream = await connected(receive_buffer=4096)
            stream.send(b"GET /events?webSocketId=hard-stuffed HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.until(b"registrationSucceeded")
            stuck = await connected(receive_buffer=4096)
            stuck.send(sockjs("hard-stream", "xhr_streaming"))
            await stuck.until(b"o\n")
            idle = await connected()
            idle.send(sockjs("hard-poll", "xhr"))
            await idle.answer()
            for _ in range(150):  # 9 MB: more than the kernel takes, less than the write buffer
                await backend.publish(
                    "websocket:hard-stuffed", json.dumps({"authResult": "A", "data": "x" * 60_000})
                )
            start = time.monotonic()
            node.signal(signal.SIGTERM)
            assert await exit_of(node) == 0
            assert time.monotonic() - start < float(MUTE) + PATIENCE + SOON


@WORKERS
async def test_redis_goes_away_amid_the_drain(workers: str) -> None:
    with (
        await asyncio.to_thread(ValkeyProcess) as valkey,
        draining_node(valkey, 0.5, 1, "--close-timeout", MUTE, "--workers", workers) as node,
    ):
        names = [f"amid-{number}" for number in range(20)]
        async with load_clients([node.port], names) as browsers:
            valkey.freeze()
            try:
                start = time.monotonic()
                node.signal(signal.SIGTERM)
                async with Raw.upgraded(node.port) as late:
                    late.send(text({"webSocketId": "amid-late"}))  # which nobody can confirm
                    assert await late.closed() == (1012, "service restart")
                assert await exit_of(node) == 0
                assert time.monotonic() - start < 1.5 + float(MUTE) + PATIENCE + SOON
            finally:
                valkey.thaw()
            await until(lambda: all(browser.closed_at for browser in browsers), "all connections have ended")
        assert {browser.close_code for browser in browsers} == {1012}


@WORKERS
async def test_results_come_in_by_http_until_the_end(valkey: ValkeyProcess, workers: str) -> None:
    """A publisher has its answer, from the node or by its connection's end."""
    with draining_node(valkey, 0.3, 0.7, "--publish-token", TOKEN, "--workers", workers) as node:
        names = [f"until-{number}" for number in range(20)]
        url = f"http://127.0.0.1:{node.admin_port}/publish"
        async with (
            load_clients([node.port], names) as browsers,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
        ):
            node.signal(signal.SIGTERM)
            sent: list[str] = []
            with contextlib.suppress(aiohttp.ClientError):
                for name in itertools.cycle(names):
                    body = {"webSocketId": name, "authResult": result_of(name), "messageId": name}
                    async with http.post(url, json=body) as answer:
                        assert answer.status == 200
                        assert (await answer.json())["retained"]
                    sent.append(name)
            assert set(sent) == set(names), "it went on all the while"
            assert await exit_of(node) == 0
            await until(lambda: all(browser.closed_at for browser in browsers), "all connections have ended")
            assert [browser for browser in browsers if browser.results == [result_of(browser.name)]]


@WORKERS
async def test_a_publication_that_redis_keeps_waiting_does_not_hold_the_end_up(workers: str) -> None:
    with (
        await asyncio.to_thread(ValkeyProcess) as valkey,
        draining_node(
            valkey, 0, 0, "--publish-token", TOKEN, "--close-timeout", MUTE, "--workers", workers
        ) as node,
    ):
        valkey.freeze()
        try:
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
                body = {"webSocketId": "kept-waiting", "authResult": "CONFIRMED"}
                posting = asyncio.create_task(
                    http.post(f"http://127.0.0.1:{node.admin_port}/publish", json=body)
                )
                await asyncio.sleep(0.2)
                start = time.monotonic()
                node.signal(signal.SIGTERM)
                assert await exit_of(node) == 0
                assert time.monotonic() - start < float(MUTE) + PATIENCE + SOON
                with contextlib.suppress(aiohttp.ClientError):
                    assert (await posting).status in (500, 503)
        finally:
            valkey.thaw()
