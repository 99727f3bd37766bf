"""What clients get beside results: the status while Redis is away, and nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import pytest
import redis.asyncio

from gateway.drill.fleet import ValkeyCluster, ValkeyProcess, free_port
from gateway.publishing import api as publishing
from gateway.redis.cluster.slots import key_slot
from gateway.redis.outage_notifier import NOTIFY_AFTER

from . import stomp
from .conftest import Measured, Place, nodes_on
from .in_process import port_of, unconnected_node
from .load import SECONDS, Backend
from .test_events import listen

NewId = Callable[[], str]
Message = tuple[str, dict[str, object]]
"""A topic without `/user/topic/`, and a body."""

DEGRADED: Message = ("status", {"push": "degraded"})
RESTORED: Message = ("status", {"push": "restored"})


def registered(name: str) -> Message:
    return "registration", {"webSocketId": name, "registrationSucceeded": True}


def result(name: str, word: str, **members: object) -> Message:
    return "authorization", {"webSocketId": name, "authResult": word, **members}


def slot_of(name: str) -> int:
    return key_slot(f"websocket:{name}".encode())


@dataclass
class Client:
    """A client that has asked to register `name`, and what it hears next."""

    kind: str
    name: str
    hear: Callable[[], Awaitable[Message]]

    async def hears(self, *messages: Message) -> None:
        for message in messages:
            assert await self.hear() == message, self.kind


@dataclass
class Clients:
    """Clients of every kind on one node; all are gone when the block ends."""

    http: aiohttp.ClientSession
    port: int
    _open: list[Any] = field(default_factory=list)

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, port: int) -> AsyncIterator[Clients]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None)) as http:
            clients = cls(http, port)
            yield clients
            for each in clients._open:
                await each.close()

    async def json(self, name: str, **members: object) -> Client:
        websocket = await self._websocket()
        await websocket.send_json({"webSocketId": name, **members})

        async def hear() -> Message:
            body = await websocket.receive_json(timeout=SECONDS)
            return body.pop("topic").removeprefix("/user/topic/"), body

        return Client("json", name, hear)

    async def stomp(self, name: str, *subscriptions: str, **members: object) -> Client:
        """It subscribes to the registration, the authorization, and what else is named."""
        websocket = await self._websocket("v12.stomp")
        topics = (stomp.TO_REGISTRATION, stomp.TO_AUTHORIZATION, *subscriptions)
        for text in (stomp.CONNECT, *topics, stomp.send(name, **members)):
            await websocket.send_str(text)
        assert stomp.parse(await websocket.receive_str(timeout=SECONDS)).command == "CONNECTED"

        async def hear() -> Message:
            while (text := await websocket.receive_str(timeout=SECONDS)) == "\n":
                """A heart-beat."""
            destination, body = stomp.message(text)
            return destination.removeprefix("/user/topic/"), body

        return Client("stomp", name, hear)

    async def events(self, name: str, query: str = "") -> Client:
        source = await listen(self.http, self.port, name, query)
        self._open.append(source)

        async def hear() -> Message:
            fields = await source.block()
            while set(fields) == {""}:  # a comment
                fields = await source.block()
            return fields["event"], orjson.loads(fields["data"])

        return Client("events", name, hear)

    async def watching(self, name: str) -> list[Client]:
        """One of each kind that is told of the status."""
        return [
            await self.json(name, status=True),
            await self.stomp(name, stomp.TO_STATUS),
            await self.events(name),
        ]

    async def others(self, name: str) -> list[Client]:
        """Those that have not asked for it; Web Flow's own page is the second."""
        return [await self.json(name), await self.stomp(name)]

    async def _websocket(self, *protocols: str) -> aiohttp.ClientWebSocketResponse:
        websocket = await self.http.ws_connect(f"ws://127.0.0.1:{self.port}/ws", protocols=protocols)
        self._open.append(websocket)
        return websocket


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[tuple[ValkeyProcess, Clients]]:
    """A Valkey that a test may harm, and clients of the one node on it."""
    with await asyncio.to_thread(ValkeyProcess) as valkey, nodes_on(valkey.url, 1) as (node,):
        async with Clients.at(node.port) as clients:
            yield valkey, clients


# While Redis is gone


async def test_while_redis_is_gone_those_who_can_understand_it_are_told(measured: Measured) -> None:
    async with scene() as (valkey, clients):
        watching, others = await clients.watching("early"), await clients.others("early")
        for client in (*watching, *others):
            await client.hears(registered("early"))
        clock = asyncio.get_running_loop().time
        alive = clock()
        await asyncio.to_thread(valkey.kill)
        for client in watching:
            await client.hears(DEGRADED)
        measured("from the death of Redis to the word of it", clock() - alive)
        assert clock() - alive >= NOTIFY_AFTER

        late, silent = await clients.watching("late"), await clients.others("late")
        for client in late:
            await client.hears(DEGRADED)
        await asyncio.to_thread(valkey.start)
        for client in watching:
            await client.hears(RESTORED)
        for client in late:
            await client.hears(registered("late"), RESTORED)
        for client in silent:
            await client.hears(registered("late"))
        async with Backend.on(valkey.url) as backend:
            for name in ("early", "late"):
                assert await backend.client.publish(f"websocket:{name}", "CONFIRMED") == 1
        for client in (*watching, *others, *late, *silent):  # and nothing before it
            await client.hears(result(client.name, "CONFIRMED"))


