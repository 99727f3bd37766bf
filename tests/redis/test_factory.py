"""A Redis URL leads to a broker, a router and, for a Cluster, the slots of channels."""

from __future__ import annotations

import pytest

from gateway.redis.cluster.broker import ClusterBroker
from gateway.redis.cluster.router import ClusterRouter
from gateway.redis.cluster.slots import key_slot
from gateway.redis.factory import new_broker, new_router, slot_function
from gateway.redis.router import ServerRouter
from gateway.redis.server_broker import ServerBroker
from gateway.redis.topology import SentinelTopology
from gateway.redis.url import parse_redis_url

from ..fakes import Clock, Events, virtual

SERVER, SENTINEL, CLUSTER = "redis://127.0.0.1", "redis+sentinel://s1,s2/mymaster", "redis+cluster://n1,n2"


@pytest.mark.parametrize(
    ("url", "broker", "router"),
    [
        (SERVER, ServerBroker, ServerRouter),
        (SENTINEL, ServerBroker, ServerRouter),
        (CLUSTER, ClusterBroker, ClusterRouter),
    ],
)
def test_each_topology_has_its_broker_and_its_router(url: str, broker: type, router: type) -> None:
    @virtual
    async def made() -> None:
        parsed = parse_redis_url(url)
        assert type(new_broker(parsed, Events(), "gateway-x", Clock(), 1_000, b"websocket::probe")) is broker
        assert type(new_router(parsed)) is router

    made()


@virtual
async def test_behind_sentinels_the_broker_asks_them() -> None:
    broker = new_broker(parse_redis_url(SENTINEL), Events(), "gateway-x", Clock(), 1_000, b"probe")
    assert isinstance(broker, ServerBroker)
    assert isinstance(broker._topology, SentinelTopology)


def test_only_a_cluster_has_slots() -> None:
    assert slot_function(parse_redis_url(CLUSTER)) is key_slot
    assert slot_function(parse_redis_url(SENTINEL)) is None
    assert slot_function(parse_redis_url(SERVER)) is None
