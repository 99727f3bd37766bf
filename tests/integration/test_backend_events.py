"""Events on a real Valkey: each is counted against what was done to the browsers, on every wire."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from gateway.core import events as recording
from gateway.drill.fleet import NodeProcess, ValkeyCluster, ValkeyProcess
from gateway.node import Node
from gateway.publishing import api as publishing
from gateway.redis import event_writer
from gateway.redis.event_streams import event_streams

from ..paths import DOCS
from ..sockjs_pages import Lost, Page
from . import stomp
from .conftest import Line, nodes_on
from .in_process import admin_port_of, node_in_process, port_of, readiness
from .load import SECONDS, PublisherBackend, load_clients, until
from .raw import Raw

BROWSERS = 300
STREAM = "websocket::events"
AGENT = "Mozilla/5.0 (Test)"

Entry = dict[str, str]


async def read(client: Any, *streams: str) -> list[Entry]:
    """All entries of the streams, by one of redis-py's clients."""
    found: list[Entry] = []
    for stream in streams or (STREAM,):
        for _, fields in await client.xrange(stream):
            found.append({name.decode(): value.decode() for name, value in fields.items()})
    return found


def by_id(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry["webSocketId"], []).append(entry)
    return found


# Browsers on every wire


class Browser:
    """A page on one of the wires: it registers `name`, hears one result, and ends as it is told."""

    def __init__(self, http: aiohttp.ClientSession, node: NodeProcess, name: str, wire: str) -> None:
        self.http = http
        self.node = node
        self.name = name
        self.wire = wire
        self._websocket: Any = None
        self._page: Page | None = None
        self._response: aiohttp.ClientResponse | None = None

    async def register(self) -> None:
        at = f"http://127.0.0.1:{self.node.port}"
        if self.wire in PROTOCOLS:
            path, protocols = PROTOCOLS[self.wire]
            path = path.format(secrets.token_hex(6))
            self._websocket = await self.http.ws_connect(at + path, protocols=protocols)
            await self._say()
            await self._hear("registrationSucceeded")
        elif self.wire == "sse":
            self._response = await self.http.get(f"{at}/events?webSocketId={self.name}")
            await self._hear_event(b"registrationSucceeded")
        else:
            self._page = Page(self.node.port, self.wire, self.http)
            await self._page.register(self.name)

    async def _say(self) -> None:
        if self.wire == "json":
            await self._websocket.send_json({"webSocketId": self.name})
            return
        for frame in stomp.conversation(self.name):
            await self._websocket.send_str(json.dumps([frame]) if self.wire == "sockjs" else frame)

    async def _hear(self, word: str) -> None:
        while word not in await self._websocket.receive_str(timeout=SECONDS):
            pass

    async def _hear_event(self, word: bytes) -> None:
        assert self._response is not None
        async with asyncio.timeout(SECONDS):
            while word not in await self._response.content.readuntil(b"\n\n"):
                pass

    async def result(self) -> None:
        async with asyncio.timeout(SECONDS):
            if self._page is not None:
                assert "authResult" in await self._page.hear()
            elif self._response is not None:
                await self._hear_event(b"authResult")
            else:
                await self._hear("authResult")

    async def close(self, code: int) -> None:
        await self._websocket.close(code=code)

    async def abort(self) -> None:
        if self._page is not None:
            await self._page.close()
        elif self._response is not None:
            self._response.close()
        else:
            self._websocket._response.connection.transport.abort()

    async def leave(self) -> None:
        """Wait until the node ends the connection."""
        async with asyncio.timeout(SECONDS):
            if self._page is not None:
                with pytest.raises(Lost):
                    await self._page.hear()
                await self._page.close()
            elif self._response is not None:
                await self._response.content.read()
            else:
                while not self._websocket.closed:
                    await self._websocket.receive()


PROTOCOLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "json": ("/ws", ()),
    "stomp": ("/ws", ("v12.stomp",)),
    "raw": ("/websocket/websocket", ()),
    "sockjs": ("/websocket/000/{}/websocket", ()),
}
WIRES = (*PROTOCOLS, "xhr", "xhr_streaming", "eventsource", "sse")
LABELS = {
    "json": ("json", "websocket"),
    "stomp": ("stomp", "websocket"),
    "raw": ("stomp", "websocket"),
    "sockjs": ("stomp", "sockjs_websocket"),
    "xhr": ("stomp", "sockjs_xhr"),
    "xhr_streaming": ("stomp", "sockjs_xhr_streaming"),
    "eventsource": ("stomp", "sockjs_eventsource"),
    "sse": ("sse", "eventsource"),
}

ENDS: dict[str, tuple[str, str, str]] = {
    "1000": ("1000", "client", "closed by the client"),
    "4000": ("4000", "client", "closed by the client"),
    "abort": ("1006", "network", "connection lost"),
    "drain": ("1012", "gateway", "service restart"),
}


NOT_BACK = "client did not come back"
"""How the end of a page looks that had no request open: one that polls, between two of them."""


def end_of(number: int, wire: str) -> str:
    """How this browser ends; without a WebSocket there is no close frame."""
    ends = tuple(ENDS) if wire in PROTOCOLS else ("abort", "drain")
    return ends[number // len(WIRES) % len(ends)]


async def in_turns(tasks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run them, some at a time."""
    turns = asyncio.Semaphore(50)

    async def run(task: Callable[[], Awaitable[None]]) -> None:
        async with turns:
            await task()

    await asyncio.gather(*(run(task) for task in tasks))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [1, 2])
async def test_every_event_is_what_was_done_to_the_browser(workers: int) -> None:
    options = ("--events", "redis", "--workers", str(workers))
    with (
        await asyncio.to_thread(ValkeyProcess) as valkey,
        nodes_on(valkey.url, 3, *options) as nodes,
    ):
        started = time.time()
        async with AsyncExitStack() as stack:
            browsers, ends = [], []
            for number in range(BROWSERS):
                node, wire = nodes[number % 3], WIRES[number % len(WIRES)]
                connector = aiohttp.TCPConnector(limit=0)
                headers = {"Origin": f"http://127.0.0.1:{node.port}", "User-Agent": AGENT}
                http = aiohttp.ClientSession(connector=connector, headers=headers)
                browsers.append(Browser(await stack.enter_async_context(http), node, f"b-{number}", wire))
                ends.append(end_of(number, wire))
            await in_turns([browser.register for browser in browsers])
            async with PublisherBackend.to(valkey.url) as backend:
                await in_turns(
                    [lambda name=b.name: backend.publish(name, "DONE") for b in browsers]  # type: ignore[misc]
                )
            await in_turns([browser.result for browser in browsers])
            await in_turns(
                [
                    browser.abort if end == "abort" else lambda b=browser, e=end: b.close(int(e))  # type: ignore[misc]
                    for browser, end in zip(browsers, ends, strict=True)
                    if end != "drain"
                ]
            )
            left = ends.count("drain")
            await until(lambda: sum(node.sessions() for node in nodes) == left, "the others are gone")
            for node in nodes:
                node.signal(signal.SIGTERM)
            await in_turns([b.leave for b, end in zip(browsers, ends, strict=True) if end == "drain"])
            for node in nodes:
                assert await asyncio.to_thread(node.process.wait, 20) == 0
        async with redis.asyncio.Redis(port=valkey.port) as client:
            found = by_id(await read(client))
    assert len(found) == BROWSERS
    sessions = set()
    for browser, end in zip(browsers, ends, strict=True):
        registered, delivered, closed = found[browser.name]
        sessions.add(registered["session"])
        common = {key: registered[key] for key in ("webSocketId", "session", "node")}
        assert common["node"].endswith(f":{browser.node.port}")
        protocol, transport = LABELS[browser.wire]
        assert without_time(registered) == common | {
            "event": "registered",
            "address": "127.0.0.1",
            "origin": f"http://127.0.0.1:{browser.node.port}",
            "userAgent": AGENT,
            "protocol": protocol,
            "transport": transport,
            "resumed": "false",
        }
        assert without_time(delivered) == common | {
            "event": "delivered",
            "messageId": f"of-{browser.name}-DONE",
            "authResult": "DONE",
            "retained": "false",
        }
        code, by, reason = ENDS[end]
        if closed["reason"] == NOT_BACK and (end, browser.wire) == ("abort", "xhr"):
            reason = NOT_BACK
        assert without_time(closed) == common | {"event": "closed", "code": code, "by": by, "reason": reason}
        times = [int(entry["at"]) / 1000 for entry in (registered, delivered, closed)]
        assert [started - 1, *times] == sorted([started - 1, *times])
        assert float(closed["seconds"]) == pytest.approx(times[2] - times[0], abs=2)
    assert len(sessions) == BROWSERS


def without_time(entry: Entry) -> Entry:
    return {name: value for name, value in entry.items() if name not in ("at", "seconds")}


# Redis is away, or refuses


@pytest.fixture
def own_valkey() -> Iterator[ValkeyProcess]:
    with ValkeyProcess("--appendonly", "yes", "--appendfsync", "always") as valkey:
        yield valkey


def forget(logged: list[Line], *events: str) -> list[Line]:
    """Take these lines out of the log, and return them: the test has provoked them."""
    found = [line for line in logged if line["event"] in events]
    logged[:] = [line for line in logged if line["event"] not in events]
    return found


async def test_nothing_is_lost_while_redis_is_away(own_valkey: ValkeyProcess, logged: list[Line]) -> None:
    names = [f"away-{number}" for number in range(100)]
    async with node_in_process(own_valkey.url, events="redis") as gateway:
        async with load_clients([port_of(gateway)], names):
            await until(lambda: writer_of(gateway).waiting == 0, "they are written")
            await asyncio.to_thread(own_valkey.kill)
            await until(lambda: not gateway._broker.connected, "it is gone")
        await until(lambda: not gateway.sessions, "all have left")
        assert writer_of(gateway).waiting >= 100
        assert (await readiness(admin_port_of(gateway)))[0] == 200
        await asyncio.to_thread(own_valkey.start)
        await until(lambda: writer_of(gateway).waiting == 0, "the rest is written")
        assert gateway._context.events is not None
        assert gateway._context.events.dropped == 0
    async with redis.asyncio.Redis(port=own_valkey.port) as client:
        entries = await read(client)
    told = Counter((entry["webSocketId"], entry["event"]) for entry in entries)
    assert set(told) == set(itertools.product(names, ("registered", "closed")))
    forget(logged, "redis unreachable")


def writer_of(gateway: Node) -> event_writer.EventWriter[recording.Event]:
    assert gateway._events is not None
    return gateway._events


async def test_what_overflows_is_told_and_the_latest_events_are_kept(
    own_valkey: ValkeyProcess, logged: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording.EventLog.__init__, "__defaults__", (50,))
    async with node_in_process(own_valkey.url, events="redis") as gateway:
        names = [f"over-{number}" for number in range(100)]
        async with load_clients([port_of(gateway)], names):
            await until(lambda: writer_of(gateway).waiting == 0, "they are written")
            await asyncio.to_thread(own_valkey.kill)
            await until(lambda: not gateway._broker.connected, "it is gone")
        await until(lambda: not gateway.sessions, "all have left")
        log = gateway._context.events
        assert log is not None
        assert log.dropped >= 100 - 50
        await until(lambda: [e for e in logged if e["event"] == "events dropped"], "it is told")
        await asyncio.to_thread(own_valkey.start)
        await until(lambda: writer_of(gateway).waiting == 0, "the rest is written")
        dropped = log.dropped
    async with redis.asyncio.Redis(port=own_valkey.port) as client:
        closed = [entry for entry in await read(client) if entry["event"] == "closed"]
    assert len(closed) + dropped >= 100
    assert len(closed) <= 50
    forget(logged, "events dropped", "redis unreachable")


READ_ONLY = (
    "resetchannels %R~websocket:* &websocket:* +ping +subscribe +unsubscribe +eval_ro +get +client|info "
    "+pubsub|numsub (+publish &websocket::*)"
)


def right_to_write() -> str:
    """The rule of docs/redis-access.md."""
    text = (DOCS / "redis-access.md").read_text()
    assert "`(+xadd ~websocket::events*)`" in text
    return "(+xadd ~websocket::events*)"


async def test_without_the_right_events_wait_and_sessions_are_served(
    own_valkey: ValkeyProcess, logged: list[Line]
) -> None:
    own_valkey.ask("ACL", "SETUSER", "node", "on", ">x", *READ_ONLY.split())
    url = own_valkey.url.replace("//", "//node:x@")
    async with (
        node_in_process(url, events="redis") as gateway,
        redis.asyncio.Redis(port=own_valkey.port) as client,
    ):
        async with Raw.registered(port_of(gateway), "poor") as browser:
            await until(lambda: writer_of(gateway).failures, "Redis refuses it")
            await publishing.publish(client, "poor", "CONFIRMED")
            assert (await browser.message())["authResult"] == "CONFIRMED"
            assert (await readiness(admin_port_of(gateway), strict=True))[0] == 200
            assert await client.exists(STREAM) == 0
            own_valkey.ask("ACL", "SETUSER", "node", *right_to_write().split())
            await until(lambda: writer_of(gateway).waiting == 0, "they are written")
        await until(lambda: not gateway.sessions, "it has left")
        assert gateway._broker.outages == 0
        await until(lambda: writer_of(gateway).waiting == 0, "they are written")
        assert [entry["event"] for entry in await read(client)] == ["registered", "delivered", "closed"]
    (told,) = forget(logged, "events not written")
    assert told["reason"].startswith("NOPERM")
    assert told["hint"].startswith("give the node's Redis user (+xadd ~websocket::events*)")


async def test_a_node_with_the_right_can_write_nothing_else(own_valkey: ValkeyProcess) -> None:
    rules = (READ_ONLY + " " + right_to_write()).split()
    own_valkey.ask("ACL", "SETUSER", "node", "on", ">x", *rules)
    async with redis.asyncio.Redis(port=own_valkey.port, username="node", password="x") as client:
        assert await client.xadd(STREAM, {"a": "b"})
        for forbidden in (
            client.xadd("websocket:12345678", {"a": "b"}),
            client.set(STREAM, "x"),
            client.xrange(STREAM),
            client.delete(STREAM),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                await forbidden


async def test_the_stream_is_trimmed(own_valkey: ValkeyProcess) -> None:
    async with (
        node_in_process(own_valkey.url, events="redis", events_kept=100) as gateway,
        redis.asyncio.Redis(port=own_valkey.port) as client,
    ):
        for _ in range(3):
            async with load_clients([port_of(gateway)], [f"trim-{number}" for number in range(100)]):
                pass
        await until(lambda: not gateway.sessions and not writer_of(gateway).waiting, "they are written")
        assert 100 <= await client.xlen(STREAM) < 300


async def test_off_means_that_nothing_is_written(own_valkey: ValkeyProcess) -> None:
    async with (
        node_in_process(own_valkey.url) as gateway,
        redis.asyncio.Redis(port=own_valkey.port) as client,
    ):
        async with Raw.registered(port_of(gateway), "off"):
            names = [str(each["name"]) for each in await client.client_list()]
            assert not [name for name in names if name.endswith("-events")]
        assert await client.keys() == []


# A Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=0) as running:
        yield running


async def test_in_a_cluster_ids_are_spread_over_the_streams(cluster: ValkeyCluster) -> None:
    names = [f"cluster-{number}" for number in range(90)]
    streams = event_streams("websocket:", 3)
    async with node_in_process(cluster.url, events="redis", event_streams=3) as gateway:
        async with load_clients([port_of(gateway)], names):
            await until(lambda: not writer_of(gateway).waiting, "they are written")
        await until(lambda: not gateway.sessions and not writer_of(gateway).waiting, "and the rest")
    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as client:
        parts = [by_id(await read(client, stream)) for stream in streams]
    assert all(len(part) > 10 for part in parts)
    found = {name: entries for part in parts for name, entries in part.items()}
    assert sum(map(len, parts)) == len(found) == len(names)
    for entries in found.values():
        assert [entry["event"] for entry in entries] == ["registered", "closed"]
