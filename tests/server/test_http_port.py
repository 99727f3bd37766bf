"""A port for HTTP alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from structlog.testing import capture_logs

from gateway.config import build
from gateway.server.app import web_app
from gateway.server.http_port import HTTPPort
from gateway.server.listeners import open_sockets, port_of


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


@asynccontextmanager
async def served(rejected: Counter[str], connections: int = 10) -> AsyncIterator[int]:
    """The port of one."""
    (listeners,) = open_sockets(("127.0.0.1",), 0, 10)
    app = web_app([web.get("/", hello)], 100)
    port = await HTTPPort.build(build({}), app, listeners, connections, 100, rejected)
    await port.open()
    try:
        yield port_of(listeners)
    finally:
        await port.close()


async def test_it_answers_requests_and_counts_those_that_it_rejects() -> None:
    rejected: Counter[str] = Counter()
    async with served(rejected) as port, aiohttp.ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{port}/") as answer:
            assert await answer.text() == "hello"
        with capture_logs():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"nonsense\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
            writer.close()
            await writer.wait_closed()
    assert rejected["bad_request"] == 1


async def test_the_connections_have_a_limit() -> None:
    with capture_logs():
        async with served(Counter(), connections=2) as port:
            opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            assert (await opened[-1][0].readline()).startswith(b"HTTP/1.1 429 ")
            for _, writer in opened:
                writer.close()


async def test_it_can_be_closed_before_it_was_opened() -> None:
    port = await HTTPPort.build(build({}), web_app([]), (), 10, 100, Counter())
    await port.close()
