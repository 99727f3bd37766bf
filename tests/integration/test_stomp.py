"""STOMP over WebSocket: Web Flow's conversation on a raw connection, and what keeps it alive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from gateway.drill.fleet import ValkeyProcess
from gateway.publishing import api as publishing

from . import stomp
from .conftest import Place
from .in_process import node_in_process, port_of
from .load import SECONDS, until

NewId = Callable[[], str]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Page:
    """A page that speaks STOMP on a WebSocket."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket

    async def say(self, *texts: str) -> None:
        for text in texts:
            await self.websocket.send_str(text)

    async def hear(self) -> str:
        return await self.websocket.receive_str(timeout=SECONDS)

    async def message(self) -> tuple[str, dict[str, object]]:
        return stomp.message(await self.hear())

    async def registered(self, name: str) -> None:
        await self.say(*stomp.conversation(name))
        assert stomp.parse(await self.hear()).command == "CONNECTED"
        assert await self.message() == stomp.registered(name)

    async def closed(self) -> tuple[int | None, str]:
        """Code and reason of the CLOSE that must come next."""
        end = await self.websocket.receive(timeout=SECONDS)
        assert end.type is aiohttp.WSMsgType.CLOSE, end
        return end.data, end.extra or ""


async def connect(
    http: aiohttp.ClientSession, port: int, path: str = "/ws", *protocols: str, autoping: bool = True
) -> Page:
    url = f"http://127.0.0.1:{port}{path}"
    return Page(await http.ws_connect(url, protocols=protocols, autoclose=False, autoping=autoping))


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        (["v10.stomp"], "v10.stomp"),
        (["v11.stomp", "v10.stomp"], "v11.stomp"),
        (["v10.stomp", "v11.stomp", "v12.stomp"], "v12.stomp"),
        (["mqtt", "v12.stomp"], "v12.stomp"),
    ],
)
async def test_the_highest_version_in_common_is_chosen(
    place: Place,
    http: aiohttp.ClientSession,
    backend: redis.asyncio.Redis,
    new_id: NewId,
    offers: list[str],
    chosen: str,
) -> None:
    name = new_id()
    page = await connect(http, place.port, "/ws", *offers)
    assert page.websocket.protocol == chosen
    await page.registered(name)
    assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 1
    assert await page.message() == stomp.authorized(name, "CONFIRMED")


async def test_other_subprotocols_are_none_of_ours(
    place: Place, http: aiohttp.ClientSession, new_id: NewId
) -> None:
    page = await connect(http, place.port, "/ws", "mqtt")
    assert page.websocket.protocol is None
    await page.say(json.dumps({"webSocketId": new_id()}))
    assert '"registrationSucceeded":true' in await page.hear()


@pytest.mark.parametrize("protocols", [(), ("v12.stomp", "v11.stomp")])
async def test_the_raw_websocket_below_sockjs_always_speaks_stomp(
    place: Place, http: aiohttp.ClientSession, new_id: NewId, protocols: tuple[str, ...]
) -> None:
    page = await connect(http, place.port, "/websocket/websocket", *protocols)
    assert page.websocket.protocol == (protocols[0] if protocols else None)
    await page.registered(new_id())


