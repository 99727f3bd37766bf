"""Opening a WebSocket step by step: each step fails by its own name."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.canary import connection
from gateway.canary.connection import USER_AGENT, WebSocketOpener
from gateway.canary.stages import CanaryFailed, Stage
from gateway.drill.fleet import free_port

from ..certificates import self_signed
from ..fakes import virtual
from ..test_client import AiohttpServer, serving


class Opened:
    """Opens a WebSocket and closes it; `stages` are those that began."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    async def __call__(self, url: str, origin: str | None = None, ca_file: str | None = None) -> None:
        opener = WebSocketOpener(url, origin, ca_file, self.stages.append)
        async with opener.session() as session:
            await (await opener.open(session)).close()


@pytest.fixture
def opened() -> Opened:
    return Opened()


async def failing(opened: Opened, url: str, **options: str) -> CanaryFailed:
    with pytest.raises(CanaryFailed) as failed:
        await opened(url, **options)
    return failed.value


@contextlib.asynccontextmanager
async def answering(answer: bytes | None, asked: asyncio.Event | None = None) -> AsyncIterator[str]:
    """The URL of a server that answers any request with these bytes and hangs up; with None, says nothing.

    `asked` is set when it has read a request.
    """
    done = asyncio.Event()

    async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read(65_536)
        if asked is not None:
            asked.set()
        if answer is None:
            await done.wait()
        else:
            writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer_one, "127.0.0.1", 0)
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        done.set()


def rejecting(response: web.HTTPException) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(_request: web.Request) -> web.StreamResponse:
        raise response

    return handler


async def test_the_stages_come_in_their_order(aiohttp_server: AiohttpServer, opened: Opened) -> None:
    seen: list[tuple[str, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers["Origin"], request.headers["User-Agent"]))
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.receive()
        return websocket

    url = await serving(aiohttp_server, handler)
    await opened(url)
    await opened(url, origin="https://bank.example")
    assert opened.stages == [Stage.LOOK_UP, Stage.TCP, Stage.UPGRADE] * 2
    own = url.replace("ws:", "http:").removesuffix("/ws")
    assert seen == [(own, USER_AGENT), ("https://bank.example", USER_AGENT)]


async def test_a_name_that_nobody_has(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    failure = await failing(opened, "wss://nobody.invalid/ws")
    assert failure.stage is Stage.LOOK_UP
    assert "nobody.invalid cannot be looked up" in str(failure)


async def test_nobody_listens(opened: Opened) -> None:
    port = free_port()
    failure = await failing(opened, f"ws://127.0.0.1:{port}/ws")
    assert str(failure) == f"tcp: connection refused at 127.0.0.1 port {port}; does the proxy run?"


async def test_a_port_without_tls(opened: Opened) -> None:
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        failure = await failing(opened, url.replace("ws:", "wss:"))
    assert failure.stage is Stage.TLS
    assert "without TLS the URL begins with ws://" in str(failure)


async def test_a_file_without_certificates(opened: Opened, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    failure = await failing(opened, "wss://bank.example/ws", ca_file=str(file))
    assert failure.stage is Stage.TLS
    assert f"{file} cannot be used" in str(failure)
    assert opened.stages == [], "nothing was tried"


@pytest.mark.real
async def test_certificates(aiohttp_server: AiohttpServer, opened: Opened, tmp_path: Path) -> None:
    """One that nobody has signed is trusted only where it is named, and only for its own name."""
    certificate, key = await asyncio.to_thread(self_signed, tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)

    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.receive()
        return websocket

    app = web.Application()
    app.add_routes([web.get("/ws", handler)])
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=tls)
    url = f"wss://localhost:{server.port}/ws"
    try:
        await opened(url, ca_file=str(certificate))
        assert opened.stages == [Stage.LOOK_UP, Stage.TCP, Stage.TLS, Stage.UPGRADE]
        failure = await failing(opened, url)
        assert failure.stage is Stage.TLS
        assert "the certificate of localhost is not valid: self-signed certificate" in str(failure)
        assert "--ca-file" in str(failure)
        failure = await failing(opened, url.replace("localhost", "127.0.0.1"), ca_file=str(certificate))
        assert "IP address mismatch" in str(failure)
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("response", "hint"),
    [
        (web.HTTPForbidden(), "do the nodes allow the origin http://127.0.0.1:"),
        (web.HTTPNotFound(), "write the path"),
        (web.HTTPOk(), "this is a page and no WebSocket"),
        (web.HTTPTooManyRequests(), "too many sessions or requests from this address"),
        (web.HTTPServiceUnavailable(), "the proxy has no node that is ready"),
        (web.HTTPServiceUnavailable(headers={"Retry-After": "5"}), "the nodes are full or stopping"),
        (web.HTTPBadGateway(), "the proxy does not reach a node"),
        (web.HTTPConflict(), "the log of the proxy says why"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_an_upgrade_that_is_refused(
    aiohttp_server: AiohttpServer, opened: Opened, response: web.HTTPException, hint: str
) -> None:
    url = await serving(aiohttp_server, rejecting(response))
    failure = await failing(opened, url)
    assert failure.stage is Stage.UPGRADE
    assert f"HTTP {response.status} from {url}; {hint}" in str(failure)


async def test_no_redirect_is_followed_for_browsers_follow_none(
    aiohttp_server: AiohttpServer, opened: Opened
) -> None:
    for location, target in (("https://bank.example/x?secret=1", "https://bank.example/x"), ("/x", "")):
        url = await serving(aiohttp_server, rejecting(web.HTTPFound(location)))
        failure = await failing(opened, url)
        assert failure.stage is Stage.UPGRADE
        target = target or url.replace("/ws", "/x").replace("ws:", "http:")
        assert f"HTTP 302 leads to {target}; browsers follow no redirect" in str(failure).replace(
            "ws:", "http:"
        )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "no HTTP answer: Server disconnected; the proxy or node has hung up; if TLS is needed here"),
        (b"SSH-2.0-x\r\n\r\n", "no HTTP answer"),
        (
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
            "the answer is wrong: Invalid challenge response; a proxy changes its headers",
        ),
    ],
)
async def test_an_answer_that_is_none(opened: Opened, answer: bytes, said: str) -> None:
    async with answering(answer) as url:
        failure = await failing(opened, url)
    assert failure.stage is Stage.UPGRADE
    assert said in str(failure)


