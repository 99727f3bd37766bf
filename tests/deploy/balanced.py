"""What must hold behind any load balancer that is shipped: the tests of each ask for the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import aiohttp
import pytest

from gateway.drill.fleet import ValkeyProcess, wait_until
from gateway.publishing.api import SCRIPT

from .. import sockjs_pages
from ..clients import SECONDS, Clients, clients_at
from ..integration import stomp
from ..integration.faults import Proxy
from ..integration.raw import Raw
from ..running_nodes import BalancedNodes, LoadBalancer
from ..sockjs_pages import Lost, Page, pages, publish, register

CLIENTS = 99
PAGES = 60
AT_ONCE = 4.0  # seconds, well before the next heartbeat would tell


PATIENT = ["--registration-timeout", "60"]  # so that clients of a node that is cut off can be seen to wait


@contextlib.asynccontextmanager
async def nodes_that_can_be_cut_off() -> AsyncIterator[tuple[BalancedNodes, list[Proxy]]]:
    """Three nodes, each of which reaches Redis through a proxy.

    The proxies run in the test's loop, which must not be blocked while they are needed.
    """
    async with AsyncExitStack() as opened:
        valkey = opened.enter_context(await asyncio.to_thread(ValkeyProcess))
        proxies = [await opened.enter_async_context(Proxy.before(valkey.port)) for _ in range(3)]
        group = BalancedNodes(valkey, *(["--redis", proxy.url, *PATIENT] for proxy in proxies))
        nodes = await asyncio.to_thread(group.__enter__)
        opened.push(group.__exit__)
        yield nodes, proxies
        for node in nodes.nodes:
            node.kill()


async def clients_of_a_killed_node_get_their_results(
    nodes: BalancedNodes, balancer: LoadBalancer, clients: Clients
) -> None:
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

    names = [f"client-{number}" for number in range(CLIENTS)]
    sockets = await asyncio.gather(*(clients.register(balancer.ws_url, name) for name in names))
    connected = dict(zip(names, sockets, strict=True))
    held = nodes.sessions()
    assert sum(held) == CLIENTS
    assert min(held) >= CLIENTS // 3 - 5, "the one with the fewest is next, so they are spread evenly"

    browsing = [asyncio.create_task(browse(name)) for name in names]
    nodes.nodes[0].kill()
    await asyncio.to_thread(wait_until, lambda: len(away) == held[0], "its clients notice")
    with nodes.valkey.client() as client:
        for name in names:
            client.eval(SCRIPT, 1, f"websocket:{name}", f"RESULT_{name[7:]}", 60)
    published.set()
    results = await asyncio.gather(*browsing)

    assert results == [f"RESULT_{name[7:]}" for name in names]
    assert len(away) == held[0], "nobody else was disturbed"


async def a_client_refused_by_a_full_node_is_taken_to_another(
    nodes: BalancedNodes, balancer: LoadBalancer, clients: Clients
) -> None:
    """The first of two nodes takes one session, the second as many as come."""
    # Not through the balancer, so that it believes the full node to be the emptiest.
    await clients.register(f"ws://{nodes.addresses[0]}:{nodes.port}/ws", "direct")
    for number in range(6):
        await clients.register(balancer.ws_url, f"client-{number}")
    assert nodes.sessions() == [1, 6]


async def a_client_cannot_say_where_it_comes_from(balancer: LoadBalancer, clients: Clients) -> None:
    """The one node takes two sessions from an address."""
    for number in range(2):
        await clients.connect(balancer.ws_url, X_Forwarded_For=f"203.0.113.{number}")
    for name in ("X_Forwarded_For", "Forwarded", "X_Real_IP"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await clients.connect(balancer.ws_url, **{name: "203.0.113.9"})
        assert refused.value.status == 429
    # What the balancer itself says is believed: another address has a count of its own.
    async with clients_at("127.0.0.99") as elsewhere:
        await elsewhere.register(balancer.ws_url, "elsewhere")


async def a_client_that_does_not_read_is_closed(nodes: BalancedNodes, balancer: LoadBalancer) -> bool:
    """Publish 480 KB to a client that reads none of it. Returns whether the one node has closed its session:
    or else the balancer has taken all of it into its buffers."""
    (node,) = nodes.nodes

    def taken() -> bool:
        state = node.readyz()
        return state is not None and not state["unread_bytes"]

    async with Raw.registered(balancer.port, "reads-nothing", receive_buffer=4_096):
        with nodes.valkey.client() as backend:
            for _ in range(60):
                backend.publish(
                    "websocket:reads-nothing", json.dumps({"authResult": "A", "data": "x" * 8_000})
                )
                # A busy balancer must not look like a full one.
                with contextlib.suppress(TimeoutError):
                    await asyncio.to_thread(wait_until, taken, "the balancer takes it", 0.2)
        with contextlib.suppress(TimeoutError):
            await asyncio.to_thread(wait_until, lambda: not sum(nodes.sessions()), "it is closed", AT_ONCE)
        return not sum(nodes.sessions())


@contextlib.contextmanager
def connections_from(source: str, port: int, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections from one address, which are kept; each sends this."""
    with contextlib.ExitStack() as opened:
        made = []
        for _ in range(count):
            connection = opened.enter_context(socket.socket())
            connection.settimeout(SECONDS)
            connection.bind((source, 0))
            with contextlib.suppress(ConnectionError):  # it may be refused
                connection.connect(("127.0.0.1", port))
                connection.sendall(sent)
            made.append(connection)
        yield made