async def test_a_restart_of_redis_is_told_to_nobody() -> None:
    """The control: it is the time that Redis is gone for that counts, not the loss."""
    async with scene() as (valkey, clients):
        watching = await clients.watching("a")
        for client in watching:
            await client.hears(registered("a"))
        await asyncio.to_thread(valkey.kill)
        await asyncio.to_thread(valkey.start)
        async with Backend.on(valkey.url) as backend, asyncio.timeout(SECONDS):
            while await backend.client.publish("websocket:a", "CONFIRMED") == 0:
                pass  # the node is not back yet
        for client in watching:
            await client.hears(result("a", "CONFIRMED"))


async def test_what_was_retained_meanwhile_comes_before_the_end_of_it() -> None:
    """Whoever stops to ask the server because of it knows what the server would have said."""
    async with scene() as (valkey, clients):
        watching = await clients.watching("a")
        for client in watching:
            await client.hears(registered("a"))
        async with redis.asyncio.Redis(port=valkey.port, single_connection_client=True) as backend:
            # Redis lets nobody in but the backend: the node is cut off, and the result is kept.
            ask: Callable[..., Awaitable[object]] = backend.execute_command
            await ask("ACL", "SETUSER", "backend", "on", "nopass", "~*", "&*", "+@all")
            await ask("AUTH", "backend", "")
            await ask("ACL", "SETUSER", "default", "off")
            await ask("CLIENT", "KILL", "USER", "default")
            for client in watching:
                await client.hears(DEGRADED)
            await publishing.publish(backend, "a", "CONFIRMED", message_id="m-1")
            await ask("ACL", "SETUSER", "default", "on")
        for client in watching:
            await client.hears(result("a", "CONFIRMED", messageId="m-1"), RESTORED)


async def test_of_a_cluster_those_are_told_whose_part_is_gone() -> None:
    with await asyncio.to_thread(
        ValkeyCluster, "--cluster-require-full-coverage", "no", replicas=0
    ) as cluster:
        victim = cluster.masters[0]
        there, elsewhere = (
            next(f"a{i}" for i in range(1_000) if (cluster.owner(slot_of(f"a{i}")) is victim) is wanted)
            for wanted in (True, False)
        )
        with nodes_on(cluster.url, 1) as (node,):
            async with Clients.at(node.port) as clients:
                told, untold = await clients.watching(there), await clients.watching(elsewhere)
                for client in (*told, *untold):
                    await client.hears(registered(client.name))
                await asyncio.to_thread(victim.kill)
                for client in told:
                    await client.hears(DEGRADED)
                late = await clients.json(there, status=True)
                await late.hears(DEGRADED)
                untold.append(await clients.json(elsewhere, status=True))
                await untold[-1].hears(registered(elsewhere))
                await asyncio.to_thread(victim.start)
                for client in told:
                    await client.hears(RESTORED)
                await late.hears(registered(there), RESTORED)
                for name in (there, elsewhere):
                    owner = cluster.owner(slot_of(name))
                    assert (
                        await asyncio.to_thread(owner.ask, "SPUBLISH", f"websocket:{name}", "CONFIRMED") == 1
                    )
                for client in (*told, late, *untold):
                    await client.hears(result(client.name, "CONFIRMED"))


@pytest.mark.parametrize("kind", ["redis", "redis+cluster"])
async def test_a_redis_that_never_was_there_is_missed_as_well(kind: str) -> None:
    async with (
        unconnected_node(f"{kind}://127.0.0.1:{free_port()}") as gateway,
        Clients.at(port_of(gateway)) as clients,
    ):
        for client in await clients.watching("a"):
            await client.hears(DEGRADED)


# Who comes back


@pytest.mark.parametrize("kind", ["json", "stomp", "events"])
async def test_who_says_what_it_has_had_last_is_not_sent_it_again(
    kind: str, place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    first, second = (
        result(name, "CONTINUE", messageId="m-1"),
        result(name, "DONE", messageId="m-2"),
    )

    async def connect(clients: Clients, last: str | None) -> Client:
        said: dict[str, Any] = {} if last is None else {"lastMessageId": last}
        if kind == "events":
            client = await clients.events(name, "" if last is None else f"&lastEventId={last}")
        else:
            client = await (clients.json if kind == "json" else clients.stomp)(name, **said)
        await client.hears(registered(name))
        return client

    async with Clients.at(place.port) as clients:
        await publishing.publish(backend, name, "CONTINUE", message_id="m-1")
        before = await connect(clients, None)
        await before.hears(first)
        back = await connect(clients, "m-1")
        wrong = "m%201" if kind == "events" else "m 1"
        controls = [await connect(clients, last) for last in (None, "m-0", wrong)]
        for client in controls:
            await client.hears(first)
        await publishing.publish(backend, name, "DONE", message_id="m-2")
        for client in (before, back, *controls):
            await client.hears(second)


async def test_without_a_message_id_nobody_can_tell(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    await backend.set(f"websocket:{name}", "CONTINUE", ex=60)
    async with Clients.at(place.port) as clients:
        client = await clients.json(name, lastMessageId="CONTINUE")
        await client.hears(registered(name), result(name, "CONTINUE"))
