"""Connecting to a server, logging in, and what a connection then executes, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import hiredis
import pytest
import redis

from gateway.drill.fleet import SentinelProcess, ValkeyProcess, free_port
from gateway.redis import server as servers
from gateway.redis.connection import Connection, ConnectionLost, LoginRejected, ReplyError
from gateway.redis.server import Server
from gateway.redis.subscriber import SubscriberConnection

from ..fakes import Events
from ..integration.faults import Proxy
from ..integration.load import until

HELLO = b"%1\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"


def new_subscriber() -> SubscriberConnection:
    return SubscriberConnection(Events(), 1_000)


async def connect(url: str, *, only_master: bool = False) -> Connection:
    return await Server(url).connect(Connection, "test", only_master=only_master)


@pytest.mark.parametrize(
    ("url", "username", "password", "database"),
    [
        ("redis://127.0.0.1", "default", None, 0),
        ("redis://127.0.0.1:6390/7", "default", None, 7),
        ("redis://:secret@127.0.0.1", "default", "secret", 0),
        ("redis://gateway:secret@127.0.0.1/2", "gateway", "secret", 2),
        ("redis://gateway:p%40ss%3A@127.0.0.1", "gateway", "p@ss:", 0),
        ("redis://127.0.0.1?db=3", "default", None, 3),
        ("unix:///run/redis.sock?db=1", "default", None, 1),
        ("unix://gateway:secret@/run/redis.sock", "gateway", "secret", 0),
        ("rediss://:secret@redis.example:6380/1", "default", "secret", 1),
    ],
)
def test_credentials_and_database(url: str, username: str, password: str | None, database: int) -> None:
    server = Server(url)
    assert (server.username, server.password, server.database) == (username, password, database)


class Visit(asyncio.Protocol):
    """A protocol that tells when its connection is made and when it is lost."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.made: asyncio.Future[asyncio.BaseTransport] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.set_result(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set_result(None)


class Listener(asyncio.Protocol):
    """A server that says one thing, in plain text, and hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"-ERR not TLS\r\n")
        transport.close()


async def test_opens_tcp() -> None:
    listener = await asyncio.get_running_loop().create_server(Listener, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        visit = await Server(f"redis://127.0.0.1:{port}").open(Visit())
        assert (await visit.made).get_extra_info("peername") == ("127.0.0.1", port)
        await visit.gone


async def test_opens_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    listener = await asyncio.get_running_loop().create_unix_server(Listener, path)
    async with listener:
        visit = await Server(f"unix://{path}").open(Visit())
        assert (await visit.made).get_extra_info("socket").family == socket.AF_UNIX
        await visit.gone


async def test_no_server_is_an_os_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OSError, match=str(port)):
        await Server(f"redis://127.0.0.1:{port}").open(Visit())
    with pytest.raises(OSError, match="No such file"):
        await Server(f"unix://{tmp_path}/none.sock").open(Visit())


def test_only_rediss_uses_tls_and_verifies_the_server() -> None:
    assert Server("redis://redis.example")._tls is None
    options = Server("rediss://redis.example")._tls
    assert options is not None
    tls = options.context()
    assert tls.verify_mode is ssl.CERT_REQUIRED
    assert tls.check_hostname


async def test_a_server_that_speaks_no_tls_is_an_os_error() -> None:
    listener = await asyncio.get_running_loop().create_server(Listener, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(OSError, match=r"(?i)ssl|reset"):
            await Server(f"rediss://127.0.0.1:{port}").open(Visit())


# Connecting and logging in


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Connection]:
    connection = await connect(url)
    try:
        yield connection
    finally:
        connection.abort("the test is over")


@contextlib.asynccontextmanager
async def saying(*words: bytes) -> AsyncIterator[str]:
    """A server that sends one of these after each read, and closes the connection after the last."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for word in words:
            if not await reader.read(65536):
                break
            writer.write(word)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    listener.close()
    await listener.wait_closed()


async def test_each_gets_the_replies_to_its_own_commands_in_their_order(valkey: ValkeyProcess) -> None:
    async with opened(valkey.url) as connection:
        replies = await asyncio.gather(
            *(connection.pipeline([("ECHO", f"{number}"), ("ECHO", b"again")]) for number in range(20))
        )
    assert replies == [[f"{number}".encode(), b"again"] for number in range(20)]


