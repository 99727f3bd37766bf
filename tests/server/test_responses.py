"""The responses that every endpoint shares."""

from __future__ import annotations

from gateway.server.responses import (
    EVENT_STREAM,
    cors_headers,
    json_response,
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
