"""SockJS without WebSockets behind HAProxy as shipped: many requests to a session, and no cookie."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pytest_aiohttp import AiohttpServer

from gateway.drill.fleet import HAProxyProcess, wait_until

from ..clients import SECONDS
from ..paths import DOCS
from ..running_nodes import BalancedNodes, started
from ..sockjs_pages import pages, publish, register, result
from . import balanced
from .test_haproxy import CONFIGURATION

pytestmark = [
    pytest.mark.needs("haproxy"),
    pytest.mark.adds_to("shared"),  # the fixture `stack` starts nodes again that the test before has killed
]

MIGRATION = (DOCS / "migration.md").read_text()


def configuration(folder: Path, *without: str) -> Path:
    """The shipped configuration without the settings that begin so."""
    lines = CONFIGURATION.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.strip().startswith(without)]
    assert len(kept) < len(lines)
    path = folder / "haproxy.cfg"
    path.write_text("".join(kept))
    return path


STICKY = (
    "stick-table type string",
    "stick on",
    "stick store-request",
    "use_backend sockjs if of_session !websocket {",
)
HASH = ("balance hash", "hash-type")


class Stack(NamedTuple):
    behind: BalancedNodes
    balancer: HAProxyProcess


@pytest.fixture(scope="module")
def shared() -> Iterator[Stack]:
    with started([], [], []) as behind, HAProxyProcess(behind.nodes) as balancer:
        yield Stack(behind, balancer)


@pytest.fixture
async def stack(shared: Stack) -> Stack:
    """Three running nodes, whatever the test before did to them."""
    shared.behind.restart_ended()
    await ready(3, shared.balancer)
    return shared


@pytest.fixture
async def idle(stack: Stack) -> Stack:
    """Three running nodes without sessions."""
    stack.behind.await_idle()
    return stack


async def ready(count: int, *balancers: HAProxyProcess) -> None:
    def seen() -> bool:
        return all(balancer.serves_nodes(count) for balancer in balancers)

    await asyncio.to_thread(wait_until, seen, f"HAProxy gives clients to {count} nodes")


async def test_every_transport_survives_a_killed_node(idle: Stack) -> None:
    await balanced.every_sockjs_transport_survives_a_killed_node(*idle)


async def test_a_node_that_joins_takes_no_session_from_the_others(stack: Stack, tmp_path: Path) -> None:
    behind, balancer = stack
    nodes = behind.nodes
    with HAProxyProcess(behind.nodes, configuration(tmp_path, *STICKY)) as control:
        nodes[1].kill()
        await ready(2, balancer, control)
        async with pages(balancer.port, 30, "first") as opened, pages(control.port, 30, "control") as others:
            assert await register(opened) == await register(others) == []
            await asyncio.to_thread(nodes[1].start)
            await ready(3, balancer, control)
            assert 404 in [await page.send("\n") for page in others.values()]
            assert [await page.send("\n") for page in opened.values()] == [204] * 30
            assert publish(behind.valkey, list(opened), "RESULT") == [1] * 30
            results = await asyncio.gather(*map(result, opened.values()))
            assert results == [f"RESULT_{number}" for number in range(30)]
            before = nodes[1].sessions()
            assert await register(opened) == []
            assert nodes[1].sessions() > before, "new ones are shared with it"


async def test_the_node_hears_of_clients_that_leave_while_they_listen(idle: Stack) -> None:
    await balanced.the_node_hears_of_pages_that_leave_while_they_listen(*idle)


async def test_sessions_with_a_websocket_go_to_the_node_with_the_fewest(idle: Stack) -> None:
    await balanced.sockjs_websockets_go_to_the_node_with_the_fewest(*idle)


async def test_without_the_hash_sessions_are_lost_at_once(stack: Stack, tmp_path: Path) -> None:
    """The control: each request goes to the node that is next."""
    with HAProxyProcess(stack.behind.nodes, configuration(tmp_path, *HASH, *STICKY)) as control:
        await balanced.most_sockjs_sessions_are_lost_at_once(control)


# Beside Web Flow, as docs/migration.md has it


def documented(part: str) -> str:
    """The lines for HAProxy behind `<!-- haproxy: part -->`."""
    found = re.search(rf"<!-- haproxy: {part} -->\n *```haproxy\n(.*?) *```", MIGRATION, re.DOTALL)
    assert found is not None, part
    return found[1]


@pytest.fixture
async def web_flow(aiohttp_server: AiohttpServer) -> TestServer:
    """What stands for Web Flow: it answers with the path that it was asked for."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"Web Flow at {request.path}")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return await aiohttp_server(app)