async def every_sockjs_transport_survives_a_killed_node(nodes: BalancedNodes, balancer: LoadBalancer) -> None:
    """No node has a session at first."""
    lost: dict[str, str] = {}
    published = asyncio.Event()

    async def browse(name: str, page: Page) -> str:
        """The next result; a page whose session is lost connects anew, once everything is published."""
        try:
            return await sockjs_pages.result(page)
        except Lost as reason:
            lost[name] = str(reason)
        # A poll that was on its way has opened a session on another node; otherwise no other node knows it.
        assert await page.send(stomp.DISCONNECT) == (204 if lost[name] == "o" else 404)
        await published.wait()
        await page.register(name)
        return await sockjs_pages.result(page)

    async with pages(balancer.port, PAGES) as opened:
        assert await register(opened) == []
        held = nodes.sessions()
        assert sum(held) == PAGES
        assert all(held), "each node has some"

        assert publish(nodes.valkey, list(opened), "FIRST") == [1] * PAGES
        results = await asyncio.gather(*map(sockjs_pages.result, opened.values()))
        assert results == [f"FIRST_{number}" for number in range(PAGES)]

        browsing = [asyncio.create_task(browse(name, page)) for name, page in opened.items()]
        nodes.nodes[0].kill()
        await asyncio.to_thread(wait_until, lambda: len(lost) == held[0], "its clients notice", AT_ONCE)
        assert publish(nodes.valkey, list(opened), "SECOND").count(0) == held[0]
        published.set()
        assert await asyncio.gather(*browsing) == [f"SECOND_{number}" for number in range(PAGES)]
        assert len(lost) == held[0], "nobody else was disturbed"


async def the_node_hears_of_pages_that_leave_while_they_listen(
    nodes: BalancedNodes, balancer: LoadBalancer
) -> None:
    """No node has a session at first."""
    async with pages(balancer.port, 6) as opened:
        assert await register(opened) == []
        for page in opened.values():
            await page.send("\n")  # by now they listen again
        assert sum(nodes.sessions()) == 6
    await asyncio.to_thread(wait_until, lambda: sum(nodes.sessions()) == 0, "the nodes notice", AT_ONCE)


async def sockjs_websockets_go_to_the_node_with_the_fewest(
    nodes: BalancedNodes, balancer: LoadBalancer
) -> None:
    """Three nodes, and none has a session at first."""
    async with aiohttp.ClientSession() as http, AsyncExitStack() as sockets:
        for number in range(12):
            url = f"http://127.0.0.1:{balancer.port}/websocket/000/session-{number}/websocket"
            websocket = await sockets.enter_async_context(http.ws_connect(url))
            assert await websocket.receive_str(timeout=SECONDS) == "o"
        assert nodes.sessions() == [4, 4, 4]


async def most_sockjs_sessions_are_lost_at_once(balancer: LoadBalancer) -> None:
    """The control, for a balancer that gives each request to the node that is next."""
    async with pages(balancer.port, PAGES) as opened:
        assert len(await register(opened)) > PAGES * 3 // 4
