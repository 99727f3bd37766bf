"""Which worker a request belongs to."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.server.affinity import owner

from ..wire import strategies  # noqa: F401 - sets hypothesis up

PREFIXES = ["/websocket"]


def line(path: str, method: str = "POST") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize(
    "path",
    [
        "/websocket/000/one/xhr",
        "/websocket/999/one/xhr_send?t=1",
        "/websocket/000/one/xhr_streaming",
        "http://gw.example/websocket/000/one/eventsource",
        "https://gw.example:8443/websocket/000/one/xhr",
    ],
)
def test_all_requests_of_a_session_belong_to_one(path: str) -> None:
    assert owner(line(path), PREFIXES, 5) == owner(line("/websocket/000/one/xhr"), PREFIXES, 5)


@pytest.mark.parametrize(
    "head",
    [
        line("/ws", "GET"),
        line("/events?webSocketId=/websocket/000/one/xhr", "GET"),
        line("/websocket/info", "GET"),
        line("/websocket/000/one/websocket", "GET"),
        line("/websocket/websocket", "GET"),
        line("/websocket/000/one/jsonp"),
        line("/elsewhere/000/one/xhr"),
        line("*", "OPTIONS"),
        b"",
        b"POST",
        b"\x16\x03\x01",
    ],
)
def test_everything_else_is_for_anybody(head: bytes) -> None:
    assert owner(head, PREFIXES, 5) is None


def test_sessions_are_spread() -> None:
    count = Counter(owner(line(f"/websocket/000/{number:x}/xhr"), PREFIXES, 3) for number in range(3_000))
    assert set(count) == {1, 2, 3}
    assert min(count.values()) > 900


@given(st.binary(max_size=200), st.integers(1, 256))
def test_whatever_comes_there_is_an_answer(junk: bytes, workers: int) -> None:
    for head in (junk, b"POST /websocket/000/" + junk + b"/xhr HTTP/1.1\r\n"):
        assert owner(head, PREFIXES, workers) in (None, *range(1, workers + 1))
