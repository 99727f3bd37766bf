"""SockJS without WebSockets behind HAProxy as shipped: many requests to a session, and no cookie."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pytest_aiohttp import AiohttpServer

from gateway.drill.fleet.balancer import Balancer
from gateway.publishing import SCRIPT

from .clients import SECONDS
from .integration import stomp
from .processes import Node, Valkey, wait_until
from .test_haproxy import CONFIGURATION, node_at, sessions, started

pytestmark = pytest.mark.needs("haproxy")

MIGRATION = (CONFIGURATION.parent.parent / "docs" / "migration.md").read_text()

TRANSPORTS = ["xhr", "xhr_streaming", "eventsource"]
CLIENTS = 60
AT_ONCE = 4.0  # seconds, well before the next heartbeat would tell


class Lost(Exception):
    """The session is no more; sockjs-client would close with 1006."""


class Page:
    """A page on its own connections: one it keeps for its next request, or a new one for each."""

    def __init__(self, port: int, transport: str, http: aiohttp.ClientSession) -> None:
        self._at = f"http://127.0.0.1:{port}/websocket"
        self._transport = transport
        self._http = http
        self._session = ""
        self._opened = False
        self._listener: asyncio.Task[None] | None = None
        self._heard: asyncio.Queue[str | Lost] = asyncio.Queue()

    async def register(self, name: str) -> None:
        """Open a session by an id of its own, as sockjs-client does, and register `name`. Raises Lost."""
        await self.close()
        self._session = f"{secrets.randbelow(1000):03}/{secrets.token_hex(4)}"
        self._opened = False
        self._heard = asyncio.Queue()
        self._listener = asyncio.create_task(self._listen())
        if await self.hear() != "o":
            raise Lost("not opened")
        for message in stomp.conversation(name):
            if await self.send(message) != 204:
                raise Lost("xhr_send")
        assert stomp.parse(await self.hear()).command == "CONNECTED"
        assert stomp.message(await self.hear()) == stomp.registered(name)

    async def send(self, message: str) -> int:
        """The status of the request that says `message`."""
        url = f"{self._at}/{self._session}/xhr_send"
        async with self._http.post(url, data=json.dumps([message])) as answer:
            return answer.status

    async def hear(self) -> str:
        """The next message, or `o` once. Raises Lost."""
        heard = await self._heard.get()
        if isinstance(heard, Lost):
            raise heard
        return heard

    async def close(self) -> None:
        """Leave without a word."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])

    async def _listen(self) -> None:
        try:
            while True:
                await self._request()
        except (aiohttp.ClientError, Lost) as reason:
            self._heard.put_nowait(Lost(str(reason)))

    async def _request(self) -> None:
        method = "GET" if self._transport == "eventsource" else "POST"
        url = f"{self._at}/{self._session}/{self._transport}"
        async with self._http.request(method, url) as answer:
            if answer.status != 200:
                raise Lost(str(answer.status))
            async for line in answer.content:
                self._take(line.decode().removeprefix("data: ").rstrip())
        if self._transport != "xhr":
            raise Lost("the stream has ended")

    def _take(self, frame: str) -> None:
        if frame == "o" and not self._opened:
            self._opened = True
            self._heard.put_nowait(frame)
        elif frame.startswith("a"):
            for message in json.loads(frame[1:]):
                self._heard.put_nowait(message)
        elif frame.strip("h"):  # neither a heartbeat nor the prelude
            raise Lost(frame)


@asynccontextmanager
async def pages(port: int, count: int, prefix: str = "page") -> AsyncIterator[dict[str, Page]]:
    """Pages by name, of every transport; every other one makes a new connection for each request."""
    async with AsyncExitStack() as stack:
        opened = {}
        for number in range(count):
            connector = aiohttp.TCPConnector(force_close=number % 2 == 1)
            http = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(sock_connect=SECONDS, sock_read=40),
            )
            await stack.enter_async_context(http)
            opened[f"{prefix}-{number}"] = page = Page(port, TRANSPORTS[number % 3], http)
            stack.push_async_callback(page.close)
        yield opened


def held_by(nodes: Sequence[Node]) -> list[int]:
    return [sessions(number, node) for number, node in enumerate(nodes)]


def publish(valkey: Valkey, names: Sequence[str], result: str) -> list[int]:
    """Publish `result` and the number in its name to each, with retention; how many nodes held each."""
    with valkey.client() as client:
        arguments = [(f"websocket:{name}", f"{result}_{name.rpartition('-')[2]}") for name in names]
        return [int(str(client.eval(SCRIPT, 1, channel, said, "60"))) for channel, said in arguments]


async def result(page: Page) -> str:
    destination, said = stomp.message(await page.hear())
    assert destination == "/user/topic/authorization"
    return str(said["authResult"])


