"""One client whose every byte the test chooses.

It reads when the test asks for something. `ClientConnection`, the client for load, reacts to what arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

from .load import HANDSHAKE, SECONDS, take_frame, text


class Raw:
    """A TCP connection to a node. Every call that reads waits for `SECONDS` at most."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = b""

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, port: int, *, receive_buffer: int = 0) -> AsyncIterator[Raw]:
        """Connect, with SO_RCVBUF set to `receive_buffer` bytes if that is not 0; closes at the end."""
        connection = socket.socket()
        connection.setblocking(False)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(
            sock=connection, limit=2**12 if receive_buffer else 2**16
        )
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @classmethod
    @contextlib.asynccontextmanager
    async def upgraded(cls, port: int, headers: str = "", *, receive_buffer: int = 0) -> AsyncIterator[Raw]:
        """Connect and have the handshake answered with 101; `headers` are whole lines."""
        async with cls.connected(port, receive_buffer=receive_buffer) as raw:
            raw.send(f"{HANDSHAKE}{headers}\r\n".encode())
            head = await raw.head()
            assert head.startswith(b"HTTP/1.1 101 "), head
            yield raw

    @classmethod
    @contextlib.asynccontextmanager
    async def registered(cls, port: int, name: str, *, receive_buffer: int = 0) -> AsyncIterator[Raw]:
        """Connect, upgrade, and have the registration of `name` answered."""
        async with cls.upgraded(port, receive_buffer=receive_buffer) as raw:
            await raw.register(name)
            yield raw

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def end(self) -> None:
        """Half-close: the client sends nothing more."""
        self._writer.write_eof()

    async def register(self, name: str) -> None:
        self.send(text({"webSocketId": name}))
        answer = await self.message()
        assert answer["registrationSucceeded"] is True, answer

    async def head(self) -> bytes:
        """The status line and headers of the next HTTP answer."""
        async with asyncio.timeout(SECONDS):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of the next HTTP answer."""
        first, *lines = (await self.head()).decode().rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        async with asyncio.timeout(SECONDS):
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, body

    async def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        async with asyncio.timeout(SECONDS):
            while not (found := take_frame(self._buffer)):
                data = await self._reader.read(65536)
                assert data, f"the node has closed the connection within a frame: {self._buffer!r}"
                self._buffer += data
        opcode, payload, self._buffer = found
        return opcode, payload

    async def message(self) -> dict[str, Any]:
        """The next frame, which must be a text message with a JSON object."""
        opcode, payload = await self.frame()
        assert opcode == 1, (opcode, payload)
        body: dict[str, Any] = json.loads(payload)
        return body

    async def closed(self) -> tuple[int, str]:
        """Code and reason of the CLOSE that must be the next frame."""
        opcode, payload = await self.frame()
        assert opcode == 8, (opcode, payload)
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    async def until(self, end: bytes) -> bytes:
        """The bytes up to and including `end`."""
        async with asyncio.timeout(SECONDS):
            return await self._reader.readuntil(end)

    async def rest(self) -> bytes:
        """The bytes until the node ends the connection."""
        data = self._buffer
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(SECONDS):
                while more := await self._reader.read(65536):
                    data += more
        return data
