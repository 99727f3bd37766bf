"""Server-sent events at /events, byte by byte and as an EventSource would read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import redis.asyncio

from gateway.drill.fleet import ValkeyProcess
from gateway.publishing import api as publishing
from gateway.wire.sse import REJECTED_EVENT_ID

from .conftest import Place
from .in_process import node_in_process, port_of, unconnected_node
from .load import SECONDS, until
from .raw import Raw

NewId = Callable[[], str]
Http = aiohttp.ClientSession

ORIGIN = "http://page.example"


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(SECONDS)) as session:
        yield session


class Source:
    """Reads a stream as the standard's chapter "Interpreting an event stream" has it."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def block(self) -> dict[str, str]:
        """The next block's fields; "" is the name of a comment. Empty when the stream has ended."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(SECONDS):
            while (line := (await self.answer.content.readline()).decode()) not in ("\n", ""):
                name, _, value = line.removesuffix("\n").partition(":")
                fields[name] = value.removeprefix(" ")
        return fields

    async def event(self) -> tuple[str, object]:
        fields = await self.block()
        return fields["event"], json.loads(fields["data"])

    async def close(self) -> None:
        self.answer.close()


def registered(name: str) -> tuple[str, dict[str, object]]:
    return "registration", {"webSocketId": name, "registrationSucceeded": True}


def authorized(name: str, auth_result: str, **members: object) -> tuple[str, dict[str, object]]:
    return "authorization", {"webSocketId": name, "authResult": auth_result, **members}


async def listen(http: Http, port: int, name: str, query: str = "", **headers: str) -> Source:
    where = f"http://127.0.0.1:{port}/events?webSocketId={name}{query}"
    answer = await http.get(where, headers={key.replace("_", "-"): value for key, value in headers.items()})
    assert answer.status == 200, await answer.text()
    source = Source(answer)
    assert await source.block() == {"retry": "1000"}
    return source


async def test_registers_and_gets_its_results(
    place: Place, http: Http, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    source = await listen(http, place.port, name)
    assert await source.event() == registered(name)
    assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 1
    assert await source.event() == authorized(name, "CONFIRMED")
    data = {"text": "ä\n%\r 1"}
    await publishing.publish(backend, name, "DONE", message_id="m-1", data=data)
    fields = await source.block()
    assert (fields["event"], fields["id"]) == ("authorization", "m-1")
    assert json.loads(fields["data"]) == authorized(name, "DONE", messageId="m-1", data=data)[1]
    await source.close()
    async with asyncio.timeout(SECONDS):
        while await backend.publish(f"websocket:{name}", "CONFIRMED"):
            pass


async def test_the_head_of_the_response(place: Place, http: Http, new_id: NewId) -> None:
    source = await listen(http, place.port, new_id())
    headers = source.answer.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert "no-store" in headers["Cache-Control"]
    assert "no-transform" in headers["Cache-Control"]
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["Connection"] == "close"
    assert {"Date", "Vary"} <= headers.keys()
    assert not {"Server", "Content-Length", "Access-Control-Allow-Origin"} & headers.keys()
    await source.close()


async def test_a_browser_that_comes_back(
    place: Place, http: Http, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    await publishing.publish(backend, name, "CONTINUE", message_id="m-1")
    first = await listen(http, place.port, name)
    assert [await first.event() for _ in range(2)] == [
        registered(name),
        authorized(name, "CONTINUE", messageId="m-1"),
    ]
    await first.close()
    for query, headers in (
        ("", {"Last_Event_ID": "m-1"}),
        ("&lastEventId=m-1", {}),
        ("&lastEventId=m-1", {"Last_Event_ID": "m-0"}),
    ):
        again = await listen(http, place.port, name, query, **headers)
        assert await again.event() == registered(name)
        await backend.publish(f"websocket:{name}", "LIVE")
        assert await again.event() == authorized(name, "LIVE"), "it has had the retained result"
        await again.close()
    other = await listen(http, place.port, name, "&lastEventId=a%20b", Last_Event_ID="m-0")
    assert await other.event() == registered(name)
    assert await other.event() == authorized(name, "CONTINUE", messageId="m-1")
    await other.close()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "missing_id"),
        ("?", "missing_id"),
        ("?websocketid=a", "missing_id"),
        ("?webSocketId=", "invalid_id"),
        ("?webSocketId=a%20b", "invalid_id"),
        ("?webSocketId=a+b", "invalid_id"),
        ("?webSocketId=%00", "invalid_id"),
        ("?webSocketId=" + "x" * 201, "invalid_id"),
    ],
)
async def test_a_bad_id_is_a_bad_request(place: Place, http: Http, query: str, code: str) -> None:
    """No stream, so that an EventSource does not try for ever."""
    async with http.get(f"http://127.0.0.1:{place.port}/events{query}") as answer:
        assert answer.status == 400
        assert answer.content_type == "application/json"
        error = (await answer.json())["error"]
    assert error["code"] == code
    assert error["message"]


async def test_who_has_been_refused_need_not_come_again(
    valkey: ValkeyProcess, http: Http, new_id: NewId
) -> None:
    """204 ends an EventSource for good; tests/browser/test_client_libraries.py has a real one."""
    async with node_in_process(valkey.url, allowed_origins=ORIGIN) as gateway:
        where = f"http://127.0.0.1:{port_of(gateway)}/events?webSocketId={new_id()}"
        for query, headers in (
            ("", {"Last-Event-ID": REJECTED_EVENT_ID}),
            (f"&lastEventId={quote(REJECTED_EVENT_ID)}", {}),
        ):
            async with http.get(where + query, headers={"Origin": ORIGIN, **headers}) as answer:
                assert (answer.status, await answer.read()) == (204, b"")
                assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert gateway.sessions == 0


async def test_a_preflight_request_and_the_stream_on_one_connection(place: Place, http: Http) -> None:
    origin = {"Origin": f"http://127.0.0.1:{place.port}"}
    asked = {**origin, "Access-Control-Request-Headers": "last-event-id"}
    url = f"http://127.0.0.1:{place.port}/events?webSocketId=a"
    async with http.options(url, headers=asked) as answer:
        assert (answer.status, answer.headers["Access-Control-Allow-Headers"]) == (204, "last-event-id")
    source = await listen(http, place.port, "a", Last_Event_ID="m-1", **origin)
    await source.close()


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE"])
async def test_other_methods(place: Place, http: Http, method: str) -> None:
    async with http.request(method, f"http://127.0.0.1:{place.port}/events?webSocketId=a") as answer:
        assert (answer.status, answer.headers["Allow"], await answer.read()) == (405, "OPTIONS, GET", b"")


async def test_origins(valkey: ValkeyProcess, http: Http, new_id: NewId) -> None:
    async with node_in_process(valkey.url, allowed_origins=ORIGIN) as gateway:
        where = f"http://127.0.0.1:{port_of(gateway)}/events?webSocketId="
        async with http.get(where + new_id(), headers={"Origin": "http://evil.example"}) as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
        for name, status in ((new_id(), 200), ("a b", 400)):
            async with http.get(where + name, headers={"Origin": ORIGIN}) as answer:
                assert answer.status == status
                assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
                assert answer.headers["Access-Control-Allow-Credentials"] == "true"
                assert answer.headers["Vary"] == "Origin"


async def test_limits(valkey: ValkeyProcess, http: Http, new_id: NewId) -> None:
    for setting, status in (("max_sessions", 503), ("max_sessions_per_ip", 429)):
        settings: dict[str, Any] = {setting: 1}
        async with node_in_process(valkey.url, **settings) as gateway:
            source = await listen(http, port_of(gateway), new_id())
            async with http.get(f"http://127.0.0.1:{port_of(gateway)}/events?webSocketId=a") as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (status, "5")
            await source.close()
            await until(lambda gateway=gateway: not gateway.sessions, "there is room again")  # type: ignore[misc]
            await (await listen(http, port_of(gateway), new_id())).close()


async def test_comments_keep_the_stream_alive(valkey: ValkeyProcess, http: Http, new_id: NewId) -> None:
    async with node_in_process(valkey.url, heartbeat=0.2) as gateway:
        name = new_id()
        source = await listen(http, port_of(gateway), name)
        assert await source.event() == registered(name)
        assert [await source.block() for _ in range(2)] == [{"": ""}] * 2
        await source.close()


async def test_a_node_that_stops_ends_the_stream(valkey: ValkeyProcess, http: Http, new_id: NewId) -> None:
    async with node_in_process(valkey.url) as gateway:
        name = new_id()
        source = await listen(http, port_of(gateway), name)
        assert await source.event() == registered(name)
        await gateway.drain(0, 0)
        assert await source.block() == {"": "1012 service restart"}
        assert await source.block() == {}
        assert source.answer.content.at_eof()


async def test_redis_out_of_reach_ends_the_stream_and_refuses_nothing(http: Http, new_id: NewId) -> None:
    async with unconnected_node("redis://127.0.0.1:1/0", registration_timeout=0.3) as gateway:
        source = await listen(http, port_of(gateway), new_id())
        assert await source.block() == {"": "1013 registration not confirmed in time"}
        assert await source.block() == {}


async def test_a_client_that_does_not_read(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    async with node_in_process(valkey.url, close_timeout=0.2) as gateway:
        name = new_id()
        async with Raw.connected(port_of(gateway), receive_buffer=4096) as client:
            client.send(f"GET /events?webSocketId={name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await client.until(b"registrationSucceeded")
            result = json.dumps({"authResult": "CONTINUE", "data": "x" * 60_000})
            while await backend.publish(f"websocket:{name}", result):
                pass
            await until(lambda: not gateway.sessions, "it is dropped")
            assert gateway._context.ended == {(1008, "slow consumer"): 1}


async def test_http_1_0(place: Place, backend: redis.asyncio.Redis, new_id: NewId) -> None:
    name = new_id()
    async with Raw.connected(place.port) as client:
        client.send(f"GET /events?webSocketId={name} HTTP/1.0\r\n\r\n".encode())
        assert b"Transfer-Encoding" not in await client.head()
        assert (await client.until(b"}\n\n")).startswith(b"retry: 1000\n\nevent: registration\ndata: {")
        client.send(b"GET / HTTP/1.0\r\n\r\n")  # which nobody answers
        await backend.publish(f"websocket:{name}", "CONFIRMED")
        said = b'event: authorization\ndata: {"webSocketId":"%b","authResult":"CONFIRMED"}\n\n'
        assert await client.until(b"\n\n") == said % name.encode()


async def test_a_client_that_half_closes_has_left(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    async with Raw.connected(place.port) as client:
        client.send(f"GET /events?webSocketId={new_id()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await client.until(b"registrationSucceeded")
        client.end()
        await client.rest()
