"""Connections that several workers share: after each response they go back to the acceptor."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from gateway.server.handoff import Inbox, Siblings

from .served import Served, served

INFO = "GET /websocket/info HTTP/1.1\nHost: gw\n\n"


@contextlib.asynccontextmanager
async def served_by_workers() -> AsyncIterator[Served]:
    """One of several workers; the others are not there."""
    inbox = Inbox.new()
    try:
        async with served(siblings=Siblings(1, [inbox])) as at:
            yield at
    finally:
        inbox.close()


async def test_a_connection_carries_one_request_after_another() -> None:
    async with served_by_workers() as at, at.raw() as connection:
        for _ in range(3):
            first, headers, body = await connection.ask(INFO)
            assert (first, body[:1]) == ("HTTP/1.1 200 OK", b"{")
            assert "Server" not in headers


async def test_head_has_no_body() -> None:
    async with served_by_workers() as at, at.raw() as connection:
        assert (await connection.ask(INFO.replace("GET", "HEAD")))[2] == b""
        assert (await connection.ask(INFO))[0] == "HTTP/1.1 200 OK"


async def test_an_old_client_is_closed_after_its_response() -> None:
    async with served_by_workers() as at, at.raw() as connection:
        first, _, body = await connection.ask(INFO.replace("1.1", "1.0"))
        assert (first, body[:1]) == ("HTTP/1.0 200 OK", b"{")
        assert await connection.rest() == b""


async def test_an_error_ends_the_connection() -> None:
    async with served_by_workers() as at, at.raw() as connection:
        first, headers, _ = await connection.ask("GET /nothing HTTP/1.1\nHost: gw\n\n")
        assert (first, headers["Connection"]) == ("HTTP/1.1 404 Not Found", "close")
        assert await connection.rest() == b""


async def test_a_response_that_reports_an_error_ends_the_connection() -> None:
    async with served_by_workers() as at, at.raw() as connection:
        first, headers, _ = await connection.ask(INFO.replace("GET", "PATCH"))
        assert (first, headers["Connection"]) == ("HTTP/1.1 405 Method Not Allowed", "close")
        assert await connection.rest() == b""


@pytest.mark.parametrize("path", ["/ws", "/websocket/websocket", "/websocket/0/name/websocket"])
async def test_a_websocket_is_opened_by_get_only(path: str) -> None:
    async with served() as at, at.raw() as connection:
        first, headers, _ = await connection.ask(f"POST {path} HTTP/1.1\nHost: gw\n\n")
        assert (first, headers["Allow"]) == ("HTTP/1.1 405 Method Not Allowed", "GET")


async def test_a_stream_keeps_its_connection() -> None:
    async with served_by_workers() as at, at.request("GET", "/events?webSocketId=a") as response:
        assert await response.content.readuntil(b"\n\n") == b"retry: 1000\n\n"
