"""Requests that aiohttp's handlers answer, on real connections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.server import requests
from gateway.server.acceptor import Acceptor
from gateway.server.app import web_app
from gateway.server.dispatcher import Dispatcher
from gateway.server.rejections import Rejections
from gateway.server.requests import RequestServer
from gateway.transports.hijack import HIJACKED, MAX_READ_AHEAD, hijack
from gateway.wire.handshake import BODY_TOO_LARGE

from ..fakes import ledger

MAX_BODY = 65_536
SECONDS = 5
SECRET = "the client's secret"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Client:
    """Writes requests, and reads all that comes back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, head: str, body: bytes = b"") -> None:
        lines = [*head.split("\n"), "Host: x", *([f"Content-Length: {len(body)}"] if body else [])]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def answer(self) -> bytes:
        """The next response."""
        async with asyncio.timeout(SECONDS):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or 0)
            return head + await self._reader.readexactly(length)

    async def rest(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self._reader.read()

    def leave(self, *, half: bool = False) -> None:
        if half:
            self._writer.write_eof()
        else:
            self._writer.transport.abort()


class Served:
    """A port on which one handler answers POST requests to any path, and `GET /`."""

    def __init__(self, server: RequestServer, rejected: Counter[str], port: int) -> None:
        self.server = server
        self.rejected = rejected
        self._port = port

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[Served]:
    loop = asyncio.get_running_loop()
    app = web_app([web.get("/", handler), web.post("/{any:.*}", handler)], MAX_BODY)
    acceptor = Acceptor(
        lambda *request: dispatcher.dispatch(*request), ledger(handshakes=10), 5.0, 75.0, loop.time
    )
    server = await RequestServer.build(app, acceptor, MAX_BODY)
    rejected: Counter[str] = Counter()
    dispatcher = Dispatcher(acceptor, server, Rejections(rejected))
    listening = await loop.create_server(acceptor, "127.0.0.1", 0)
    try:
        with capture_logs():
            yield Served(server, rejected, listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        await server.close()
        acceptor.abort_all()
        await asyncio.sleep(0.01)


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def test_bodies_of_any_size_that_is_allowed() -> None:
    async with served(echo) as at, at.client() as client:
        for size in (0, 1, MAX_BODY):
            client.send("POST / HTTP/1.1", b"x" * size)
            assert (await client.answer()).partition(b"\r\n\r\n")[2] == b"x" * size


async def test_a_body_that_is_too_large() -> None:
    """The handler may have something to do before it answers."""
    for path, status in (("/", b"413 "), ("/handled", b"202 ")):

        async def handler(request: web.Request) -> web.Response:
            try:
                return await echo(request)
            except web.HTTPRequestEntityTooLarge:
                if request.path == "/":
                    raise
                assert request.can_read_body
                return web.Response(status=202)

        async with served(handler) as at, at.client() as client:
            client.send(f"POST {path} HTTP/1.1", b"x" * (MAX_BODY + 1))
            answer = await client.answer()
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert b"Connection: close\r\n" in answer
            assert await client.rest() == b""
            assert at.rejected == {"body_too_large": 1}


async def test_a_method_whose_handlers_read_no_body() -> None:
    async with served(echo) as at, at.client() as client:
        client.send("GET / HTTP/1.1", b"x" * (MAX_BODY + 1))
        assert await client.answer() == BODY_TOO_LARGE.response
        assert at.rejected == {"body_too_large": 1}


async def test_a_handler_that_fails() -> None:
    """A bug is logged with its place, and without the text of the exception."""

    async def handler(request: web.Request) -> web.Response:
        raise ValueError(await request.text())

    async with served(handler) as at, at.client() as client:
        with capture_logs() as lines:
            client.send("POST / HTTP/1.1", SECRET.encode())
            answer = await client.answer()
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"Server:" not in answer
        assert await client.rest() == b""
    (line,) = lines
    assert (line["event"], line["error"], line["method"]) == ("request failed", "ValueError", "POST")
    assert "in handler" in line["exception"]
    assert SECRET not in repr(line) + answer.decode()


async def test_a_response_that_fails() -> None:
    class Broken(web.Response):
        async def write_eof(self, data: bytes = b"") -> None:
            raise ValueError(SECRET)

    async def handler(request: web.Request) -> web.Response:
        return Broken(text="begun")

    async with served(handler) as at, at.client() as client:
        with capture_logs() as lines:
            client.send("GET / HTTP/1.1")
            await client.rest()
    assert [(line["event"], SECRET in repr(line)) for line in lines] == [("request failed", False)]


async def test_a_client_that_leaves_while_it_is_answered() -> None:
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        await left.wait()
        return web.Response(text="late")

    for half in (False, True):
        left.clear()
        async with served(handler) as at, at.client() as client:
            client.send("GET / HTTP/1.1")
            await asyncio.sleep(0.02)
            client.leave(half=half)
            await asyncio.sleep(0.02)
            left.set()
            if half:
                assert (await client.answer()).endswith(b"late")
                assert await client.rest() == b""


async def test_a_stream_whose_client_leaves() -> None:
    ended = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"more")
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    async with served(handler) as at, at.client() as client:
        client.send("GET / HTTP/1.1")
        await client.answer()
        client.leave()
        async with asyncio.timeout(SECONDS):
            await ended.wait()


async def test_a_connection_that_is_taken_over() -> None:
    class Taken(asyncio.Protocol):
        def eof_received(self) -> None:
            transport.write(b"bye")

    transport: asyncio.Transport

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal transport
        await asyncio.sleep(0.02)  # the end of input comes first
        transport, rest = hijack(request)
        assert rest is not None
        transport.set_protocol(Taken())
        transport.write(b"taken with " + rest)
        return HIJACKED

    async with served(handler) as at, at.client() as client:
        client.send("GET / HTTP/1.1")
        client.send("the rest")
        client.leave(half=True)
        assert await client.rest() == b"taken with the rest\r\nHost: x\r\n\r\nbye"


async def test_a_client_that_sends_much_before_its_response_must_repeat_it() -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(text="done")

    async with served(handler) as at, at.client() as client:
        client.send("GET / HTTP/1.1")
        client.send("GET / HTTP/1.1\nx: " + "x" * MAX_READ_AHEAD)
        answer = await client.answer()
        assert answer.endswith(b"done")
        assert b"\r\nConnection: close\r\n" in answer
        assert await client.rest() == b""


async def test_responses_in_progress_are_waited_for_and_then_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "HTTP_SHUTDOWN", 0.05)

    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(0.02 if request.method == "POST" else SECONDS)
        return web.Response(text="done")

    async with served(handler) as at, at.client() as quick, at.client() as slow:
        quick.send("POST / HTTP/1.1")
        slow.send("GET / HTTP/1.1")
        await asyncio.sleep(0.01)
        await at.server.close()
        assert (await quick.answer()).endswith(b"done")
        with contextlib.suppress(ConnectionError):
            assert await slow.rest() == b""


