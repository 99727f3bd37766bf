"""Connections that are taken from a real aiohttp server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from gateway.transports.hijack import HIJACKED, hijack
from gateway.transports.http import take_connection, write_response

SECONDS = 5
UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[Streams]:
    """A connection to a server of aiohttp's that answers with `handler`."""
    app = web.Application()
    app.add_routes([web.route("*", "/", handler)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
    try:
        async with asyncio.timeout(SECONDS):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await runner.cleanup()


async def test_an_upgraded_connection_with_what_followed() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        transport, rest = hijack(request)
        transport.write(b"got " + rest)
        transport.close()
        return HIJACKED

    async with served(handler) as (reader, writer):
        writer.write(UPGRADE + b"the rest")
        assert await reader.read() == b"got the rest"


async def respond(request: web.Request) -> web.StreamResponse:
    connection = take_connection(request)
    response = web.Response(text="hello", status=201, headers={"X-Lasting": str(connection.lasting)})
    write_response(connection, response, without_body=request.method == "HEAD")
    connection.transport.close()
    return HIJACKED


async def test_a_response_on_a_connection_that_may_last() -> None:
    async with served(respond) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        output = await reader.read()
    assert output.startswith(b"HTTP/1.1 201 Created\r\n")
    assert b"X-Lasting: True\r\n" in output
    assert b"Connection: close" not in output
    assert output.endswith(b"Content-Length: 5\r\n\r\nhello")


async def test_an_old_client_and_pipelined_requests_end_the_connection() -> None:
    for request in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2):
        async with served(respond) as (reader, writer):
            writer.write(request)
            output = await reader.read()
        assert b"X-Lasting: False\r\n" in output
        assert b"Connection: close\r\n" in output


async def test_head_has_no_body() -> None:
    async with served(respond) as (reader, writer):
        writer.write(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).endswith(b"Content-Length: 5\r\n\r\n")
