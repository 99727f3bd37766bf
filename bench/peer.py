"""`python -m bench.peer REDIS_ADDRESS REDIS_PORT`: the gateway as one would write it in an afternoon.

aiohttp's `WebSocketResponse` with a task per session, and redis-py's `PubSub` with one call per id. It checks
nothing and survives nothing; it is here to show what the gateway's own session and broker save. The port it
listens on is its first line of output.
"""

from __future__ import annotations

import asyncio
import sys

import orjson
import redis.asyncio as redis
import uvloop
from aiohttp import web
from redis.asyncio.client import PubSub

_PREFIX = "websocket:"


class _Peer:
    def __init__(self, client: redis.Redis, pubsub: PubSub) -> None:
        self._client = client
        self._pubsub = pubsub
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._subscribing = asyncio.Lock()  # a PubSub breaks when several tasks write to it at once

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(compress=False, heartbeat=25)
        await response.prepare(request)
        channel = ""
        async for message in response:
            name = orjson.loads(message.data)["webSocketId"]
            channel = _PREFIX + name
            self._sockets[channel] = response
            async with self._subscribing:
                await self._pubsub.subscribe(channel)
            retained: str | bytes | None = await self._client.get(channel)
            await _send(response, "registration", name, registrationSucceeded=True)
            if isinstance(retained, bytes):
                await _send(response, "authorization", name, authResult=retained.decode())
        async with self._subscribing:
            await self._pubsub.unsubscribe(channel)
        self._sockets.pop(channel, None)
        return response

    async def forward(self) -> None:
        async for message in self._pubsub.listen():
            if message["type"] == "message":
                channel = message["channel"].decode()
                result = message["data"].decode()
                name = channel.removeprefix(_PREFIX)
                await _send(self._sockets[channel], "authorization", name, authResult=result)


async def _send(response: web.WebSocketResponse, topic: str, name: str, **members: object) -> None:
    body = {"topic": f"/user/topic/{topic}", "webSocketId": name, **members}
    await response.send_str(orjson.dumps(body).decode())


async def _serve(address: str, port: int) -> None:
    async with redis.Redis(host=address, port=port) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("peer")  # listen() ends at once without a channel
        peer = _Peer(client, pubsub)
        application = web.Application()
        application.router.add_get("/ws", peer.socket)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        print(runner.addresses[0][1], flush=True)
        await peer.forward()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2])))
