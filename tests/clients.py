"""Clients that speak JSON on `/ws`, with aiohttp.

What passes through load balancers and containers is judged by this independent implementation, and not by the
clients of the drills.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp

SECONDS = 10.0  # for any one answer; only a hang takes that long


class Clients:
    """Clients that stay connected until `close`."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self._open: list[
            aiohttp.ClientWebSocketResponse
        ] = []  # aiohttp closes a WebSocket that nobody references

    async def connect(self, url: str, **headers: str) -> aiohttp.ClientWebSocketResponse:
        """Connect. Raises aiohttp's WSServerHandshakeError if the node rejects it."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        websocket = await self._http.ws_connect(url, headers=named)
        self._open.append(websocket)
        return websocket

    async def register(self, url: str, name: str) -> aiohttp.ClientWebSocketResponse:
        """Connect, and register `name`. Returns once the registration is confirmed."""
        websocket = await self.connect(url)
        await websocket.send_json({"webSocketId": name})
        answer = await websocket.receive_json(timeout=SECONDS)
        assert answer["registrationSucceeded"] is True, answer
        return websocket

    async def close(self) -> None:
        await asyncio.gather(*(websocket.close() for websocket in self._open))


@contextlib.asynccontextmanager
async def clients_at(address: str) -> AsyncIterator[Clients]:
    connector = aiohttp.TCPConnector(limit=0, local_addr=(address, 0))
    async with aiohttp.ClientSession(connector=connector) as http:
        opened = Clients(http)
        yield opened
        await opened.close()