async def register(opened: Mapping[str, Page]) -> list[str]:
    """The names of those whose registration failed."""
    outcomes = await asyncio.gather(
        *(page.register(name) for name, page in opened.items()), return_exceptions=True
    )
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, Lost):
            raise outcome
    return [name for name, outcome in zip(opened, outcomes, strict=True) if outcome]


def configuration(folder: Path, *without: str) -> Path:
    """The shipped configuration without the settings that begin so."""
    lines = CONFIGURATION.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.strip().startswith(without)]
    assert len(kept) < len(lines)
    path = folder / "haproxy.cfg"
    path.write_text("".join(kept))
    return path


def balanced(nodes: Sequence[Node], path: Path) -> AbstractContextManager[Balancer]:
    """One more HAProxy in front of `nodes`, with the configuration at `path`."""
    return Balancer(nodes, path)


STICKY = ("stick-table", "stick on")
HASH = ("balance hash", "hash-type")


class Stack(NamedTuple):
    nodes: list[Node]
    balancer: Balancer
    valkey: Valkey

    def restart(self, number: int) -> None:
        """Start the `number`-th node, which has been killed, where it was."""
        old = self.nodes[number]
        self.nodes[number] = node_at(number, self.valkey, old.port, old.admin_port)


@pytest.fixture(scope="module")
def shared() -> Iterator[Stack]:
    with started([], [], []) as (nodes, balancer, valkey):
        stack = Stack(nodes, balancer, valkey)
        yield stack
        for node in stack.nodes:
            node.stop()


@pytest.fixture
async def stack(shared: Stack) -> Stack:
    """Three running nodes, whatever the test before did to them."""
    for number, node in enumerate(shared.nodes):
        if node.process.poll() is not None:
            shared.restart(number)
    await ready(3, shared.balancer)
    return shared


@pytest.fixture
async def idle(stack: Stack) -> Stack:
    """Three running nodes without sessions."""
    wait_until(lambda: held_by(stack.nodes) == [0, 0, 0], "the sessions of the test before are gone")
    return stack


async def ready(count: int, *balancers: Balancer) -> None:
    def seen() -> bool:
        return all(balancer.gives_to(count) for balancer in balancers)

    await asyncio.to_thread(wait_until, seen, f"HAProxy gives clients to {count} nodes")


async def test_every_transport_survives_a_killed_node(idle: Stack) -> None:
    lost: dict[str, str] = {}
    published = asyncio.Event()

    async def browse(name: str, page: Page) -> str:
        """The next result; a page whose session is lost connects anew, once everything is published."""
        try:
            return await result(page)
        except Lost as reason:
            lost[name] = str(reason)
        # A poll that was on its way has opened a session on another node; otherwise no other node knows it.
        assert await page.send(stomp.DISCONNECT) == (204 if lost[name] == "o" else 404)
        await published.wait()
        await page.register(name)
        return await result(page)

    nodes, balancer, valkey = idle
    async with pages(balancer.port, CLIENTS) as opened:
        assert await register(opened) == []
        held = held_by(nodes)
        assert sum(held) == CLIENTS
        assert all(held), "each node has some"

        assert publish(valkey, list(opened), "FIRST") == [1] * CLIENTS
        results = await asyncio.gather(*map(result, opened.values()))
        assert results == [f"FIRST_{number}" for number in range(CLIENTS)]

        browsing = [asyncio.create_task(browse(name, page)) for name, page in opened.items()]
        nodes[0].kill()
        await asyncio.to_thread(wait_until, lambda: len(lost) == held[0], "its clients notice", AT_ONCE)
        assert publish(valkey, list(opened), "SECOND").count(0) == held[0]
        published.set()
        assert await asyncio.gather(*browsing) == [f"SECOND_{number}" for number in range(CLIENTS)]
        assert len(lost) == held[0], "nobody else was disturbed"


async def test_a_node_that_joins_takes_no_session_from_the_others(stack: Stack, tmp_path: Path) -> None:
    nodes, balancer, valkey = stack
    with balanced(nodes, configuration(tmp_path, *STICKY)) as control:
        nodes[1].kill()
        await ready(2, balancer, control)
        async with pages(balancer.port, 30, "first") as opened, pages(control.port, 30, "control") as others:
            assert await register(opened) == await register(others) == []
            await asyncio.to_thread(stack.restart, 1)
            await ready(3, balancer, control)
            assert 404 in [await page.send("\n") for page in others.values()]
            assert [await page.send("\n") for page in opened.values()] == [204] * 30
            assert publish(valkey, list(opened), "RESULT") == [1] * 30
            results = await asyncio.gather(*map(result, opened.values()))
            assert results == [f"RESULT_{number}" for number in range(30)]
            before = sessions(1, nodes[1])
            assert await register(opened) == []
            assert sessions(1, nodes[1]) > before, "new ones are shared with it"


async def test_the_node_hears_of_clients_that_leave_while_they_listen(idle: Stack) -> None:
    nodes, balancer, _ = idle
    async with pages(balancer.port, 6) as opened:
        assert await register(opened) == []
        for page in opened.values():
            await page.send("\n")  # by now they listen again
        assert sum(held_by(nodes)) == 6
    await asyncio.to_thread(wait_until, lambda: sum(held_by(nodes)) == 0, "the nodes notice", AT_ONCE)