async def test_no_secret_of_the_url_is_told(opened: Opened) -> None:
    async with answering(b"") as url:
        assert "secret" not in str(await failing(opened, url.replace("//", "//u:secret@") + "?token=secret"))


async def test_a_connection_ends_with_its_session(aiohttp_server: AiohttpServer) -> None:
    """Also one that nobody has closed."""
    released = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await released.wait()
        return websocket

    opener = WebSocketOpener(await serving(aiohttp_server, handler), None, None, lambda _stage: None)
    async with opener.session() as session:
        websocket = await opener.open(session)
        made = websocket._response.connection
        assert made is not None
        protocols = [made.protocol]
    protocols.append(made.protocol)
    assert [protocol is None for protocol in protocols] == [False, True], "or aiohttp would warn of it"
    released.set()


async def test_whoever_says_nothing_leaves_the_stage_where_it_is(opened: Opened) -> None:
    asked = asyncio.Event()
    async with answering(None, asked) as url:
        opening = asyncio.create_task(opened(url))
        await asked.wait()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
    assert opened.stages[-1] is Stage.UPGRADE


async def test_a_redirect_whose_body_does_not_end_ends_with_its_failure() -> None:
    gone = asyncio.Event()

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 x\r\nLocation: /x\r\nContent-Length: 9\r\n\r\n")
        assert await reader.read() == b""
        gone.set()
        writer.close()

    async with await asyncio.start_server(redirect, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        opener = WebSocketOpener(url, None, None, lambda _stage: None)
        async with opener.session() as session:
            with pytest.raises(CanaryFailed):
                await opener.open(session)
            async with asyncio.timeout(10):
                await gone.wait()


@virtual
async def test_a_session_that_does_not_close_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    real = connection._StagedConnector.close

    async def hang(connector: connection._StagedConnector) -> None:
        await real(connector)
        await asyncio.Event().wait()

    monkeypatch.setattr(connection._StagedConnector, "close", hang)
    started = asyncio.get_running_loop().time()
    opener = WebSocketOpener("ws://bank.example/ws", None, None, lambda _stage: None)
    async with opener.session():
        pass
    assert asyncio.get_running_loop().time() - started == pytest.approx(connection.CLOSE_SECONDS)
