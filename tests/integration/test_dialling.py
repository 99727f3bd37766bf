"""Nodes whose Redis is hard to reach, or is not what its URL says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from gateway.drill.fleet import SentinelProcess, ValkeyProcess, free_port

from .conftest import Line
from .faults import Proxy
from .in_process import admin_port_of, node_in_process, readiness, unconnected_node
from .load import until

pytestmark = pytest.mark.real


def unreachable(logged: list[Line]) -> list[str]:
    """The reasons that were logged."""
    events = ("redis unreachable", "redis cluster unreachable", "probe not published")
    return [line["reason"] for line in logged if line["event"] in events]


@contextlib.contextmanager
def wrong_servers() -> Iterator[dict[str, str]]:
    """URLs that lead to another kind of server than they say, and what the log should tell to write."""
    with (
        ValkeyProcess("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as member,
        ValkeyProcess() as single,
        SentinelProcess(single.port) as sentinel,
    ):
        yield {
            member.url: f"write redis+cluster://{member.address}",
            f"redis://{sentinel.address}": f"write redis+sentinel://{sentinel.address}/NAME-OF-THE-MASTER",
            f"redis+sentinel://{single.address}/mymaster": f"write redis://{single.address}",
            f"redis+cluster://{single.address}": f"write redis://{single.address}",
            f"redis+cluster://{sentinel.address}": f"write redis+sentinel://{sentinel.address}",
        }


async def test_a_url_for_another_kind_of_server(logged: list[Line]) -> None:
    with contextlib.ExitStack() as running:
        urls = await asyncio.to_thread(running.enter_context, wrong_servers())
        for url, remedy in urls.items():
            logged.clear()
            async with unconnected_node(url) as gateway:
                await until(lambda: bool(unreachable(logged)), "it is told")
                await asyncio.sleep(1)
                (told,) = unreachable(logged)
                assert remedy in told
                status, body = await readiness(admin_port_of(gateway))
                assert status == 503, body


async def test_a_server_without_room_is_told_once(logged: list[Line]) -> None:
    with await asyncio.to_thread(ValkeyProcess) as valkey, contextlib.ExitStack() as others:
        for _ in range(3):
            others.enter_context(socket.create_connection(("127.0.0.1", valkey.port)))
        await asyncio.to_thread(valkey.ask, "CONFIG", "SET", "maxclients", 4)
        async with unconnected_node(valkey.url):
            await asyncio.sleep(3)
        told = unreachable(logged)
        assert len(told) <= 2, "the connection and the probe, each once"
        assert set(told) == {"Redis answered HELLO with: ERR max number of clients reached"}


async def test_a_network_in_which_a_round_trip_takes_long() -> None:
    """1.4 s, which a connection bears for ever: it comes up, is lost, and comes up again."""
    with await asyncio.to_thread(ValkeyProcess) as valkey:
        async with Proxy.before(valkey.port) as proxy:
            proxy.delay = 0.7
            async with node_in_process(proxy.url) as gateway:
                proxy.cut()
                await until(lambda: gateway._broker.outages == 1, "the loss is noticed")
                await until(lambda: gateway._broker.connected, "it is connected again")


async def test_sentinels_and_a_master_in_such_a_network() -> None:
    with await asyncio.to_thread(ValkeyProcess) as valkey:
        async with Proxy.before(valkey.port) as master:
            with await asyncio.to_thread(SentinelProcess, master.port) as sentinel:
                async with Proxy.before(sentinel.port) as far:
                    master.delay = far.delay = 0.7
                    async with node_in_process(f"redis+sentinel://127.0.0.1:{far.port}/mymaster") as gateway:
                        assert gateway._broker.connected
