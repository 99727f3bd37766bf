"""The server of a channel, and what makes a router look it up again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from gateway.drill.fleet import SentinelProcess, ValkeyCluster, ValkeyProcess, free_port
from gateway.errors import NoMaster
from gateway.redis import router as routers
from gateway.redis.cluster import router as cluster_routers
from gateway.redis.cluster.slots import key_slot
from gateway.redis.factory import new_router
from gateway.redis.router import Router
from gateway.redis.sentinel import Sentinels
from gateway.redis.url import Address, parse_redis_url

from .test_sentinel import black_hole

ASKED = Address("10.0.0.1", 7000)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=0) as running:
        yield running


def router_of(url: str) -> Router:
    return new_router(parse_redis_url(url))


async def urls(found: Router, *channels: bytes) -> list[str | None]:
    servers = await found.servers(channels or [b"a"])
    return [None if server is None else server.url for server in servers]


# One server


async def test_one_server_is_where_it_is() -> None:
    url = "redis://:secret@redis:6380/1"
    one = router_of(url)
    assert await urls(one, b"a", b"b") == [url, url]
    one.forget()
    assert await urls(one) == [url]
    assert one.server_at(ASKED) is None
    await one.close()


@pytest.mark.real
async def test_the_sentinels_are_asked_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    with ValkeyProcess() as one, ValkeyProcess() as other, SentinelProcess(one.port) as sentinel:
        found = router_of(f"redis+sentinel://{sentinel.address}/mymaster")
        (server,) = await found.servers([b"a"])
        assert server is not None
        assert server.url == one.url
        line = await found.pool.get(server)
        sentinel.ask("SENTINEL", "REMOVE", "mymaster")
        sentinel.ask("SENTINEL", "MONITOR", "mymaster", "127.0.0.1", other.port, 1)
        assert await urls(found, b"a", b"b") == [one.url] * 2, "not asked every time"
        monkeypatch.setattr(routers, "LOOKUP_INTERVAL", 0)
        assert await urls(found) == [other.url]
        assert not line.is_open
        await asyncio.to_thread(sentinel.kill)
        assert await urls(found) == [other.url], "without Sentinels the present one has to do"
        found.forget()
        with pytest.raises(NoMaster):
            await urls(found)
        await found.close()


async def test_all_callers_share_one_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    async def look(sentinels: Sentinels) -> Address:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0)
        return ASKED

    monkeypatch.setattr(Sentinels, "master", look)
    found = router_of("redis+sentinel://a,b,c/mymaster")
    await asyncio.gather(*(found.servers([b"a"]) for _ in range(100)))
    assert looks == 1
    await found.close()


@pytest.mark.real
async def test_a_server_that_is_no_master_will_not_do() -> None:
    """Sentinels may name a deposed master, or one that has come back as a replica."""
    with (
        ValkeyProcess() as master,
        ValkeyProcess("--replicaof", f"127.0.0.1 {master.port}") as replica,
        SentinelProcess(replica.port) as sentinel,
    ):
        found = router_of(f"redis+sentinel://{sentinel.address}/mymaster")
        (server,) = await found.servers([b"a"])
        assert server is not None
        assert server.url == replica.url
        with pytest.raises(ConnectionError, match="is a replica"):
            await found.pool.get(server)
        await found.close()


# Cluster


async def test_each_channel_belongs_on_the_node_of_its_slot(cluster: ValkeyCluster) -> None:
    channels = [b"websocket:%d" % number for number in range(100)]
    found = router_of(cluster.url)
    servers = await urls(found, *channels)
    assert servers == [cluster.owner(key_slot(channel)).url for channel in channels]
    assert len(set(servers)) == 3
    await found.close()


async def test_a_dead_and_a_silent_node_hold_up_little(cluster: ValkeyCluster) -> None:
    with black_hole() as silent:
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{silent},{cluster.nodes[2].address}"
        found = router_of(f"redis+cluster://{hosts}")
        started = time.monotonic()
        assert None not in await urls(found)
        assert time.monotonic() - started < 2 * cluster_routers.LOOKUP_TIMEOUT
        await found.close()


async def test_other_nodes_are_asked_when_those_of_the_url_are_gone(cluster: ValkeyCluster) -> None:
    found = router_of(f"redis+cluster://{cluster.nodes[0].address}")
    before = await urls(found)
    with cluster.nodes[0].frozen():
        found.forget()
        assert await urls(found) == before
    await found.close()


async def test_a_slot_that_no_node_serves(cluster: ValkeyCluster) -> None:
    channel = b"websocket:nobodys"
    owner = cluster.owner(key_slot(channel))
    owner.ask("CLUSTER", "DELSLOTS", key_slot(channel))
    found = router_of(f"redis+cluster://{owner.address}")
    try:
        assert await urls(found, channel) == [None]
    finally:
        owner.ask("CLUSTER", "ADDSLOTS", key_slot(channel))
        await asyncio.to_thread(cluster.await_health)
    found.forget()
    assert await urls(found, channel) == [owner.url]
    await found.close()


async def test_no_node_tells(valkey: ValkeyProcess) -> None:
    found = router_of(f"redis+cluster://{valkey.address}")
    with pytest.raises(ConnectionError, match=f"{valkey.address}: .*cluster support disabled"):
        await urls(found)
    await found.close()
