"""SockJS at /websocket, by requests as sockjs-client sends them; the protocol's rules, row by row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from yarl import URL

from gateway.drill.fleet import ValkeyProcess
from gateway.publishing import api as publishing
from gateway.transports import sockjs

from . import stomp
from .conftest import Line, Place
from .in_process import node_in_process, port_of
from .load import SECONDS, until
from .raw import Raw

NewId = Callable[[], str]
Http = aiohttp.ClientSession

NO_STORE = "no-store, no-cache, no-transform, must-revalidate, max-age=0"
ORIGIN = "http://page.example"
GO_AWAY = 'c[3000,"Go away!"]'


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(SECONDS)) as session:
        yield session


def url(port: int, path: str = "") -> URL:
    """An address below the prefix, with the path exactly as given."""
    return URL(f"http://127.0.0.1:{port}/websocket{path}", encoded=True)


class Page:
    """A page that has a session by one of the HTTP transports."""

    def __init__(self, http: Http, port: int, session: str, server: str = "000") -> None:
        self.http = http
        self.at = url(port, f"/{server}/{session}")

    async def poll(self) -> str:
        async with self.http.post(self.at / "xhr") as answer:
            assert answer.status == 200
            text = await answer.text()
            assert text.endswith("\n")
            return text[:-1]

    async def polled(self, name: str) -> None:
        """Open the session and register `name`, by polls."""
        assert await self.poll() == "o"
        await self.say(*stomp.conversation(name))
        heard: list[str] = []
        while len(heard) < 2:
            heard += messages(await self.poll())
        assert stomp.message(heard[1]) == stomp.registered(name)

    async def send(self, *messages: str) -> int:
        async with self.http.post(self.at / "xhr_send", data=json.dumps(messages)) as answer:
            return answer.status

    async def say(self, *messages: str) -> None:
        assert await self.send(*messages) == 204


def messages(frame: str) -> list[str]:
    """What an `a` frame carries."""
    assert frame[0] == "a", frame
    found: list[str] = json.loads(frame[1:])
    return found


class Listener:
    """Reads a stream frame by frame."""

    def __init__(self, answer: aiohttp.ClientResponse, kind: str) -> None:
        self.answer = answer
        self._events = kind == "eventsource"

    async def line(self) -> str:
        async with asyncio.timeout(SECONDS):
            return (await self.answer.content.readline()).decode()

    async def frame(self) -> str:
        line = await self.line()
        if not self._events:
            return line.removesuffix("\n")
        assert line.startswith("data: "), line
        assert line.endswith("\r\n")
        assert await self.line() == "\r\n"
        return line[6:-2]

    async def prelude(self) -> None:
        assert await self.line() == ("\r\n" if self._events else "h" * 2048 + "\n")

    async def ended(self) -> None:
        assert await self.line() == ""


STREAMS = ["xhr_streaming", "eventsource"]


async def stream(page: Page, kind: str, **headers: str) -> Listener:
    method = "GET" if kind == "eventsource" else "POST"
    answer = await page.http.request(method, page.at / kind, headers=headers)
    assert answer.status == 200
    listener = Listener(answer, kind)
    await listener.prelude()
    return listener


# Web Flow's conversation, by every transport


async def converse(
    page: Page, hear: Callable[[], Awaitable[list[str]]], backend: redis.asyncio.Redis, name: str
) -> None:
    await page.say(*stomp.conversation(name)[:3])
    heard = await hear()
    while len(heard) < 2:
        heard += await hear()
    assert stomp.parse(heard[0]).command == "CONNECTED"
    assert stomp.message(heard[1]) == stomp.registered(name)
    await publishing.publish(backend, name, "CONTINUE", message_id="m-1")
    await page.say(stomp.TO_AUTHORIZATION)
    assert [stomp.message(text) for text in await hear()] == [
        stomp.authorized(name, "CONTINUE", messageId="m-1")
    ]
    await backend.publish(f"websocket:{name}", "CONFIRMED")
    assert [stomp.message(text) for text in await hear()] == [stomp.authorized(name, "CONFIRMED")]
    await page.say(stomp.DISCONNECT)
    assert [stomp.parse(text).command for text in await hear()] == ["RECEIPT"]


async def test_a_page_that_polls(
    place: Place, http: Http, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    page = Page(http, place.port, name)
    assert await page.poll() == "o"

    async def hear() -> list[str]:
        return messages(await page.poll())

    await converse(page, hear, backend, name)
    assert [await page.poll() for _ in range(3)] == [GO_AWAY] * 3, "whoever asks again hears it again"
    assert await page.send("x") == 204, "and what it says is heard by nobody"


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_page_that_streams(
    place: Place, http: Http, backend: redis.asyncio.Redis, new_id: NewId, kind: str
) -> None:
    name = new_id()
    page = Page(http, place.port, name)
    listener = await stream(page, kind)
    assert await listener.frame() == "o"

    async def hear() -> list[str]:
        return messages(await listener.frame())

    await converse(page, hear, backend, name)
    assert await listener.frame() == GO_AWAY
    await listener.ended()


async def test_a_page_with_a_websocket(
    place: Place, http: Http, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    page = Page(http, place.port, name)
    websocket = await http.ws_connect(page.at / "websocket", autoclose=False)
    other = await http.ws_connect(page.at / "websocket")  # a session id means nothing here
    assert await other.receive_str(timeout=SECONDS) == "o"
    assert await websocket.receive_str(timeout=SECONDS) == "o"

    async def hear() -> list[str]:
        return messages(await websocket.receive_str(timeout=SECONDS))

    async def send(*texts: str) -> int:
        for text in texts:
            await websocket.send_str(json.dumps([text]))
        return 204

    page.send = send  # type: ignore[method-assign]
    await converse(page, hear, backend, name)
    assert await websocket.receive_str(timeout=SECONDS) == GO_AWAY
    end = await websocket.receive(timeout=SECONDS)
    assert (end.type, end.data, end.extra) == (aiohttp.WSMsgType.CLOSE, 1000, "disconnected")
    await other.close()


@pytest.mark.parametrize("sent", ['["', "{}", "[1]", "12", "not JSON", '["\\u12"]'])
async def test_a_websocket_that_sends_no_array_is_cut_off(place: Place, http: Http, sent: str) -> None:
    websocket = await http.ws_connect(url(place.port, "/0/0/websocket"), autoclose=False)
    assert await websocket.receive_str(timeout=SECONDS) == "o"
    await websocket.send_str("")  # nothing, which is no mistake
    await websocket.send_str("[]")
    await websocket.send_str(sent)
    end = await websocket.receive(timeout=SECONDS)
    assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, 1007)


# Resources


@pytest.mark.parametrize("path", ["", "/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_greeting(place: Place, http: Http, path: str, method: str) -> None:
    async with http.request(method, url(place.port, path)) as answer:
        assert (answer.status, await answer.text()) == (200, "Welcome to SockJS!\n" * (method == "GET"))
        assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"


async def test_info(place: Place, http: Http) -> None:
    entropy = set()
    for _ in range(3):
        async with http.get(url(place.port, "/info")) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"
            assert answer.headers["Cache-Control"] == NO_STORE
            assert "Set-Cookie" not in answer.headers
            assert "Server" not in answer.headers
            info = await answer.json()
        entropy.add(info.pop("entropy"))
        assert info == {"websocket": True, "cookie_needed": False, "origins": ["*:*"]}
    assert len(entropy) > 1
    assert all(isinstance(number, int) and 0 <= number < 2**32 for number in entropy)


IFRAMES = ["/iframe.html", "/iframe-.html", "/iframe-1.6.1.html", "/iframe-0.1.2abc-dirty.2144.html?t=1"]


@pytest.mark.parametrize("path", IFRAMES)
async def test_the_page_for_iframes(place: Place, http: Http, path: str) -> None:
    async with http.get(url(place.port, path)) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/html; charset=UTF-8"
        assert answer.headers["Cache-Control"] == "public, max-age=31536000"
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'self'"
        assert {"Expires", "ETag"} <= answer.headers.keys()
        assert not {"Last-Modified", "Set-Cookie"} & answer.headers.keys()
        assert '<script src="/sockjs.min.js"></script>' in await answer.text()
        etag = answer.headers["ETag"]
    async with http.get(url(place.port, path), headers={"If-None-Match": etag}) as answer:
        assert (answer.status, await answer.read()) == (304, b"")
        assert "Content-Type" not in answer.headers
        assert answer.headers["ETag"] == etag


async def test_who_may_embed_the_page_for_iframes(valkey: ValkeyProcess, http: Http) -> None:
    settings: dict[str, Any] = {
        "allowed_origins": [ORIGIN, "same-origin"],
        "sockjs_url": "https://cdn.example/s.js",
    }
    async with node_in_process(valkey.url, **settings) as gateway:
        answer = await http.get(url(port_of(gateway), "/iframe.html"))
        assert answer.headers["Content-Security-Policy"] == f"frame-ancestors {ORIGIN} 'self'"
        assert '<script src="https://cdn.example/s.js"></script>' in await answer.text()


NOTHING = [
    "/a", "/a.html", "//", "///", "/a/a", "/a/a/", "/a/", "/iframe", "/iframe.htm", "/IFRAME.HTML",
    "/iframe.HTML", "/iframe.xml", "/iframe-/.html", "/info/", "/websocket/",
    "/a/b/jsonp", "/a/b/jsonp_send", "/a/b/htmlfile", "/a/b/xhr/", "/a/b/c/xhr", "/a/xhr",
    "///xhr", "//b/xhr", "/a//xhr", "/a./b/xhr", "/a/b./xhr", "/./b/xhr", "/a/./xhr", "/../a/xhr",
    f"/a/{'b' * 201}/xhr",
]  # fmt: skip


@pytest.mark.parametrize("path", NOTHING)
async def test_paths_that_lead_nowhere(place: Place, path: str) -> None:
    for method in ("GET", "POST"):
        async with Raw.connected(place.port) as client:
            client.send(
                f"{method} /websocket{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
            )
            assert (await client.answer())[0] == 404


@pytest.mark.parametrize("server", ["a", "_", "1", "abcdefgh_i-j%20", "%2F", "~!@$&'()*+,;=:", "x" * 200])
async def test_any_other_path_is_a_session(place: Place, http: Http, new_id: NewId, server: str) -> None:
    assert await Page(http, place.port, new_id(), server).poll() == "o"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "", "GET, HEAD"),
        ("PUT", "/info", "OPTIONS, GET, HEAD"),
        ("POST", "/info", "OPTIONS, GET, HEAD"),
        ("POST", "/iframe.html", "GET, HEAD"),
        ("POST", "/websocket", "GET"),
        ("HEAD", "/websocket", "GET"),
        ("POST", "/0/0/websocket", "GET"),
        ("GET", "/0/0/xhr", "OPTIONS, POST"),
        ("HEAD", "/0/0/xhr", "OPTIONS, POST"),
        ("GET", "/0/0/xhr_send", "OPTIONS, POST"),
        ("GET", "/0/0/xhr_streaming", "OPTIONS, POST"),
        ("POST", "/0/0/eventsource", "GET"),
        ("OPTIONS", "/0/0/eventsource", "GET"),
    ],
)
async def test_methods_that_are_not_allowed(
    place: Place, http: Http, method: str, path: str, allow: str
) -> None:
    async with http.request(method, url(place.port, path)) as answer:
        assert (answer.status, answer.headers["Allow"], await answer.read()) == (405, allow, b"")
        assert "Content-Type" not in answer.headers


@pytest.mark.parametrize("path", ["/websocket", "/0/0/websocket"])
@pytest.mark.parametrize("headers", [{}, {"Upgrade": "websocket", "Connection": "close"}])
async def test_what_is_no_handshake_is_a_bad_request(
    place: Place, http: Http, path: str, headers: dict[str, str]
) -> None:
    async with http.get(url(place.port, path), headers=headers) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == "upgrade_required"


# Origins

POSTS = ["/0/0/xhr", "/0/0/xhr_send", "/0/0/xhr_streaming"]


@pytest.mark.parametrize("path", ["/info", *POSTS])
@pytest.mark.parametrize("origin", [ORIGIN, "null"])
async def test_a_browser_asks_before_it_sends(
    valkey: ValkeyProcess, http: Http, path: str, origin: str
) -> None:
    async with node_in_process(valkey.url, allowed_origins="*") as gateway:
        for asked in ("content-type, x-csrf-token", ""):
            headers = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": asked,
            }
            async with http.options(url(port_of(gateway), path), headers=headers) as answer:
                assert (answer.status, await answer.read()) == (204, b"")
                assert answer.headers["Access-Control-Allow-Origin"] == origin
                assert answer.headers["Access-Control-Allow-Credentials"] == "true"
                assert answer.headers.get("Access-Control-Allow-Headers", "") == asked
                assert answer.headers["Access-Control-Max-Age"] == "31536000"
                assert answer.headers["Cache-Control"] == "public, max-age=31536000"
                assert answer.headers["Vary"] == "Origin"
                methods = answer.headers["Access-Control-Allow-Methods"].split(", ")
                assert {"OPTIONS", "GET" if path == "/info" else "POST"} <= set(methods)
                assert "Expires" in answer.headers


async def test_only_pages_from_allowed_origins(valkey: ValkeyProcess, http: Http) -> None:
    async with node_in_process(valkey.url, allowed_origins=ORIGIN) as gateway:
        requests = [("GET", "/info"), ("GET", "/0/1/eventsource"), *(("POST", path) for path in POSTS)]
        requests += [("OPTIONS", path) for path in POSTS]
        for method, path in requests:
            for origin in ("http://evil.example", "null", "http://page.example.evil", "http://pagé.example"):
                async with Raw.connected(port_of(gateway)) as client:
                    lines = f"{method} /websocket{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
                    client.send(f"{lines}Origin: {origin}\r\n\r\n".encode())
                    status, headers, _ = await client.answer()
                    assert status == 403
                    assert "access-control-allow-origin" not in headers
        assert gateway.sessions == 0
        page = Page(http, port_of(gateway), "s")
        async with http.post(page.at / "xhr", headers={"Origin": ORIGIN}) as answer:
            assert await answer.text() == "o\n"
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            assert answer.headers["Vary"] == "Origin"
        async with http.post(page.at / "xhr_send", data="[]", headers={"Origin": ORIGIN}) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        async with http.get(url(port_of(gateway), "/info"), headers={"Origin": ORIGIN}) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await http.ws_connect(page.at / "websocket", headers={"Origin": "http://evil.example"})


# Requests and sessions


async def test_headers_of_the_transports(place: Place, http: Http, new_id: NewId) -> None:
    page = Page(http, place.port, new_id())
    async with http.post(page.at / "xhr") as answer:
        assert answer.headers["Content-Type"] == "application/javascript; charset=UTF-8"
        assert answer.headers["Content-Length"] == "2"
        assert "Connection" not in answer.headers
        assert {"Date", "Vary"} <= answer.headers.keys()
        assert not {"Server", "Set-Cookie", "Access-Control-Allow-Origin"} & answer.headers.keys()
        assert answer.headers["Cache-Control"] == NO_STORE
    async with http.post(page.at / "xhr_send", data="[]") as answer:
        assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"
        assert answer.headers["Cache-Control"] == NO_STORE
    for kind, content_type in (
        ("xhr_streaming", "application/javascript; charset=UTF-8"),
        ("eventsource", "text/event-stream"),
    ):
        listener = await stream(Page(http, place.port, new_id()), kind)
        assert listener.answer.headers["Content-Type"] == content_type
        assert listener.answer.headers["Cache-Control"] == NO_STORE
        assert listener.answer.headers["X-Accel-Buffering"] == "no"
        assert listener.answer.headers["Transfer-Encoding"] == "chunked"
        listener.answer.close()


async def test_a_session_that_is_not_here(place: Place, http: Http, new_id: NewId) -> None:
    """As after the loss of its node: sockjs-client closes on either answer, and its page reconnects."""
    page = Page(http, place.port, new_id())
    assert await page.send("x") == 404
    assert await page.poll() == "o"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("", "Payload expected."),
        ("{}", "Payload expected."),
        ("1", "Payload expected."),
        ("[1]", "Payload expected."),
        ('["a"', "Broken JSON encoding."),
        ('["\\u12"]', "Broken JSON encoding."),
        ("\xff", "Broken JSON encoding."),
    ],
)
async def test_what_is_no_array_of_messages(
    place: Place, http: Http, new_id: NewId, sent: str, said: str
) -> None:
    page = Page(http, place.port, new_id())
    assert await page.poll() == "o"
    async with http.post(page.at / "xhr_send", data=sent.encode("latin-1")) as answer:
        assert (answer.status, await answer.text()) == (400, said)
    await page.say("HELLO\n\n\0")  # the session lives
    assert stomp.parse(messages(await page.poll())[0]).command == "ERROR"
    frame = await page.poll()
    assert frame.startswith("c[1002,"), frame


async def test_the_server_id_means_nothing(place: Place, http: Http, new_id: NewId) -> None:
    name = new_id()
    assert await Page(http, place.port, name).poll() == "o"
    await Page(http, place.port, name, "999").say(stomp.CONNECT)
    assert messages(await Page(http, place.port, name, "1").poll())[0].startswith("CONNECTED")


async def test_what_came_meanwhile_comes_together(place: Place, http: Http, new_id: NewId) -> None:
    page = Page(http, place.port, new_id())
    assert await page.poll() == "o"
    await page.say(stomp.CONNECT)
    await page.say(stomp.TO_REGISTRATION.replace("\n\n", "\nreceipt:1\n\n"))
    await page.say(stomp.TO_AUTHORIZATION.replace("\n\n", "\nreceipt:2\n\n"))
    commands = [stomp.parse(text).command for text in messages(await page.poll())]
    assert commands == ["CONNECTED", "RECEIPT", "RECEIPT"]


@pytest.mark.parametrize("kind", ["xhr", *STREAMS])
async def test_a_second_listener_is_turned_away(
    place: Place, http: Http, backend: redis.asyncio.Redis, new_id: NewId, kind: str
) -> None:
    name = new_id()
    page = Page(http, place.port, name)
    first = await stream(page, "xhr_streaming")
    assert await first.frame() == "o"
    another = 'c[2010,"Another connection still open"]'
    if kind == "xhr":
        assert await page.poll() == another
    else:
        second = await stream(page, kind)
        assert await second.frame() == another
        await second.ended()
    await page.say(*stomp.conversation(name))
    assert messages(await first.frame())[0].startswith("CONNECTED"), "the first one stays"
    first.answer.close()


@pytest.mark.parametrize("kind", ["xhr", *STREAMS])
async def test_a_listener_that_leaves_ends_its_session(
    place: Place, http: Http, backend: redis.asyncio.Redis, new_id: NewId, kind: str
) -> None:
    name = new_id()
    page = Page(http, place.port, name)
    await page.polled(name)
    if kind == "xhr":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(page.poll(), 0.1)
    else:
        (await stream(page, kind)).answer.close()
    async with asyncio.timeout(SECONDS):
        while (await backend.pubsub_numsub(f"websocket:{name}"))[0][1]:
            pass  # to publish instead could fill the buffer first
    assert await page.poll() == "o", "which tells sockjs-client that the session is lost"


async def test_a_client_that_does_not_come_back(
    valkey: ValkeyProcess, http: Http, new_id: NewId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockjs, "DISCONNECT_DELAY", 0.3)
    async with node_in_process(valkey.url) as gateway:
        page = Page(http, port_of(gateway), new_id())
        assert await page.poll() == "o"
        assert gateway.sessions == 1
        await until(lambda: not gateway.sessions, "the session is given up")
        assert gateway._context.ended == {(1006, "client did not come back"): 1}
        assert await page.send("x") == 404


async def test_heartbeats(valkey: ValkeyProcess, http: Http, new_id: NewId) -> None:
    async with node_in_process(valkey.url, heartbeat=0.2) as gateway:
        name = new_id()
        page = Page(http, port_of(gateway), name)
        plain = [text.replace("10000,10000", "0,0") for text in stomp.conversation(name)]
        listener = await stream(page, "eventsource")
        assert await listener.frame() == "o"
        await page.say(*plain)
        while (frame := await listener.frame())[0] == "a":
            pass
        assert [frame, await listener.frame()] == ["h", "h"]
        listener.answer.close()
        websocket = await http.ws_connect(page.at / "websocket")
        assert await websocket.receive_str() == "o"
        await websocket.send_str(json.dumps(plain))
        while (frame := await websocket.receive_str(timeout=SECONDS))[0] == "a":
            pass
        assert frame == "h"
        await websocket.close()
        page = Page(http, port_of(gateway), new_id())
        assert await page.poll() == "o"
        await page.say(*plain)
        while (frame := await page.poll())[0] == "a":
            pass
        assert frame == "h"


async def test_stomp_heart_beats_inside(valkey: ValkeyProcess, http: Http, new_id: NewId) -> None:
    async with node_in_process(valkey.url, heartbeat=1.0) as gateway:
        page = Page(http, port_of(gateway), new_id())
        listener = await stream(page, "xhr_streaming")
        assert await listener.frame() == "o"
        await page.say(stomp.CONNECT.replace("10000,10000", "0,100"))
        assert messages(await listener.frame())[0].startswith("CONNECTED")
        assert messages(await listener.frame()) == ["\n"]
        listener.answer.close()


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_ends_when_the_browser_has_had_enough(
    valkey: ValkeyProcess,
    http: Http,
    backend: redis.asyncio.Redis,
    new_id: NewId,
    kind: str,
) -> None:
    name = new_id()
    page_data = {"text": "x%ä" * 10_000}
    async with node_in_process(valkey.url) as gateway:
        page = Page(http, port_of(gateway), name)
        listener = await stream(page, kind)
        assert await listener.frame() == "o"
        await page.say(*stomp.conversation(name))
        heard: list[str] = []
        while len(heard) < 2:
            heard += messages(await listener.frame())
        sent = 0
        while sent < sockjs.RESPONSE_LIMIT:
            await publishing.publish(backend, name, "CONTINUE", data=page_data)
            frame = await listener.frame()
            assert stomp.message(messages(frame)[0])[1]["data"] == page_data
            sent += len(frame)
        await listener.ended()
        await backend.publish(f"websocket:{name}", "CONFIRMED")
        listener = await stream(page, kind)
        assert stomp.message(messages(await listener.frame())[0]) == stomp.authorized(name, "CONFIRMED")
        listener.answer.close()


async def test_a_connection_carries_one_request_after_another(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    """Polls, streams and everything else take turns on one connection, and a WebSocket ends it."""
    name = new_id()
    head = f"POST /websocket/0/{name}/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s"
    async with Raw.connected(place.port) as client:
        for _ in range(2):
            client.send((head % ("xhr", 0, "")).encode())
            status, _, body = await client.answer()
            assert (status, body) == (200, b"o\n")
            said = json.dumps([stomp.DISCONNECT.replace("DISCONNECT", "CONNECT"), stomp.DISCONNECT])
            client.send((head % ("xhr_send", len(said), said)).encode())
            assert (await client.answer())[0] == 204
            client.send((head % ("xhr", 0, "")).encode())
            assert (await client.answer())[2].startswith(b'a["CONNECTED')
            client.send((head % ("xhr_streaming", 0, "")).encode())
            assert b"chunked" in await client.head()
            await client.until(b"0\r\n\r\n")
            name = new_id()
            head = head.replace(head.split("/")[3], name)
        client.send(b"GET /websocket HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer())[2] == b"Welcome to SockJS!\n"


async def test_requests_that_come_before_the_response(place: Place, new_id: NewId) -> None:
    """RFC 9112 section 9.3.2: they are answered in order."""
    poll = f"POST /websocket/0/{new_id()}/xhr HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    hello = "GET /websocket HTTP/1.1\r\nHost: x\r\n\r\n"
    async with Raw.connected(place.port) as client:
        client.send((poll + hello).encode())
        status, headers, body = await client.answer()
        assert (status, body) == (200, b"o\n")
        assert "connection" not in headers
        assert (await client.answer())[2] == b"Welcome to SockJS!\n"
    poll = poll.replace("-0/xhr", "-1/xhr")  # another session
    async with Raw.connected(place.port) as client, Raw.connected(place.port) as sender:
        client.send(poll.encode())
        assert (await client.answer())[0] == 200
        client.send(poll.encode())
        client.send(hello.encode())  # while the poll waits
        said = json.dumps([stomp.CONNECT])
        send = poll.replace("/xhr ", "/xhr_send ").replace("Length: 0", f"Length: {len(said)}")
        await asyncio.sleep(0.05)
        sender.send((send + said).encode())
        assert (await client.answer())[2].startswith(b'a["CONNECTED')
        assert (await client.answer())[2] == b"Welcome to SockJS!\n"


async def test_http_1_0(place: Place, new_id: NewId) -> None:
    for path in ("xhr", "xhr_streaming"):
        async with Raw.connected(place.port) as client:
            client.send(f"POST /websocket/0/{new_id()}/{path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())
            head = (await client.head()).lower()
            assert b"connection: close" in head
            assert b"transfer-encoding" not in head
            if path == "xhr":
                assert await client.rest() == b"o\n"
            else:
                await client.until(b"h\no\n")


# Limits, in the same words as for everybody


async def test_limits(valkey: ValkeyProcess, http: Http) -> None:
    async with node_in_process(valkey.url, max_sessions_per_ip=1) as gateway:
        page, other = Page(http, port_of(gateway), "one"), Page(http, port_of(gateway), "two")
        assert await page.poll() == "o"
        for kind in ("xhr", "xhr_streaming"):
            async with http.post(other.at / kind) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
                assert (await answer.json())["error"]["code"] == "address_full"
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
            await http.ws_connect(other.at / "websocket")
        await page.say(stomp.CONNECT)  # who is in is not counted again
        await page.poll()
    async with node_in_process(valkey.url, max_sessions=1) as gateway:
        listener = await stream(Page(http, port_of(gateway), "one"), "eventsource")
        async with http.get(Page(http, port_of(gateway), "two").at / "eventsource") as answer:
            assert answer.status == 503
        listener.answer.close()
        await until(lambda: not gateway.sessions, "there is room again")
        assert await Page(http, port_of(gateway), "two").poll() == "o"


async def test_who_has_its_goodbye_takes_nobodys_place(valkey: ValkeyProcess, http: Http) -> None:
    async with node_in_process(valkey.url, max_sessions=1) as gateway:
        for name in ("one", "two", "three"):
            page = Page(http, port_of(gateway), name)
            assert await page.poll() == "o", "there is room at once"
            await page.say(stomp.CONNECT, stomp.DISCONNECT)
            assert len(messages(await page.poll())) == 2
            assert await page.poll() == GO_AWAY
        assert await Page(http, port_of(gateway), "one").poll() == GO_AWAY
        assert gateway.sessions == 0


async def test_deadlines_and_rates(valkey: ValkeyProcess, http: Http) -> None:
    settings: dict[str, Any] = {"registration_timeout": 0.3, "messages_per_second": 5}
    async with node_in_process(valkey.url, **settings) as gateway:
        page = Page(http, port_of(gateway), "one")
        assert await page.poll() == "o"
        assert await page.poll() == 'c[1008,"registration timeout"]'
        page = Page(http, port_of(gateway), "two")
        assert await page.poll() == "o"
        await page.say(*["\n"] * 7)
        assert await page.poll() == 'c[1008,"too many messages"]'
        page = Page(http, port_of(gateway), "three")
        assert await page.poll() == "o"
        async with http.post(page.at / "xhr_send", data='["' + "x" * 70_000 + '"]') as answer:
            assert answer.status == 413
        assert await page.poll() == 'c[1009,"too many messages at once"]'


async def test_a_body_that_does_not_come(valkey: ValkeyProcess, new_id: NewId) -> None:
    async with node_in_process(valkey.url, handshake_timeout=0.2) as gateway:
        for path in ("xhr", "xhr_streaming"):
            async with Raw.connected(port_of(gateway)) as client:
                request = (
                    f"POST /websocket/0/{new_id()}/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
                )
                client.send(request.encode())
                assert (await client.answer())[0] == 408
        assert gateway.sessions == 0


async def test_a_client_that_does_not_poll_is_not_kept_for(
    valkey: ValkeyProcess, http: Http, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    async with node_in_process(valkey.url, write_buffer=2048) as gateway:
        page = Page(http, port_of(gateway), name)
        await page.polled(name)
        while await backend.publish(f"websocket:{name}", "CONTINUE"):
            pass
        assert await page.poll() == 'c[1008,"slow consumer"]'


async def test_a_client_that_does_not_read_its_stream(
    valkey: ValkeyProcess, http: Http, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    async with node_in_process(valkey.url) as gateway:
        page = Page(http, port_of(gateway), name)
        await page.polled(name)
        async with Raw.connected(port_of(gateway), receive_buffer=4096) as client:
            client.send(f"GET /websocket/0/{name}/eventsource HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await client.head()
            result = json.dumps({"authResult": "CONTINUE", "data": "x" * 60_000})
            while await backend.publish(f"websocket:{name}", result):
                pass
            assert await page.poll() == 'c[1008,"slow consumer"]'


async def test_a_node_that_stops_says_so(
    valkey: ValkeyProcess, http: Http, new_id: NewId, logged: list[Line]
) -> None:
    async with node_in_process(valkey.url, close_timeout=0.1) as gateway:
        polling, streaming = Page(http, port_of(gateway), new_id()), Page(http, port_of(gateway), new_id())
        assert await polling.poll() == "o"
        listener = await stream(streaming, "xhr_streaming")
        assert await listener.frame() == "o"
        waiting = asyncio.create_task(polling.poll())
        websocket = await http.ws_connect(polling.at / "websocket")
        assert await websocket.receive_str() == "o"
        draining = asyncio.create_task(gateway.drain(0, 0.1))
        close_frame = 'c[1012,"service restart"]'
        assert [await waiting, await listener.frame(), await websocket.receive_str()] == [close_frame] * 3
        await listener.ended()
        await websocket.close()
        await draining
