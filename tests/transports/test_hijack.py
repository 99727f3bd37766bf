"""The connection of a request, and how a handler takes it over."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from gateway.transports.hijack import MAX_READ_AHEAD, RequestConnection, end_input, hijack
from gateway.transports.http import take_connection

from ..fakes import Transport, virtual


def connected(rest: bytes = b"") -> tuple[RequestConnection, Transport]:
    transport = Transport()
    return RequestConnection(asyncio.get_running_loop(), transport, rest, lambda _transport: None), transport


def request(
    connection: RequestConnection, version: tuple[int, int] = (1, 1), *, keep_alive: bool = True
) -> Any:
    return SimpleNamespace(protocol=connection, version=version, keep_alive=keep_alive)


@virtual
async def test_what_was_read_ahead_comes_with_the_connection() -> None:
    connection, transport = connected(b"GET / ")
    assert transport.protocol is connection
    connection.data_received(b"HTTP/1.1")
    assert hijack(request(connection)) == (transport, b"GET / HTTP/1.1")
    assert not connection.connected, "aiohttp cannot write any more"


@virtual
async def test_reading_ahead_is_limited() -> None:
    connection, transport = connected(b"x" * MAX_READ_AHEAD)
    assert transport.is_reading()
    connection.data_received(b"x")
    assert not transport.is_reading()
    assert connection.rest == b"", "the event loop may have read 256 KB at once"
    assert hijack(request(connection)) == (transport, None)
    assert transport.is_reading(), "whoever has the connection now reads"


@virtual
async def test_what_came_with_the_request_is_limited_too() -> None:
    connection, transport = connected(b"x" * (MAX_READ_AHEAD + 1))
    assert (connection.rest, connection.overrun, transport.is_reading()) == (b"", True, False)


@virtual
async def test_a_lost_connection_reads_nothing_more() -> None:
    connection, transport = connected()
    transport.lose()
    connection.data_received(b"x" * (MAX_READ_AHEAD + 1))
    assert not connection.connected
    assert transport.reading


@virtual
async def test_which_connections_last() -> None:
    for version, keep_alive, rest, expected in (
        ((1, 1), True, b"next", (True, True, b"next")),
        ((1, 1), False, b"", (True, False, b"")),
        ((1, 0), True, b"", (False, False, b"")),
        ((1, 1), True, b"x" * (MAX_READ_AHEAD + 1), (True, False, b"")),
    ):
        connection, transport = connected(rest)
        taken = take_connection(request(connection, version, keep_alive=keep_alive))
        assert taken == (transport, *expected)


class Next(asyncio.Protocol):
    """The connection's next protocol."""

    def __init__(self, *, stays: bool) -> None:
        self.stays = stays

    def eof_received(self) -> bool:
        return self.stays


@virtual
async def test_the_end_of_input_reaches_the_next_protocol() -> None:
    for stays in (True, False):
        connection, transport = connected()
        assert connection.eof_received(), "the response is still to come"
        assert connection.ended
        transport.reading = False
        connection.release()
        assert not transport.reading, "nothing more can come"
        transport.set_protocol(Next(stays=stays))
        end_input(transport)
        assert transport.closing is not stays
    end_input(transport)  # it is closing, so there is nobody to tell


@virtual
async def test_a_lost_connection_is_reported_also_if_it_was_given_away_and_nobody_has_taken_it() -> None:
    lost: list[asyncio.BaseTransport] = []
    transport = Transport()
    connection = RequestConnection(asyncio.get_running_loop(), transport, b"", lost.append)
    connection.release()
    transport.close()
    transport.lose()
    assert lost == [transport]
