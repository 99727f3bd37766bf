"""The events that are kept, in their order, and those that come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import pytest
import redis

from gateway.drill.fleet import ValkeyCluster, ValkeyProcess, free_port
from gateway.publishing import event_history
from gateway.publishing.event_history import EventHistory

from .test_events import add, ids

STREAMS = ("kept::events:0", "kept::events:1")


@pytest.fixture
def client(valkey: ValkeyProcess) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        yield client
        client.delete(*STREAMS)


async def test_pages_of_several_streams_become_one(
    client: redis.Redis, valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_history, "PAGE", 3)
    for number in range(10):
        add(client, number, stream=STREAMS[number % 3 == 0])
    async with EventHistory(valkey.url, timeout=5) as history:
        found = [event.web_socket_id async for event in history.read(STREAMS)]
        assert sorted(found) == sorted(ids(*range(10)))
        times = [event.id async for event in history.read(STREAMS)]
        assert times == sorted(times, key=lambda each: tuple(map(int, each.split("-"))))
        assert [event async for event in history.read(["kept::events:2"])] == []


async def test_what_comes_is_followed(
    client: redis.Redis, valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_history, "FOLLOW_EVERY", 0.01)
    add(client, 1, stream=STREAMS[0])
    async with (
        EventHistory(valkey.url, timeout=5) as history,
        aclosing(history.read(STREAMS, follow=True)) as found,  # type: ignore[type-var]
    ):
        assert (await anext(found)).web_socket_id == "id-1"
        for number in (2, 3):
            add(client, number, stream=STREAMS[1])
            assert (await anext(found)).web_socket_id == f"id-{number}"


async def test_a_redis_that_is_away_is_an_error() -> None:
    async with EventHistory(f"redis://127.0.0.1:{free_port()}", timeout=5) as history:
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            [event async for event in history.read(STREAMS)]


async def test_a_key_that_is_no_stream_is_an_error(client: redis.Redis, valkey: ValkeyProcess) -> None:
    client.set(STREAMS[0], "x")
    async with EventHistory(valkey.url, timeout=5) as history:
        with pytest.raises(OSError, match="WRONGTYPE"):
            [event async for event in history.read(STREAMS)]


@pytest.mark.real
async def test_slots_of_a_cluster_move_and_may_be_nobodys() -> None:
    with await asyncio.to_thread(ValkeyCluster, masters=2, replicas=0) as cluster:
        with cluster.client() as client:
            add(client, 1, stream=STREAMS[0])
        async with EventHistory(cluster.url, timeout=5) as history:
            assert [event.web_socket_id async for event in history.read(STREAMS)] == ids(1)
            router = history._router
            real = await router.servers([STREAMS[0].encode()])
            (other,) = set(await router.servers([b"a", b"b", b"c", b"d"])) - set(real)
            asked = router.servers

            async def wrong_once(channels: object) -> object:
                router.servers = asked  # type: ignore[method-assign]
                return [other]

            router.servers = wrong_once  # type: ignore[assignment,method-assign]
            assert [event.web_socket_id async for event in history.read(STREAMS[:1])] == ids(1)

            async def nobody(channels: object) -> object:
                return [None]

            router.servers = nobody  # type: ignore[assignment,method-assign]
            with pytest.raises(ConnectionError, match="no node of the Cluster"):
                [event async for event in history.read(STREAMS[:1])]