def beside(web_flow: TestServer, folder: Path, rules: str) -> Path:
    """The shipped configuration with Web Flow's servers, and with `rules` for what goes to them."""
    before = "    option forwardfor\n"
    servers = documented("backend").replace("192.0.2.10:8080", f"127.0.0.1:{web_flow.port}")
    text = CONFIGURATION.read_text().replace(before, before + rules)
    path = folder / "haproxy.cfg"
    path.write_text(f"{text}\n{servers.replace('port 8080', f'port {web_flow.port}')}")
    return path


async def ask(
    balancer: HAProxyProcess, below: str, *, post: bool = False, cookie: str = "", ip: int = 1
) -> str:
    url = f"http://127.0.0.1:{balancer.port}/powerauth-webflow{below}"
    connector = aiohttp.TCPConnector(local_addr=(f"127.0.0.{ip}", 0))
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.request("POST" if post else "GET", url, headers={"Cookie": cookie}) as answer,
    ):
        return await answer.text()


async def test_the_sockets_of_chosen_browsers_go_to_the_gateway(
    stack: Stack, tmp_path: Path, web_flow: TestServer
) -> None:
    path = beside(web_flow, tmp_path, documented("frontend"))
    chosen = "JSESSIONID=1; webflow_gateway=1"
    with HAProxyProcess(stack.behind.nodes, path) as balancer:
        for below in ("/", "/api/auth", "/websockets"):
            assert await ask(balancer, below, cookie=chosen) == f"Web Flow at /powerauth-webflow{below}"
        for below in ("/websocket/info", "/websocket/000/one/xhr"):
            assert await ask(balancer, below) == f"Web Flow at /powerauth-webflow{below}"
        assert '"cookie_needed": false' in await ask(balancer, "/websocket/info", cookie=chosen)
        for number in range(6):
            session = f"/websocket/000/chosen-{number}"
            assert await ask(balancer, f"{session}/xhr", post=True, cookie=chosen) == "o\n"
            assert await ask(balancer, f"{session}/xhr_send", post=True, cookie=chosen) == "Payload expected."
        async with aiohttp.ClientSession(headers={"Cookie": chosen}) as http:
            url = f"http://127.0.0.1:{balancer.port}/powerauth-webflow/websocket/000/ws/websocket"
            async with http.ws_connect(url) as websocket:
                assert await websocket.receive_str(timeout=SECONDS) == "o"


async def test_the_sockets_of_a_percentage_go_to_the_gateway(
    stack: Stack, tmp_path: Path, web_flow: TestServer
) -> None:
    rules = documented("frontend").splitlines(keepends=True)
    rules = [documented("percentage") if "acl chosen" in rule else rule for rule in rules]
    path = beside(web_flow, tmp_path, "".join(rules))
    with HAProxyProcess(stack.behind.nodes, path) as balancer:
        addresses = range(1, 201)
        answers = [await ask(balancer, "/websocket/info", ip=number) for number in addresses]
        at_gateway = sum("cookie_needed" in answer for answer in answers)
        assert 4 <= at_gateway <= 40, "of 200, ten per cent"
        again = [await ask(balancer, "/websocket/info", ip=number) for number in addresses]
        assert ["Web Flow" in answer for answer in again] == ["Web Flow" in answer for answer in answers]
