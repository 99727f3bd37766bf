"""Commands and their replies over one connection, and the connections that are kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import hiredis
import pytest
import redis

from gateway.drill.fleet import ValkeyProcess, free_port
from gateway.redis.pool import PUBLISHER_NAME, ConnectionPool, PipelineConnection
from gateway.redis.topology import Server

HELLO = b"%1\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[PipelineConnection]:
    line = await PipelineConnection.open(Server(url))
    try:
        yield line
    finally:
        line.abort("the test is over")


@contextlib.asynccontextmanager
async def saying(*words: bytes) -> AsyncIterator[str]:
    """A server that says one of these whenever it has heard something; and goes when there are no more."""

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
    async with opened(valkey.url) as line:
        replies = await asyncio.gather(
            *(line.ask_all([("ECHO", f"{number}"), ("ECHO", b"again")]) for number in range(20))
        )
    assert replies == [[f"{number}".encode(), b"again"] for number in range(20)]


async def test_a_refusal_is_one_of_the_replies(valkey: ValkeyProcess) -> None:
    async with opened(valkey.url) as line:
        first, second, third = await line.ask_all([("ECHO", "a"), ("NONSENSE",), ("ECHO", "b")])
    assert (first, third) == (b"a", b"b")
    assert isinstance(second, hiredis.ReplyError)


async def test_replies_for_who_has_given_up_are_not_taken_for_the_next_ones(valkey: ValkeyProcess) -> None:
    async with opened(valkey.url) as line:
        with valkey.frozen(), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await line.ask_all([("ECHO", "late"), ("ECHO", "later")])
        assert await line.ask_all([("ECHO", "now")]) == [b"now"]


async def test_credentials_and_database(valkey: ValkeyProcess) -> None:
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
    async with opened(valkey.url.replace("//", "//writer:p%40ss@") + "/3") as line:
        assert await line.ask_all([("SET", "here", "1", "EX", 10)]) == [b"OK"]
    with redis.Redis(port=valkey.port, db=3) as client:
        assert client.get("here") == b"1"
    with pytest.raises(PermissionError, match="answered HELLO with: WRONGPASS") as caught:
        await PipelineConnection.open(Server(valkey.url.replace("//", "//writer:secret@")))
    assert "secret" not in str(caught.value)


async def test_a_server_that_loads_its_data_is_one_to_try_again() -> None:
    async with saying(b"-LOADING Valkey is loading the dataset in memory\r\n") as url:
        with pytest.raises(ConnectionError, match="LOADING"):
            await PipelineConnection.open(Server(url))


async def test_a_server_that_hangs_up_while_we_log_in() -> None:
    async with saying(HELLO) as url:
        with pytest.raises(ConnectionError, match="closed the connection"):
            await PipelineConnection.open(Server(url))


@pytest.mark.parametrize("says", [b"", b"+OK\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"+OK\r\n" * 5])
async def test_a_connection_that_ends_ends_all_that_waits(says: bytes) -> None:
    async with saying(HELLO, b"+PONG\r\n", says) as url:
        line = await PipelineConnection.open(Server(url))
        asked = await asyncio.gather(
            line.ask_all([("PING",), ("PING",)]), line.ask_all([("PING",)] * 9), return_exceptions=True
        )
        assert type(asked[1]) is ConnectionError
        assert line.lost
        with pytest.raises(ConnectionError):
            await line.ask_all([("PING",)])


async def test_nobody_there_is_an_os_error() -> None:
    with pytest.raises(OSError, match="Connect call failed"):
        await PipelineConnection.open(Server(f"redis://127.0.0.1:{free_port()}"))


async def test_a_line_is_kept_until_it_is_lost_or_dropped(valkey: ValkeyProcess) -> None:
    lines, server = ConnectionPool(), Server(valkey.url)
    first, same = await asyncio.gather(lines.to(server), lines.to(server))
    assert first is same
    lines.drop(server)
    lines.drop(Server("redis://nobody"))
    second = await lines.to(server)
    assert second is not first
    assert first.lost
    second.abort("to see what comes of it")
    third = await lines.to(server)
    assert await third.ask_all([("PING",)]) == [b"PONG"]
    lines.close()
    assert third.lost


async def test_a_replica_is_not_kept_where_only_masters_will_do(valkey: ValkeyProcess) -> None:
    with ValkeyProcess("--replicaof", f"127.0.0.1 {valkey.port}") as replica:
        server = Server(replica.url)
        assert not (await ConnectionPool().to(server)).lost
        lines = ConnectionPool(only_masters=True)
        with pytest.raises(ConnectionError, match=f"{replica.port} is no master"):
            await lines.to(server)
        replica.ask("REPLICAOF", "NO", "ONE")
        assert not (await lines.to(server)).lost
        assert replica.ask("CLIENT", "LIST").count(f"name={PUBLISHER_NAME}") == 2
