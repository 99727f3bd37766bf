"""The main job on one node: browsers register, anybody publishes, the right browser hears of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from gateway.drill.fleet import ValkeyProcess
from gateway.node import node as node_module
from gateway.publishing import api as publishing

from .conftest import Line, Place, complaints
from .in_process import admin_port_of, node_in_process, port_of, readiness, until_status
from .load import text, until
from .raw import Raw

NewId = Callable[[], str]

REGISTRATION = "/user/topic/registration"
AUTHORIZATION = "/user/topic/authorization"


def result(name: str, auth_result: str, **members: object) -> dict[str, Any]:
    return {"topic": AUTHORIZATION, "webSocketId": name, "authResult": auth_result, **members}


@pytest.mark.parametrize("form", [{"topic": REGISTRATION}, {}, {"topic": REGISTRATION, "more": [1]}])
async def test_a_browser_registers_and_gets_its_result(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId, form: dict[str, Any]
) -> None:
    name = new_id()
    async with Raw.upgraded(place.port) as browser:
        browser.send(text({**form, "webSocketId": name}))
        answer = {"topic": REGISTRATION, "webSocketId": name, "registrationSucceeded": True}
        assert await browser.message() == answer
        assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 1
        assert await browser.message() == result(name, "CONFIRMED")


async def test_a_node_with_everything_that_is_off_by_default(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, new_id: NewId, tmp_path: Path
) -> None:
    """Events, and ids that are announced or signed."""
    keys, name = tmp_path / "keys", new_id()
    keys.write_text("k" * 32)
    settings: dict[str, Any] = {
        "events": "redis",
        "registration": "announced,signed",
        "registration_keys": str(keys),
    }
    async with (
        node_in_process(valkey.url, channel_prefix=f"{name}:", **settings) as gateway,
        Raw.upgraded(port_of(gateway)) as browser,
    ):
        browser.send(text({"webSocketId": name}))
        assert (await browser.message())["error"]["code"] == "unknown_id"
        await backend.set(f"{name}:{name}", "", ex=60)
        browser.send(text({"webSocketId": name}))
        assert (await browser.message())["registrationSucceeded"] is True
        keys.write_text("K" * 32)
        gateway.reload()
        assert await backend.publish(f"{name}:{name}", "CONFIRMED") == 1
        assert await browser.message() == result(name, "CONFIRMED")
    entries: Any = await backend.xrange(f"{name}::events")
    assert [entry[b"event"] for _, entry in entries] == [b"refused", b"registered", b"delivered", b"closed"]


async def test_the_forms_of_a_result(place: Place, backend: redis.asyncio.Redis, new_id: NewId) -> None:
    name = new_id()
    forms: list[tuple[object, dict[str, Any]]] = [
        ("DONE", {"authResult": "DONE"}),
        ({"authResult": "FAILED"}, {"authResult": "FAILED"}),
        ({"authResult": "A_1", "webSocketId": name}, {"authResult": "A_1"}),
        ({"authResult": "A", "messageId": "m-1"}, {"authResult": "A", "messageId": "m-1"}),
        ({"authResult": "A", "data": {"ä": [1, None]}}, {"authResult": "A", "data": {"ä": [1, None]}}),
        ({"authResult": "A", "data": None}, {"authResult": "A", "data": None}),
        ({"authResult": "A", "data": False, "secret": 1}, {"authResult": "A", "data": False}),
    ]
    async with Raw.registered(place.port, name) as browser:
        for published, told in forms:
            payload = published if isinstance(published, str) else json.dumps(published)
            assert await backend.publish(f"websocket:{name}", payload) == 1
            assert await browser.message() == {"topic": AUTHORIZATION, "webSocketId": name, **told}


async def test_answer_then_retained_result_then_live_ones(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    for _ in range(20):
        name = new_id()
        published = await publishing.publish(backend, name, "RETAINED", message_id="first")
        assert published.receivers == 0
        async with Raw.upgraded(place.port) as browser:
            browser.send(text({"webSocketId": name}))
            while not await backend.publish(f"websocket:{name}", "LIVE"):
                pass
            assert (await browser.message())["registrationSucceeded"] is True
            assert await browser.message() == result(name, "RETAINED", messageId="first")
            assert await browser.message() == result(name, "LIVE")


async def test_a_result_that_was_not_retained_is_not_there_later(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    await publishing.publish(backend, name, "EARLY", retain=0)
    async with Raw.registered(place.port, name) as browser:
        await backend.publish(f"websocket:{name}", "LIVE")
        assert await browser.message() == result(name, "LIVE")


async def test_a_repeated_message_id_is_sent_once(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    async with Raw.registered(place.port, name) as browser:
        for message_id in ("one", "one", "two", "one"):
            await publishing.publish(backend, name, "CONFIRMED", message_id=message_id)
        await backend.publish(f"websocket:{name}", "DONE")
        assert [(await browser.message()).get("messageId") for _ in range(3)] == ["one", "two", None]


async def test_two_browsers_with_one_id_both_get_the_result(
    place: Place, valkey: ValkeyProcess, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    async with (
        Raw.registered(place.port, name) as first,
        Raw.registered(place.port, name) as second,
        node_in_process(valkey.url) as other,
        Raw.registered(port_of(other), name) as third,
    ):
        nodes = await backend.publish(f"websocket:{name}", "CONFIRMED")
        assert nodes - 1 in place.holders(2), "PUBLISH counts nodes, not browsers"
        for browser in (first, second, third):
            assert await browser.message() == result(name, "CONFIRMED")


async def test_a_second_browser_gets_the_retained_result_and_the_first_not_again(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    async with Raw.registered(place.port, name) as first:
        await publishing.publish(backend, name, "CONFIRMED", message_id="m")
        assert await first.message() == result(name, "CONFIRMED", messageId="m")
        async with Raw.registered(place.port, name) as second:
            assert await second.message() == result(name, "CONFIRMED", messageId="m")
            await backend.publish(f"websocket:{name}", "DONE")
            assert await first.message() == await second.message() == result(name, "DONE")


async def test_publish_tells_when_nobody_is_there(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 0
    async with Raw.registered(place.port, name):
        async with Raw.registered(place.port, name):
            assert await backend.publish(f"websocket:{name}", "CONFIRMED") in place.holders(2)
        assert await backend.publish(f"websocket:{name}", "CONFIRMED") in place.holders(2), (
            "one of the two is left"
        )
    await until_status(place.admin_port, "the node has forgotten the id", channels=0, sessions=0)
    assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 0


async def test_leaving_and_coming_back_at_once(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    for number in range(30):
        async with Raw.registered(place.port, name) as browser:
            # Another worker may not have noticed yet that the page before has left.
            assert await backend.publish(f"websocket:{name}", f"N{number}") in place.holders(2)
            assert await browser.message() == result(name, f"N{number}")


INVALID = [
    b"",
    b"confirmed",
    b"CONFIRMED\0",
    b"1CONFIRMED",
    b"A" * 65,
    b"[]",
    b'"CONFIRMED"',
    b"{",
    b"{}",
    b'{"authResult": "confirmed"}',
    b'{"authResult": 1}',
    b'{"authResult": "A", "messageId": 1}',
    b'{"authResult": "A", "messageId": "with space"}',
    b'{"authResult": "A", "webSocketId": "somebody-else"}',
    b'{"authResult": "A", "data": NaN}',
    b'{"authResult": "A", "data": "\xff"}',
    b'{"authResult": "A", "data": "' + b"x" * 65_536 + b'"}',
    b"\x00\xff\xfe",
]


async def test_invalid_payloads_are_counted_and_go_nowhere(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, new_id: NewId, logged: list[Line]
) -> None:
    name = new_id()
    async with node_in_process(valkey.url) as gateway, Raw.registered(port_of(gateway), name) as browser:
        for payload in INVALID:
            assert await backend.publish(f"websocket:{name}", payload) == 1
        await backend.publish(f"websocket:{name}", "VALID")
        assert await browser.message() == result(name, "VALID")
        assert gateway._hub.invalid.total() == len(INVALID)
        told = [line for line in logged if line["event"] == "invalid result"]
        assert len(told) == len(INVALID)
        assert name not in str(told), "an id is its browser's secret"


async def test_an_invalid_retained_result_does_not_stand_in_the_way(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    await backend.set(f"websocket:{name}", "not a result", ex=60)
    async with Raw.registered(place.port, name) as browser:
        await backend.publish(f"websocket:{name}", "CONFIRMED")
        assert await browser.message() == result(name, "CONFIRMED")


async def test_a_key_that_is_no_string_does_not_stand_in_the_way(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    await backend.rpush(f"websocket:{name}", "a list")
    await backend.expire(f"websocket:{name}", 60)
    async with Raw.registered(place.port, name) as browser:
        await backend.publish(f"websocket:{name}", "CONFIRMED")
        assert await browser.message() == result(name, "CONFIRMED")


async def test_one_id_a_connection(place: Place, backend: redis.asyncio.Redis, new_id: NewId) -> None:
    name, other = new_id(), new_id()
    async with Raw.registered(place.port, name) as browser:
        await browser.register(name)
        browser.send(text({"webSocketId": other}))
        refusal = await browser.message()
        assert refusal["registrationSucceeded"] is False
        assert refusal["webSocketId"] == other
        assert refusal["error"]["code"] == "already_registered"
        assert await backend.publish(f"websocket:{other}", "CONFIRMED") == 0
        assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 1
        assert await browser.message() == result(name, "CONFIRMED")


async def test_each_registration_sent_before_the_answer_is_answered(place: Place, new_id: NewId) -> None:
    name = new_id()
    async with Raw.upgraded(place.port) as browser:
        browser.send(text({"webSocketId": name}) * 3)
        assert [(await browser.message())["registrationSucceeded"] for _ in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({"topic": REGISTRATION}, "missing_id"),
        ({"webSocketId": None}, "missing_id"),
        ({"webSocketId": ""}, "invalid_id"),
        ({"webSocketId": "x" * 201}, "invalid_id"),
        ({"webSocketId": "x" * 2_000}, "invalid_id"),
        ({"webSocketId": 12345678}, "invalid_id"),
        ({"webSocketId": ["12345678"]}, "invalid_id"),
        ({"webSocketId": {"a": 1}}, "invalid_id"),
        ({"webSocketId": "12345678\n"}, "invalid_id"),
        ({"webSocketId": "__keyspace@0__:x"}, "invalid_id"),
        ({"webSocketId": "a b"}, "invalid_id"),
        ({"webSocketId": "*"}, "invalid_id"),
        ({"webSocketId": "naïve"}, "invalid_id"),
    ],
)
async def test_a_bad_id_is_refused_and_the_connection_stays(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId, sent: dict[str, Any], code: str
) -> None:
    async with Raw.upgraded(place.port) as browser:
        for _ in range(7):  # nor does it end after five
            browser.send(text(sent))
            refusal = await browser.message()
            assert refusal["registrationSucceeded"] is False
            assert refusal["error"]["code"] == code
            assert refusal["error"]["message"]
        await browser.register(new_id())


async def test_the_longest_id(place: Place, backend: redis.asyncio.Redis) -> None:
    name = "~" * 200
    async with Raw.registered(place.port, name) as browser:
        assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 1
        assert await browser.message() == result(name, "CONFIRMED")


async def test_another_prefix_is_another_gateway(
    place: Place, valkey: ValkeyProcess, backend: redis.asyncio.Redis, new_id: NewId
) -> None:
    name = new_id()
    async with (
        node_in_process(valkey.url, channel_prefix="other/") as other,
        Raw.registered(port_of(other), name) as there,
        Raw.registered(place.port, name) as here,
    ):
        assert await backend.publish(f"other/{name}", "THERE") == 1
        assert await backend.publish(f"websocket:{name}", "HERE") == 1
        assert await there.message() == result(name, "THERE")
        assert await here.message() == result(name, "HERE")


async def test_what_the_admin_port_says(valkey: ValkeyProcess, new_id: NewId) -> None:
    async with node_in_process(valkey.url, node="node-7") as gateway:
        assert gateway.listening is not None
        admin = gateway.listening.admin_port
        async with Raw.connected(admin) as operator:
            operator.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            status, headers, body = await operator.answer()
            assert (status, json.loads(body)) == (200, {"status": "ok", "node": "node-7"})
            assert "server" not in headers
            operator.send(b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await operator.answer())[0] == 404, "browsers' business is on the other port"
        async with Raw.registered(port_of(gateway), new_id()), Raw.connected(port_of(gateway)):
            await until(lambda: gateway._acceptor.handshakes == 1, "the silent connection is seen")
            await until(
                lambda: gateway._broker.server_brokers[0].probe.round_trip, "a probe has come through"
            )
            status, ready = await readiness(admin)
            assert 0 < ready["redis"].pop("probe_seconds") < 1
            assert (status, ready) == (
                200,
                {
                    "ready": True,
                    "reasons": [],
                    "strict": {"ready": True, "reasons": []},
                    "node": "node-7",
                    "sessions": 1,
                    "handshakes": 1,
                    "unread_bytes": 0,
                    "channels": 1,
                    "delivered": 0,
                    "log_lines_dropped": 0,
                    "connections": {"handshake": 1, "idle": 0, "session": 1, "closing": 0, "request": 0},
                    "invalid": {},
                    "rejected": {},
                    "closed": {},
                    "redis": {
                        "connected": True,
                        "outages": 0,
                        "outage_seconds": 0.0,
                        "repaired": 0,
                        "missing_slots": 0,
                        "denied_channels": 0,
                    },
                },
            )


async def test_files_are_read_again_while_the_node_serves(
    valkey: ValkeyProcess, tmp_path: Path, logged: list[Line]
) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-that-is-long-enough")
    async with node_in_process(valkey.url, publish_token_file=str(token)) as gateway:

        async def status(with_token: str) -> int:
            async with Raw.connected(admin_port_of(gateway)) as backend:
                head = f"POST /publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {with_token}\r\n"
                backend.send(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
                return (await backend.answer())[0]

        assert await status("a-token-that-is-long-enough") == 415, "the token is right, the request is not"
        token.write_text("another-token-that-is-long-enough\r\n")
        assert await status("another-token-that-is-long-enough") == 401
        gateway.reload()
        assert await status("a-token-that-is-long-enough") == 401
        assert await status("another-token-that-is-long-enough") == 415
        token.unlink()
        gateway.reload()
        assert await status("another-token-that-is-long-enough") == 415, "the last good one stays"
    (line,) = complaints(logged)
    assert line["event"] == "files not read again"
    logged.remove(line)


async def test_a_stop_that_hangs_is_given_up(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch, logged: list[Line]
) -> None:
    monkeypatch.setattr(node_module, "STOP_TIMEOUT", 0.01)
    async with node_in_process(valkey.url) as gateway:
        close = gateway._public_port.close
        with monkeypatch.context() as patch:
            patch.setattr(gateway._public_port, "close", asyncio.Event().wait)
            await gateway.stop()
        await close()
        (line,) = complaints(logged)
        assert line["event"] == "not stopped in time"
        logged.remove(line)
        monkeypatch.setattr(node_module, "STOP_TIMEOUT", 5.0)
