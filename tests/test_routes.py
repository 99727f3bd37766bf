"""gateway.routes: which server a channel belongs on, and what makes a route look anew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from redis.crc import key_slot

from gateway import routes
from gateway.errors import NoMaster
from gateway.redis_url import Address
from gateway.routes import ClusterRoute, SentinelRoute, read_slots, route

from .integration.load import until
from .processes import Cluster, Sentinel, Valkey, free_port
from .test_sentinels import black_hole

ASKED = Address("10.0.0.1", 7000)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(replicas=0) as running:
        yield running


def test_slots_as_a_cluster_tells_them() -> None:
    reply = [
        [0, 8191, [b"10.0.0.2", 7001, b"id", []], [b"10.0.0.9", 7009, b"a replica", []]],
        [8192, 16383, [b"node.example", 7002, b"id", [b"ip", b"10.0.0.3"]]],
    ]
    slots = read_slots(reply, ASKED)
    assert len(slots) == 16_384
    assert (slots[0], slots[8191]) == (Address("10.0.0.2", 7001),) * 2
    assert (slots[8192], slots[16383]) == (Address("node.example", 7002),) * 2


@pytest.mark.parametrize("host", [b"", None])
def test_a_host_that_is_not_told_is_the_one_that_was_asked(host: bytes | None) -> None:
    assert read_slots([[0, 16383, [host, 7001, b"id"]]], ASKED)[0] == Address("10.0.0.1", 7001)


@pytest.mark.parametrize("reply", [[], [[0, 16382, [b"10.0.0.2", 7001, b"id"]]]])
def test_slots_without_a_node(reply: list[list[object]]) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1:7000 knows of no node for"):
        read_slots(reply, ASKED)


async def test_one_server_is_where_it_is() -> None:
    one = route("redis://:secret@redis:6380/1")
    assert await one.urls(["a", "b"]) == ["redis://:secret@redis:6380/1"] * 2
    one.doubt()
    assert await one.urls(["a"]) == ["redis://:secret@redis:6380/1"]
    assert one.elsewhere(ASKED) is None
    await one.close()


# Cluster


async def test_each_channel_belongs_on_the_node_of_its_slot(cluster: Cluster) -> None:
    channels = [f"websocket:{number}" for number in range(100)]
    found = route(cluster.url)
    urls = await found.urls(channels)
    assert urls == [cluster.owner(key_slot(channel.encode())).url for channel in channels]
    assert len(set(urls)) == 3
    await found.close()


async def test_a_dead_and_a_silent_node_hold_nothing_up(cluster: Cluster) -> None:
    with black_hole() as silent:
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{silent},{cluster.nodes[2].address}"
        found = route(f"redis+cluster://{hosts}")
        started = time.monotonic()
        assert len(await found.urls(["a"])) == 1
        assert time.monotonic() - started < 1
        await found.close()


async def test_the_other_nodes_are_asked_when_those_of_the_url_are_gone(cluster: Cluster) -> None:
    found = route(f"redis+cluster://{cluster.nodes[0].address}")
    await found.urls(["a"])
    with cluster.nodes[0].frozen():
        found.doubt()
        assert len(await found.urls(["a"])) == 1
    await found.close()


async def test_no_node_tells(valkey: Valkey) -> None:
    found = route(f"redis+cluster://127.0.0.1:{valkey.port}")
    with pytest.raises(ConnectionError, match="cluster support disabled"):
        await found.urls(["a"])
    await found.close()


# Sentinel


async def test_the_sentinels_are_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    with Valkey() as one, Valkey() as other, Sentinel(one.port) as sentinel:
        found = route(f"redis+sentinel://{sentinel.address}/mymaster")
        assert isinstance(found, SentinelRoute)
        assert await found.urls(["a", "b"]) == [one.url] * 2
        line = await found.lines.to(one.url)
        sentinel.ask("SENTINEL", "REMOVE", "mymaster")
        sentinel.ask("SENTINEL", "MONITOR", "mymaster", "127.0.0.1", other.port, 1)
        assert await found.urls(["a"]) == [one.url], "not asked every time"
        monkeypatch.setattr(routes, "ASK_AGAIN", 0)
        assert await found.urls(["a"]) == [other.url]
        assert line.lost
        await asyncio.to_thread(sentinel.kill)
        assert await found.urls(["a"]) == [other.url], "without Sentinels the present one has to do"
        found.doubt()
        with pytest.raises(NoMaster):
            await found.urls(["a"])
        await found.close()


async def test_a_server_that_is_no_master_will_not_do() -> None:
    """Sentinels may name a server that has been deposed or has come back as a replica."""
    with (
        Valkey() as master,
        Valkey("--replicaof", f"127.0.0.1 {master.port}") as replica,
        Sentinel(replica.port) as sentinel,
    ):
        found = route(f"redis+sentinel://{sentinel.address}/mymaster")
        (url,) = await found.urls(["a"])
        assert url == replica.url
        with pytest.raises(ConnectionError, match="does not know that it is one"):
            await found.lines.to(url)
        replica.ask("REPLICAOF", "NO", "ONE")
        await until(lambda: replica.info("replication")["role"] == "master", "it is one")
        assert not (await found.lines.to(url)).lost
        await found.close()


def test_a_cluster_is_a_cluster() -> None:
    assert isinstance(route("redis+cluster://a"), ClusterRoute)
