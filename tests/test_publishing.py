"""Publishing: what goes over the channel, what is retained, and what is refused."""

from __future__ import annotations

import asyncio
import subprocess

import fakeredis
import orjson
import pytest
import redis
import redis.asyncio

from gateway.errors import GatewayError, PublishError
from gateway.messages import parse_result
from gateway.publishing import SCRIPT, publish

from .processes import Valkey

CHANNEL = "websocket:12345678"


async def test_a_result_is_published_and_retained_in_one_step() -> None:
    async with fakeredis.FakeAsyncRedis() as client, client.pubsub() as pubsub:
        await pubsub.subscribe(CHANNEL)
        await pubsub.get_message(timeout=1)
        published = await publish(client, "12345678", "CONFIRMED", data={"a": 1}, message_id="m1")
        assert published == (1, True, "m1")
        message = await pubsub.get_message(timeout=1)
        assert message is not None
        payload = b'{"authResult":"CONFIRMED","messageId":"m1","data":{"a":1}}'
        assert message["data"] == payload == await client.get(CHANNEL)
        assert await client.ttl(CHANNEL) == 300


async def test_without_retention_nothing_stays() -> None:
    async with fakeredis.FakeAsyncRedis() as client:
        published = await publish(client, "12345678", "DONE", retain=0)
        assert (published.receivers, published.retained) == (0, False)
        assert await client.keys() == []


async def test_the_prefix_is_the_nodes() -> None:
    async with fakeredis.FakeAsyncRedis() as client:
        await publish(client, "a", "DONE", channel_prefix="x/")
        assert await client.keys() == [b"x/a"]


def test_each_result_gets_a_message_id_of_its_own() -> None:
    with fakeredis.FakeRedis() as client:
        first, second = (publish(client, "a", "DONE") for _ in range(2))
    assert len(first.message_id) == 32
    assert first.message_id != second.message_id


def test_null_is_data_and_no_data_is_none() -> None:
    with fakeredis.FakeRedis() as client:
        publish(client, "a", "DONE", data=None, message_id="m")
        assert client.get("websocket:a") == b'{"authResult":"DONE","messageId":"m","data":null}'


def test_a_node_reads_what_is_published() -> None:
    with fakeredis.FakeRedis() as client:
        publish(client, "a", "DONE", data=[1], message_id="m")
        payload = client.get("websocket:a")
    assert isinstance(payload, bytes)
    result = parse_result(payload, b"a", 65_536)
    assert (result.auth_result, result.message_id, orjson.dumps(result.data)) == ("DONE", "m", b"[1]")


@pytest.mark.parametrize(
    ("web_socket_id", "auth_result", "options"),
    [
        ("", "DONE", {}),
        ("a b", "DONE", {}),
        ("a\n", "DONE", {}),
        ("a" * 201, "DONE", {}),
        ("a", "done", {}),
        ("a", "", {}),
        ("a", "DONE", {"message_id": ""}),
        ("a", "DONE", {"message_id": "a b"}),
        ("a", "DONE", {"retain": -1}),
        ("a", "DONE", {"retain": 300_000}),
        ("a", "DONE", {"data": object()}),
        ("a", "DONE", {"data": "x" * 65_536}),
        ("a", "DONE", {"data": "x" * 100, "max_size": 100}),
    ],
)
async def test_what_no_node_would_forward_is_refused(
    web_socket_id: str, auth_result: str, options: dict[str, object]
) -> None:
    with fakeredis.FakeRedis() as client:
        with pytest.raises(PublishError) as caught:
            publish(client, web_socket_id, auth_result, **options)  # type: ignore[call-overload]
        assert client.keys() == []
    assert isinstance(caught.value, GatewayError)
    assert isinstance(caught.value, ValueError)


async def test_on_real_valkey_that_does_not_know_the_script_yet(valkey: Valkey) -> None:
    with valkey.client() as client:
        client.script_flush()
        with client.pubsub() as pubsub:
            pubsub.subscribe(CHANNEL)
            pubsub.get_message(timeout=5)
            assert publish(client, "12345678", "FAILED", retain=60).receivers == 1
            async with redis.asyncio.Redis.from_url(valkey.url) as other:
                assert (await publish(other, "12345678", "CONFIRMED", retain=60)).receivers == 1
                client.script_flush()
                assert (await publish(other, "12345678", "CONFIRMED", retain=60)).retained
        retained = client.get(CHANNEL)
        assert isinstance(retained, bytes)
        assert orjson.loads(retained)["authResult"] == "CONFIRMED"
        assert 0 < int(str(client.ttl(CHANNEL))) <= 60
        client.delete(CHANNEL)


@pytest.mark.needs("redis-cli")
async def test_the_script_from_redis_cli(valkey: Valkey) -> None:
    command = ["redis-cli", "-p", str(valkey.port), "EVAL", SCRIPT, "1", "websocket:cli", "CONFIRMED"]
    with valkey.client() as client:
        for seconds, kept in (("0", None), ("60", b"CONFIRMED")):
            done = await asyncio.to_thread(
                subprocess.run, [*command, seconds], capture_output=True, timeout=10, check=True
            )
            assert done.stdout.strip() == b"0"
            assert client.get("websocket:cli") == kept
        client.delete("websocket:cli")
