"""HAProxy as shipped, before three nodes of which one is cut off from Redis, and then all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.drill.fleet import HAProxyProcess, wait_until

from ..clients import SECONDS, Clients, clients_at
from ..integration.faults import Proxy
from ..running_nodes import BalancedNodes
from ..sockjs_pages import pages, publish, register, result
from . import balanced
from .test_haproxy import CONFIGURATION

pytestmark = pytest.mark.needs("haproxy")


class Stack(NamedTuple):
    """Three nodes, each of which reaches Redis through a proxy."""

    proxies: list[Proxy]
    nodes: BalancedNodes
    balancer: HAProxyProcess

    async def until_used(self, receiving: int) -> None:
        """Wait until HAProxy prefers that many nodes, and falls back to all three."""

        def used() -> bool:
            by_backend = self.balancer.nodes_by_backend()
            return by_backend == {
                "gateway": receiving,
                "sockjs_new": receiving,
                "gateway_any": 3,
                "sockjs": 3,
            }

        await asyncio.to_thread(wait_until, used, f"HAProxy prefers {receiving} nodes")

    async def sessions(self) -> list[int]:
        return await asyncio.to_thread(self.nodes.sessions)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with balanced.nodes_that_can_be_cut_off() as (nodes, proxies):
        with await asyncio.to_thread(HAProxyProcess, nodes.nodes) as balancer:
            yield Stack(proxies, nodes, balancer)


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    async with clients_at("127.0.0.1") as opened:
        yield opened


async def test_new_clients_go_to_nodes_that_receive_results(stack: Stack, clients: Clients) -> None:
    url = stack.balancer.ws_url
    early = [await clients.register(url, f"early-{number}") for number in range(6)]
    assert await stack.sessions() == [2, 2, 2]
    with stack.proxies[0].paused():  # connections stay open, and nothing gets through
        await stack.until_used(2)
        for number in range(6):
            await clients.register(url, f"late-{number}")
        assert await stack.sessions() == [2, 5, 5], "none had to wait, and none was moved"
        publish(stack.nodes.valkey, [f"early-{number}" for number in range(6)], "RESULT")
    for number, websocket in enumerate(early):
        assert (await websocket.receive_json(timeout=SECONDS))["authResult"] == f"RESULT_{number}"
    await stack.until_used(3)


async def test_while_no_node_receives_results_all_of_them_take_clients(
    stack: Stack, clients: Clients
) -> None:
    url = stack.balancer.ws_url
    for proxy in stack.proxies:
        proxy.rejecting = True
        proxy.cut()
    await stack.until_used(0)
    waiting = [await clients.connect(url) for _ in range(6)]
    for number, websocket in enumerate(waiting):
        await websocket.send_json({"webSocketId": f"waits-{number}"})
    assert await stack.sessions() == [2, 2, 2]
    for proxy in stack.proxies:
        proxy.rejecting = False
    for websocket in waiting:
        assert (await websocket.receive_json(timeout=SECONDS))["registrationSucceeded"] is True
    await stack.until_used(3)


async def test_a_sockjs_session_stays_on_a_node_that_is_cut_off(stack: Stack) -> None:
    """No other node knows it. New sessions go elsewhere."""
    port = stack.balancer.port
    async with pages(port, 12, "early") as early, pages(port, 12, "late") as late:
        assert await register(early) == []
        held = await stack.sessions()
        assert all(held)
        with stack.proxies[0].paused():
            await stack.until_used(2)
            assert [await page.send("\n") for page in early.values()] == [204] * 12
            assert await register(late) == []
            assert (await stack.sessions())[0] == held[0]
            assert [await page.send("\n") for page in late.values()] == [204] * 12
        publish(stack.nodes.valkey, [*early, *late], "RESULT")
        results = await asyncio.gather(*map(result, [*early.values(), *late.values()]))
        assert results == [f"RESULT_{number}" for number in range(12)] * 2


async def test_control_without_the_strict_check_new_clients_wait_on_a_node_that_is_cut_off(
    stack: Stack, clients: Clients, tmp_path: Path
) -> None:
    lenient = tmp_path / "haproxy.cfg"
    lenient.write_text(CONFIGURATION.read_text().replace("/readyz/strict", "/readyz"))
    with (
        await asyncio.to_thread(HAProxyProcess, stack.nodes.nodes, lenient) as control,
        stack.proxies[0].paused(),
    ):
        await stack.until_used(2)
        for _ in range(3):
            websocket = await clients.connect(control.ws_url)
            await websocket.send_json({"webSocketId": "any"})
        assert (await stack.sessions())[0] == 1
