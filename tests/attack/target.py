"""The node under attack: how to reach it, and what it holds."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio

from gateway.drill.connection import HANDSHAKE, take_frame, text

SECONDS = 10.0
"""For any one answer. Only a hang takes that long."""

HERE = "127.0.0.1"
BYSTANDER = "127.0.0.9"
"""The address of the other browser, which has nothing to do with the attack."""

MB = 1_000_000

CHUNK = 65_536
TCP_STATES = {1: "ESTABLISHED", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 8: "CLOSE-WAIT", 9: "LAST-ACK"}
"""The states of include/net/tcp_states.h in which a connection still holds bytes of the node."""


class Connection:
    """A TCP connection whose every byte the attack chooses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = b""

    def send(self, data: bytes) -> None:
        """Write as much as the node takes; the rest waits, and nobody waits for it."""
        self._writer.write(data)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next HTTP answer; status 0 if the node has closed the connection."""
        try:
            async with asyncio.timeout(SECONDS):
                head = await self._reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line[15:])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    0,
                )
                return int(head.split()[1]), await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return 0, b""

    async def message(self) -> dict[str, Any]:
        """The next text message on a WebSocket. Raises EOFError when the node has closed it."""
        while True:
            opcode, payload = await self._frame()
            if opcode == 1:
                body: dict[str, Any] = json.loads(payload)
                return body
            if opcode == 8:
                raise EOFError(f"closed with {int.from_bytes(payload[:2], 'big')} {payload[2:].decode()}")

    async def ended(self) -> bytes:
        """Wait for the end of the connection. Returns what came before it."""
        data = self._buffer
        with contextlib.suppress(OSError):
            async with asyncio.timeout(SECONDS):
                while more := await self._reader.read(CHUNK):
                    data += more
        return data

    async def _frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(SECONDS):
            while not (found := take_frame(self._buffer)):
                if not (data := await self._reader.read(CHUNK)):
                    raise EOFError("the connection has ended")
                self._buffer += data
        opcode, payload, self._buffer = found
        return opcode, payload

    async def close(self) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


@dataclass
class Target:
    """A node on a loopback address.

    `pid` is its process (of several workers, the parent), `redis_url` the Redis that it uses, and `logs`
    returns its log lines so far. Without them, what they would show is not judged.
    """

    host: str
    port: int
    admin_port: int
    pid: int | None = None
    redis_url: str | None = None
    logs: Callable[[], Sequence[dict[str, Any]]] | None = None

    def __post_init__(self) -> None:
        if not ipaddress.ip_address(self.host).is_loopback:
            raise ValueError(f"{self.host} is not a loopback address: attack only nodes on this machine")

    # How to reach it

    async def connect(
        self, address: str = HERE, *, narrow: bool = False, port: int | None = None
    ) -> Connection:
        """Connect from `address`. A `narrow` client has small buffers, as over a network."""
        connection = socket.socket()
        connection.setblocking(False)
        if narrow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.bind((address, 0))
        try:
            async with asyncio.timeout(SECONDS):
                await asyncio.get_running_loop().sock_connect(connection, (self.host, port or self.port))
        except BaseException:
            connection.close()
            raise
        # The stream reads ahead up to twice its limit.
        return Connection(*await asyncio.open_connection(sock=connection, limit=2_048 if narrow else CHUNK))

    @contextlib.asynccontextmanager
    async def connections(
        self, count: int, addresses: Sequence[str] = (HERE,), *, narrow: bool = False
    ) -> AsyncIterator[list[Connection]]:
        """So many connections, spread over `addresses`, as far as the node takes them."""
        opened: list[Connection] = []
        try:
            for number in range(count):
                with contextlib.suppress(OSError):
                    opened.append(await self.connect(addresses[number % len(addresses)], narrow=narrow))
            yield opened
        finally:
            await asyncio.gather(*(connection.close() for connection in opened))

    async def request(
        self, head: str, body: bytes = b"", *, address: str = HERE, admin: bool = False
    ) -> tuple[int, bytes]:
        """Send one request on a new connection. Returns status and body. `head` has no last empty line."""
        connection = await self.connect(address, port=self.admin_port if admin else None)
        try:
            connection.send(head.encode("latin-1") + b"\r\n" + body)
            return await connection.answer()
        finally:
            await connection.close()

    async def websocket(
        self, address: str = HERE, *, path: str = "/ws", protocol: str = "", narrow: bool = False
    ) -> Connection:
        """A WebSocket. Raises ConnectionRefusedError if the node rejects it."""
        connection = await self.connect(address, narrow=narrow)
        head = HANDSHAKE.replace("/ws ", f"{path} ", 1)
        connection.send(
            (head + (f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else "") + "\r\n").encode()
        )
        status, body = await connection.answer()
        if status != 101:
            await connection.close()
            raise ConnectionRefusedError(f"{status} {body.decode(errors='replace')}")
        return connection

    @contextlib.asynccontextmanager
    async def registered(self, name: str, address: str = HERE) -> AsyncIterator[Connection]:
        """A WebSocket that waits for the results of `name`."""
        connection = await self.websocket(address)
        try:
            connection.send(text({"webSocketId": name}))
            answer = await connection.message()
            if not answer.get("registrationSucceeded"):
                raise ConnectionRefusedError(str(answer))
            yield connection
        finally:
            await connection.close()

    # What it still does for somebody else

    async def serves_a_bystander(self) -> str:
        """Why another browser does not get its result now; empty if it does."""
        try:
            async with self.registered("bystander", BYSTANDER) as browser:
                if self.redis_url is None:
                    return ""
                async with redis.asyncio.Redis.from_url(self.redis_url) as client:
                    await client.publish("websocket:bystander", "CONFIRMED")
                await browser.message()
        except (OSError, EOFError, TimeoutError) as error:
            return f"another browser: {error or type(error).__name__}"
        return ""

    async def is_alive(self) -> bool:
        """Whether /healthz answers 200."""
        status, _ = await self.admin("/healthz")
        return status == 200

    async def state(self) -> dict[str, Any]:
        """The body of /readyz."""
        body: dict[str, Any] = json.loads((await self.admin("/readyz"))[1])
        return body

    async def admin(self, path: str) -> tuple[int, bytes]:
        """GET from the admin port, on a new connection from the bystander's address."""
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        try:
            return await self.request(head, address=BYSTANDER, admin=True)
        except (OSError, TimeoutError):
            return 0, b""

    # What it holds

    def memory(self) -> int | None:
        """Bytes of memory of the node and its workers; None if its process is not known."""
        return None if self.pid is None else sum(map(_resident, _family(self.pid)))

    def cpu_seconds(self) -> float | None:
        """Seconds of CPU that the node and its workers have used."""
        return None if self.pid is None else sum(map(_cpu_seconds, _family(self.pid)))

    def unread(self) -> int:
        """Bytes that the kernel holds on the node's public port for clients that do not read them."""
        return sum(waiting for _, waiting in _sockets(self.port))

    def sockets(self) -> Counter[str]:
        """The node's connections on its public port, by state of TCP."""
        return Counter(TCP_STATES[state] for state, _ in _sockets(self.port) if state in TCP_STATES)


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
    return found


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100  # utime and stime, in clock ticks (proc(5))
    return 0.0


def _sockets(port: int) -> list[tuple[int, int]]:
    """State and unsent or unacknowledged bytes of each connection whose local port is `port`."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].partition(":")[2], 16) == port:
            found.append((int(fields[3], 16), int(fields[4].partition(":")[0], 16)))
    return found
