"""A public port in the test's own process, with a Redis that confirms everything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from gateway.core.session import SessionContext
from gateway.server.handoff import Siblings
from gateway.server.listeners import listen, port_of
from gateway.server.port import PublicPort
from gateway.server.wires import WIRES, WireRow
from gateway.transports.connections import ConnectionLedger

from ..fakes import Subscriber, node

ID = "12345678"
CHANNEL = b"websocket:12345678"
SECONDS = 5


class Broker(Subscriber):
    """Redis confirms each subscription in the next turn of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.hub: Any = None

    def subscribe(self, name: bytes) -> None:
        asyncio.get_running_loop().call_soon(self.hub.subscribed, name, None)


class Raw:
    """A connection on which a test writes its own HTTP."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, request: str) -> tuple[str, dict[str, str], bytes]:
        """The first line, headers and body of the response to `request`, whose lines end in LF."""
        self._writer.write(request.replace("\n", "\r\n").encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = 0 if request.startswith("HEAD") else int(headers.get("Content-Length", 0))
        return first, headers, await self._reader.readexactly(length)

    async def read(self, count: int) -> bytes:
        return await self._reader.readexactly(count)

    async def rest(self) -> bytes:
        """All bytes until the connection ends."""
        return await self._reader.read()


class Served:
    """A public port that listens, and a client of it."""

    def __init__(
        self, context: SessionContext, port: PublicPort, client: aiohttp.ClientSession, number: int
    ) -> None:
        self.context = context
        self._hub = context.hub
        self.port = port
        self._client = client
        self._number = number

    def publish(self, payload: bytes) -> None:
        self._hub.received(CHANNEL, payload)

    def websocket(self, path: str) -> Any:
        return self._client.ws_connect(f"http://127.0.0.1:{self._number}{path}")

    def request(self, method: str, path: str, **options: Any) -> Any:
        return self._client.request(method, f"http://127.0.0.1:{self._number}{path}", **options)

    async def post(self, path: str, data: str = "") -> str:
        async with self.request("POST", path, data=data) as response:
            return str(await response.text())

    @contextlib.asynccontextmanager
    async def raw(self) -> AsyncIterator[Raw]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._number)
        try:
            async with asyncio.timeout(SECONDS):
                yield Raw(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def served(*rows: WireRow, siblings: Siblings | None = None, **settings: Any) -> AsyncIterator[Served]:
    """All wires, and those of these rows, on a real port. `settings` are the node's."""
    broker = Broker()
    context = node(None, broker, **settings)
    broker.hub = context.hub
    (listeners,) = listen("port", ("127.0.0.1",), 0, 10)
    assert isinstance(context.ledger, ConnectionLedger)
    port = await PublicPort.build(
        context, context.ledger, listeners, wires=(*WIRES, *rows), siblings=siblings
    )
    await port.open()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(SECONDS)) as client:
            yield Served(context, port, client, port_of(listeners))
    finally:
        port.reject_new()
        port.drop()
        for session in list(context.deadlines):
            session.abort()
        await port.close()
        await asyncio.sleep(0)
