"""HAProxy with the shipped configuration in front of real nodes: a node dies, stops or is full, clients lie.

Every node has a loopback address of its own; gateway/drill/fleet/balancer.py says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from gateway.drill.fleet.balancer import Balancer, address, configuration
from gateway.publishing import SCRIPT

from .clients import SECONDS, Clients, clients_at
from .processes import Node, Valkey, free_port, wait_until

pytestmark = pytest.mark.needs("haproxy")

CONFIGURATION = configuration()
CLIENTS = 99


def node_at(number: int, valkey: Valkey, port: int, admin_port: int, *options: str) -> Node:
    """A node that is to be the `number`-th, with options of its own."""
    # At the end nobody answers the nodes' close frames, because the test waits for the nodes.
    common = ["--trusted-proxies", "127.0.0.0/8", "--close-timeout", "0.2"]
    return Node(valkey.url, *common, *options, host=address(number), port=port, admin_port=admin_port)


@contextlib.contextmanager
def started(
    *options_by_node: Sequence[str], configuration: Path = CONFIGURATION
) -> Iterator[tuple[list[Node], Balancer, Valkey]]:
    """A node for each of the lists of options, on addresses of their own, behind HAProxy, on one Valkey."""
    port, admin_port = free_port(), free_port()

    def start(number: int) -> Node:
        return nodes.enter_context(node_at(number, valkey, port, admin_port, *options_by_node[number]))

    with Valkey() as valkey, contextlib.ExitStack() as nodes:
        with ThreadPoolExecutor() as pool:
            running = list(pool.map(start, range(len(options_by_node))))
        with Balancer(running, configuration) as balancer:
            yield running, balancer, valkey


def sessions(number: int, node: Node) -> int:
    """The sessions on the node that was started as the `number`-th, from 0, by its own account."""
    url = f"http://{address(number)}:{node.admin_port}/readyz"
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        count: int = json.load(answer)["sessions"]
        return count


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    async with clients_at("127.0.0.1") as opened:
        yield opened


async def test_the_clients_of_a_killed_node_still_get_their_results(clients: Clients) -> None:
    away: list[str] = []
    published = asyncio.Event()

    async def browse(name: str) -> str:
        """Wait for the result; when the connection breaks, come back once everything is published."""
        websocket = connected[name]
        message = await websocket.receive(SECONDS)
        if message.type is not aiohttp.WSMsgType.TEXT:
            away.append(name)
            await published.wait()
            websocket = await clients.register(balancer.ws_url, name)
            message = await websocket.receive(SECONDS)
        result: str = json.loads(message.data)["authResult"]
        with contextlib.suppress(TimeoutError):
            pytest.fail(f"{name} got more than its result: {await websocket.receive(0.2)}")
        return result

    with started([], [], []) as (nodes, balancer, valkey):
        names = [f"client-{number}" for number in range(CLIENTS)]
        sockets = await asyncio.gather(*(clients.register(balancer.ws_url, name) for name in names))
        connected = dict(zip(names, sockets, strict=True))
        held = [sessions(number, node) for number, node in enumerate(nodes)]
        assert sum(held) == CLIENTS
        assert min(held) >= CLIENTS // 3 - 5, "leastconn spreads them evenly"

        browsing = [asyncio.create_task(browse(name)) for name in names]
        nodes[0].kill()
        await asyncio.to_thread(wait_until, lambda: len(away) == held[0], "its clients notice")
        with valkey.client() as client:
            for name in names:
                client.eval(SCRIPT, 1, f"websocket:{name}", f"RESULT_{name[7:]}", 60)
        published.set()
        results = await asyncio.gather(*browsing)

    assert results == [f"RESULT_{name[7:]}" for name in names]
    assert len(away) == held[0], "nobody else was disturbed"


async def test_a_node_that_stops_closes_its_clients_itself_and_gets_no_new_ones(clients: Clients) -> None:
    # HAProxy needs up to 1.25 s to notice; the rest is for a machine that is busy.
    drain = ["--drain-delay", "3", "--drain-seconds", "0.5"]
    with started(drain, drain) as (nodes, balancer, _):
        sockets = [await clients.register(balancer.ws_url, f"first-{number}") for number in range(8)]
        closes = [asyncio.create_task(websocket.receive(SECONDS)) for websocket in sockets]
        held = sessions(0, nodes[0])
        nodes[0].signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: balancer.gives_to(1), "HAProxy notices")
        assert not any(closed.done() for closed in closes), "the node closes them, HAProxy does not"
        for number in range(8):
            await clients.register(balancer.ws_url, f"second-{number}")
        assert sessions(1, nodes[1]) == 16 - held
        await asyncio.to_thread(
            wait_until, lambda: sum(closed.done() for closed in closes) >= held, "the node closes its clients"
        )
        await asyncio.to_thread(nodes[0].process.wait, SECONDS)
        codes = [closed.result().data for closed in closes if closed.done()]
        for closed in closes:
            closed.cancel()
        nodes[1].kill()  # or it would take its time to stop, too
    assert held
    assert codes == [aiohttp.WSCloseCode.SERVICE_RESTART] * held


async def test_a_client_that_a_full_node_refuses_is_taken_to_another(clients: Clients) -> None:
    with started(["--max-sessions", "1"], []) as (nodes, balancer, _):
        # Not through HAProxy, so that it believes the full node to be the emptiest.
        await clients.register(f"ws://127.0.0.2:{nodes[0].port}/ws", "direct")
        for number in range(6):
            await clients.register(balancer.ws_url, f"client-{number}")
        assert [sessions(number, node) for number, node in enumerate(nodes)] == [1, 6]


async def test_a_client_cannot_say_where_it_comes_from(clients: Clients) -> None:
    with started(["--max-sessions-per-ip", "2"]) as (_, balancer, _):
        for number in range(2):
            await clients.connect(balancer.ws_url, X_Forwarded_For=f"203.0.113.{number}")
        for name in ("X_Forwarded_For", "Forwarded", "X_Real_IP"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await clients.connect(balancer.ws_url, **{name: "203.0.113.9"})
            assert refused.value.status == 429
        # What HAProxy itself says is believed: another address has a count of its own.
        async with clients_at("127.0.0.99") as elsewhere:
            await elsewhere.register(balancer.ws_url, "elsewhere")
