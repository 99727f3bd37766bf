"""The WebSocket endpoint: handshakes through aiohttp, subprotocols, and requests that are rejected."""

from __future__ import annotations

import pytest

from .served import served

HANDSHAKE = (
    "GET /ws HTTP/1.1\nHost: gw\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"
)
INFO = "GET /websocket/info HTTP/1.1\nHost: gw\n\n"


@pytest.mark.parametrize("before", [[], [INFO]])
async def test_a_handshake_at_any_place_on_its_connection(before: list[str]) -> None:
    async with served() as at, at.raw() as connection:
        for request in before:
            assert (await connection.ask(request))[0] == "HTTP/1.1 200 OK"
        assert (await connection.ask(f"{HANDSHAKE}\n"))[0] == "HTTP/1.1 101 Switching Protocols"


@pytest.mark.parametrize("before", [[], [INFO]])
async def test_a_rejected_handshake(before: list[str]) -> None:
    async with served() as at, at.raw() as connection:
        for request in before:
            await connection.ask(request)
        first, _, body = await connection.ask(f"{HANDSHAKE}Origin: https://evil.example\n\n")
        assert first == "HTTP/1.1 403 Forbidden"
        assert b"origin_not_allowed" in body
        assert at.port.access.rejected == {"origin_not_allowed": 1}


async def test_a_request_that_is_no_handshake() -> None:
    async with served() as at, at.raw() as connection:
        first, headers, _ = await connection.ask("GET /ws HTTP/1.1\nHost: gw\n\n")
        assert first == "HTTP/1.1 426 Upgrade Required"
        assert headers["Upgrade"] == "websocket"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [("v10.stomp, v12.stomp", "v12.stomp"), ("v11.stomp", "v11.stomp"), ("other", None)],
)
async def test_a_subprotocol_chooses_the_wire(offered: str, chosen: str | None) -> None:
    async with served() as at, at.raw() as connection:
        _, headers, _ = await connection.ask(f"{HANDSHAKE}Sec-WebSocket-Protocol: {offered}\n\n")
        assert headers.get("Sec-WebSocket-Protocol") == chosen
