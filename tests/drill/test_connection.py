"""A client's side of one WebSocket."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.drill.connection import (
    CLOSE,
    HANDSHAKE,
    PING,
    PONG,
    TEXT,
    ClientConnection,
    frame,
    take_frame,
    text,
)
from gateway.wire import frames

from ..fakes import Transport

UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


class Listener(ClientConnection):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__({"webSocketId": "a"})
        self.messages: list[dict[str, Any]] = []
        self.heads: list[bytes] = []
        self.closed = False
        self.transport = Transport()
        self.connection_made(self.transport)

    def on_message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def on_rejection(self, head: bytes) -> None:
        self.heads.append(head)

    def on_close(self) -> None:
        self.closed = True


def server_frame(opcode: int, payload: bytes) -> bytes:
    """A short one, as a node would write it."""
    return bytes([0x80 | opcode, len(payload)]) + payload


@given(
    st.sampled_from([TEXT, PING, CLOSE]),
    st.integers(0, 300) | st.sampled_from([125, 126, 65_535, 65_536]),
    st.binary(min_size=4, max_size=4),
)
def test_the_gateways_reader_reads_what_is_written(opcode: int, size: int, key: bytes) -> None:
    payload = b"x" * size if opcode == TEXT else (b"\x03\xe8" if opcode == CLOSE else b"x" * min(size, 125))
    reader = frames.FrameReader(1 << 20)
    assert list(reader.feed(frame(opcode, payload, key=key))) == [(opcode, payload)]


@given(st.integers(0, 70_000), st.binary(max_size=20))
def test_what_the_gateway_writes_is_read(size: int, rest: bytes) -> None:
    data = frames.text(b"x" * size)
    assert take_frame(data + rest) == (TEXT, b"x" * size, rest)
    for cut in (0, 1, 2, 3, 9, len(data) - 1):
        assert take_frame(data[: min(cut, len(data) - 1)]) is None


def test_it_registers_without_waiting_for_the_upgrade() -> None:
    listener = Listener()
    assert listener.transport.output == f"{HANDSHAKE}\r\n".encode() + text({"webSocketId": "a"})


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_messages_come_in_pieces_of_any_size(size: int) -> None:
    listener = Listener()
    bodies = [{"authResult": "A"}, {"data": "x" * 500}]
    data = UPGRADED + b"".join(frames.text(orjson.dumps(body)) for body in bodies)
    for start in range(0, len(data), size):
        listener.data_received(data[start : start + size])
    assert listener.messages == bodies


def test_pings_and_closes_are_answered() -> None:
    listener = Listener()
    listener.data_received(UPGRADED)
    before = len(listener.transport.written)
    listener.data_received(server_frame(PING, b"here?") + server_frame(CLOSE, b"\x03\xf4service restart"))
    assert listener.transport.written[before:] == [frame(PONG, b"here?"), frame(CLOSE, b"\x03\xf4")]
    assert listener.close_code == 1012
    listener.connection_lost(None)
    assert listener.closed


def test_a_refusal_ends_the_connection() -> None:
    listener = Listener()
    listener.data_received(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n{}")
    assert listener.heads == [b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1"]
    assert listener.transport.aborted
    assert not listener.messages


def test_leaving_is_a_close_and_the_end_of_tcp() -> None:
    listener = Listener()
    listener.data_received(UPGRADED)
    listener.leave()
    assert listener.transport.output.endswith(frame(CLOSE, b"\x03\xe9"))
    assert listener.transport.closing
    listener.data_received(server_frame(PING, b""))
    assert listener.transport.output.endswith(frame(CLOSE, b"\x03\xe9")), "nothing is written behind it"
    listener.connection_lost(None)
    listener.leave()
    listener.abort()
    listener.pause()
    listener.resume()
