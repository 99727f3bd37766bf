"""Who may register with `--registration announced`: three real nodes, a real Redis, every wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import aiohttp
import pytest

from gateway import announce, publish
from gateway.drill.fleet import NodeProcess, ValkeyCluster, ValkeyProcess
from gateway.wire.sse import REJECTED_EVENT_ID

from .conftest import Line, nodes_on
from .in_process import node_in_process, port_of
from .load import text, until
from .raw import Raw
from .stomp import CONNECT, TO_AUTHORIZATION, TO_REGISTRATION, message, parse, send
from .test_events import Source
from .test_redis_rights import CLUSTER

Http = aiohttp.ClientSession
TOKEN = "a-token-of-sixteen"
OPTIONS = ("--registration", "announced", "--publish-token", TOKEN)

NUMBERS = count()

UNKNOWN = {"code": "unknown_id", "message": "nobody has announced this webSocketId"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[ValkeyProcess, list[NodeProcess]]]:
    with ValkeyProcess() as valkey, nodes_on(valkey.url, 3, *OPTIONS) as running:
        yield valkey, running


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


Register = Callable[[str], Awaitable[dict[str, Any]]]
"""Registers an id on a connection, and returns the body of the answer."""


@contextlib.asynccontextmanager
async def json_client(http: Http, port: int) -> AsyncIterator[Register]:
    async with http.ws_connect(f"http://127.0.0.1:{port}/ws") as socket:

        async def register(name: str) -> dict[str, Any]:
            await socket.send_json({"webSocketId": name})
            return await _answer(socket.receive_json, lambda body: body)

        yield register


@contextlib.asynccontextmanager
async def stomp_client(http: Http, port: int) -> AsyncIterator[Register]:
    async with http.ws_connect(f"http://127.0.0.1:{port}/websocket/websocket") as socket:
        for frame in (CONNECT, TO_REGISTRATION, TO_AUTHORIZATION):
            await socket.send_str(frame)
        assert parse(await socket.receive_str()).command == "CONNECTED"

        async def register(name: str) -> dict[str, Any]:
            await socket.send_str(send(name))
            return await _answer(socket.receive_str, lambda frame: message(frame)[1])

        yield register


@contextlib.asynccontextmanager
async def sockjs_client(http: Http, port: int) -> AsyncIterator[Register]:
    """Over xhr_streaming, as behind a proxy without WebSocket."""
    place = f"http://127.0.0.1:{port}/websocket/000/announced-{next(NUMBERS)}"
    async with http.post(f"{place}/xhr_streaming") as stream:

        async def frames() -> str:
            """The next STOMP frame."""
            while line := (await stream.content.readline()).decode():
                if line.startswith("a"):
                    (frame,) = json.loads(line[1:])
                    return str(frame)
            raise ConnectionError("the stream has ended")

        async def post(*frames: str) -> None:
            async with http.post(f"{place}/xhr_send", data=json.dumps(frames)) as answer:
                assert answer.status == 204

        await post(CONNECT, TO_REGISTRATION, TO_AUTHORIZATION)
        assert parse(await frames()).command == "CONNECTED"

        async def register(name: str) -> dict[str, Any]:
            await post(send(name))
            return await _answer(frames, lambda frame: message(frame)[1])

        yield register


async def _answer(receive: Callable[[], Awaitable[Any]], body: Callable[[Any], Any]) -> dict[str, Any]:
    """The next answer to a registration, past results."""
    while True:
        found: dict[str, Any] = body(await receive())
        if "registrationSucceeded" in found:
            return found


CLIENTS = {"json": json_client, "stomp": stomp_client, "sockjs": sockjs_client}


@pytest.mark.parametrize("wire", CLIENTS)
async def test_an_id_registers_once_it_is_announced(
    nodes: tuple[ValkeyProcess, list[NodeProcess]], http: Http, wire: str
) -> None:
    valkey, running = nodes
    for number, node in enumerate(running):
        name = f"late-{wire}-{number}"
        async with CLIENTS[wire](http, node.port) as register:
            answer = await register(name)
            assert answer == {"webSocketId": name, "registrationSucceeded": False, "error": UNKNOWN} | (
                {"topic": "/user/topic/registration"} if wire == "json" else {}
            )
            valkey.ask("SET", f"websocket:{name}", "", "EX", 600)
            assert (await register(name))["registrationSucceeded"] is True
            valkey.ask("DEL", f"websocket:{name}")
            assert (await register(name))["registrationSucceeded"] is True, "it was confirmed"
            async with CLIENTS[wire](http, node.port) as other:
                assert (await other(name))["registrationSucceeded"] is False, "the second is a newcomer"
            assert valkey.ask("PUBLISH", f"websocket:{name}", "DONE") == 1
    await until(lambda: not valkey.ask("PUBSUB", "CHANNELS", "websocket:late-*"), "all is unsubscribed")


@pytest.mark.parametrize("wire", CLIENTS)
async def test_a_result_that_is_retained_already_makes_an_id_known(
    nodes: tuple[ValkeyProcess, list[NodeProcess]], http: Http, wire: str
) -> None:
    valkey, running = nodes
    with valkey.client() as client:
        assert announce(client, f"early-{wire}")
        assert publish(client, f"early-{wire}", "DONE").retained
    async with CLIENTS[wire](http, running[0].port) as register:
        assert (await register(f"early-{wire}"))["registrationSucceeded"] is True


async def test_server_sent_events(nodes: tuple[ValkeyProcess, list[NodeProcess]], http: Http) -> None:
    valkey, running = nodes
    url = f"http://127.0.0.1:{running[1].port}/events?webSocketId=stream"
    async with http.get(url) as answer:
        source = Source(answer)
        assert await source.block() == {"retry": "1000"}
        fields = await source.block()
        assert (fields["id"], fields["event"]) == (REJECTED_EVENT_ID, "registration")
        assert json.loads(fields["data"])["error"] == UNKNOWN
        assert await source.block() == {"": "1008 unknown_id"}
        assert await source.block() == {}, "the stream ends"
    async with http.get(url, headers={"Last-Event-ID": REJECTED_EVENT_ID}) as answer:
        assert answer.status == 204, "which keeps an EventSource from coming back"
    valkey.ask("SET", "websocket:stream", "", "EX", 600)
    async with http.get(url) as answer:
        source = Source(answer)
        await source.block()
        assert await source.event() == (
            "registration",
            {"webSocketId": "stream", "registrationSucceeded": True},
        )


async def test_announced_over_http(nodes: tuple[ValkeyProcess, list[NodeProcess]], http: Http) -> None:
    _, running = nodes
    first, second, third = running
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with json_client(http, third.port) as register:
        for node, is_new in ((first, True), (second, False)):
            url = f"http://127.0.0.1:{node.admin_port}/announce"
            async with http.post(url, json={"webSocketId": "posted"}, headers=headers) as answer:
                assert (answer.status, await answer.json()) == (200, {"webSocketId": "posted", "new": is_new})
        assert (await register("posted"))["registrationSucceeded"] is True
    async with http.get(f"http://127.0.0.1:{first.admin_port}/metrics") as answer:
        assert 'gateway_announced_total{outcome="new"} 1.0' in await answer.text()


async def test_refusals_are_counted(nodes: tuple[ValkeyProcess, list[NodeProcess]], http: Http) -> None:
    _, (node, *_others) = nodes

    async def refused() -> float:
        async with http.get(f"http://127.0.0.1:{node.admin_port}/metrics") as answer:
            (line,) = [line for line in (await answer.text()).splitlines() if 'kind="unknown_id"' in line]
            return float(line.split()[-1])

    before = await refused()
    async with json_client(http, node.port) as register:
        for _ in range(3):
            assert (await register("counted"))["registrationSucceeded"] is False
    assert await refused() == before + 3


async def test_a_redis_that_comes_back_empty_ends_no_session() -> None:
    """Its control: a newcomer is refused."""
    with await asyncio.to_thread(ValkeyProcess) as valkey:
        async with contextlib.AsyncExitStack() as stack:
            running = [
                await stack.enter_async_context(node_in_process(valkey.url, registration="announced"))
                for _ in range(3)
            ]
            browsers = []
            for number, node in enumerate(running):
                valkey.ask("SET", f"websocket:held-{number}", "", "EX", 600)
                browsers.append(
                    await stack.enter_async_context(Raw.registered(port_of(node), f"held-{number}"))
                )
            valkey.ask("FLUSHALL")
            valkey.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: all(node._broker.outages for node in running), "all have lost Redis")
            await until(
                lambda: all(node._hub.count_confirmed() == 1 for node in running), "all have it again"
            )
            for number, browser in enumerate(browsers):
                browser.send(text({"webSocketId": f"held-{number}"}))
                assert (await browser.message())["registrationSucceeded"] is True
                assert valkey.ask("PUBLISH", f"websocket:held-{number}", "DONE") == 1
                assert (await browser.message())["authResult"] == "DONE"
            newcomer = await stack.enter_async_context(Raw.upgraded(port_of(running[0])))
            newcomer.send(text({"webSocketId": "held-0"}))
            assert (await newcomer.message())["error"] == UNKNOWN


async def test_a_client_has_the_registration_timeout_and_no_longer(valkey: ValkeyProcess) -> None:
    async with (
        node_in_process(valkey.url, registration="announced", registration_timeout=1) as gateway,
        Raw.upgraded(port_of(gateway)) as browser,
    ):
        browser.send(text({"webSocketId": "nobody-knows"}))
        assert (await browser.message())["error"] == UNKNOWN
        assert await browser.closed() == (1008, "registration timeout")


async def test_an_open_node_ignores_announcements(valkey: ValkeyProcess, logged: list[Line]) -> None:
    valkey.ask("SET", "websocket:open", "", "EX", 60)
    async with node_in_process(valkey.url) as gateway:
        async with Raw.registered(port_of(gateway), "open") as browser:
            assert valkey.ask("PUBLISH", "websocket:open", "DONE") == 1
            assert (await browser.message())["authResult"] == "DONE"
        assert not gateway._hub.invalid
    assert not [line for line in logged if line["event"] == "invalid result"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(masters=3, replicas=0) as running:
        yield running


async def test_in_a_cluster_with_one_right_more(cluster: ValkeyCluster, logged: list[Line]) -> None:
    """The control lacks the right: an outage, and no refusal."""
    rights = " ".join(CLUSTER).split()
    for server in cluster.nodes:
        server.ask("ACL", "SETUSER", "with", "on", ">x", *rights, "+exists")
        server.ask("ACL", "SETUSER", "without", "on", ">x", *rights)
    with cluster.client() as client:
        for number in range(10):
            announce(client, f"sharded-{number}")
            publish(client, f"result-{number}", "DONE")
    url = cluster.url.replace("//", "//with:x@")
    async with node_in_process(url, registration="announced") as gateway:
        for number in range(10):
            async with Raw.registered(port_of(gateway), f"sharded-{number}"):
                pass
            async with Raw.registered(port_of(gateway), f"result-{number}") as browser:
                assert (await browser.message())["authResult"] == "DONE"
            async with Raw.upgraded(port_of(gateway)) as browser:
                browser.send(text({"webSocketId": f"unknown-{number}"}))
                assert (await browser.message())["error"] == UNKNOWN
        await until(lambda: not gateway._hub.channels, "all is unsubscribed")
        assert gateway._broker.outages == 0
    assert "channel denied by redis" not in [line["event"] for line in logged]
    url = cluster.url.replace("//", "//without:x@")
    async with (
        node_in_process(url, registration="announced", registration_timeout=1) as gateway,
        Raw.upgraded(port_of(gateway)) as browser,
    ):
        browser.send(text({"webSocketId": "sharded-0"}))
        assert await browser.closed() == (1013, "registration not confirmed in time")
    (line,) = [line for line in logged if line["event"] == "channel denied by redis"]
    assert line["hint"] == "give the node's Redis user +exists"
    logged.clear()
