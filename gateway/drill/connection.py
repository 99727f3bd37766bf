"""The client side of a WebSocket on `/ws`, for load: handshake, frames, pongs. Small enough for thousands.

It has its own codec, so that a mistake in `gateway.wire` is not answered by the same mistake here.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import orjson

# RFC 6455 section 5.2
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
GOING_AWAY = b"\x03\xe9"  # 1001: the user has left the page
UPGRADED = b"HTTP/1.1 101 "

HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
"""Request line and headers, with the key of RFC 6455 section 1.3; the caller adds the empty line."""


def frame(opcode: int, payload: bytes, *, first: int = 0x80, key: bytes = bytes(4)) -> bytes:
    """A masked frame; `first` holds the bits above the opcode. A key of zeros leaves the payload readable."""
    if len(payload) < 126:
        length = bytes((0x80 | len(payload),))
    elif len(payload) < 65536:
        length = b"\xfe" + len(payload).to_bytes(2, "big")
    else:
        length = b"\xff" + len(payload).to_bytes(8, "big")
    keys = (key * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")
    return bytes((first | opcode,)) + length + key + masked.to_bytes(len(payload), "big")


def text(body: object) -> bytes:
    """A masked text frame with `body` as JSON, or unchanged if it is a str."""
    return frame(TEXT, body.encode() if isinstance(body, str) else orjson.dumps(body))


def take_frame(data: bytes) -> tuple[int, bytes, bytes] | None:
    """The first server frame in `data`: opcode, payload, remaining bytes; None while it is incomplete."""
    if len(data) < 2:
        return None
    begin, length = 2, data[1]
    if length >= 126:
        begin += 2 if length == 126 else 8
        length = int.from_bytes(data[2:begin], "big")
    end = begin + length
    return (data[0] & 0x0F, data[begin:end], data[end:]) if len(data) >= max(begin, end) else None


class ClientConnection(asyncio.Protocol):
    """Sends the upgrade, and `registration` right behind it without waiting for the answer.

    Subclasses override `on_message`, `on_rejection` (the upgrade was rejected) and `on_close`.
    """

    def __init__(self, registration: object) -> None:
        self.close_code: int | None = None
        """The code of the server's close frame, if there was one."""
        self._registration = registration
        self._upgraded = False
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def on_message(self, message: dict[str, Any]) -> None:
        """A message has arrived."""

    def on_rejection(self, head: bytes) -> None:
        """The server answered with `head` and no upgrade."""

    def on_close(self) -> None:
        """The connection has ended."""

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def leave(self) -> None:
        """Close as a browser does when the user leaves the page: close frame 1001, then the end of TCP."""
        if self._transport is not None:
            self._transport.write(frame(CLOSE, GOING_AWAY))
            self._transport.close()

    def abort(self) -> None:
        """Reset the connection, as when a device loses its network."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading until `resume`."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(f"{HANDSHAKE}\r\n".encode() + text(self._registration))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._upgraded and not self._read_head():
            return
        while found := take_frame(self._buffer):
            opcode, payload, self._buffer = found
            self._received(opcode, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.on_close()

    def _read_head(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(UPGRADED):
            self._buffer = b""
            self.on_rejection(head)
            self.abort()
            return False
        self._upgraded, self._buffer = True, rest
        return True

    def _received(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self.on_message(orjson.loads(payload))
        elif self._transport is None or self._transport.is_closing():
            return
        elif opcode == PING:
            self._transport.write(frame(PONG, payload))
        elif opcode == CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big")
            self._transport.write(frame(CLOSE, payload[:2]))
