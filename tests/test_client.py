"""The watching client against a server of the test's own, which says what it likes."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import WSCloseCode, web
from aiohttp.test_utils import TestServer

from gateway.backoff import Backoff
from gateway.client import ClientRejected, origin_of, watch
from gateway.drill.fleet import free_port

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
AiohttpServer = Callable[[web.Application], Awaitable[TestServer]]

REGISTRATION = {"topic": "/user/topic/registration", "webSocketId": "a", "status": True}
ACCEPTED = '{"topic":"/user/topic/registration","webSocketId":"a","registrationSucceeded":true}'
RESULT = '{"topic":"/user/topic/authorization","webSocketId":"a","authResult":"DONE","data":1}'
REFUSED = (
    '{"topic":"/user/topic/registration","webSocketId":"a","registrationSucceeded":false,'
    '"error":{"code":"invalid_id","message":"no such id"}}'
)


class Over(Exception):
    """The test has seen enough."""


class Waits:
    """A `sleep` that notes the delays and ends the client after the last."""

    def __init__(self, last: int = 1) -> None:
        self.seconds: list[float] = []
        self._last = last

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) == self._last:
            raise Over


def longest(low: float, high: float) -> float:
    return high


async def said(url: str, waits: Waits, **options: Any) -> list[dict[str, Any]]:
    """What the client tells until it is refused or has waited for the last time."""
    events: list[dict[str, Any]] = []
    with pytest.raises(Over):
        await watch(url, "a", events.append, sleep=waits, backoff=Backoff(0.5, 30.0, draw=longest), **options)
    return events


async def serving(aiohttp_server: AiohttpServer, handler: Handler) -> str:
    app = web.Application()
    app.add_routes([web.get("/ws", handler)])
    server = await aiohttp_server(app)
    return str(server.make_url("/ws").with_scheme("ws"))


def saying(*texts: str, code: int = 1012, reason: bytes = b"service restart") -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        assert await websocket.receive_json() == REGISTRATION
        for text in texts:
            await websocket.send_str(text)
        await websocket.close(code=code, message=reason)
        return websocket

    return handler


async def test_it_registers_tells_of_results_and_of_the_close(aiohttp_server: AiohttpServer) -> None:
    url = await serving(aiohttp_server, saying(ACCEPTED, RESULT))
    assert await said(url, Waits()) == [
        {"event": "connected", "url": url},
        {"event": "registered", "webSocketId": "a"},
        {"event": "result", "webSocketId": "a", "authResult": "DONE", "data": 1},
        {"event": "closed", "code": 1012, "reason": "service restart"},
        {"event": "retrying", "seconds": 0.5},
    ]


async def test_it_shows_its_token_to_the_gateway_and_to_nobody_else(aiohttp_server: AiohttpServer) -> None:
    registrations: list[object] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        registrations.append(await websocket.receive_json())
        await websocket.send_str(ACCEPTED)
        await websocket.close(code=1012)
        return websocket

    events = await said(await serving(aiohttp_server, handler), Waits(2), token="a.b.c")
    assert registrations == [{**REGISTRATION, "token": "a.b.c"}] * 2
    assert "a.b.c" not in str(events)


async def test_it_says_what_it_has_had_last_when_it_comes_back(aiohttp_server: AiohttpServer) -> None:
    registrations: list[object] = []
    answers = iter(["m-1", "m-2", None, "m-3"])

    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        registrations.append(await websocket.receive_json())
        message_id = next(answers)
        named = {} if message_id is None else {"messageId": message_id}
        result = {"topic": "/user/topic/authorization", "webSocketId": "a", "authResult": "DONE", **named}
        await websocket.send_str(ACCEPTED)
        await websocket.send_json(result)
        await websocket.close()
        return websocket

    await said(await serving(aiohttp_server, handler), Waits(last=4))
    last = [None, "m-1", "m-2", "m-2"]
    assert registrations == [
        REGISTRATION if message_id is None else {**REGISTRATION, "lastMessageId": message_id}
        for message_id in last
    ]


async def test_it_asks_for_the_status_and_tells_of_it(aiohttp_server: AiohttpServer) -> None:
    status = '{"topic":"/user/topic/status","push":"%s"}'
    pushes = ("degraded", "restored")
    url = await serving(aiohttp_server, saying(ACCEPTED, *(status % push for push in pushes)))
    assert (await said(url, Waits()))[2:4] == [{"event": "status", "push": push} for push in pushes]


async def test_a_registration_that_succeeds_resets_the_delay(aiohttp_server: AiohttpServer) -> None:
    waits = Waits(last=3)
    await said(await serving(aiohttp_server, saying(ACCEPTED)), waits)
    assert waits.seconds == [0.5, 0.5, 0.5]


async def test_connections_that_never_register_wait_longer_each_time(aiohttp_server: AiohttpServer) -> None:
    waits = Waits(last=4)
    events = await said(await serving(aiohttp_server, saying(code=WSCloseCode.TRY_AGAIN_LATER)), waits)
    assert waits.seconds == [0.5, 1, 2, 4]
    assert {"event": "closed", "code": 1013, "reason": "service restart"} in events


async def test_a_refused_registration_ends_it(aiohttp_server: AiohttpServer) -> None:
    url = await serving(aiohttp_server, saying(REFUSED))
    with pytest.raises(ClientRejected, match=r"no such id \(invalid_id\)"):
        await watch(url, "a", lambda event: None)


async def test_unknown_id_ends_it_only_before_it_was_registered(aiohttp_server: AiohttpServer) -> None:
    denied = REFUSED.replace("invalid_id", "unknown_id")
    url = await serving(aiohttp_server, saying(denied))
    with pytest.raises(ClientRejected, match="unknown_id"):
        await watch(url, "a", lambda event: None)
    events = await said(await serving(aiohttp_server, saying(ACCEPTED, denied)), Waits())
    assert [event["event"] for event in events] == [
        "connected",
        "registered",
        "problem",
        "closed",
        "retrying",
    ]
    assert events[2]["code"] == "unknown_id"


async def test_http_403_ends_it_and_names_the_origin(aiohttp_server: AiohttpServer) -> None:
    origins = []

    async def handler(request: web.Request) -> web.StreamResponse:
        origins.append(request.headers["Origin"])
        raise web.HTTPForbidden

    url = await serving(aiohttp_server, handler)
    with pytest.raises(ClientRejected, match=r"HTTP 403 .*https://bank\.example"):
        await watch(url, "a", lambda event: None, origin="https://bank.example")
    with pytest.raises(ClientRejected, match="HTTP 403"):
        await watch(url, "a", lambda event: None)
    assert origins == ["https://bank.example", url.replace("ws:", "http:").removesuffix("/ws")]


@pytest.mark.parametrize(("after", "seconds"), [("7", 7), ("3600", 30), ("soon", 0.5)])
async def test_a_full_node_is_asked_again_when_it_says(
    aiohttp_server: AiohttpServer, after: str, seconds: float
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPServiceUnavailable(headers={"Retry-After": after})

    waits = Waits()
    events = await said(await serving(aiohttp_server, handler), waits)
    assert events[0] == {"event": "unreachable", "reason": "HTTP 503"}
    assert waits.seconds == [seconds]


async def test_nobody_there() -> None:
    port = free_port()
    events = await said(f"ws://127.0.0.1:{port}/ws", Waits())
    assert [event["event"] for event in events] == ["unreachable", "retrying"]
    assert events[0]["reason"] == f"connection refused at 127.0.0.1:{port}"


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "127.0.0.1:port"])
async def test_secrets_in_the_url_are_not_told(aiohttp_server: AiohttpServer, host: str) -> None:
    """The one that cannot be reached, the one that is no URL, the one that rejects, the one that answers."""
    secret = f"ws://user:secret@{host.format(free_port())}/ws?token=secret"
    assert "secret" not in str(await said(secret, Waits()))

    async def handler(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPForbidden

    def spiced(url: str) -> str:
        return url.replace("://", "://user:secret@") + "?token=secret"

    with pytest.raises(ClientRejected) as caught:
        await watch(spiced(await serving(aiohttp_server, handler)), "a", lambda event: None)
    assert "secret" not in str(caught.value)
    url = await serving(aiohttp_server, saying(ACCEPTED))
    assert (await said(spiced(url), Waits()))[0] == {"event": "connected", "url": url}


async def test_a_name_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # a real look-up may take longer than the test
    events = await said("ws://nobody.invalid/ws", Waits())
    assert events[0]["reason"] == "name or service not known at nobody.invalid"


async def test_a_server_that_speaks_no_tls(aiohttp_server: AiohttpServer) -> None:
    url = await serving(aiohttp_server, saying())
    events = await said(url.replace("ws:", "wss:"), Waits())
    assert events[0]["event"] == "unreachable"
    assert "SSL" in events[0]["reason"]


async def test_a_connection_that_breaks_is_closed_with_1006(aiohttp_server: AiohttpServer) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        return websocket

    events = await said(await serving(aiohttp_server, handler), Waits())
    assert {"event": "closed", "code": 1006, "reason": ""} in events


async def test_what_it_does_not_know_is_told_as_it_came(aiohttp_server: AiohttpServer) -> None:
    problem = '{"topic":"/user/topic/error","error":{"code":"unknown_topic","message":"what?"}}'
    events = await said(await serving(aiohttp_server, saying("hello", "[1]", '{"a":1}', problem)), Waits())
    assert events[1:5] == [
        {"event": "message", "text": "hello"},
        {"event": "message", "text": "[1]"},
        {"event": "message", "text": '{"a":1}'},
        {"event": "problem", "code": "unknown_topic", "message": "what?"},
    ]


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("ws://localhost:8080/ws", "http://localhost:8080"),
        ("wss://gateway.example/ws", "https://gateway.example"),
        ("ws://user@[::1]:80/ws", "http://[::1]:80"),
    ],
)
def test_the_origin_is_the_urls_own(url: str, origin: str) -> None:
    assert origin_of(url) == origin