async def test_sessions_with_a_websocket_go_to_the_node_with_the_fewest(idle: Stack) -> None:
    nodes, balancer, _ = idle
    async with aiohttp.ClientSession() as http, AsyncExitStack() as sockets:
        for number in range(12):
            url = f"http://127.0.0.1:{balancer.port}/websocket/000/session-{number}/websocket"
            websocket = await sockets.enter_async_context(http.ws_connect(url))
            assert await websocket.receive_str(timeout=SECONDS) == "o"
        assert held_by(nodes) == [4, 4, 4]


async def test_without_the_hash_sessions_are_lost_at_once(stack: Stack, tmp_path: Path) -> None:
    """The control: each request goes to the node that is next."""
    with balanced(stack.nodes, configuration(tmp_path, *HASH, *STICKY)) as control:
        async with pages(control.port, CLIENTS) as opened:
            assert len(await register(opened)) > CLIENTS * 3 // 4


# Beside Web Flow, as docs/migration.md has it


def documented(part: str) -> str:
    """The lines for HAProxy behind `<!-- haproxy: part -->`."""
    found = re.search(rf"<!-- haproxy: {part} -->\n *```haproxy\n(.*?) *```", MIGRATION, re.DOTALL)
    assert found is not None, part
    return found[1]


@pytest.fixture
async def web_flow(aiohttp_server: AiohttpServer) -> TestServer:
    """What stands for Web Flow: it answers with the path that it was asked for."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"Web Flow at {request.path}")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return await aiohttp_server(app)


def beside(web_flow: TestServer, folder: Path, rules: str) -> Path:
    """The shipped configuration with Web Flow's servers, and with `rules` for what goes to them."""
    before = "    option forwardfor\n"
    servers = documented("backend").replace("192.0.2.10:8080", f"127.0.0.1:{web_flow.port}")
    text = CONFIGURATION.read_text().replace(before, before + rules)
    path = folder / "haproxy.cfg"
    path.write_text(f"{text}\n{servers.replace('port 8080', f'port {web_flow.port}')}")
    return path


async def ask(balancer: Balancer, below: str, *, post: bool = False, cookie: str = "", ip: int = 1) -> str:
    url = f"http://127.0.0.1:{balancer.port}/powerauth-webflow{below}"
    connector = aiohttp.TCPConnector(local_addr=(f"127.0.0.{ip}", 0))
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.request("POST" if post else "GET", url, headers={"Cookie": cookie}) as answer,
    ):
        return await answer.text()


async def test_the_sockets_of_chosen_browsers_go_to_the_gateway(
    stack: Stack, tmp_path: Path, web_flow: TestServer
) -> None:
    path = beside(web_flow, tmp_path, documented("frontend"))
    chosen = "JSESSIONID=1; webflow_gateway=1"
    with balanced(stack.nodes, path) as balancer:
        for below in ("/", "/api/auth", "/websockets"):
            assert await ask(balancer, below, cookie=chosen) == f"Web Flow at /powerauth-webflow{below}"
        for below in ("/websocket/info", "/websocket/000/one/xhr"):
            assert await ask(balancer, below) == f"Web Flow at /powerauth-webflow{below}"
        assert '"cookie_needed": false' in await ask(balancer, "/websocket/info", cookie=chosen)
        for number in range(6):
            session = f"/websocket/000/chosen-{number}"
            assert await ask(balancer, f"{session}/xhr", post=True, cookie=chosen) == "o\n"
            assert await ask(balancer, f"{session}/xhr_send", post=True, cookie=chosen) == "Payload expected."
        async with aiohttp.ClientSession(headers={"Cookie": chosen}) as http:
            url = f"http://127.0.0.1:{balancer.port}/powerauth-webflow/websocket/000/ws/websocket"
            async with http.ws_connect(url) as websocket:
                assert await websocket.receive_str(timeout=SECONDS) == "o"


async def test_the_sockets_of_a_percentage_go_to_the_gateway(
    stack: Stack, tmp_path: Path, web_flow: TestServer
) -> None:
    rules = documented("frontend").splitlines(keepends=True)
    rules = [documented("percentage") if "acl chosen" in rule else rule for rule in rules]
    path = beside(web_flow, tmp_path, "".join(rules))
    with balanced(stack.nodes, path) as balancer:
        addresses = range(1, 201)
        answers = [await ask(balancer, "/websocket/info", ip=number) for number in addresses]
        at_gateway = sum("cookie_needed" in answer for answer in answers)
        assert 4 <= at_gateway <= 40, "of 200, ten per cent"
        again = [await ask(balancer, "/websocket/info", ip=number) for number in addresses]
        assert ["Web Flow" in answer for answer in again] == ["Web Flow" in answer for answer in answers]
