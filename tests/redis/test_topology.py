"""Which server a URL leads to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import NoMaster
from gateway.redis.topology import (
    LOOK_INTERVAL,
    FixedTopology,
    SentinelTopology,
    ServerMoved,
    topology_of,
    while_current,
)
from gateway.redis.url import Address, RedisURL, parse_redis_url

from ..fakes import virtual


@pytest.mark.parametrize("only_masters", [False, True])
async def test_a_fixed_server_is_the_same_wherever_it_leads(only_masters: bool) -> None:
    fixed = FixedTopology("redis://:secret@127.0.0.1:6390/7", only_masters=only_masters)
    assert await fixed.find() is await fixed.find()
    assert (fixed.only_masters, fixed.display_url) == (only_masters, "redis://:***@127.0.0.1:6390/7")
    await fixed.close()


async def test_a_new_password_makes_no_other_server() -> None:
    """Otherwise the probe would give up a connection that is well."""
    fixed = FixedTopology("redis://:old@one")
    server = await fixed.find()
    fixed.use(parse_redis_url("redis://me:new@one"))
    assert await fixed.find() is server
    assert (server.username, server.password, fixed.display_url) == ("me", "new", "redis://me:***@one")


class Names:
    """Sentinels that name what the test sets."""

    def __init__(self, _url: RedisURL) -> None:
        self.named = Address("10.0.0.1", 6_379)
        self.closed = False

    def use(self, url: RedisURL) -> None:
        self.url = url

    async def master(self) -> Address:
        return self.named

    async def close(self) -> None:
        self.closed = True


async def test_behind_sentinels_it_is_another_server_only_when_they_name_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The probe compares objects: the same object means the same master."""
    monkeypatch.setattr("gateway.redis.topology.Sentinels", Names)
    sentinel = SentinelTopology(parse_redis_url("redis+sentinel://me:secret@s1,s2/mymaster/3"))
    sentinels = sentinel._sentinels
    assert isinstance(sentinels, Names)
    first = await sentinel.find()
    assert (first.url, first.username, first.database) == (
        "redis://me:secret@10.0.0.1:6379/3",
        "me",
        3,
    )
    assert await sentinel.find() is first
    renewed = parse_redis_url("redis+sentinel://me:renewed@s1,s2/mymaster/3")
    sentinel.use(renewed)
    assert (await sentinel.find() is first, first.password, sentinels.url) == (True, "renewed", renewed)
    sentinels.named = Address("10.0.0.2", 6_379)
    second = await sentinel.find()
    assert (second.url, second is first) == ("redis://me:renewed@10.0.0.2:6379/3", False)
    assert sentinel.only_masters
    assert "renewed" not in sentinel.display_url
    await sentinel.close()
    assert sentinels.closed


def test_a_url_says_how_the_server_is_found() -> None:
    assert isinstance(topology_of(parse_redis_url("redis://127.0.0.1")), FixedTopology)
    assert not topology_of(parse_redis_url("redis://127.0.0.1")).only_masters, "a replica may be meant"
    assert isinstance(topology_of(parse_redis_url("redis+sentinel://s1/mymaster")), SentinelTopology)


class Finding:
    """A topology that finds what the test sets."""

    only_masters = True

    def __init__(self, found: Any) -> None:
        self.found = found
        self.display_url = "redis://s1"

    async def find(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def use(self, url: RedisURL) -> None:
        raise AssertionError

    async def close(self) -> None:
        """Nothing is open."""


@virtual
async def test_a_slow_server_is_waited_for_as_long_as_it_is_the_right_one() -> None:
    server = await FixedTopology("redis://one").find()
    topology = Finding(server)

    async def answer() -> str:
        await asyncio.sleep(4 * LOOK_INTERVAL)
        return "late"

    waiting = asyncio.create_task(while_current(topology, server, answer()))
    await asyncio.sleep(1.5 * LOOK_INTERVAL)
    topology.found = NoMaster("no Sentinel answers")
    assert await waiting == "late"

    never = asyncio.create_task(while_current(topology, server, asyncio.sleep(1_000)))
    await asyncio.sleep(2 * LOOK_INTERVAL)
    topology.found = await FixedTopology("redis://:secret@two").find()
    began = asyncio.get_running_loop().time()
    with pytest.raises(ServerMoved, match=r"the master is redis://:\*\*\*@two now"):
        await never
    assert asyncio.get_running_loop().time() - began <= LOOK_INTERVAL
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual
async def test_what_comes_as_the_waiter_gives_up_is_discarded() -> None:
    """A connection that is made in the very turn would stay open, and nobody would know of it."""
    server = await FixedTopology("redis://one").find()
    made: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    discarded: list[str] = []

    async def connect() -> str:
        return await made

    waiting = asyncio.create_task(while_current(Finding(server), server, connect(), discarded.append))
    await asyncio.sleep(0.1)
    made.set_result("a connection")
    await asyncio.sleep(0)  # `connect` has returned, and nobody has taken the result
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert discarded == ["a connection"]

    taken = while_current(Finding(server), server, asyncio.sleep(0, "wanted"), discarded.append)
    assert await taken == "wanted"
    assert discarded == ["a connection"]


@virtual
async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    server = await FixedTopology("redis://one").find()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await while_current(Finding(server), server, asyncio.sleep(1_000))
    with pytest.raises(ConnectionRefusedError):
        await while_current(Finding(server), server, refused())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def refused() -> None:
    raise ConnectionRefusedError