async def test_a_result_waits_for_its_subscription(
    place: Place, http: aiohttp.ClientSession, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    page = await connect(http, place.port, "/websocket/websocket")
    await page.say(stomp.CONNECT, stomp.TO_REGISTRATION, stomp.send(name))
    await page.hear()
    assert await page.message() == stomp.registered(name)
    await publishing.publish(backend, name, "CONTINUE", message_id="m-1", data={"step": 1})
    await publishing.publish(backend, name, "CONTINUE", message_id="m-1", data={"step": 1})
    await backend.publish(f"websocket:{name}", "CONFIRMED")
    await page.say(stomp.TO_AUTHORIZATION)
    first = stomp.authorized(name, "CONTINUE", messageId="m-1", data={"step": 1})
    assert [await page.message() for _ in range(2)] == [first, stomp.authorized(name, "CONFIRMED")]


async def test_a_frame_in_several_messages(place: Place, http: aiohttp.ClientSession, new_id: NewId) -> None:
    name = new_id()
    page = await connect(http, place.port, "/ws", "v12.stomp")
    whole = "".join(stomp.conversation(name))
    await page.say(*(whole[at : at + 50] for at in range(0, len(whole), 50)))
    assert stomp.parse(await page.hear()).command == "CONNECTED"
    assert await page.message() == stomp.registered(name)


async def test_a_bad_id_is_told_and_the_connection_stays(
    place: Place, http: aiohttp.ClientSession, new_id: NewId
) -> None:
    page = await connect(http, place.port, "/ws", "v12.stomp")
    await page.say(stomp.CONNECT, stomp.TO_REGISTRATION, stomp.send("a b"))
    await page.hear()
    _, said = await page.message()
    assert said["registrationSucceeded"] is False
    name = new_id()
    await page.say(stomp.send(name))
    assert await page.message() == stomp.registered(name)


async def test_disconnect_is_receipted_and_closed(
    place: Place, http: aiohttp.ClientSession, new_id: NewId
) -> None:
    page = await connect(http, place.port, "/ws", "v12.stomp")
    await page.registered(new_id())
    await page.say(stomp.DISCONNECT + stomp.send("nobody-hears-that"))
    receipt = stomp.parse(await page.hear())
    assert (receipt.command, receipt.headers["receipt-id"]) == ("RECEIPT", "bye")
    assert await page.closed() == (1000, "disconnected")


async def test_what_is_no_stomp_has_an_error_and_a_close(place: Place, http: aiohttp.ClientSession) -> None:
    page = await connect(http, place.port, "/ws", "v12.stomp")
    await page.say("HELLO\n\n\0")
    assert stomp.parse(await page.hear()).command == "ERROR"
    code, reason = await page.closed()
    assert code == 1002
    assert reason


@pytest.mark.parametrize("path", ["/ws", "/websocket/websocket"])
async def test_a_client_that_sends_binary_messages(
    place: Place, http: aiohttp.ClientSession, backend: redis.asyncio.Redis, new_id: NewId, path: str
) -> None:
    name = new_id()
    page = await connect(http, place.port, path, "v11.stomp")
    for text in stomp.conversation(name):
        await page.websocket.send_bytes(text.encode())
    assert stomp.parse(await page.hear()).command == "CONNECTED"
    assert await page.message() == stomp.registered(name)
    await backend.publish(f"websocket:{name}", "\n" + json.dumps({"authResult": "DONE"}, indent=2) + "\n")
    assert await page.message() == stomp.authorized(name, "DONE")


async def test_limits_and_deadlines_are_those_of_json(
    valkey: ValkeyProcess, http: aiohttp.ClientSession, new_id: NewId
) -> None:
    settings: dict[str, Any] = {"registration_timeout": 0.3, "messages_per_second": 5}
    async with node_in_process(valkey.url, **settings) as gateway:
        page = await connect(http, port_of(gateway), "/websocket/websocket")
        await page.say(stomp.CONNECT)
        await page.hear()
        assert await page.closed() == (1008, "registration timeout")
        page = await connect(http, port_of(gateway), "/websocket/websocket")
        await page.registered(new_id())
        await page.say(*["\n"] * 5)
        assert await page.closed() == (1008, "too many messages")
        page = await connect(http, port_of(gateway), "/websocket/websocket")
        await page.say("SEND\ncontent-length:99999\n\n")
        assert stomp.parse(await page.hear()).command == "ERROR"
        assert (await page.closed())[0] == 1009
        await until(lambda: not gateway.sessions, "all of them have ended")


async def test_heart_beats_both_ways(
    valkey: ValkeyProcess, http: aiohttp.ClientSession, new_id: NewId
) -> None:
    async with node_in_process(valkey.url, heartbeat=1.0) as gateway:
        page = await connect(http, port_of(gateway), "/ws", "v12.stomp")
        connect_with = stomp.CONNECT.replace("10000,10000", "0,100")
        await page.say(connect_with, stomp.TO_REGISTRATION)
        assert stomp.parse(await page.hear()).headers["heart-beat"] == "1000,1000"
        assert await page.hear() == "\n", "also before it has registered"
        name = new_id()
        await page.say(stomp.send(name))
        assert await page.message() == stomp.registered(name)
        began = asyncio.get_running_loop().time()
        assert [await page.hear() for _ in range(2)] == ["\n", "\n"]
        assert 0.5 < asyncio.get_running_loop().time() - began <= 2.1


async def test_a_client_that_answers_pings_may_break_its_promise(
    valkey: ValkeyProcess, http: aiohttp.ClientSession, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    """As a browser does whose page is frozen; another client, which answers nothing at all, is dropped."""
    async with node_in_process(valkey.url, heartbeat=0.2) as gateway:
        mute = await connect(http, port_of(gateway), "/ws", "v12.stomp", autoping=False)
        page = await connect(http, port_of(gateway), "/ws", "v12.stomp")
        for each in (mute, page):
            name = new_id()
            await each.say(stomp.CONNECT.replace("10000,10000", "200,0"), *stomp.conversation(name)[1:])
            await each.hear()
            assert await each.message() == stomp.registered(name)
        result = asyncio.create_task(page.message())  # it answers pings only while it reads
        await until(lambda: gateway.sessions == 1, "the mute one is gone")
        assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 1
        assert await result == stomp.authorized(name, "CONFIRMED")