async def test_a_client_that_sends_requests_and_reads_no_response() -> None:
    answered = 0

    async def handler(_request: web.Request) -> web.Response:
        nonlocal answered
        answered += 1
        return web.Response(body=bytes(100_000))

    async with served(handler) as at, at.client() as client:
        for _ in range(500):  # 13 KB: more would have to be repeated
            client.send("GET / HTTP/1.1")
        before = -1
        while before != answered:
            before = answered
            await asyncio.sleep(0.1)
        assert answered < 250, "the rest waits, for the kernel holds some MB"
        for _ in range(500):
            assert len(await client.answer()) > 100_000
        assert answered == 500


# What a rejected request leaves behind


@pytest.fixture
def no_collector() -> Iterator[None]:
    """A node's collector runs rarely (see `node.serve.tune_collector`), so nothing may rely on it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


BOMB = zlib.compress(bytes(2 << 20), 9)
REJECTED = {
    "inflated": ("POST / HTTP/1.1\nContent-Encoding: deflate", BOMB, b"415 "),
    "too large": ("POST / HTTP/1.1", bytes(MAX_BODY + 1), b"413 "),
    "nowhere": ("PUT /nowhere HTTP/1.1", bytes(MAX_BODY), b"405 "),
    "malformed": ("POST / HTTP/1.1\nno header", bytes(MAX_BODY), b"400 "),
    "broken chunks": ("POST / HTTP/1.1\nTransfer-Encoding: chunked\n\n5\nab", b"", b"400 "),
    "a handler's error": ("POST /fail HTTP/1.1", bytes(MAX_BODY), b"500 "),
    "a handler's answer": ("POST /deny HTTP/1.1", bytes(MAX_BODY), b"403 "),
}


async def strict(request: web.Request) -> web.Response:
    body = await request.read()
    if request.path == "/deny":
        raise web.HTTPForbidden
    if request.path == "/fail":
        raise ValueError(body)
    return web.Response()


@pytest.mark.parametrize(("head", "body", "status"), REJECTED.values(), ids=REJECTED)
@pytest.mark.usefixtures("no_collector")
async def test_a_rejected_request_leaves_nothing_behind(head: str, body: bytes, status: bytes) -> None:
    async def ask(at: Served, times: int) -> None:
        for _ in range(times):
            async with at.client() as client:
                client.send(head, body)
                assert (await client.answer()).startswith(b"HTTP/1.1 " + status)
                await client.rest()
        await asyncio.sleep(0.01)

    async with served(strict) as at:
        with capture_logs() as lines:
            await ask(at, 3)  # what is made once
            tracemalloc.start()
            try:
                lines.clear()
                before = tracemalloc.get_traced_memory()[0]
                await ask(at, 20)
                lines.clear()
                kept = tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()
    assert kept < 20 * 5_000


async def test_a_client_that_has_left_before_its_requests_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss may come in the same turn of the loop as its request."""
    handled: list[web.Request] = []
    tasks: set[asyncio.Task[None]] = set()
    serve = RequestServer.serve

    def lost_at_once(server: RequestServer, transport: asyncio.Transport, *request: Any) -> None:
        serve(server, transport, *request)
        transport.get_protocol().connection_lost(None)
        transport.abort()
        tasks.update(server._answering)

    async def handler(request: web.Request) -> web.Response:
        handled.append(request)
        return web.Response()

    monkeypatch.setattr(RequestServer, "serve", lost_at_once)
    async with served(handler) as at, at.client() as client:
        client.send("GET / HTTP/1.1")
        assert await client.rest() == b""
    assert not handled
    assert [task.exception() for task in tasks] == [None]