async def test_an_error_is_one_of_the_replies(valkey: ValkeyProcess) -> None:
    async with opened(valkey.url) as connection:
        first, second, third = await connection.pipeline([("ECHO", "a"), ("NONSENSE",), ("ECHO", "b")])
    assert (first, third) == (b"a", b"b")
    assert isinstance(second, hiredis.ReplyError)


async def test_a_cancelled_caller_leaves_no_replies_to_the_next(
    valkey: ValkeyProcess,
) -> None:
    async with opened(valkey.url) as connection:
        with valkey.frozen(), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.pipeline([("ECHO", "late"), ("ECHO", "later")])
        assert await connection.pipeline([("ECHO", "now")]) == [b"now"]


async def test_credentials_and_database_are_used(valkey: ValkeyProcess) -> None:
    valkey.ask(
        "ACL",
        "SETUSER",
        "writer",
        "on",
        ">p@ss",
        "-@all",
        "+hello",
        "+client|setname",
        "+ping",
        "+select",
        "+set",
        "~*",
    )
    async with opened(valkey.url.replace("//", "//writer:p%40ss@") + "/3") as connection:
        assert await connection.pipeline([("SET", "here", "1", "EX", 10)]) == [b"OK"]
    with redis.Redis(port=valkey.port, db=3) as client:
        assert client.get("here") == b"1"
    with pytest.raises(PermissionError, match="answered HELLO with: WRONGPASS") as caught:
        await connect(valkey.url.replace("//", "//writer:secret@"))
    assert "secret" not in str(caught.value)


@pytest.mark.real
async def test_a_server_without_hello_does_not_repeat_the_password() -> None:
    """One before Redis 6, or one whose owner has renamed commands."""
    with (
        await asyncio.to_thread(ValkeyProcess, "--rename-command", "HELLO", "") as old,
        pytest.raises(PermissionError, match="HELLO with: ERR unknown command 'HELLO'") as caught,
    ):
        await connect(old.url.replace("//", "//writer:secret@"))
    assert "secret" not in str(caught.value)


async def test_a_server_that_loads_its_data_is_one_to_try_again() -> None:
    async with saying(b"-LOADING Valkey is loading the dataset in memory\r\n") as url:
        with pytest.raises(ConnectionError, match="LOADING"):
            await connect(url)


async def test_a_server_that_hangs_up_while_we_log_in() -> None:
    async with saying(HELLO) as url:
        with pytest.raises(ConnectionError, match="closed the connection"):
            await connect(url)


