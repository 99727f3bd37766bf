"""Heads and pieces of responses, read by a parser of another make (wsproto's h11)."""

from __future__ import annotations

import socket

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.transports import http as stream
from gateway.transports.http import HttpConnection

from ..fakes import Transport
from ..wire import strategies  # noqa: F401 - sets hypothesis up


def read(response: bytes) -> tuple[h11.Response, bytes]:
    """What a client makes of `response` and the connection's end."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(response)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(b"")
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            assert isinstance(event, h11.EndOfMessage)
            return head, body


def connection(*, chunked: bool = True, lasting: bool = True) -> HttpConnection:
    return HttpConnection(Transport(), chunked, lasting)


@given(st.lists(st.binary(min_size=1), max_size=5))
def test_pieces_become_the_body(pieces: list[bytes]) -> None:
    for chunked in (True, False):
        on = connection(chunked=chunked, lasting=chunked)
        written = stream.response_head(on, {"Content-Type": "text/plain"})
        written += b"".join(stream.chunk(on, piece) for piece in pieces)
        head, body = read(written + (stream.CHUNKS_END if chunked else b""))
        assert body == b"".join(pieces)
        assert head.status_code == 200
        headers = dict(head.headers)
        assert headers[b"content-type"] == b"text/plain"
        assert (b"connection" in headers) is not chunked
        assert headers[b"date"].endswith(b" GMT")


@given(st.binary())
def test_a_body_of_known_length(body: bytes) -> None:
    head, read_body = read(stream.response_head(connection(lasting=False), {}, len(body)) + body)
    assert read_body == body
    assert dict(head.headers)[b"connection"] == b"close"


def test_a_connection_that_broke_a_moment_ago_harms_nobody() -> None:
    transport = Transport()
    stream.write(transport, b"a")
    transport.close()
    stream.write(transport, b"b")
    assert transport.written == [b"a"]


def test_the_kernel_tells_of_clients_that_are_lost() -> None:
    transport = Transport()
    stream.set_user_timeout(transport, 1.5)
    assert transport.options == [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1_500)]


def test_other_systems_have_no_such_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    transport = Transport()
    stream.set_user_timeout(transport, 1.5)
    assert transport.options == []
