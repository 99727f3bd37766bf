"""The connections that are kept, on real servers."""

from __future__ import annotations

import asyncio

import pytest

from gateway.drill.fleet import ValkeyProcess
from gateway.redis.pool import PUBLISHER_NAME, ConnectionPool
from gateway.redis.server import Server

from ..integration.faults import Proxy


async def test_a_connection_is_kept_until_it_is_lost_or_dropped(valkey: ValkeyProcess) -> None:
    pool, server = ConnectionPool(), Server(valkey.url)
    first, same = await asyncio.gather(pool.get(server), pool.get(server))
    assert first is same
    pool.drop(server)
    pool.drop(Server("redis://nobody"))
    second = await pool.get(server)
    assert second is not first
    assert not first.is_open
    second.abort("to see what comes of it")
    third = await pool.get(server)
    assert await third.pipeline([("PING",)]) == [b"PONG"]
    await pool.close()
    assert not third.is_open


async def test_a_replica_is_not_kept_where_only_masters_will_do(valkey: ValkeyProcess) -> None:
    with ValkeyProcess("--replicaof", f"127.0.0.1 {valkey.port}") as replica:
        server = Server(replica.url)
        assert (await ConnectionPool().get(server)).is_open
        pool = ConnectionPool(only_masters=True)
        with pytest.raises(ConnectionError, match=f"{replica.port} is a replica"):
            await pool.get(server)
        replica.ask("REPLICAOF", "NO", "ONE")
        assert (await pool.get(server)).is_open
        assert replica.ask("CLIENT", "LIST").count(f"name={PUBLISHER_NAME}") == 2


async def test_an_attempt_goes_on_when_its_caller_gives_up(valkey: ValkeyProcess) -> None:
    """On a slow network the next caller gets what the first one has begun."""
    pool = ConnectionPool()
    async with Proxy.before(valkey.port) as proxy:
        server = Server(proxy.url)
        with proxy.paused():
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await pool.get(server)
        connection = await pool.get(server)
        assert await connection.pipeline([("PING",)]) == [b"PONG"]
        await pool.close()


async def test_attempts_that_fail_or_are_given_up_leave_nothing_behind(valkey: ValkeyProcess) -> None:
    trouble: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: trouble.append(context))
    pool = ConnectionPool()
    async with Proxy.before(valkey.port) as proxy:
        proxy.delay = 0.05
        server, proxy.rejecting = Server(proxy.url), True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await pool.get(server)
        await asyncio.sleep(0.1)
        proxy.rejecting = False
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pool.get(server)
        await pool.close()
    assert trouble == []
