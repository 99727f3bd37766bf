"""The SockJS endpoints: resources, transports, and requests that are rejected."""

from __future__ import annotations

import pytest

from .served import ID, served
from .test_wires import TEXT

EVIL = {"Origin": "https://evil.example"}
PREFIX = "/sockjs/tiny"
SESSION = f"{PREFIX}/000/one"


@pytest.mark.parametrize("path", ["", "/"])
async def test_the_greeting(path: str) -> None:
    async with served() as at, at.request("GET", f"/websocket{path}") as response:
        assert await response.text() == "Welcome to SockJS!\n"
        assert response.headers["Content-Type"] == "text/plain; charset=UTF-8"


async def test_the_info() -> None:
    async with served() as at, at.request("GET", "/websocket/info") as response:
        body = await response.json()
        assert (body["websocket"], body["origins"], body["cookie_needed"]) == (True, ["*:*"], False)
        assert response.headers["Content-Type"] == "application/json; charset=UTF-8"


async def test_the_iframe_may_be_cached() -> None:
    async with served(allowed_origins="same-origin,https://bank.example") as at:
        async with at.request("GET", "/websocket/iframe.html") as response:
            assert "SockJS.bootstrap_iframe()" in await response.text()
            assert response.headers["Content-Security-Policy"] == (
                "frame-ancestors 'self' https://bank.example"
            )
            known = {"If-None-Match": response.headers["ETag"]}
        async with at.request("GET", "/websocket/iframe.html", headers=known) as response:
            assert response.status == 304


async def test_a_preflight_request() -> None:
    headers = {"Origin": "https://bank.example", "Access-Control-Request-Headers": "content-type"}
    async with (
        served(allowed_origins="https://bank.example") as at,
        at.request("OPTIONS", "/websocket/000/one/xhr", headers=headers) as response,
    ):
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Methods"] == "OPTIONS, POST"
        assert response.headers["Access-Control-Allow-Headers"] == "content-type"
        assert response.headers["Access-Control-Allow-Origin"] == "https://bank.example"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/websocket/000/one/jsonp", {}, 404),
        ("POST", "/websocket/info", {}, 405),
        ("POST", "/websocket/websocket", {}, 405),
        ("GET", "/websocket/websocket", {}, 400),
        ("GET", "/websocket/info", EVIL, 403),
        ("POST", "/websocket/000/one/xhr_send", {}, 404),
    ],
)
async def test_rejections(method: str, path: str, headers: dict[str, str], status: int) -> None:
    async with served() as at, at.request(method, path, headers=headers) as response:
        assert response.status == status


async def test_a_payload_that_is_no_array() -> None:
    async with served(TEXT) as at:
        await at.post(f"{SESSION}/xhr")
        async with at.request("POST", f"{SESSION}/xhr_send", data="x") as response:
            assert (response.status, await response.text()) == (400, "Broken JSON encoding.")


async def test_malformed_payloads_are_answered_400_and_end_the_session_at_last() -> None:
    surrogates = '["' + '","'.join([r"\ud800"] * 1_000) + '",1]'
    async with served(TEXT) as at:
        assert [await at.post(f"{SESSION}/xhr") for _ in "12"] == ["o\n", 'a["hello"]\n']
        statuses = []
        for body in ("", surrogates, "[", "{}", "[1]", "x"):
            async with at.request("POST", f"{SESSION}/xhr_send", data=body) as response:
                statuses.append(response.status)
        assert statuses == [400] * 5 + [204]
        assert await at.post(f"{SESSION}/xhr") == 'c[1008,"too many unknown messages"]\n'


async def test_a_payload_that_is_too_large_ends_the_session() -> None:
    async with served(TEXT) as at:
        await at.post(f"{SESSION}/xhr")
        async with at.request("POST", f"{SESSION}/xhr_send", data="x" * 70_000) as response:
            assert response.status == 413
        assert await at.post(f"{SESSION}/xhr") == 'a["hello"]\n'
        assert await at.post(f"{SESSION}/xhr") == 'c[1009,"too many messages at once"]\n'
        assert at.port.unsent_close_frames == 0
        assert await at.post(f"{SESSION}/xhr_send", '["a"]') == ""


async def test_a_client_fetches_the_close_frame_later() -> None:
    async with served(TEXT) as at:
        assert [await at.post(f"{SESSION}/xhr") for _ in "12"] == ["o\n", 'a["hello"]\n']
        async with at.request("POST", f"{SESSION}/xhr_send", data="x" * 70_000):
            assert at.port.unsent_close_frames == 1
        assert await at.post(f"{SESSION}/xhr") == 'c[1009,"too many messages at once"]\n'
        assert at.port.unsent_close_frames == 0


@pytest.mark.parametrize(
    ("method", "transport", "prelude", "separator", "frames"),
    [
        ("POST", "xhr_streaming", b"h" * 2048 + b"\n", b"\n", [b"o\n", b'a["hello"]\n']),
        ("GET", "eventsource", b"\r\n", b"\r\n\r\n", [b"data: o\r\n\r\n", b'data: a["hello"]\r\n\r\n']),
    ],
)
async def test_streams(
    method: str, transport: str, prelude: bytes, separator: bytes, frames: list[bytes]
) -> None:
    async with served(TEXT) as at, at.request(method, f"{SESSION}/{transport}") as response:
        assert await response.content.readexactly(len(prelude)) == prelude
        assert [await response.content.readuntil(separator) for _ in frames] == frames
        await at.post(f"{SESSION}/xhr_send", f'["{ID}"]')
        assert b'a[""]' in await response.content.readuntil(separator)


async def test_a_full_node() -> None:
    async with served(TEXT, max_sessions=1) as at:
        await at.post(f"{SESSION}/xhr")
        async with at.request("POST", f"{PREFIX}/000/two/xhr") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
