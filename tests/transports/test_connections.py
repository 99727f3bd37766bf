"""What connections hold, on real sockets: the kernel is half of it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import resource
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from gateway.core.admission import Admission, Backlog, Connections, FairPool
from gateway.server.listeners import listen, port_of
from gateway.transports.connections import ConnectionLedger
from gateway.transports.sockets import is_unread, outgoing, reset

SECONDS = 10.0
CLOSE_TIMEOUT = 0.3
ESTABLISHED, FIN_WAIT_1, TIME_WAIT, LISTEN = "01", "04", "06", "0A"


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on asyncio's own loop, and on uvloop."""

    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **given: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**given))

    signature = inspect.signature(test)
    loop = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect reads it
        parameters=[*signature.parameters.values(), loop]
    )
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    both: Callable[..., None] = pytest.mark.parametrize("new_loop", loops, ids=["asyncio", "uvloop"])(run)
    return both


class Server(asyncio.Protocol):
    """The node's end of a connection, which is no session unless the test says so."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self.session = False
        self.lost = asyncio.Event()
        self.flushed = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=0)
        self._port.ledger.connections.open(self._port.ledger.source(transport))
        self._port.arrived.put_nowait(self)

    def resume_writing(self) -> None:
        self.flushed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        (self._port.ledger.session_lost if self.session else self._port.ledger.lost)(self.transport)
        self.lost.set()


class Port:
    """A listening port whose connections are counted."""

    def __init__(self) -> None:
        connections = Connections(100, 100, Admission(100, 100), str)
        self.ledger = ConnectionLedger(connections, FairPool(10), Backlog(1 << 20), CLOSE_TIMEOUT)
        self.arrived: asyncio.Queue[Server] = asyncio.Queue()
        self.number = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls) -> AsyncIterator[Port]:
        port = cls()
        ((listener,),) = listen("port", ("127.0.0.1",), 0, 10)
        port.number = port_of([listener])
        server = await asyncio.get_running_loop().create_server(lambda: Server(port), sock=listener)
        try:
            yield port
        finally:
            server.close()
            port.ledger.close()
            await server.wait_closed()
            await asyncio.sleep(0.01)  # uvloop closes handles in a later turn

    async def connect(self) -> tuple[socket.socket, Server]:
        """A client that reads nothing unless the test does, and the node's end."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.number))
        async with asyncio.timeout(SECONDS):
            return client, await self.arrived.get()

    def states(self) -> list[str]:
        """The states of the node's open sockets, as in /proc/net/tcp."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        own = [row[3] for row in rows if int(row[1].rpartition(":")[2], 16) == self.number]
        return [state for state in own if state not in (LISTEN, TIME_WAIT)]


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - the kernel has no event for it
            await asyncio.sleep(0.01)


async def read_all(client: socket.socket) -> bytes:
    data, loop = b"", asyncio.get_running_loop()
    async with asyncio.timeout(SECONDS):
        while more := await loop.sock_recv(client, 65_536):
            data += more
    return data


def fill(server: Server, size: int) -> None:
    server.transport.write(b"x" * size)


async def unread_in_the_kernel(server: Server) -> int:
    """Write, past the transport, what the kernel takes while the client reads nothing. Returns how much."""
    written, refused = 0, 0
    with server.transport.get_extra_info("socket").dup() as connection:
        while refused < 5:  # what is under way makes room for more when it has arrived
            try:
                written += connection.send(b"x" * 2_000)
                refused = 0
            except BlockingIOError:
                refused += 1
                await asyncio.sleep(0.02)
        assert is_unread(connection)
    return written


@on_both_loops
async def test_the_kernel_holds_little_for_a_client_that_does_not_read() -> None:
    async with Port.open() as port:
        client, server = await port.connect()
        with client:
            fill(server, 3_000_000)
            await asyncio.sleep(0.05)
            held = outgoing(server.transport.get_extra_info("socket").fileno())
            received = 3_000_000 - server.transport.get_write_buffer_size() - held
            assert held <= 16_384, "without the options it would be megabytes"
            assert received <= 65_536, "the client's own buffer"
            reset(server.transport)
            await server.lost.wait()


@on_both_loops
async def test_a_reset_leaves_nothing_in_the_kernel() -> None:
    async with Port.open() as port:
        client, server = await port.connect()
        with client:
            fill(server, 100_000)
            await asyncio.sleep(0.05)
            assert port.states() == [ESTABLISHED]
            reset(server.transport)
            await server.lost.wait()
            await until(lambda: port.states() == [])
            assert port.ledger.connections.total == 0
            reset(server.transport)  # it is gone: this does nothing


@pytest.mark.parametrize("session", [False, True])
@on_both_loops
async def test_a_closed_connection_is_counted_until_its_client_has_read_or_is_reset(session: bool) -> None:
    async with Port.open() as port:
        client, server = await port.connect()
        with client:
            server.session = session
            if session:
                port.ledger.became_session("127.0.0.1")
            await unread_in_the_kernel(server)
            server.transport.close()
            await server.lost.wait()
            connections = port.ledger.connections
            assert (connections.total, connections.closing, port.states()) == (1, 1, [FIN_WAIT_1])
            await until(lambda: not connections.total)
            assert (connections.closing, connections._pool._by_address) == (0, {})
            await until(lambda: port.states() == [])
            with pytest.raises(ConnectionResetError):
                await read_all(client)


@on_both_loops
async def test_a_client_that_reads_gets_everything() -> None:
    async with Port.open() as port:
        client, server = await port.connect()
        with client:
            written = await unread_in_the_kernel(server)
            server.transport.close()
            await server.lost.wait()
            assert port.ledger.connections.closing == 1
            assert len(await read_all(client)) == written
            await until(lambda: not port.ledger.connections.total)


@on_both_loops
async def test_a_stop_resets_what_is_not_read() -> None:
    async with Port.open() as port:
        client, server = await port.connect()
        with client:
            await unread_in_the_kernel(server)
            server.transport.close()
            await server.lost.wait()
            port.ledger.close()
            assert port.ledger.connections.total == 0
            await until(lambda: port.states() == [])


@on_both_loops
async def test_without_a_free_descriptor_the_connection_is_reset_and_counted_off() -> None:
    async with Port.open() as port:
        client, server = await port.connect()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with client:
            await unread_in_the_kernel(server)
            server.transport.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
            try:
                async with asyncio.timeout(SECONDS):
                    await server.lost.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert (port.ledger.connections.total, port.ledger.connections.closing) == (0, 0)
            await until(lambda: port.states() == [])


@on_both_loops
async def test_an_ordinary_close_keeps_nothing() -> None:
    async with Port.open() as port:
        client, server = await port.connect()
        with client:
            server.transport.write(b"the end")
            server.transport.close()
            await server.lost.wait()
            assert (port.ledger.connections.total, port.ledger.connections.closing) == (0, 0)
            assert await read_all(client) == b"the end"


@on_both_loops
async def test_a_connection_that_the_client_has_reset_is_gone() -> None:
    async with Port.open() as port:
        client, server = await port.connect()
        fill(server, 100_000)
        await asyncio.sleep(0.05)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        await server.lost.wait()
        assert (port.ledger.connections.total, port.ledger.connections.closing) == (0, 0)


@on_both_loops
async def test_what_is_no_tcp_connection_has_nothing_unread() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert not is_unread(one)
    assert not is_unread(one)
