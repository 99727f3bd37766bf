"""Announcing an id: what is written, what is never overwritten, and what is refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
import redis
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import NoBackoff

from gateway.drill.fleet import SentinelProcess, ValkeyCluster, ValkeyProcess, free_port
from gateway.errors import NotAnnounced, PublishError
from gateway.publishing.announcing import Announcement, announce, from_json
from gateway.publishing.api import SCRIPT, publish
from gateway.publishing.publisher import Publisher

from ..paths import DOCS
from .test_api import rights

CHANNEL = "websocket:12345678"


async def test_an_announcement_is_an_empty_value_that_expires() -> None:
    async with fakeredis.FakeAsyncRedis() as client:
        assert await announce(client, "12345678") is True
        assert await client.get(CHANNEL) == b""
        assert await client.ttl(CHANNEL) == 600
        assert await announce(client, "12345678", ttl=60) is False
        assert await client.ttl(CHANNEL) == 600, "it keeps its time"


def test_the_ttl_and_the_prefix() -> None:
    with fakeredis.FakeRedis() as client:
        assert announce(client, "a", ttl=60, channel_prefix="x/") is True
        assert client.keys() == [b"x/a"]
        assert client.ttl("x/a") == 60


def test_a_result_is_never_overwritten_and_overwrites() -> None:
    with fakeredis.FakeRedis() as client:
        announce(client, "12345678")
        publish(client, "12345678", "DONE", retain=0)
        assert client.get(CHANNEL) == b"", "what is not retained leaves the announcement"
        assert publish(client, "12345678", "DONE", retain=30).retained
        kept = client.get(CHANNEL)
        assert kept
        assert announce(client, "12345678") is False
        assert (client.get(CHANNEL), client.ttl(CHANNEL)) == (kept, 30)


@pytest.mark.parametrize(
    ("web_socket_id", "options"),
    [
        ("", {}),
        ("a b", {}),
        ("a" * 201, {}),
        (17, {}),
        ("a", {"ttl": 0}),
        ("a", {"ttl": -1}),
        ("a", {"ttl": 1.5}),
        ("a", {"ttl": True}),
        ("a", {"ttl": 600_000}),
    ],
)
def test_what_no_node_would_register_is_refused(web_socket_id: Any, options: dict[str, Any]) -> None:
    with fakeredis.FakeRedis() as client:
        with pytest.raises(PublishError):
            announce(client, web_socket_id, **options)
        assert client.keys() == []


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (17, "must be a JSON object"),
        ({}, "webSocketId is missing"),
        ({"webSocketId": "a", "retain": 5}, "unknown member 'retain'; use webSocketId, ttl"),
        ({"webSocketId": "a b"}, "1 to 200 of"),
        ({"webSocketId": "a", "ttl": "600"}, "ttl must be 1 to 86400 whole seconds"),
    ],
)
def test_json_that_announces_nothing(item: object, why: str) -> None:
    with pytest.raises(PublishError, match=re.escape(why)):
        from_json(item, "websocket:")


def test_json() -> None:
    assert from_json({"webSocketId": "a", "ttl": 5}, "x:") == Announcement("x:a", 5)
    assert from_json({"webSocketId": "a"}, "x:") == Announcement("x:a", 600)


async def test_without_redis_it_says_so() -> None:
    port = free_port()
    once = redis.retry.Retry(NoBackoff(), 0)
    with redis.Redis(port=port, retry=once) as client, pytest.raises(NotAnnounced, match="has not confirmed"):
        announce(client, "a")
    async with redis.asyncio.Redis(port=port, retry=redis.asyncio.retry.Retry(NoBackoff(), 0)) as other:
        with pytest.raises(NotAnnounced) as caught:
            await announce(other, "a")
    assert isinstance(caught.value.__cause__, redis.RedisError)
    async with Publisher(f"redis://127.0.0.1:{port}", timeout=0.3) as publisher:
        with pytest.raises(NotAnnounced, match="Connect call failed"):
            await publisher.announce("a")
        with pytest.raises(PublishError):
            await publisher.announce("a b")


async def test_on_real_valkey(valkey: ValkeyProcess) -> None:
    with valkey.client() as client:
        async with Publisher(valkey.url) as publisher, redis.asyncio.Redis(port=valkey.port) as other:
            assert announce(client, "real-1") is True
            assert await announce(other, "real-2", ttl=60) is True
            assert await publisher.announce("real-3", ttl=60) is True
            assert not any([await publisher.announce(f"real-{number}") for number in (1, 2, 3)])
        assert [client.get(f"websocket:real-{number}") for number in (1, 2, 3)] == [b""] * 3
        assert 0 < int(str(client.ttl("websocket:real-3"))) <= 60
        # The script that other languages use replaces an announcement too.
        assert client.eval(SCRIPT, 1, "websocket:real-1", "DONE", "60") == 0
        assert client.get("websocket:real-1") == b"DONE"
        client.delete(*(f"websocket:real-{number}" for number in (1, 2, 3)))


@pytest.mark.real
async def test_what_redis_refuses_is_told() -> None:
    with await asyncio.to_thread(ValkeyProcess) as server:
        server.ask("CONFIG", "SET", "maxmemory", "1")
        async with Publisher(server.url) as publisher:
            with pytest.raises(NotAnnounced, match="OOM command not allowed"):
                await publisher.announce("a")
        with server.client() as client, pytest.raises(NotAnnounced, match="OOM"):
            announce(client, "a")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=0) as running:
        yield running


async def test_in_a_cluster(cluster: ValkeyCluster) -> None:
    host, port = cluster.nodes[1].address.split(":")
    with cluster.client() as client:
        async with (
            redis.asyncio.RedisCluster(host=host, port=int(port)) as other,
            Publisher(cluster.url) as publisher,
        ):
            for number in range(20):
                assert announce(client, f"in-{number}") is True
                assert await announce(other, f"in-{number}") is False
                assert await publisher.announce(f"in-{number}") is False
                assert await publisher.announce(f"also-in-{number}") is True
                assert client.get(f"websocket:also-in-{number}") == b""


async def test_in_a_cluster_while_a_slot_is_on_its_way(cluster: ValkeyCluster) -> None:
    """The key goes where the slot goes to, and a result that is there already stays."""
    name = "on-its-way"
    with cluster.client() as client:
        slot = int(client.keyslot(f"websocket:{name}"))
    source = next(node for node in cluster.nodes if _owns(node, slot))
    target = next(node for node in cluster.nodes if node is not source)
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    try:
        async with Publisher(cluster.url) as publisher:
            assert await publisher.announce(name) is True
            assert await publisher.announce(name) is False
            assert (await publisher.publish(name, "DONE")).retained
            assert await publisher.announce(name) is False
    finally:
        for node in (source, target):
            node.ask("CLUSTER", "SETSLOT", slot, "STABLE")


def _owns(node: ValkeyProcess, slot: int) -> bool:
    with node.client() as client:
        return any(
            first <= slot <= last and owner[1] == node.port
            for first, last, owner, *_ in client.execute_command("CLUSTER", "SLOTS")
        )


async def test_behind_sentinels(valkey: ValkeyProcess) -> None:
    with SentinelProcess(valkey.port) as sentinel:
        found: Any = redis.Sentinel([("127.0.0.1", sentinel.port)])  # type: ignore[no-untyped-call]
        client: redis.Redis = found.master_for("mymaster")
        with client, found.sentinels[0]:
            assert announce(client, "by-sentinel-1", ttl=5) is True
        async with Publisher(f"redis+sentinel://{sentinel.address}/mymaster") as publisher:
            assert await publisher.announce("by-sentinel-2", ttl=5) is True
            assert await publisher.announce("by-sentinel-1", ttl=5) is False


async def test_a_backend_that_announces_needs_no_more_rights(valkey: ValkeyProcess) -> None:
    valkey.ask("ACL", "SETUSER", "backend", *rights("publish"))
    with redis.Redis(port=valkey.port, username="backend", password="x") as client:
        assert announce(client, "rights-1", ttl=5)
    async with Publisher(valkey.url.replace("//", "//backend:x@")) as publisher:
        assert await publisher.announce("rights-2", ttl=5)


ANNOUNCER = re.search(r"ACL SETUSER announcer on >… (.*)", (DOCS / "redis-access.md").read_text())


async def test_a_backend_that_only_announces_needs_less(valkey: ValkeyProcess) -> None:
    assert ANNOUNCER is not None
    parts = ANNOUNCER[1].split()
    valkey.ask("ACL", "SETUSER", "announcer", "reset", "on", ">x", *parts)
    with redis.Redis(port=valkey.port, username="announcer", password="x") as client:
        assert announce(client, "less-1", ttl=5)
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("websocket:less-1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.publish("websocket:less-1", "DONE")
    async with Publisher(valkey.url.replace("//", "//announcer:x@")) as publisher:
        assert await publisher.announce("less-2", ttl=5)
    for number, left_out in enumerate(part for part in parts if part not in ("resetchannels", "+ping")):
        rest = [part for part in parts if part != left_out]
        valkey.ask("ACL", "SETUSER", f"announcer-{number}", "reset", "on", ">x", *rest)
        with (
            redis.Redis(port=valkey.port, username=f"announcer-{number}", password="x") as client,
            pytest.raises(NotAnnounced),
        ):
            announce(client, "less-3")
