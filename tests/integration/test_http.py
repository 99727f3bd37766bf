"""How HTTP requests are read: alike on both ports, first and later ones on a connection, with one worker and
with several. `test_malformed` has what is no HTTP."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.drill.fleet import NodeProcess, ValkeyProcess

from . import stomp
from .conftest import Place
from .in_process import admin_port_of, node_in_process, port_of
from .load import HANDSHAKE, until
from .raw import Raw

NewId = Callable[[], str]

HEALTH = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
INFO = "GET /websocket/info HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
TOKEN = "a-token-for-tests-only"
BOMB = zlib.compress(bytes(1 << 20))
"""A megabyte of zeros."""


def post(path: str, body: str = "", *headers: str) -> bytes:
    """A POST request."""
    lines = "".join(f"{line}\r\n" for line in ("Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers))
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n{body}".encode()


@asynccontextmanager
async def connected(place: Place, port: str, *, later: bool) -> AsyncIterator[Raw]:
    """A connection to a port; `later` if it has carried a request."""
    number, harmless = (place.port, INFO) if port == "public" else (place.admin_port, HEALTH)
    async with Raw.connected(number) as client:
        if later:
            client.send(harmless.encode())
            assert (await client.answer())[0] == 200
        yield client


async def metric(place: Place, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels, over all processes of the node."""
    async with Raw.connected(place.admin_port) as client:
        client.send(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        text = (await client.answer())[2].decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


async def rejected(place: Place, kind: str) -> float:
    """How many requests the node has rejected for this reason, on both ports."""
    return await metric(place, "gateway_rejected_total", kind=kind)


@pytest.fixture
def log_lines(
    request: pytest.FixtureRequest,
    place: Place,
    logged: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> Callable[[], str]:
    """All that the gateway at `place` has logged."""
    kind = request.node.callspec.params["place"]
    if kind == "in this loop":
        return lambda: repr(logged) + caplog.text
    node: NodeProcess = request.getfixturevalue(kind)
    return lambda: repr(node.logs)


both_ports = pytest.mark.parametrize("port", ["public", "admin"])
any_time = pytest.mark.parametrize("later", [False, True], ids=["first", "later"])

ENCODED = {
    "public": (
        "POST /websocket/0/encoded/xhr", "POST /websocket/0/encoded/xhr_send", "GET /websocket/info",
        "GET /events?webSocketId=encoded", "GET /ws", "POST /nowhere",
    ),
    "admin": ("POST /publish", "GET /healthz", "PUT /nowhere"),
}  # fmt: skip


@both_ports
@any_time
async def test_bodies_are_not_inflated(place: Place, port: str, later: bool) -> None:
    before = await rejected(place, "encoded_body")
    codings = itertools.cycle(("deflate", "gzip", "br", "zstd", "unheard-of"))
    for line, coding in zip(ENCODED[port], codings, strict=False):
        async with connected(place, port, later=later) as client:
            head = f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Encoding: {coding}\r\n"
            client.send(f"{head}Content-Length: {len(BOMB)}\r\n\r\n".encode() + BOMB)
            status, headers, body = await client.answer()
            assert (status, json.loads(body)["error"]["code"]) == (415, "encoded_body")
            assert headers["accept-encoding"] == "identity", "RFC 9110 section 15.5.16"
            assert "server" not in headers
            assert await client.rest() == b""
    assert await rejected(place, "encoded_body") == before + len(ENCODED[port])


@pytest.mark.parametrize("place", ["node_process", "three_workers"], indirect=True)
@pytest.mark.parametrize("coding", ["deflate", "identity"])
async def test_rejected_bodies_cost_no_memory(place: Place, coding: str) -> None:
    """They are not inflated, not kept, and do not wait for a collector that a node runs rarely."""
    body, status = (BOMB * 16, 415) if coding == "deflate" else (bytes(100_000), 413)
    at = "/websocket/0/memory/xhr"

    async def attack(times: int) -> float:
        for _ in range(times):
            async with Raw.connected(place.port) as client:
                head = post(at, "", f"Content-Encoding: {coding}").replace(b": 0", b": %d" % len(body), 1)
                client.send(head + body)
                assert (await client.answer())[0] == status
        return await metric(place, "process_resident_memory_bytes")

    before = await attack(10)
    assert await attack(100) < before + 15_000_000


WRONG = {
    "a token file with CR LF": (
        f"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\r\n\r\n"
    ),
    "no HTTP": f"GATEWAY {TOKEN}\r\n\r\n",
    "no host": f"GET /?webSocketId={TOKEN} HTTP/1.1\r\n\r\n",
    "a folded header": f"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n {TOKEN}\r\n\r\n",
    "two Authorizations": f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\nAuthorization: b\r\n\r\n",
    "a bad chunk": f"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{TOKEN}\r\n",
}


@both_ports
@any_time
async def test_what_cannot_be_read_is_neither_logged_nor_repeated(
    place: Place, port: str, later: bool, log_lines: Callable[[], str]
) -> None:
    before = await rejected(place, "bad_request")
    for name, request in WRONG.items():
        async with connected(place, port, later=later) as client:
            client.send(request.encode())
            status, headers, body = await client.answer()
            assert (status, json.loads(body)["error"]["code"]) == (400, "bad_request"), name
            assert "server" not in headers
            assert TOKEN.encode() not in body
            assert await client.rest() == b"", "what follows could be anything"
    assert await rejected(place, "bad_request") == before + len(WRONG)
    await until(lambda: "'bad_request'" in log_lines(), "it is logged that something is wrong")
    assert TOKEN not in log_lines()


@both_ports
@any_time
@pytest.mark.parametrize("shape", ["one header", "a cookie on each of three", "a target"])
async def test_a_head_of_16_kb_is_served_and_no_larger_one(
    place: Place, port: str, later: bool, shape: str
) -> None:
    path = "/websocket/info" if port == "public" else "/healthz"

    def request(size: int) -> bytes:
        def lines(filling: int) -> str:
            target, cookies = path, f"Cookie: {'a' * filling}\r\n"
            if shape == "a target":
                target, cookies = f"{path}?{'a' * filling}", ""
            elif shape != "one header":
                third = filling // 3
                cookies = "".join(f"Cookie: {'a' * n}\r\n" for n in (third, third, filling - 2 * third))
            return f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{cookies}\r\n"

        return lines(size - len(lines(0))).encode()

    before = await rejected(place, "headers_too_large")
    for size, expected in ((8_200, 200), (16_384, 200), (16_385, 431), (40_000, 431)):
        async with connected(place, port, later=later) as client:
            client.send(request(size))
            status, headers, _ = await client.answer()
            assert status == expected, size
            assert "server" not in headers
    assert await rejected(place, "headers_too_large") == before + 2


@any_time
async def test_a_handshake_with_large_cookies(place: Place, later: bool) -> None:
    async with connected(place, "public", later=later) as client:
        client.send(f"{HANDSHAKE}Cookie: {'a' * 12_000}\r\n\r\n".encode())
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")


@any_time
@pytest.mark.parametrize("body", ["Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
async def test_a_handshake_whose_body_is_empty(place: Place, new_id: NewId, later: bool, body: str) -> None:
    """A header's presence is not its meaning. The JDK's own client always sends Content-Length: 0."""
    async with connected(place, "public", later=later) as client:
        client.send(f"{HANDSHAKE}{body}".encode())
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        await client.register(new_id())


TWICE = (
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version: 13",
    "Host: a",
    "Origin: http://127.0.0.1",
)


@any_time
@pytest.mark.parametrize("line", TWICE)
async def test_a_header_that_may_occur_once(place: Place, later: bool, line: str) -> None:
    async with connected(place, "public", later=later) as client:
        client.send(f"{HANDSHAKE}Origin: http://127.0.0.1\r\n{line}\r\n\r\n".encode())
        assert (await client.answer())[0] == 400


@both_ports
@any_time
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
async def test_a_body_that_is_too_large(place: Place, port: str, later: bool, chunked: bool) -> None:
    """Its client gets the answer, although it is still sending."""
    path, size = ("/websocket/0/large/xhr", 200_000) if port == "public" else ("/publish", 3_000_000)
    async with connected(place, port, later=later) as client:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{length}\r\n"
        client.send(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        client.send(b"%x\r\n" % size * chunked + bytes(size) + b"\r\n0\r\n\r\n" * chunked)
        status, headers, _ = await client.answer()
        # The admin port denies an unknown client first.
        assert status == (413 if port == "public" else 403)
        assert headers["connection"] == "close"
        assert await client.rest() == b""


async def test_half_of_the_next_request_comes_with_a_poll(place: Place, new_id: NewId) -> None:
    """What was read ahead stays in front of the parser (RFC 9112 section 9.3)."""
    send = post(f"/websocket/0/{new_id()}/xhr_send", "", "A: GET /nowhere HTTP/1.1")
    for cut in (1, 20, len(send) - 3):
        async with Raw.connected(place.port) as client:
            client.send(post(f"/websocket/0/{new_id()}/xhr") + send[:cut])
            assert (await client.answer())[::2] == (200, b"o\n")
            client.send(send[cut:])
            assert (await client.answer())[0] == 404, "there is no such session"


async def test_requests_in_one_packet_are_answered_in_order(place: Place, new_id: NewId) -> None:
    name = new_id()
    at = f"/websocket/0/{name}"
    said = json.dumps([stomp.CONNECT])
    async with Raw.connected(place.port) as client:
        client.send(
            INFO.encode() + post(f"{at}/xhr") + post(f"{at}/xhr_send", said) + post(f"{at}/xhr")
            + f"{HANDSHAKE}\r\n".encode()
        )  # fmt: skip
        assert (await client.answer())[2].startswith(b"{")
        assert (await client.answer())[2] == b"o\n"
        assert (await client.answer())[0] == 204
        assert (await client.answer())[2].startswith(b'a["CONNECTED')
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        await client.register(new_id())


@any_time
async def test_a_client_that_half_closes_gets_its_answer(place: Place, new_id: NewId, later: bool) -> None:
    at = f"/websocket/0/{new_id()}"
    requests = {
        INFO.encode(): 200,
        post(f"{at}/xhr"): 200,
        post(f"{at}/xhr_send", json.dumps([stomp.CONNECT])): 204,
        post("/websocket/0/unknown/xhr_send", "[]"): 404,
        b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n": 400,
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n": 404,
        b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n": 426,
    }
    for request, expected in requests.items():
        async with connected(place, "public", later=later) as client:
            client.send(request)
            client.end()
            assert (await client.answer())[0] == expected, request
            assert await client.rest() == b""
    async with connected(place, "public", later=later) as client:
        client.send(INFO.encode() * 3)
        client.end()
        assert [(await client.answer())[0] for _ in range(3)] == [200] * 3
        assert await client.rest() == b""


@any_time
async def test_a_backend_that_half_closes_gets_its_answer(
    valkey: ValkeyProcess, new_id: NewId, later: bool
) -> None:
    async with node_in_process(valkey.url, publish_token=TOKEN) as gateway:
        place = Place(port_of(gateway), admin_port_of(gateway))
        async with connected(place, "admin", later=later) as client:
            result = json.dumps({"webSocketId": new_id(), "authResult": "CONFIRMED"})
            client.send(
                post("/publish", result, "Content-Type: application/json", f"Authorization: Bearer {TOKEN}")
            )
            client.end()
            status, _, body = await client.answer()
            assert (status, json.loads(body)["receivers"]) == (200, 0)
            assert await client.rest() == b""


async def test_an_idle_connection_lasts_as_long_as_configured(valkey: ValkeyProcess) -> None:
    async with node_in_process(valkey.url, keep_alive=0.2) as gateway:
        for port, request in ((port_of(gateway), INFO), (admin_port_of(gateway), HEALTH)):
            async with Raw.connected(port) as client:
                client.send(request.encode())
                assert (await client.answer())[0] == 200
                assert await client.rest() == b""


async def test_a_client_that_asks_before_it_sends(place: Place, new_id: NewId) -> None:
    """As curl and Java's HttpClient do with large bodies."""
    async with Raw.connected(place.port) as client:
        body = json.dumps([stomp.CONNECT])
        head, _, _ = post(f"/websocket/0/{new_id()}/xhr_send", body, "Expect: 100-continue").partition(b"[")
        client.send(head)
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body.encode())
        assert (await client.answer())[0] == 404
    async with Raw.connected(place.port) as client:
        client.send(
            post("/websocket/0/a/xhr", "a" * 9, "Expect: 100-continue", "Content-Encoding: gzip")[:-9]
        )
        assert (await client.answer())[0] == 415, "nobody should send that body"
