"""gateway.line: commands and their replies over one connection, and the connections that are kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import hiredis
import pytest
import redis

from gateway.line import Line, Lines

from .processes import Valkey, free_port


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Line]:
    line = await Line.open(url)
    try:
        yield line
    finally:
        line.abort()


@contextlib.asynccontextmanager
async def server(says: bytes, then_close: bool = False) -> AsyncIterator[str]:
    """A server that answers the first thing it hears with `says`."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(says)
        if not then_close:
            await done.wait()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    done.set()
    listener.close()
    await listener.wait_closed()


async def test_each_gets_the_replies_to_its_own_commands_in_their_order(valkey: Valkey) -> None:
    async with opened(valkey.url) as line:
        replies = await asyncio.gather(
            *(line.ask([("ECHO", f"{number}"), ("ECHO", b"again")]) for number in range(20))
        )
    assert replies == [[f"{number}".encode(), b"again"] for number in range(20)]


async def test_a_refusal_is_one_of_the_replies(valkey: Valkey) -> None:
    async with opened(valkey.url) as line:
        first, second, third = await line.ask([("ECHO", "a"), ("NONSENSE",), ("ECHO", "b")])
    assert (first, third) == (b"a", b"b")
    assert isinstance(second, hiredis.ReplyError)


async def test_replies_for_who_has_given_up_are_not_taken_for_the_next_ones(valkey: Valkey) -> None:
    async with opened(valkey.url) as line:
        with valkey.frozen(), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await line.ask([("ECHO", "late"), ("ECHO", "later")])
        assert await line.ask([("ECHO", "now")]) == [b"now"]


async def test_credentials_and_database(valkey: Valkey) -> None:
    valkey.ask("ACL", "SETUSER", "writer", "on", ">p@ss", "-@all", "+select", "+set", "~*")
    async with opened(valkey.url.replace("//", "//writer:p%40ss@") + "/3") as line:
        assert await line.ask([("SET", "here", "1", "EX", 10)]) == [b"OK"]
    with redis.Redis(port=valkey.port, db=3) as client:
        assert client.get("here") == b"1"
    with pytest.raises(PermissionError, match="it answered AUTH with: WRONGPASS") as caught:
        await Line.open(valkey.url.replace("//", "//writer:secret@"))
    assert "secret" not in str(caught.value)


async def test_a_server_that_loads_its_data_is_one_to_try_again() -> None:
    async with server(b"-LOADING Valkey is loading the dataset in memory\r\n") as url:
        with pytest.raises(ConnectionError, match="LOADING"):
            await Line.open(url.replace("//", "//:password@"))


@pytest.mark.parametrize(
    ("says", "close"), [(b"", True), (b"+OK\r\n", True), (b"HTTP/1.1 400 Bad Request\r\n", False)]
)
async def test_a_connection_that_ends_ends_all_that_waits(says: bytes, close: bool) -> None:
    async with server(says, close) as url:
        line = await Line.open(url)
        asked = await asyncio.gather(
            line.ask([("PING",), ("PING",)]), line.ask([("PING",)]), return_exceptions=True
        )
        assert [type(end) for end in asked] == [ConnectionError, ConnectionError]
        assert line.lost
        with pytest.raises(ConnectionError):
            await line.ask([("PING",)])


async def test_a_reply_that_nobody_asked_for_ends_it() -> None:
    async with server(b"+OK\r\n+OK\r\n") as url:
        line = await Line.open(url)
        assert await line.ask([("PING",)]) == [b"OK"]
        assert line.lost


async def test_nobody_there_is_an_os_error() -> None:
    with pytest.raises(OSError, match="Connect call failed"):
        await Line.open(f"redis://127.0.0.1:{free_port()}")


async def nothing(_line: Line) -> None:
    pass


def refusing(greeted: list[Line]) -> Callable[[Line], Awaitable[None]]:
    async def refuse(line: Line) -> None:
        greeted.append(line)
        raise ConnectionError("not you")

    return refuse


async def test_a_line_is_kept_until_it_is_lost_or_dropped(valkey: Valkey) -> None:
    lines = Lines(nothing)
    first, same = await asyncio.gather(lines.to(valkey.url), lines.to(valkey.url))
    assert first is same
    lines.drop(valkey.url)
    lines.drop("redis://nobody")
    second = await lines.to(valkey.url)
    assert second is not first
    assert first.lost
    second.abort()
    third = await lines.to(valkey.url)
    assert await third.ask([("PING",)]) == [b"PONG"]
    lines.close()
    assert third.lost


async def test_a_line_that_is_not_welcome_is_not_kept(valkey: Valkey) -> None:
    greeted: list[Line] = []
    lines = Lines(refusing(greeted))
    for _ in range(2):
        with pytest.raises(ConnectionError, match="not you"):
            await lines.to(valkey.url)
    assert len(greeted) == 2
    assert all(line.lost for line in greeted)
