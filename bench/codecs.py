"""`python -m bench.codecs`: WebSocket frame codecs for the server's side, by speed, memory and strictness.

The codecs are the gateway's own, aiohttp's reader and writer, wsproto and the sans-I/O layer of websockets.
Each reads masked text frames of a client, returns the text, and writes text frames. The figures leave out
transports, tasks and futures; they include the memory that an idle connection needs.
"""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from statistics import median
from typing import Any, Protocol

import click
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp._websocket.writer import WebSocketWriter
from aiohttp.base_protocol import BaseProtocol
from websockets.frames import Frame
from websockets.frames import Opcode as WebsocketsOpcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from bench.driver import client_frame
from bench.report import plain
from gateway.errors import WireError
from gateway.wire import frames

MAX_SIZE = 16_384
CONNECTIONS = 2_000
REPEATS = 7
SMALL, LARGE = 150, 16_000


class Rejected(Exception):
    """The codec would close the connection on this input."""


class Codec(Protocol):
    """One connection's reader and writer."""

    def receive(self, data: bytes) -> int:
        """Read bytes. Returns the number of text messages. Raises Rejected."""

    def write(self, text: bytes) -> object:
        """Make a text frame of UTF-8 `text`."""


class Own:
    """`gateway.wire.frames`."""

    def __init__(self) -> None:
        self._reader = frames.FrameReader(MAX_SIZE)

    def receive(self, data: bytes) -> int:
        try:
            return sum(opcode is frames.Opcode.TEXT for opcode, _ in self._reader.feed(data))
        except WireError as error:
            raise Rejected from error

    def write(self, text: bytes) -> bytes:
        return frames.text(text)


class _Sink(asyncio.Transport):
    """A transport that drops what is written."""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        pass

    def writelines(self, list_of_data: object) -> None:
        pass

    def is_closing(self) -> bool:
        return False


class Aiohttp:
    """The reader, queue and writer behind aiohttp's `WebSocketResponse`, without the response around them."""

    _loop = asyncio.new_event_loop()
    _protocol = BaseProtocol(_loop)
    _sink = _Sink()

    def __init__(self) -> None:
        self._queue = WebSocketDataQueue(self._protocol, 2**16, loop=self._loop)
        self._reader = WebSocketReader(self._queue, MAX_SIZE, compress=False, decode_text=True)
        self._writer = WebSocketWriter(self._protocol, self._sink)

    def receive(self, data: bytes) -> int:
        failed, _ = self._reader.feed_data(data)
        if failed:
            raise Rejected
        count = 0
        while self._queue._buffer:
            _finish(self._queue.read())
            count += 1
        return count

    def write(self, text: bytes) -> None:
        _finish(self._writer.send_frame(text, 1))


class Wsproto:
    """wsproto's connection after the handshake."""

    def __init__(self) -> None:
        self._connection = Connection(ConnectionType.SERVER)

    def receive(self, data: bytes) -> int:
        count = 0
        self._connection.receive_data(data)
        for event in self._connection.events():
            if isinstance(event, CloseConnection) and event.code in (1002, 1007):
                raise Rejected  # its parser reports its own failures as a close with these codes
            count += isinstance(event, TextMessage) and event.message_finished
        return count

    def write(self, text: bytes) -> bytes:
        return self._connection.send(TextMessage(data=text.decode()))


class Websockets:
    """websockets' sans-I/O protocol. It leaves text in bytes; its asyncio layer decodes, and so do we."""

    def __init__(self) -> None:
        self._protocol = ServerProtocol(state=OPEN, max_size=MAX_SIZE)

    def receive(self, data: bytes) -> int:
        self._protocol.receive_data(data)
        events = self._protocol.events_received()
        if self._protocol.parser_exc is not None:
            raise Rejected
        count = 0
        for event in events:
            if isinstance(event, Frame) and event.opcode is WebsocketsOpcode.TEXT and event.fin:
                try:
                    bytes(event.data).decode()
                except UnicodeDecodeError as error:
                    raise Rejected from error
                count += 1
        return count

    def write(self, text: bytes) -> list[bytes]:
        self._protocol.send_text(text)
        return self._protocol.data_to_send()


CODECS: dict[str, Callable[[], Codec]] = {
    "gateway.wire.frames": Own,
    f"aiohttp {version('aiohttp')}": Aiohttp,
    f"wsproto {version('wsproto')}": Wsproto,
    f"websockets {version('websockets')}": Websockets,
}


def _finish(coroutine: Coroutine[object, None, object]) -> object:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the coroutine waits for something")


# --- strictness ---

_MASK = bytes(4)  # a mask of zeros is a valid one, and leaves the probes readable


