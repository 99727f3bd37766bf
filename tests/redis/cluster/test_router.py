"""The node of a channel's slot, and what makes a router look it up again, on a real Cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from gateway.drill.fleet import ValkeyCluster, ValkeyProcess, free_port
from gateway.redis.cluster.slots import key_slot
from gateway.redis.cluster.topology import MAP_PATIENCE
from gateway.redis.url import parse_redis_url

from ..test_router import router_of, urls
from ..test_sentinel import black_hole


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=0) as running:
        yield running


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
        assert time.monotonic() - started < MAP_PATIENCE.first
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
    with pytest.raises(ConnectionError, match=f"{valkey.address}: .*this is no node of a Cluster"):
        await urls(found)
    await found.close()


async def test_another_password_is_for_nodes_that_are_known_already(cluster: ValkeyCluster) -> None:
    found = router_of(cluster.url)
    (server,) = await found.servers([b"a"])
    assert server is not None
    found.use(parse_redis_url(cluster.url.replace("://", "://:new@", 1)))
    assert ":new@" in server.url
    await found.close()
