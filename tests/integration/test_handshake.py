"""The handshake: which requests are upgraded, and what the others are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio

from gateway.drill.fleet import ValkeyProcess

from .conftest import Place
from .in_process import node_in_process, port_of
from .load import HANDSHAKE, frame, text, until
from .raw import Raw

NewId = Callable[[], str]

GOOD = f"{HANDSHAKE}\r\n"


async def test_the_answer_to_a_handshake_in_full(place: Place) -> None:
    offer = (
        "Origin: http://127.0.0.1\r\nSec-WebSocket-Protocol: chat, superchat\r\n"
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame\r\n"
    )
    async with Raw.connected(place.port) as browser:
        browser.send(f"{HANDSHAKE}{offer}\r\n".encode())
        head = await browser.head()
    # RFC 6455 section 1.3 has this key and this answer. No extension, no protocol, no Server.
    assert head.decode().split("\r\n") == [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "",
        "",
    ]


@pytest.mark.parametrize(
    "lines",
    [
        GOOD.replace("websocket", "WebSocket").replace(": Upgrade", ": keep-alive, UPGRADE"),
        GOOD.replace("Sec-WebSocket-Key", "sec-websocket-key"),
        GOOD.replace("/ws", "/ws?any=query"),
    ],
)
async def test_handshakes_that_look_different(place: Place, lines: str) -> None:
    async with Raw.connected(place.port) as browser:
        browser.send(lines.encode())
        assert (await browser.head()).startswith(b"HTTP/1.1 101 ")


REFUSED = {
    "no upgrade": (GOOD.replace("Upgrade: websocket\r\n", ""), 426, "upgrade_required"),
    "upgrade to h2c": (GOOD.replace("Upgrade: websocket", "Upgrade: h2c"), 426, "upgrade_required"),
    "connection": (GOOD.replace("Connection: Upgrade", "Connection: keep-alive"), 426, "upgrade_required"),
    "version 8": (GOOD.replace("Version: 13", "Version: 8"), 426, "unsupported_version"),
    "version 7": (GOOD.replace("Version: 13", "Version: 7"), 426, "unsupported_version"),
    "no version": (GOOD.replace("Sec-WebSocket-Version: 13\r\n", ""), 426, "unsupported_version"),
    "HTTP/1.0": (GOOD.replace("HTTP/1.1", "HTTP/1.0"), 400, "bad_handshake"),
    "empty host": (GOOD.replace("Host: 127.0.0.1", "Host:"), 400, "bad_handshake"),
    "no key": (GOOD.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), 400, "bad_handshake"),
    "short key": (GOOD.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j"), 400, "bad_handshake"),
    "no base64": (GOOD.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZ!=="), 400, "bad_handshake"),
    "origin": (
        GOOD.replace("\r\n\r\n", "\r\nOrigin: https://evil.example\r\n\r\n"),
        403,
        "origin_not_allowed",
    ),
    "null origin": (GOOD.replace("\r\n\r\n", "\r\nOrigin: null\r\n\r\n"), 403, "origin_not_allowed"),
}


@pytest.mark.parametrize(("lines", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_refused_handshakes(place: Place, lines: str, status: int, code: str) -> None:
    async with Raw.connected(place.port) as browser:
        browser.send(lines.encode())
        answered, headers, body = await browser.answer()
    assert (answered, json.loads(body)["error"]["code"]) == (status, code)
    assert "server" not in headers
    if code == "unsupported_version":
        assert headers["sec-websocket-version"] == "13", "RFC 6455 section 4.4"
    if code == "upgrade_required":
        assert headers["upgrade"] == "websocket", "RFC 9110 section 15.5.22"


OTHER_REQUESTS = {
    "another path": ("GET /wss HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "the root": ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "the admin port's": ("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "another method": (GOOD.replace("GET", "POST"), 405),
}


@pytest.mark.parametrize(("lines", "status"), OTHER_REQUESTS.values(), ids=OTHER_REQUESTS)
async def test_other_requests(place: Place, lines: str, status: int) -> None:
    async with Raw.connected(place.port) as client:
        client.send(lines.encode())
        answered, headers, _ = await client.answer()
    assert answered == status
    assert "server" not in headers, "our software's versions are our own"


async def test_a_refusal_ends_the_connection(place: Place) -> None:
    async with Raw.connected(place.port) as browser:
        browser.send(REFUSED["version 8"][0].encode())
        status, headers, _ = await browser.answer()
        assert (status, headers["connection"]) == (426, "close")
        assert await browser.rest() == b""


async def test_a_handshake_on_a_connection_that_has_carried_requests(
    valkey: ValkeyProcess, new_id: NewId
) -> None:
    """Proxies reuse connections, so an upgrade can come behind other requests, and with frames."""
    async with node_in_process(valkey.url, demo=True) as gateway, Raw.connected(port_of(gateway)) as browser:
        for _ in range(2):
            browser.send(b"GET /demo/info HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await browser.answer())[0] == 200
        browser.send(GOOD.encode() + text({"webSocketId": new_id()}))
        assert (await browser.head()).startswith(b"HTTP/1.1 101 ")
        assert (await browser.message())["registrationSucceeded"] is True
        assert gateway.sessions == 1
    assert gateway.sessions == 0


async def test_a_refusal_on_a_connection_that_has_carried_requests(valkey: ValkeyProcess) -> None:
    async with node_in_process(valkey.url, demo=True) as gateway, Raw.connected(port_of(gateway)) as browser:
        browser.send(b"GET /demo/info HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await browser.answer())[0] == 200
        browser.send(REFUSED["version 8"][0].encode())
        status, _, body = await browser.answer()
        assert (status, json.loads(body)["error"]["code"]) == (426, "unsupported_version")
        assert gateway.sessions == 0


async def test_frames_that_come_with_the_handshake(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    async with Raw.connected(place.port) as browser:
        browser.send(GOOD.encode() + text({"webSocketId": name}) + frame(9, b"ping") + text("{}"))
        assert (await browser.head()).startswith(b"HTTP/1.1 101 ")
        told = [await browser.frame() for _ in range(3)]
        assert told[0] == (10, b"ping"), "it waits for no answer of Redis"
        assert b"/user/topic/error" in told[1][1]
        assert b'"registrationSucceeded":true' in told[2][1]
        assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 1
        assert (await browser.message())["authResult"] == "CONFIRMED"


async def test_a_handshake_and_frames_cut_anywhere(place: Place, new_id: NewId) -> None:
    length = len(GOOD.encode() + text({"webSocketId": new_id()}))

    async def cut(at: int) -> None:
        first = GOOD.encode() + text({"webSocketId": new_id()})
        async with Raw.connected(place.port) as browser:
            browser.send(first[:at])
            await asyncio.sleep(0.02)  # so that the two parts come as two
            browser.send(first[at:])
            assert (await browser.head()).startswith(b"HTTP/1.1 101 ")
            assert (await browser.message())["registrationSucceeded"] is True

    await asyncio.gather(*(cut(at) for at in range(1, length)))


async def test_a_broken_frame_that_comes_with_the_handshake(place: Place) -> None:
    async with Raw.connected(place.port) as browser:
        browser.send(GOOD.encode() + b"\x81\x02{}")
        assert (await browser.head()).startswith(b"HTTP/1.1 101 ")
        assert await browser.closed() == (1002, "client frames must be masked")
        assert await browser.rest() == b""


async def test_a_client_that_is_gone_before_its_answer(valkey: ValkeyProcess, new_id: NewId) -> None:
    async with node_in_process(valkey.url) as gateway:
        for _ in range(50):
            async with Raw.connected(port_of(gateway)) as browser:
                browser.send(GOOD.encode() + text({"webSocketId": new_id()}))
        await until(lambda: not gateway.sessions, "they are all gone")
        await until(lambda: not gateway._hub.channels, "and their channels")
        await until(lambda: not gateway._acceptor.handshakes, "the acceptor knows it too")


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({"allowed_origins": ["https://bank.example"]}, "Origin: https://bank.example", 101),
        ({"allowed_origins": ["https://bank.example"]}, "Origin: HTTPS://BANK.EXAMPLE", 101),
        ({"allowed_origins": ["https://bank.example"]}, "Origin: http://bank.example", 403),
        ({"allowed_origins": ["https://bank.example"]}, "Origin: https://bank.example.evil.example", 403),
        ({"allowed_origins": ["https://bank.example"]}, "Origin: https://bank.example:8443", 403),
        ({"allowed_origins": ["https://bank.example"]}, "Origin: http://127.0.0.1", 403),
        ({"allowed_origins": ["https://bank.example"]}, "X-No-Origin: a program sends none", 101),
        ({"allowed_origins": ["*"]}, "Origin: https://anything.example", 101),
        ({}, "Origin: http://127.0.0.1", 101),
        ({}, "Origin: https://127.0.0.1\r\nX-Forwarded-Proto: http", 101),
        (
            {"trusted_proxies": ["127.0.0.1"]},
            "Origin: https://127.0.0.1\r\nX-Forwarded-Proto: http",
            403,
        ),
        (
            {"trusted_proxies": ["127.0.0.1"]},
            "Origin: https://127.0.0.1\r\nX-Forwarded-Proto: https",
            101,
        ),
    ],
)
async def test_origins(valkey: ValkeyProcess, settings: dict[str, Any], headers: str, status: int) -> None:
    async with node_in_process(valkey.url, **settings) as gateway, Raw.connected(port_of(gateway)) as browser:
        browser.send(f"{HANDSHAKE}{headers}\r\n\r\n".encode())
        assert int((await browser.head()).split()[1]) == status
