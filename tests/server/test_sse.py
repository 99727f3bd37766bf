"""Server-sent events over HTTP: what a request registers, and which requests are rejected."""

from __future__ import annotations

import pytest

from gateway.wire.sse import REJECTED_EVENT_ID

from .served import ID, served

EVENTS = f"/events?webSocketId={ID}"
EVIL = {"Origin": "https://evil.example"}


async def test_registers_and_brings_results() -> None:
    async with served() as at, at.request("GET", EVENTS) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert await response.content.readuntil(b"\n\n") == b"retry: 1000\n\n"
        registered = b'event: registration\ndata: {"webSocketId":"12345678","registrationSucceeded":true}\n\n'
        assert await response.content.readuntil(b"\n\n") == registered
        at.publish(b'{"authResult":"DONE","messageId":"m1"}')
        assert (await response.content.readuntil(b"\n\n")).startswith(b"id: m1\nevent: authorization\n")


async def test_the_last_event_is_not_sent_again() -> None:
    async with (
        served() as at,
        at.request("GET", f"{EVENTS}&lastEventId=m2", headers={"Last-Event-ID": "m1"}) as response,
    ):
        for _ in range(2):
            await response.content.readuntil(b"\n\n")
        for number in (1, 2, 3):
            at.publish(b'{"authResult":"DONE","messageId":"m%d"}' % number)
        assert (await response.content.readuntil(b"\n\n")).startswith(b"id: m3\n")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "body"),
    [
        ("POST", EVENTS, {}, 405, ""),
        ("OPTIONS", EVENTS, EVIL, 403, '{"error":{"code":"origin_not_allowed",'),
        ("GET", "/events", {}, 400, '{"error":{"code":"missing_id","message":"webSocketId is missing"}}'),
        ("GET", EVENTS, {"Last-Event-ID": REJECTED_EVENT_ID}, 204, ""),
        ("GET", f"{EVENTS}&lastEventId={REJECTED_EVENT_ID}", {}, 204, ""),
        ("GET", EVENTS, EVIL, 403, '{"error":{"code":"origin_not_allowed",'),
    ],
)
async def test_rejections(method: str, path: str, headers: dict[str, str], status: int, body: str) -> None:
    async with served() as at, at.request(method, path, headers=headers) as response:
        assert response.status == status
        assert (await response.text()).startswith(body)


async def test_a_client_that_fetches_the_events_may_send_the_last_one_across_origins() -> None:
    origin = {"Origin": "https://bank.example"}
    asked = {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "cache-control,last-event-id",
    }
    async with (
        served(allowed_origins="https://bank.example") as at,
        at.request("OPTIONS", EVENTS, headers={**origin, **asked}) as preflight,
    ):
        assert preflight.status == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == "https://bank.example"
        assert preflight.headers["Access-Control-Allow-Credentials"] == "true"
        assert preflight.headers["Access-Control-Allow-Methods"] == "OPTIONS, GET"
        assert preflight.headers["Access-Control-Allow-Headers"] == "cache-control,last-event-id"
        assert int(preflight.headers["Access-Control-Max-Age"]) > 0
        async with at.request("GET", EVENTS, headers={**origin, "Last-Event-ID": "m1"}) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == "https://bank.example"
        async with at.request("POST", EVENTS, headers=origin) as rejected:
            assert rejected.headers["Allow"] == "OPTIONS, GET"


async def test_a_full_node() -> None:
    async with (
        served(max_sessions=1) as at,
        at.request("GET", EVENTS) as response,
        at.request("GET", EVENTS) as rejected,
    ):
        assert (response.status, rejected.status) == (200, 503)
        assert rejected.headers["Retry-After"] == "5"


async def test_a_query_with_thousands_of_parameters_is_not_parsed() -> None:
    """With 16 KB of them it took 3 ms of the event loop."""
    async with served() as at:
        async with at.request("GET", EVENTS + "&a" * 3_000) as response:
            assert response.status == 400
            assert (await response.json())["error"]["message"] == "the query has too many parameters"
        async with at.request("GET", EVENTS + "&a" * 31) as response:
            assert response.status == 200


async def test_an_address_that_asks_too_often_is_rejected() -> None:
    async with served() as at:
        context = at.port.access._context
        context.budgets.charge("127.0.0.1", 1e6, context.clock())
        for method, path in (("GET", EVENTS), ("GET", "/websocket/info"), ("POST", "/websocket/0/a/xhr")):
            async with at.request(method, path) as response:
                assert response.status == 429
                assert response.headers["Retry-After"] == "5"
                assert (await response.json())["error"]["code"] == "address_busy"


class Verifier:
    """Knows one token."""

    def refusal(self, web_socket_id: str, token: str | None) -> str | None:
        return None if (web_socket_id, token) == (ID, "a.b-_.c") else "bad_signature"


@pytest.mark.parametrize(
    ("query", "succeeded"), [("&token=a.b-_.c", True), ("&token=a.b", False), ("&token=", False), ("", False)]
)
async def test_the_query_has_the_token(query: str, succeeded: bool) -> None:
    async with served() as at:
        at.context.verifier = Verifier()
        async with at.request("GET", f"{EVENTS}{query}") as response:
            assert response.status == 200
            assert await response.content.readuntil(b"\n\n") == b"retry: 1000\n\n"
            event = await response.content.readuntil(b"\n\n")
    assert (b'"registrationSucceeded":true' in event) is succeeded
    assert (b'"code":"not_authorized"' in event) is not succeeded
    assert event.startswith(b"event: registration\n" if succeeded else b"id: not registered\n")
