"""The connection between a worker and its parent: a JSON object a line, both ways, over a pair of sockets.

The parent asks and orders, the worker answers and sends heartbeats. When the connection ends, the other
process is gone.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final, cast

import orjson

Message = dict[str, Any]

MAX_LINE: Final = 16 << 20
"""Bytes. The longest line is a worker's metrics; after a longer one the connection is closed."""


class Control(asyncio.Protocol):
    """One end of the connection."""

    def __init__(self, on_message: Callable[[Message], None], on_lost: Callable[[], None]) -> None:
        """`on_message` gets each message that is no answer; `on_lost` is called when the other end closes."""
        self._on_message = on_message
        self._on_lost = on_lost
        self._buffer = bytearray()
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._transport: asyncio.Transport | None = None
        self._unsent = b""  # what was sent before the connection was open

    async def open(self, connection: socket.socket) -> None:
        """Use `connection`, which belongs to this end from now on."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=connection)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def send(self, message: Message) -> None:
        """Send `message`, or queue it until the connection is open. If the connection ends, it is lost."""
        line = orjson.dumps(message) + b"\n"
        if self._transport is None:
            self._unsent += line
        elif not self._transport.is_closing():
            self._transport.write(line)

    async def ask(self, what: str, seconds: float, about: str = "") -> Any:
        """The other end's answer to a question, perhaps `about` something; None if none comes in time."""
        self._count += 1
        number = self._count
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        self.send({"ask": what, "number": number, **({"about": about} if about else {})})
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            return None
        finally:
            self._questions.pop(number, None)

    def answer(self, question: Message, answer: object) -> None:
        """Answer a message that has `ask`."""
        self.send({"answer": answer, "number": question["number"]})

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class is no subclass of asyncio's
        self._transport.write(self._unsent)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        for line in lines:
            self._received(orjson.loads(line))
        if len(rest) > MAX_LINE:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for question in self._questions.values():
            if not question.done():
                question.set_result(None)
        self._on_lost()

    def _received(self, message: Message) -> None:
        if "answer" not in message:
            self._on_message(message)
            return
        question = self._questions.get(message["number"])
        if question is not None and not question.done():
            question.set_result(message["answer"])