def _masked(first: int, payload: bytes) -> bytes:
    return bytes([first, 0x80 | len(payload)]) + _MASK + payload


# What violates RFC 6455, with the section.
INVALID = {
    "client frame without a mask (5.1)": b"\x81\x02{}",
    "reserved bit (5.2)": _masked(0xC1, b"{}"),
    "reserved opcode (5.2)": _masked(0x83, b"{}"),
    "length not in its shortest form (5.2)": b"\x81\xfe\x00\x02" + _MASK + b"{}",
    "control frame in fragments (5.5)": _masked(0x09, b""),
    "control frame of 126 bytes (5.5)": b"\x89\xfe\x00\x7e" + _MASK + bytes(126),
    "close frame with half a code (5.5.1)": _masked(0x88, b"\x03"),
    "close frame with code 1006 (7.4.1)": _masked(0x88, (1006).to_bytes(2, "big")),
    "close frame with a reason that is not UTF-8 (5.5.1)": _masked(0x88, (1000).to_bytes(2, "big") + b"\xff"),
    "continuation of nothing (5.4)": _masked(0x80, b"{}"),
    "new message inside a fragmented one (5.4)": _masked(0x01, b"{") + _masked(0x81, b"{}"),
    "text that is not UTF-8 (8.1)": _masked(0x81, b'"\xff"'),
    "the same, at once in the first of two fragments (8.1)": _masked(0x01, b'"\xff'),
    "the same, at once in the first half of a frame (8.1)": _masked(0x81, b'"\xff"')[:-1],
    "over the size limit, by the header alone (10.4)": b"\x81\xfe\xff\xff" + _MASK,
}
VALID = {
    "one frame": _masked(0x81, b"{}"),
    "fragments with a ping between, cut inside a character": (
        _masked(0x01, b'"\xc3') + _masked(0x89, b"") + _masked(0x80, b'\xa9"')
    ),
}


def rejects(make: Callable[[], Codec], data: bytes) -> bool:
    """Whether a fresh codec would close the connection on this."""
    try:
        make().receive(data)
    except Rejected:
        return True
    return False


# --- speed and memory ---


def microseconds(call: Callable[[], object], calls: int) -> float:
    """µs of CPU time for one `call`: the best of several runs, because other work only makes code slower."""
    best = float("inf")
    for _ in range(REPEATS):
        begin = time.process_time_ns()
        for _ in range(calls):
            call()
        best = min(best, (time.process_time_ns() - begin) / calls / 1000)
    return best


def idle_bytes(make: Callable[[], Codec]) -> float:
    """Bytes that Python keeps for an idle connection that has read and written a message."""
    message = client_frame(1, b"x" * SMALL)

    def connection() -> Codec:
        codec = make()
        codec.receive(message)
        codec.write(b"x" * SMALL)
        return codec

    connection()  # what exists once for all connections does not count
    sizes = []
    for _ in range(3):
        gc.collect()
        tracemalloc.start()
        kept = [connection() for _ in range(CONNECTIONS)]
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0] / CONNECTIONS)
        tracemalloc.stop()
        kept.clear()
    return median(sizes)


def _figures(make: Callable[[], Codec]) -> list[str]:
    codec = make()
    small, large = (client_frame(1, b"x" * size) for size in (SMALL, LARGE))
    for frame in (small, large):
        if codec.receive(frame) != 1:
            raise AssertionError(f"{codec}: one frame is one message")
    answer = b"x" * SMALL
    return [
        f"{microseconds(lambda: codec.receive(small), 20_000):.2f}",
        f"{microseconds(lambda: codec.receive(large), 2_000):.1f}",
        f"{microseconds(lambda: codec.write(answer), 20_000):.2f}",
        f"{idle_bytes(make):,.0f}",
        f"{sum(rejects(make, data) for data in INVALID.values())} of {len(INVALID)}",
    ]


@click.command()
def main() -> None:
    """Print the cost of each codec, and the violations of RFC 6455 that it accepts."""
    names = list(CODECS)
    titles = [f"read {SMALL} B, µs", f"read {LARGE} B, µs", f"write {SMALL} B, µs", "idle, B", "rejects"]
    click.echo(plain([["codec", *titles], *([name, *_figures(CODECS[name])] for name in names)]))
    lines = [
        [what, *("rejected" if rejects(CODECS[name], data) else "ACCEPTED" for name in names)]
        for what, data in INVALID.items()
    ]
    lines += [
        [f"valid: {what}", *("REJECTED" if rejects(CODECS[name], data) else "accepted" for name in names)]
        for what, data in VALID.items()
    ]
    click.echo("\n" + plain([["input (section of RFC 6455)", *names], *lines]))


if __name__ == "__main__":
    main()
