"""The responses that every endpoint shares."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.server.responses import (
    EVENT_STREAM,
    YEAR,
    cors_headers,
    json_response,
    preflight_response,
    rejection_response,
    stream_headers,
)
from gateway.wire.handshake import NO_UPGRADE


def test_headers_for_pages_from_elsewhere() -> None:
    assert cors_headers(None) == {"Vary": "Origin"}
    assert cors_headers("https://a.example") == {
        "Access-Control-Allow-Origin": "https://a.example",
        "Access-Control-Allow-Credentials": "true",
        "Vary": "Origin",
    }


@pytest.mark.parametrize("wanted", ["last-event-id, cache-control", "", "é"])
def test_a_preflight_request_gets_the_headers_that_it_asks_for(wanted: str) -> None:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Headers": wanted}
    response = preflight_response(make_mocked_request("OPTIONS", "/", headers), ("OPTIONS", "GET"))
    assert response.status == 204
    assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert response.headers["Access-Control-Allow-Methods"] == "OPTIONS, GET"
    assert response.headers.get("Access-Control-Allow-Headers", "") == (wanted if wanted.isascii() else "")
    assert response.headers["Cache-Control"] == f"public, max-age={YEAR}"


def test_a_rejection_as_a_response() -> None:
    response = rejection_response(NO_UPGRADE, cors_headers(None))
    assert response.status == 426
    assert response.body == NO_UPGRADE.body
    assert (response.headers["Upgrade"], response.headers["Vary"]) == ("websocket", "Origin")
    assert response.content_type == "application/json"


def test_json() -> None:
    response = json_response({"a": 1}, 503, {"Retry-After": "1"})
    assert (response.status, response.body) == (503, b'{"a":1}')
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    assert response.headers["Retry-After"] == "1"


def test_a_stream_is_not_stored_and_not_buffered() -> None:
    headers = stream_headers(EVENT_STREAM, "https://a.example")
    assert headers["Content-Type"] == "text/event-stream"
    assert "no-store" in headers["Cache-Control"]
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["Access-Control-Allow-Origin"] == "https://a.example"