@pytest.mark.parametrize("says", [b"", b"+OK\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"+OK\r\n" * 5])
async def test_a_connection_that_ends_ends_all_that_waits(says: bytes) -> None:
    async with saying(HELLO + b"+PONG\r\n", says) as url:
        connection = await connect(url)
        asked = await asyncio.gather(
            connection.pipeline([("PING",), ("PING",)]),
            connection.pipeline([("PING",)] * 9),
            return_exceptions=True,
        )
        assert type(asked[1]) is ConnectionLost
        assert not connection.is_open
        with pytest.raises(ConnectionError):
            await connection.pipeline([("PING",)])


async def test_no_server_is_an_os_error_at_login_too() -> None:
    with pytest.raises(OSError, match="Connect call failed"):
        await connect(f"redis://127.0.0.1:{free_port()}")


async def test_all_replies_or_the_first_error(valkey: ValkeyProcess) -> None:
    async with opened(valkey.url) as connection:
        assert await connection.execute_all([("ECHO", "a"), ("ECHO", "b")]) == [b"a", b"b"]
        with pytest.raises(ReplyError, match="answered NONSENSE with: ERR unknown command"):
            await connection.execute_all([("ECHO", "a"), ("NONSENSE",)])


async def test_a_replica_is_rejected_where_the_master_is_needed(valkey: ValkeyProcess) -> None:
    with ValkeyProcess("--replicaof", f"127.0.0.1 {valkey.port}") as replica:
        (await connect(replica.url)).abort("the test is over")
        with pytest.raises(ConnectionLost, match=f"{replica.port} is a replica"):
            await connect(replica.url, only_master=True)


# Servers of another kind than the URL says


@pytest.mark.real
async def test_a_node_of_a_cluster_at_a_plain_url() -> None:
    with ValkeyProcess("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as node:
        message = f"this is a node of a Cluster: write redis\\+cluster://{node.address}"
        with pytest.raises(LoginRejected, match=message):
            await connect(node.url)
        connection = await Server(node.url, in_cluster=True).connect(Connection, "test")
        assert connection.mode == b"cluster"
        connection.abort("the test is over")


@pytest.mark.real
async def test_a_sentinel_at_a_plain_url() -> None:
    with SentinelProcess(7_000) as sentinel:
        message = f"this is a Sentinel: write redis\\+sentinel://{sentinel.address}/NAME-OF-THE-MASTER"
        for in_cluster in (False, True):
            with pytest.raises(LoginRejected, match=message):
                await Server(f"redis://{sentinel.address}", in_cluster=in_cluster).connect(Connection, "test")


def test_the_url_to_write_where_there_is_no_address() -> None:
    with pytest.raises(LoginRejected, match=r"write redis\+cluster://HOST:PORT"):
        Server("unix:///run/redis.sock")._check_mode(b"cluster")
    with pytest.raises(LoginRejected, match=r"write rediss\+cluster://\[::1\]:7000"):
        Server("rediss://[::1]:7000")._check_mode(b"cluster")


# What a server says when it has no room


@contextlib.asynccontextmanager
async def refusing(words: bytes, *, reset: bool) -> AsyncIterator[str]:
    """A server that says one thing to whoever connects, and hangs up: with FIN, or with RST at once."""

    def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        if reset:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("ERR max number of clients reached", ReplyError),
        ("DENIED Redis is running in protected mode", LoginRejected),
        ("LOADING Valkey is loading the dataset in memory", ReplyError),
        ("MASTERDOWN Link with MASTER is down", ReplyError),
        ("NOAUTH Authentication required.", LoginRejected),
    ],
)
@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
async def test_the_words_of_a_server_that_hangs_up_are_the_reason(
    words: str, kind: type[OSError], reset: bool
) -> None:
    reasons = set()
    async with refusing(f"-{words}\r\n".encode(), reset=reset) as url:
        for _ in range(20):
            with pytest.raises(kind) as caught:
                await connect(url)
            reasons.add(str(caught.value))
    assert reasons == {f"Redis answered HELLO with: {words}"}


@pytest.mark.real
async def test_a_server_that_has_too_many_clients() -> None:
    with ValkeyProcess("--maxclients", "1") as full, contextlib.closing(socket.socket()) as other:
        other.connect(("127.0.0.1", full.port))
        other.sendall(b"PING\r\n")
        assert await asyncio.to_thread(other.recv, 100) == b"+PONG\r\n"
        for _ in range(20):
            with pytest.raises(
                ReplyError, match="Redis answered HELLO with: ERR max number of clients reached"
            ):
                await connect(full.url)


# Servers that know less


@pytest.mark.real
@pytest.mark.parametrize("lacking", ["renamed", "forbidden"])
async def test_results_are_read_without_eval_ro(lacking: str) -> None:
    options = ["--rename-command", "EVAL_RO", ""] if lacking == "renamed" else []
    with ValkeyProcess(*options) as older:
        if lacking == "forbidden":
            older.ask("ACL", "SETUSER", "default", "-eval_ro")
        older.ask("SET", "websocket:a", "CONFIRMED")
        events = Events([b"websocket:a"])
        connection = await Server(older.url).connect(lambda: SubscriberConnection(events, 1_000), "test")
        connection.start()
        await until(lambda: ("subscribed", b"websocket:a", b"CONFIRMED") in events.heard, "it is read")
        connection.abort("the test is over")


@pytest.mark.parametrize(
    "hostile", [b"*4294967295\r\n", b"%1\r\n*0\r\n:1\r\n", b">0\r\n" * 9, b"+OK\r\n" * 3]
)
async def test_what_no_redis_says_at_login_is_an_os_error(hostile: bytes) -> None:
    async with saying(hostile) as url:
        with pytest.raises(OSError, match=r"unexpected reply|closed the connection"):
            await connect(url)
        with pytest.raises(OSError, match=r"unexpected reply|closed the connection"):
            await Server(url).connect(new_subscriber, "test")


async def test_a_login_may_take_as_long_as_a_connection_may_be_silent(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round trip of 2.4 s: 48 ms here, and a fiftieth of every other time."""
    monkeypatch.setattr(servers, "STEP_TIMEOUT", servers.STEP_TIMEOUT / 50)
    async with Proxy.before(valkey.port) as proxy:
        proxy.delay = 0.024
        connection = await Server(f"{proxy.url}/3").connect(new_subscriber, "test")
        assert connection.is_open
        connection.abort("the test is over")


async def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "STEP_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TimeoutError, match=r"no answer to HELLO within 0\.05 s"):
            await connect(url)
