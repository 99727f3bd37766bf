"""SockJS without WebSockets behind HAProxy as shipped: many requests to a session, and no cookie."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway.publishing import SCRIPT

from .clients import SECONDS
from .integration import stomp
from .processes import Node, Valkey, wait_until
from .test_haproxy import CONFIGURATION, Balancer, address, node_at, sessions, started

pytestmark = pytest.mark.needs("haproxy")

TRANSPORTS = ["xhr", "xhr_streaming", "eventsource"]
CLIENTS = 60
AT_ONCE = 4.0  # seconds, well before the next heartbeat would tell


class Lost(Exception):
    """The session is no more; sockjs-client would close with 1006."""


class Page:
    """A page on its own connections: one it keeps for its next request, or a new one for each."""

    def __init__(self, port: int, transport: str, http: aiohttp.ClientSession) -> None:
        self.transport = transport
        self._at = f"http://127.0.0.1:{port}/websocket"
        self._http = http
        self._frames: AsyncGenerator[str] = self._listen("")
        self._said: list[str] = []
        self.session = ""

    async def connect(self) -> None:
        """Open a session with an id of its own, as sockjs-client does. Raises Lost."""
        await self._frames.aclose()
        self.session = f"{secrets.randbelow(1000):03}/{secrets.token_hex(4)}"
        self._frames = self._listen(f"{self._at}/{self.session}")
        self._said = []
        if await self._frame() != "o":
            raise Lost("not opened")

    async def register(self, name: str) -> None:
        """Open a session and register `name`, message by message. Raises Lost."""
        await self.connect()
        for message in stomp.conversation(name):
            if await self.send(message) != 204:
                raise Lost("xhr_send")
        connected = stomp.parse(await self.hear())
        assert connected.command == "CONNECTED"
        assert stomp.message(await self.hear()) == stomp.registered(name)

    async def send(self, message: str) -> int:
        """The status of the request that says `message`."""
        url = f"{self._at}/{self.session}/xhr_send"
        async with self._http.post(url, data=json.dumps([message])) as answer:
            return answer.status

    async def hear(self) -> str:
        """The next message. Raises Lost."""
        while not self._said:
            frame = await self._frame()
            if frame != "h":
                if frame[0] != "a":
                    raise Lost(frame)
                self._said = json.loads(frame[1:])
        return self._said.pop(0)

    async def _frame(self) -> str:
        try:
            return await anext(self._frames)
        except aiohttp.ClientError as error:
            raise Lost(repr(error)) from error

    async def _listen(self, url: str) -> AsyncGenerator[str]:
        """The frames of one request after another."""
        method = "GET" if self.transport == "eventsource" else "POST"
        while True:
            async with self._http.request(method, f"{url}/{self.transport}") as answer:
                if answer.status != 200:
                    raise Lost(f"{self.transport}: {answer.status}")
                async for line in answer.content:
                    frame = line.decode().removeprefix("data: ").rstrip()
                    if frame and frame != "h" * 2048:
                        yield frame
            if self.transport != "xhr":
                raise Lost("the stream has ended")


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
            opened[f"{prefix}-{number}"] = Page(port, TRANSPORTS[number % 3], http)
        yield opened


def held_by(nodes: Sequence[Node]) -> list[int]:
    return [sessions(number, node) for number, node in enumerate(nodes)]


def publish(valkey: Valkey, names: Sequence[str], result: str) -> list[int]:
    """Publish `result` and the number in its name to each, with retention; how many nodes held each."""
    with valkey.client() as client:
        arguments = [(f"websocket:{name}", f"{result}_{name[5:]}") for name in names]
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


STICKY = ("stick-table", "stick on")
HASH = ("balance hash", "hash-type")


async def test_every_transport_survives_a_killed_node(tmp_path: Path) -> None:
    lost: dict[str, str] = {}
    published = asyncio.Event()

    async def browse(name: str, page: Page) -> str:
        """The next result; a page whose session is lost connects anew, once everything is published."""
        try:
            return await result(page)
        except Lost as reason:
            lost[name] = str(reason)
        # A poll that was on its way has opened a session on another node; otherwise no other knows it.
        assert await page.send(stomp.DISCONNECT) == (204 if lost[name] == "o" else 404)
        await published.wait()
        await page.register(name)
        return await result(page)

    with started(tmp_path, [], [], []) as (nodes, balancer, valkey):
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


async def test_a_node_that_joins_takes_no_session_from_the_others(tmp_path: Path) -> None:
    forgetful = configuration(tmp_path, *STICKY)  # the control
    with (
        started(tmp_path, [], []) as (nodes, balancer, valkey),
        Balancer.start(nodes, [address(0), address(1)], tmp_path, forgetful) as control,
    ):
        nodes[1].kill()
        await ready(1, balancer, control)
        async with pages(balancer.port, CLIENTS) as opened, pages(control.port, CLIENTS, "control") as others:
            assert await register(opened) == await register(others) == []
            hearing = [asyncio.create_task(result(page)) for page in [*opened.values(), *others.values()]]
            joined = await asyncio.to_thread(node_at, 1, valkey, nodes[1].port, nodes[1].admin_port)
            with joined:
                await ready(2, balancer, control)
                assert 404 in [await page.send("\n") for page in others.values()]
                assert [await page.send("\n") for page in opened.values()] == [204] * CLIENTS
                assert publish(valkey, list(opened), "RESULT") == [1] * CLIENTS
                results = await asyncio.gather(*hearing[:CLIENTS])
                assert results == [f"RESULT_{number}" for number in range(CLIENTS)]
                for task in hearing[CLIENTS:]:
                    task.cancel()
                await asyncio.gather(*hearing, return_exceptions=True)
                before = sessions(1, joined)
                assert await register(opened) == []
                assert sessions(1, joined) > before, "new ones are shared with it"


async def ready(count: int, *balancers: Balancer) -> None:
    def seen() -> bool:
        return all(balancer.gives_to(count) for balancer in balancers)

    await asyncio.to_thread(wait_until, seen, f"HAProxy gives clients to {count} nodes")


# What harms no node


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Node], Balancer]]:
    with started(tmp_path_factory.mktemp("haproxy"), [], [], []) as (nodes, balancer, _):
        yield nodes, balancer


@pytest.fixture
def nodes(stack: tuple[list[Node], Balancer]) -> list[Node]:
    """Three nodes without sessions."""
    wait_until(lambda: held_by(stack[0]) == [0, 0, 0], "the sessions of the test before are gone")
    return stack[0]


@pytest.fixture
def balancer(stack: tuple[list[Node], Balancer]) -> Balancer:
    return stack[1]


async def test_the_node_hears_of_clients_that_leave_while_they_listen(
    nodes: list[Node], balancer: Balancer
) -> None:
    async with pages(balancer.port, 6) as opened:
        assert await register(opened) == []
        listening = [asyncio.create_task(page.hear()) for page in opened.values()]
        for page in opened.values():
            await page.send("\n")  # by now the requests before it have been sent
        assert sum(held_by(nodes)) == 6
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    await asyncio.to_thread(wait_until, lambda: sum(held_by(nodes)) == 0, "the nodes notice", AT_ONCE)


async def test_sessions_with_a_websocket_go_to_the_node_with_the_fewest(
    nodes: list[Node], balancer: Balancer
) -> None:
    async with aiohttp.ClientSession() as http, AsyncExitStack() as stack:
        for number in range(12):
            url = f"http://127.0.0.1:{balancer.port}/websocket/000/session-{number}/websocket"
            websocket = await stack.enter_async_context(http.ws_connect(url))
            assert await websocket.receive_str(timeout=SECONDS) == "o"
        assert held_by(nodes) == [4, 4, 4]


async def test_without_the_hash_sessions_are_lost_at_once(nodes: list[Node], tmp_path: Path) -> None:
    """The control: each request goes to the node that is next."""
    round_robin = configuration(tmp_path, *HASH, *STICKY)
    addresses = [address(number) for number in range(3)]
    with Balancer.start(nodes, addresses, tmp_path, round_robin) as control:
        async with pages(control.port, CLIENTS) as opened:
            assert len(await register(opened)) > CLIENTS * 3 // 4
