"""Pages that use SockJS without a WebSocket, as sockjs-client does: one session is many requests."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from gateway.drill.fleet import ValkeyProcess
from gateway.publishing.api import SCRIPT

from .clients import SECONDS
from .integration import stomp

TRANSPORTS = ["xhr", "xhr_streaming", "eventsource"]


class Lost(Exception):
    """The session is lost; sockjs-client would close with 1006."""


class Page:
    """A page with its own connections: one that it keeps alive, or a new one for each request."""

    def __init__(self, port: int, transport: str, http: aiohttp.ClientSession) -> None:
        self._at = f"http://127.0.0.1:{port}/websocket"
        self._transport = transport
        self._http = http
        self._session = ""
        self._opened = False
        self._listener: asyncio.Task[None] | None = None
        self._heard: asyncio.Queue[str | Lost] = asyncio.Queue()

    async def register(self, name: str) -> None:
        """Open a session with a new id, as sockjs-client does, and register `name`. Raises Lost."""
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
        """Send `message`, and return the HTTP status."""
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
        """Leave without closing the session."""
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
    """Pages by name, of every transport; every second one makes a new connection for each request."""
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


def publish(valkey: ValkeyProcess, names: Sequence[str], result: str) -> list[int]:
    """Publish `result` and the number in its name to each, with retention. Returns the receivers of each."""
    with valkey.client() as client:
        arguments = [(f"websocket:{name}", f"{result}_{name.rpartition('-')[2]}") for name in names]
        return [int(str(client.eval(SCRIPT, 1, channel, said, "60"))) for channel, said in arguments]


async def result(page: Page) -> str:
    destination, said = stomp.message(await page.hear())
    assert destination == "/user/topic/authorization"
    return str(said["authResult"])


async def register(opened: Mapping[str, Page]) -> list[str]:
    """Register all pages. Returns the names of those that failed."""
    outcomes = await asyncio.gather(
        *(page.register(name) for name, page in opened.items()), return_exceptions=True
    )
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, Lost):
            raise outcome
    return [name for name, outcome in zip(opened, outcomes, strict=True) if outcome]
