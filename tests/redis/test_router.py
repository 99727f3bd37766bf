"""The server of a channel, and what makes a router look it up again."""

from __future__ import annotations

import asyncio

import pytest

from gateway.drill.fleet import SentinelProcess, ValkeyProcess
from gateway.errors import NoMaster
from gateway.redis import router as routers
from gateway.redis.factory import new_router
from gateway.redis.router import Router
from gateway.redis.sentinel import Sentinels
from gateway.redis.url import Address, parse_redis_url

ASKED = Address("10.0.0.1", 7000)


def router_of(url: str) -> Router:
    return new_router(parse_redis_url(url))


async def urls(found: Router, *channels: bytes) -> list[str | None]:
    servers = await found.servers(channels or [b"a"])
    return [None if server is None else server.url for server in servers]


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


async def test_who_forgets_the_server_takes_it_from_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    found = router_of("redis+sentinel://a,b,c/mymaster")

    async def look(sentinels: Sentinels) -> Address:
        # As another publication does, whose attempt fails when this look-up has just ended.
        asyncio.get_running_loop().call_soon(found.forget)
        return ASKED

    monkeypatch.setattr(Sentinels, "master", look)
    for _ in range(2):
        assert await urls(found) == ["redis://10.0.0.1:7000"]
        monkeypatch.setattr(routers, "LOOKUP_INTERVAL", 0)
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


async def test_another_password_is_for_servers_that_are_known_already() -> None:
    one = router_of("redis://:old@redis:6380/1")
    (server,) = await one.servers([b"a"])
    one.use(parse_redis_url("redis://:new@redis:6380/1"))
    assert server is not None
    assert await urls(one) == [server.url] == ["redis://:new@redis:6380/1"]
    await one.close()


async def test_a_look_up_in_progress_ends_with_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    found = router_of("redis+sentinel://127.0.0.1:1/mymaster")
    asked = asyncio.Event()

    async def endless(_topology: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(type(found._topology), "find", endless)  # type: ignore[attr-defined]
    looking = asyncio.create_task(urls(found))
    await asked.wait()
    await found.close()
    with pytest.raises(asyncio.CancelledError):
        await looking
