"""What the page is told, by real nodes on a real Valkey, a Cluster, and one that fails them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import aiohttp
import pytest

from gateway.admin.dashboard import MAX_PAGES, EventFeed
from gateway.drill.fleet import NodeProcess, ValkeyCluster, ValkeyProcess, wait_until
from gateway.node import Node
from gateway.nodes.survey import NOT_CONNECTED
from gateway.publishing import api as publishing
from gateway.publishing.publisher import Publisher
from gateway.redis.cluster.slots import key_slot

from .in_process import admin_port_of, node_in_process, port_of
from .load import SECONDS, load_clients, until

SHARED = "websocket::{nodes}"
RIGHTS = "-@all +hello +client|setname +ping +subscribe +unsubscribe +eval_ro +get &websocket:* ~websocket:*"

Snapshot = dict[str, Any]


@contextlib.asynccontextmanager
async def page(admin_port: int) -> AsyncIterator[Callable[[], Any]]:
    """An open page; each call waits for the next thing that it is told, and raises EOFError at the end."""
    timeout = aiohttp.ClientTimeout(total=None)
    url = f"http://127.0.0.1:{admin_port}/dashboard/events"
    async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"

        async def told() -> Snapshot:
            async with asyncio.timeout(SECONDS):
                async for line in answer.content:
                    if line.startswith(b"data: "):
                        snapshot: Snapshot = json.loads(line[6:])
                        return snapshot
            raise EOFError

        yield told


async def until_told(admin_port: int, condition: Callable[[Snapshot], object], what: str) -> Snapshot:
    """The first snapshot of which `condition` is true."""
    snapshot: Snapshot = {}
    try:
        async with asyncio.timeout(2 * SECONDS), page(admin_port) as told:
            while not condition(snapshot := await told()):
                pass
    except TimeoutError:
        raise TimeoutError(f"{what}: the last was {snapshot}") from None
    return snapshot


async def look_up(admin_port: int, web_socket_id: str) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{admin_port}/dashboard/session"
    timeout = aiohttp.ClientTimeout(SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.get(url, params={"webSocketId": web_socket_id}) as answer,
    ):
        assert answer.headers["Cache-Control"] == "no-store"
        body: dict[str, Any] = await answer.json()
        return answer.status, body


def names(snapshot: Snapshot) -> list[str]:
    return sorted(report["node"] for report in snapshot["nodes"])


def own(snapshot: Snapshot) -> dict[str, Any]:
    """The report of the node that was asked."""
    (report,) = [report for report in snapshot["nodes"] if report["id"] == snapshot["id"]]
    return dict(report)


@pytest.fixture
def nodes() -> Iterator[tuple[ValkeyProcess, list[NodeProcess]]]:
    """Two nodes, node-1 and node-2, on a Valkey that a test may harm."""
    with ExitStack() as running:
        valkey = running.enter_context(ValkeyProcess())
        nodes = [
            running.enter_context(NodeProcess(valkey.url, "--node", f"node-{number}")) for number in (1, 2)
        ]
        wait_until(lambda: valkey.ask("PUBSUB", "NUMSUB", SHARED) == [SHARED, 2], "they hear questions")
        yield valkey, nodes


async def test_each_node_tells_of_all(nodes: tuple[ValkeyProcess, list[NodeProcess]]) -> None:
    valkey, (one, two) = nodes
    browsers = [f"b-{number}" for number in range(5)]
    async with load_clients([two.port], browsers):
        with valkey.client() as backend:
            assert [backend.publish(f"websocket:{name}", "CONFIRMED") for name in browsers] == [1] * 5
            backend.publish("websocket:b-0", "confirmed")
        for node in (one, two):
            snapshot = await until_told(
                node.admin_port,
                lambda told: (
                    sorted(report["delivered"] for report in told["nodes"]) == [0, 5]
                    and all(report["lag"]["counts"][-1] for report in told["nodes"])
                ),
                "both nodes tell what they have delivered, and how late they are",
            )
            assert names(snapshot) == ["node-1", "node-2"]
            assert (snapshot["silent"], snapshot["reason"]) == (0, "")
            (other,) = [report for report in snapshot["nodes"] if report["node"] == "node-2"]
            counted = {name: other[name] for name in ("sessions", "registered", "invalid", "draining")}
            assert counted == {"sessions": 5, "registered": 5, "invalid": 1, "draining": False}
            assert other["redis"]["connected"]
            assert other["latency"]["counts"][-1] == 5
            assert other["troubles"] == []


async def test_finds_a_session_from_another_node(nodes: tuple[ValkeyProcess, list[NodeProcess]]) -> None:
    valkey, (one, two) = nodes
    name = "0123456789abcdef" * 8
    async with load_clients([two.port], [name]) as (browser,):
        with valkey.client() as backend:
            publishing.publish(backend, name, "CONTINUE", message_id="m-1", retain=300)
            publishing.publish(backend, name, "CONFIRMED", message_id="m-2", retain=300)
        await until(lambda: len(browser.results) == 2, "both results arrive")
        status, found = await look_up(one.admin_port, name)
    assert status == 200
    (session,) = found["sessions"]
    assert 0 <= session.pop("registered_for") < SECONDS
    assert session == {
        "node": "node-2",
        "state": "registered",
        "protocol": "json",
        "transport": "websocket",
        "address": "127.0.0.1",
        "results": 2,
        "message_ids": ["m-1", "m-2"],
        "degraded": False,
    }
    assert (found["nodes"], found["more"], found["silent"], found["reason"]) == (2, 0, 0, "")
    assert found["retained"]["present"]
    assert 290 < found["retained"]["seconds"] <= 300
    for node in (one, two):
        assert name not in str(node.logs)
    await until(lambda: one.logged("id looked up"), "the look-up is logged")
    assert [
        (line["id"], line["sessions"], line["nodes"], line["peer"]) for line in one.logged("id looked up")
    ] == [("01234567…", 1, 2, "127.0.0.1")]


async def test_finds_nobody_where_there_is_nobody(nodes: tuple[ValkeyProcess, list[NodeProcess]]) -> None:
    _, (one, _two) = nodes
    status, found = await look_up(one.admin_port, "nobody")
    assert status == 200
    assert (found["sessions"], found["nodes"]) == ([], 2)
    assert found["retained"] == {"present": False, "announced": False, "seconds": None, "reason": ""}


async def test_says_that_an_id_is_announced(nodes: tuple[ValkeyProcess, list[NodeProcess]]) -> None:
    valkey, (one, _two) = nodes
    valkey.ask("SET", "websocket:announced", "", "EX", 600)
    valkey.ask("LPUSH", "websocket:no-string", "x")
    _, found = await look_up(one.admin_port, "announced")
    seconds = found["retained"].pop("seconds")
    assert 590 < seconds <= 600
    assert found["retained"] == {"present": False, "announced": True, "reason": ""}
    _, found = await look_up(one.admin_port, "no-string")
    assert found["retained"]["announced"] is False
    for name in ("announced", "no-string"):
        valkey.ask("DEL", f"websocket:{name}")


@pytest.mark.parametrize("bad", ["", "a b", "é", "*", "x" * 201, "a\n"])
async def test_looks_up_only_what_can_be_an_id(node_here: Node, bad: str) -> None:
    status, body = await look_up(admin_port_of(node_here), bad)
    assert status == 400
    assert body["error"]["code"] == "invalid_id"


async def test_says_why_the_others_are_missing_while_redis_is_away(
    nodes: tuple[ValkeyProcess, list[NodeProcess]],
) -> None:
    valkey, (one, _two) = nodes
    async with page(one.admin_port) as told:
        while len((await told())["nodes"]) < 2:
            pass
        valkey.kill()
        snapshot = await told()
        while own(snapshot)["redis"]["connected"]:
            snapshot = await told()
        assert names(snapshot) == ["node-1"]
        assert snapshot["reason"] == NOT_CONNECTED
        (trouble,) = own(snapshot)["troubles"]
        assert trouble["tone"] == "bad"
        assert trouble["text"].startswith("has been without Redis for")
        _, found = await look_up(one.admin_port, "nobody")
        assert (found["nodes"], found["reason"]) == (1, NOT_CONNECTED)
        unknown = {"present": None, "announced": None, "seconds": None, "reason": NOT_CONNECTED}
        assert found["retained"] == unknown
        valkey.start()
        while len((snapshot := await told())["nodes"]) < 2:
            pass
        assert snapshot["reason"] == ""
        assert own(snapshot)["redis"]["outages"] == 1


async def test_a_frozen_redis_is_not_waited_for(nodes: tuple[ValkeyProcess, list[NodeProcess]]) -> None:
    valkey, (one, _two) = nodes
    async with page(one.admin_port) as told:
        await told()
        with valkey.frozen():
            snapshot = await told()
            while not snapshot["reason"]:
                snapshot = await told()
        assert names(snapshot) == ["node-1"]


async def test_counts_a_node_that_is_frozen(nodes: tuple[ValkeyProcess, list[NodeProcess]]) -> None:
    _, (one, two) = nodes
    with two.frozen():
        snapshot = await until_told(one.admin_port, lambda told: told["silent"], "node-2 is missed")
        assert names(snapshot) == ["node-1"]
        assert (snapshot["silent"], snapshot["reason"]) == (1, "")
    await until_told(one.admin_port, lambda told: len(told["nodes"]) == 2, "node-2 is back")


async def test_a_node_without_the_right_to_publish_says_so() -> None:
    with await asyncio.to_thread(ValkeyProcess) as valkey:
        valkey.ask("ACL", "SETUSER", "node", "on", ">secret", "resetchannels", *RIGHTS.split())
        url = f"redis://node:secret@127.0.0.1:{valkey.port}"
        async with node_in_process(url) as here:
            snapshot = await until_told(admin_port_of(here), lambda told: told["reason"], "it says why")
            assert "NOPERM" in snapshot["reason"]
            assert len(snapshot["nodes"]) == 1
            _, found = await look_up(admin_port_of(here), "nobody")
            assert found["retained"]["present"] is None
            assert "pttl" in found["retained"]["reason"]


# One node


@pytest.fixture
async def node_here(valkey: ValkeyProcess) -> AsyncIterator[Node]:
    async with node_in_process(valkey.url) as here:
        yield here


async def test_asks_others_only_while_a_page_is_open(node_here: Node) -> None:
    feed = feed_of(node_here)
    assert not feed._updating
    async with page(admin_port_of(node_here)) as told, page(admin_port_of(node_here)) as told_too:
        making = feed._updating or pytest.fail("nobody asks")
        assert (await told())["id"] == (await told_too())["id"]
        assert feed._updating is making
    await until(lambda: feed._updating is None, "nobody asks any more")
    await until(making.done, "the last round ends")


async def test_so_many_pages_and_no_more(node_here: Node) -> None:
    port = admin_port_of(node_here)
    feed = feed_of(node_here)
    async with contextlib.AsyncExitStack() as pages:
        for _ in range(MAX_PAGES):
            await pages.enter_async_context(page(port))
        await until(lambda: feed.full, "all of them are open")
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{port}/dashboard/events") as refused,
        ):
            assert refused.status == 503
            assert (await refused.json())["error"]["code"] == "busy"


def feed_of(node: Node) -> EventFeed:
    assert node._admin_port is not None
    return node._admin_port._dashboard.feed


async def test_a_node_that_stops_ends_its_streams(valkey: ValkeyProcess) -> None:
    async with node_in_process(valkey.url) as here, page(admin_port_of(here)) as told:
        await told()
        await here.stop()
        with contextlib.suppress(EOFError):  # else `told` fails for want of an event or an end
            while await told():
                pass


async def test_a_page_that_fails_once_goes_on(
    node_here: Node, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
) -> None:
    snapshot, failures = node_here.dashboard.snapshot, iter([RuntimeError("once")])

    async def fails_once() -> dict[str, Any]:
        if (error := next(failures, None)) is not None:
            raise error
        return await snapshot()

    monkeypatch.setattr(node_here.dashboard, "snapshot", fails_once)
    async with page(admin_port_of(node_here)) as told:
        assert (await told())["nodes"]
    (failure,) = [line for line in logged if line["log_level"] == "error"]
    assert failure["event"] == "dashboard failed"
    logged.remove(failure)


async def test_the_page_and_its_files_let_nothing_else_in(node_here: Node) -> None:
    port = admin_port_of(node_here)
    async with aiohttp.ClientSession() as http:
        for path, kind in (
            ("/", "html"),
            ("/dashboard/dashboard.js", "javascript"),
            ("/dashboard/dashboard.css", "css"),
        ):
            async with http.get(f"http://127.0.0.1:{port}{path}") as answer:
                assert answer.status == 200
                assert answer.content_type.endswith(kind)
                policy = answer.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
        for path in (
            "/dashboard/index.html",
            "/dashboard/demo.js",
            "/dashboard/..%2fapp.py",
            "/dashboard/dashboard.html",
        ):
            async with http.get(f"http://127.0.0.1:{port}{path}") as answer:
                assert answer.status == 404


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "only this machine can open this page"),
        ("0.0.0.0", "everybody who can connect sees this page"),
    ],
)
async def test_says_who_reaches_the_port(valkey: ValkeyProcess, host: str, expected: str) -> None:
    async with node_in_process(valkey.url, admin_host=host) as here, page(admin_port_of(here)) as told:
        port = (await told())["port"]
        assert port == f"This page requires no authentication. The admin port listens on {host}: {expected}."


# Several workers on one port


@contextlib.asynccontextmanager
async def several_workers() -> AsyncIterator[NodeProcess]:
    with await asyncio.to_thread(ValkeyProcess) as valkey:
        node = await asyncio.to_thread(NodeProcess, valkey.url, "--workers", "2", "--node", "one")
        with node:
            yield node


async def test_a_node_of_several_workers_tells_of_each() -> None:
    """The parent, which listens on the admin port, has no Redis of its own: any worker asks for it."""
    async with several_workers() as node:
        names_of_both = ["one worker 1", "one worker 2"]
        async with load_clients([node.port], [f"w-{number}" for number in range(20)]):
            snapshot = await until_told(
                node.admin_port,
                lambda told: sum(report["sessions"] for report in told["nodes"]) == 20,
                "all sessions are told of",
            )
            assert names(snapshot) == names_of_both
            assert snapshot["node"] == "one"
            status, found = await look_up(node.admin_port, "w-7")
            assert (status, found["nodes"]) == (200, 2)
            assert [session["node"] in names_of_both for session in found["sessions"]] == [True]
        async with page(node.admin_port) as told:
            await told()
            await asyncio.to_thread(node.stop)
            with contextlib.suppress(EOFError):
                while await told():
                    pass


# A Cluster


@pytest.fixture
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=0) as servers:
        yield servers


def both(snapshot: Snapshot) -> bool:
    return names(snapshot) == ["one", "two"]


async def test_in_a_cluster_too_and_when_the_nodes_channel_moves(cluster: ValkeyCluster) -> None:
    async with (
        node_in_process(cluster.url, node="one") as one,
        node_in_process(cluster.url, node="two") as two,
    ):
        ports = [admin_port_of(gateway) for gateway in (one, two)]
        for port in ports:
            snapshot = await until_told(port, both, "both nodes are there")
            assert (own(snapshot)["redis"]["servers"], own(snapshot)["redis"]["servers_up"]) == (3, 3)
        async with load_clients([port_of(two)], ["in-a-cluster"]):
            _, found = await look_up(ports[0], "in-a-cluster")
            assert [session["node"] for session in found["sessions"]] == ["two"]
            assert found["retained"]["present"] is False
            async with Publisher(cluster.url) as publisher:
                assert await publisher.announce("in-a-cluster")
                _, found = await look_up(ports[0], "in-a-cluster")
                assert (found["retained"]["present"], found["retained"]["announced"]) == (False, True)
                await publisher.publish("in-a-cluster", "DONE")
                _, found = await look_up(ports[0], "in-a-cluster")
                assert (found["retained"]["present"], found["retained"]["announced"]) == (True, False)
        here = cluster.owner(key_slot(SHARED.encode()))
        there = next(node for node in cluster.masters if node is not here)
        await asyncio.to_thread(cluster.move_slots, here, there, [key_slot(SHARED.encode())])
        await until(lambda: two._broker.connection_for(SHARED.encode()) is not None, "the new map is known")
        for port in ports:
            await until_told(port, both, "both nodes hear each other where the channel is now")
        numbers = there.ask("PUBSUB", "SHARDNUMSUB", SHARED)
        assert numbers == [SHARED, 2]
