"""Publishing: what goes over the channel, what is retained, and what is refused."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import fakeredis
import orjson
import pytest
import redis
import redis.asyncio

import gateway
from gateway.drill.fleet import SentinelProcess, ValkeyCluster, ValkeyProcess
from gateway.errors import GatewayError, PublishError
from gateway.messages import parse_result
from gateway.publishing.api import SCRIPT, Published, publish
from gateway.publishing.publisher import Publisher

from ..paths import DOCS

CHANNEL = "websocket:12345678"
ACCESS = DOCS / "redis-access.md"


async def test_a_result_is_published_and_retained_in_one_step() -> None:
    async with fakeredis.FakeAsyncRedis() as client, client.pubsub() as pubsub:
        await pubsub.subscribe(CHANNEL)
        await pubsub.get_message(timeout=1)
        published = await publish(client, "12345678", "CONFIRMED", data={"a": 1}, message_id="m1")
        assert published == (1, True, "m1")
        message = await pubsub.get_message(timeout=1)
        assert message is not None
        assert message["data"] == await client.get(CHANNEL)
        body = orjson.loads(message["data"])
        assert 0 <= time.time() * 1000 - body.pop("publishedAt") < 60_000
        assert body == {"authResult": "CONFIRMED", "messageId": "m1", "data": {"a": 1}}
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
        payload = client.get("websocket:a")
    assert isinstance(payload, bytes)
    assert orjson.loads(payload)["data"] is None


def test_half_of_a_surrogate_pair_is_replaced_and_the_result_published() -> None:
    """A text that was cut there, or decoded from bytes with surrogateescape."""
    with fakeredis.FakeRedis() as client:
        publish(client, "a", "DONE", data={"name": "Zo\ud83d", "size": 1.5}, message_id="m")
        payload = client.get("websocket:a")
    assert isinstance(payload, bytes)
    assert orjson.loads(payload)["data"] == {"name": "Zo\ufffd", "size": 1.5}


def test_a_node_reads_what_is_published() -> None:
    with fakeredis.FakeRedis() as client:
        publish(client, "a", "DONE", data=[1], message_id="m")
        payload = client.get("websocket:a")
    assert isinstance(payload, bytes)
    result = parse_result(payload, b"a", 65_536)
    assert result.origin is not None
    assert result.origin.published_at == pytest.approx(time.time(), abs=60)
    assert result.origin.traceparent is None
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


async def test_on_real_valkey(valkey: ValkeyProcess) -> None:
    with valkey.client() as client:
        with client.pubsub() as pubsub:
            pubsub.subscribe(CHANNEL)
            pubsub.get_message(timeout=5)
            assert publish(client, "12345678", "FAILED", retain=60).receivers == 1
            async with redis.asyncio.Redis.from_url(valkey.url) as other:
                assert (await publish(other, "12345678", "CONFIRMED", retain=60)).receivers == 1
                assert (await publish(other, "12345678", "CONFIRMED", retain=60)).retained
        retained = client.get(CHANNEL)
        assert isinstance(retained, bytes)
        assert orjson.loads(retained)["authResult"] == "CONFIRMED"
        assert 0 < int(str(client.ttl(CHANNEL))) <= 60
        client.delete(CHANNEL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=0) as running:
        yield running


async def test_in_a_cluster_it_goes_to_the_sharded_subscribers(cluster: ValkeyCluster) -> None:
    host, port = cluster.nodes[1].address.split(":")
    names = [f"sharded-{number}" for number in range(20)]
    with cluster.client() as client:
        node = client.pubsub()
        node.ssubscribe("websocket:sharded-0")
        node.get_sharded_message(timeout=5)
        async with redis.asyncio.RedisCluster(host=host, port=int(port)) as other:
            for held, name in zip([1] + [0] * 19, names, strict=True):
                first: Published = publish(client, name, "DONE", message_id="m1")
                second: Published = await publish(other, name, "DONE", message_id="m2")
                assert first == (held, True, "m1")
                assert second == (held, True, "m2")
                retained = client.get(f"websocket:{name}")
                assert isinstance(retained, bytes)
                assert orjson.loads(retained)["messageId"] == "m2"
        heard = [node.get_sharded_message(timeout=5)["data"] for _ in range(2)]
        node.close()
        assert [orjson.loads(data)["messageId"] for data in heard] == ["m1", "m2"]


async def test_with_the_clients_that_sentinel_gives(valkey: ValkeyProcess) -> None:
    with SentinelProcess(valkey.port) as sentinel:
        where = [("127.0.0.1", sentinel.port)]
        found: Any = redis.Sentinel(where)  # type: ignore[no-untyped-call]
        client: redis.Redis = found.master_for("mymaster")
        with client, found.sentinels[0]:
            assert publish(client, "by-sentinel", "DONE").retained
        also: Any = redis.asyncio.Sentinel(where)  # type: ignore[no-untyped-call]
        other: redis.asyncio.Redis = also.master_for("mymaster")
        async with other, also.sentinels[0]:
            assert (await publish(other, "by-sentinel", "DONE")).retained


def rights(of: str) -> list[str]:
    """What docs/redis-access.md gives to the user of a backend that publishes by `of`."""
    found = re.findall(r"ACL SETUSER backend on >… (.*)", ACCESS.read_text())
    (line,) = [line for line in found if f"+{of}" in line.split()]
    return ["reset", "on", ">x", *line.split()]


async def test_a_backend_needs_few_rights(valkey: ValkeyProcess) -> None:
    valkey.ask("ACL", "SETUSER", "backend", *rights("publish"))
    with redis.Redis(port=valkey.port, username="backend", password="x") as client:
        assert publish(client, "rights", "DONE").retained
        by_hash = client.register_script(SCRIPT)
        assert by_hash(keys=["websocket:rights"], args=["DONE", 1]) == 0, "EVALSHA, SCRIPT LOAD, EVALSHA"
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("other", "x")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("websocket:rights")
    async with Publisher(valkey.url.replace("//", "//backend:x@")) as publisher:
        assert (await publisher.publish("rights", "DONE")).retained


async def test_a_backend_needs_few_rights_in_a_cluster(cluster: ValkeyCluster) -> None:
    for server in cluster.nodes:
        server.ask("ACL", "SETUSER", "backend", *rights("spublish"))
    port = cluster.nodes[0].port
    with redis.RedisCluster(host="127.0.0.1", port=port, username="backend", password="x") as client:
        assert publish(client, "rights", "DONE").retained
    async with Publisher(cluster.url.replace("//", "//backend:x@")) as publisher:
        for number in range(9):
            assert (await publisher.publish(f"rights-{number}", "DONE")).retained


async def test_a_backend_needs_few_rights_at_the_sentinels(valkey: ValkeyProcess) -> None:
    with SentinelProcess(valkey.port) as sentinel:
        sentinel.ask("ACL", "SETUSER", "backend", *rights("sentinel|master"))
        sentinel.ask("ACL", "SETUSER", "default", "resetpass", "-@all", "+ping")
        url = f"redis+sentinel://{sentinel.address}/mymaster?sentinel_username=backend&sentinel_password=x"
        async with Publisher(url) as publisher:
            assert (await publisher.publish("rights", "DONE")).retained


@pytest.mark.real
def test_importing_the_package_brings_no_redis() -> None:
    code = (
        "import sys, gateway; print('redis' in sys.modules); gateway.publish; print('redis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=20, capture_output=True)
    assert done.stdout.split() == [b"False", b"True"]
    assert set(gateway.__all__) == {
        *("announce", "publish", "Published", "PublishError"),
        *("NotAnnounced", "NotPublished", "Unconfirmed"),
        *("events", "Event"),
    }
    assert all(getattr(gateway, name) for name in gateway.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'unpublish'"):
        gateway.unpublish  # noqa: B018


@pytest.mark.needs("redis-cli")
async def test_the_script_from_redis_cli(valkey: ValkeyProcess) -> None:
    command = ["redis-cli", "-p", str(valkey.port), "EVAL", SCRIPT, "1", "websocket:cli", "CONFIRMED"]
    with valkey.client() as client:
        for seconds, kept in (("0", None), ("60", b"CONFIRMED")):
            done = await asyncio.to_thread(
                subprocess.run, [*command, seconds], capture_output=True, timeout=10, check=True
            )
            assert done.stdout.strip() == b"0"
            assert client.get("websocket:cli") == kept
        client.delete("websocket:cli")
