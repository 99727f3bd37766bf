"""Requests that are no HTTP, or bad HTTP: an answer in a line, and nothing in the log that wakes anybody."""

from __future__ import annotations

import pytest

from .conftest import Place
from .load import HANDSHAKE
from .raw import Raw

MALFORMED = {
    "no host": (HANDSHAKE.replace("Host: 127.0.0.1\r\n", "") + "\r\n", 400),
    "no HTTP": ("GATEWAY\r\n\r\n", 400),
    "a space in a header's name": ("GET /ws HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "two lengths": ("GET /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a header of 17 KB": (f"GET /ws HTTP/1.1\r\nHost: x\r\nA: {'a' * 17_000}\r\n\r\n", 431),
}


@pytest.mark.parametrize(("lines", "status"), MALFORMED.values(), ids=MALFORMED)
async def test_malformed_requests(place: Place, lines: str, status: int) -> None:
    async with Raw.connected(place.port) as client:
        client.send(lines.encode())
        answered, headers, body = await client.answer()
        assert answered == status
        assert "server" not in headers, "our software's versions are our own"
        assert b"Traceback" not in body
        assert await client.rest() == b"", "what follows could be anything"
