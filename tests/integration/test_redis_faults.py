"""Redis dies, freezes, falls silent or is not there: sessions stay, and what was retained arrives.

Each safeguard has a control: the same scenario without the safeguard, which loses results.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import pytest
import redis.asyncio

from gateway.drill.fleet import NodeProcess, ValkeyProcess, free_port
from gateway.node import Node
from gateway.redis import history
from gateway.redis import subscriber as link

from .conftest import Line, Measured, nodes_on
from .faults import Proxy, never_reread, never_resubscribe
from .in_process import admin_port_of, node_in_process, port_of, readiness, unconnected_node
from .load import Backend, all_undisturbed, frame, load_clients, result_of, text, until, without_their_result
from .raw import Raw
from .test_race import Waiting

BROWSERS = 300
A_SECOND = 200.0
FROZEN = 8.0  # seconds
NOTICED = 5.0  # seconds: what the gateway promises
SLACK = 2.5  # seconds for a busy machine; drills hold the promise to the letter
OWN = 2  # channels that a node subscribes for itself, each alone: its probe's, and the one of all nodes


@dataclass(frozen=True)
class Cluster:
    """Two nodes on a Valkey that writes down what it retains, as one does that may be restarted."""

    valkey: ValkeyProcess
    nodes: list[NodeProcess]

    @property
    def ports(self) -> list[int]:
        return [node.port for node in self.nodes]

    def last(self, event: str) -> list[float]:
        """When each node last logged `event`, by time.time(); 0 for never."""
        lines = [node.logged(event) for node in self.nodes]
        return [
            datetime.fromisoformat(found[-1]["timestamp"]).timestamp() if found else 0.0 for found in lines
        ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ValkeyProcess("--appendonly", "yes") as valkey, nodes_on(valkey.url, 2) as nodes:
        yield Cluster(valkey, nodes)


async def subscribe_calls(client: redis.asyncio.Redis) -> int:
    """How many SUBSCRIBE commands Redis has been sent."""
    statistics: dict[str, Any] = await client.info("commandstats")
    return int(statistics.get("cmdstat_subscribe", {"calls": 0})["calls"])


@pytest.mark.adds_to("cluster")
async def test_redis_is_killed_and_restarted_under_load(cluster: Cluster, measured: Measured) -> None:
    names = [f"killed-{number}" for number in range(BROWSERS)]
    async with load_clients(cluster.ports, names) as browsers, Backend.on(cluster.valkey.url) as backend:
        publishing = asyncio.create_task(backend.publish_all(names, A_SECOND))
        await until(lambda: len(backend.accepted) >= 60, "the load is on")
        killed = time.time()
        await asyncio.to_thread(cluster.valkey.kill)
        await until(lambda: min(cluster.last("redis connection lost")) >= killed - 0.01, "the nodes notice")
        await asyncio.sleep(killed + 1 - time.time())  # until their attempts come at the longest intervals
        restarted = time.time()
        await asyncio.to_thread(cluster.valkey.start)
        await publishing
        await until(lambda: not without_their_result(browsers), "every result arrives")
        assert all_undisturbed(browsers)
        back = max(cluster.last("redis connected")) - restarted
        measured("killed Redis, in use again after its restart", back)
        assert back < 2, "Valkey's own start, and half a second's pause at most"
        calls = await subscribe_calls(backend.client)  # counted from the restart
        most = (2 + OWN) * len(cluster.nodes)
        assert len(cluster.nodes) <= calls <= most, "in batches, not one by one"


async def test_redis_cuts_its_subscribers_again_and_again_under_load(cluster: Cluster) -> None:
    names = [f"cut-{number}" for number in range(BROWSERS)]
    cuts = 0
    async with load_clients(cluster.ports, names) as browsers, Backend.on(cluster.valkey.url) as backend:
        publishing = asyncio.create_task(backend.publish_all(names, A_SECOND))
        while not publishing.done():
            cuts += await backend.client.client_kill_filter(_type="pubsub")
            await asyncio.wait((publishing,), timeout=0.1)
        await publishing
        await until(lambda: not without_their_result(browsers), "every result arrives")
        assert all_undisturbed(browsers)
        assert cuts >= 2 * len(cluster.nodes)


async def test_redis_is_frozen_under_load(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    measured: Measured,
    logged: list[Line],
) -> None:
    monkeypatch.setattr(link, "DEAD_AFTER", 10**9)  # only in this process: for the control
    names = [f"frozen-{number}" for number in range(BROWSERS)]
    async with (
        load_clients(cluster.ports, names) as browsers,
        Backend.on(cluster.valkey.url) as backend,
        node_in_process(cluster.valkey.url) as control,
    ):
        publishing = asyncio.create_task(backend.publish_all(names, A_SECOND))
        await until(lambda: len(backend.accepted) >= 60, "the load is on")
        with cluster.valkey.frozen():
            frozen = time.time()
            async with load_clients(cluster.ports, ["newcomer", "another"], registered=False) as newcomers:
                last = partial(cluster.last, "redis connection lost")
                await until(lambda: min(last()) > frozen, "the nodes notice", FROZEN)
                noticed = [when - frozen for when in last()]
                measured("frozen Redis, noticed", max(noticed))
                assert max(noticed) <= NOTICED + SLACK
                await asyncio.sleep(frozen + FROZEN - time.time())
                assert not any(newcomer.messages for newcomer in newcomers), (
                    "not refused: Redis may come back"
                )
                bodies = [(await readiness(node.admin_port)) for node in cluster.nodes]
                assert [status for status, _ in bodies] == [200, 200], "turning browsers away helps nobody"
                assert not any(body["redis"]["connected"] for _, body in bodies)
                cluster.valkey.thaw()
                thawed = time.time()
                await asyncio.gather(*(newcomer.registered.wait() for newcomer in newcomers))
        await publishing
        await until(lambda: not without_their_result(browsers), "every result arrives")
        assert all_undisturbed(browsers)
        back = max(cluster.last("redis connected")) - thawed
        measured("frozen Redis, in use again after the thaw", back)
        assert back < 3, "a handshake that hangs has 2 s, and then a pause of half a second at most"
        late = [accepted for accepted in backend.accepted if accepted.at > thawed]
        assert len(late) > BROWSERS // 2, "most came through only after the thaw"
        assert control._broker.outages == 0, "control: without the deadline a frozen Redis is not noticed"
        assert not [line for line in logged if line["event"] == "redis connection lost"]


async def test_a_connection_that_falls_silent_is_replaced(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    """The server lives, and this connection to it does not: packets vanish, no reset ever comes."""
    monkeypatch.setattr(link, "DEAD_AFTER", 10**9)  # only in this process: for the control
    names = [f"silent-{number}" for number in range(50)]
    control_names = [f"silent-control-{number}" for number in range(50)]
    async with (
        Proxy.before(valkey.port) as proxy,
        Backend.on(valkey.url) as backend,
        node_in_process(proxy.url) as control,
    ):
        with await asyncio.to_thread(NodeProcess, proxy.url) as node:
            async with (
                load_clients([node.port], names) as browsers,
                load_clients([port_of(control)], control_names) as control_browsers,
            ):
                proxy.silence()
                start = time.monotonic()
                await backend.publish_all(names + control_names, 10_000)
                assert {accepted.receivers for accepted in backend.accepted} == {1}, "Redis notices nothing"
                await until(lambda: not without_their_result(browsers), "every result arrives")
                elapsed = time.monotonic() - start
                measured("silent connection, replaced and results read again", elapsed)
                assert elapsed < NOTICED + SLACK
                await asyncio.sleep(start + NOTICED + SLACK - time.monotonic())
                assert all_undisturbed(browsers)
                assert len(without_their_result(control_browsers)) == len(control_browsers), (
                    "control: all is lost"
                )
            await asyncio.to_thread(node.stop)


LATE = 0.15  # seconds
PAUSED = 2.5  # seconds: less than what ends a link, more than what breaks its silence


@pytest.mark.parametrize("safeguard", [True, False], ids=["safeguard", "control"])
async def test_a_network_that_is_slow_and_stops_for_a_while_ends_no_link(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch, safeguard: bool
) -> None:
    """What is late is not lost; a deadline that were shorter than a pause would end the link for nothing."""
    if not safeguard:
        monkeypatch.setattr(link, "DEAD_AFTER", PAUSED - 1)
        monkeypatch.setattr(link, "PING_AFTER", 0.5)
    names = [f"slow-{safeguard}-{number}" for number in range(50)]
    async with (
        Proxy.before(valkey.port) as proxy,
        Backend.on(valkey.url) as backend,
        node_in_process(proxy.url) as gateway,
    ):
        proxy.delay = LATE
        start = time.monotonic()
        async with load_clients([port_of(gateway)], names) as browsers:
            assert time.monotonic() - start >= 2 * LATE, "the answer waits for Redis"
            with proxy.paused():
                await backend.publish_all(names, 10_000, retain=0)
                await asyncio.sleep(PAUSED)
                assert not any(browser.results for browser in browsers)
            if safeguard:
                await until(
                    lambda: not without_their_result(browsers), "every result arrives, without retention"
                )
            assert (gateway._broker.outages == 0) is safeguard
            assert all_undisturbed(browsers)


async def missed(
    gateway: Node, proxy: Proxy, backend: Backend, stem: str, strike: Callable[[], Awaitable[object]]
) -> tuple[int, int]:
    """Publish to 100 browsers while Redis is away, and again after; how many miss the first, the second.

    `strike` ends the connection to Redis; the proxy sees to it that the next one comes late enough.
    """
    names = [f"{stem}-{number}" for number in range(100)]
    async with load_clients([port_of(gateway)], names) as browsers:
        proxy.rejecting = True
        await strike()
        await until(lambda: not gateway._broker.connected, "the loss is noticed")
        await backend.publish_all(names, 10_000)
        assert {accepted.receivers for accepted in backend.accepted} == {0}, "nobody hears"
        proxy.rejecting = False
        await until(lambda: gateway._broker.connected, "Redis is back")
        async with Raw.registered(port_of(gateway), f"{stem}-last") as last:
            # It was answered behind all that the reconnect has asked for.
            for name in (*names, f"{stem}-last"):
                await backend.client.publish(f"websocket:{name}", "LIVE")
            assert (await last.message())["authResult"] == "LIVE"
        assert all_undisturbed(browsers)
        for browser in browsers:
            browser.send(frame(8, b"\x03\xe8"))  # its answer comes behind all results
        await until(lambda: all(browser.close_code for browser in browsers), "all have said goodbye")
        retained = sum(browser.results.count(result_of(browser.name)) != 1 for browser in browsers)
        live = sum(browser.results[-1:] != ["LIVE"] for browser in browsers)
        return retained, live


@pytest.mark.parametrize("how", ["killed", "cut"])
@pytest.mark.parametrize(
    ("take_out", "expected"),
    [(None, (0, 0)), (never_reread, (100, 0)), (never_resubscribe, (100, 100))],
    ids=["safeguard", "control without reading again", "control without subscribing again"],
)
async def test_results_published_while_redis_is_away(
    take_out: Callable[[Node], None] | None, expected: tuple[int, int], how: str
) -> None:
    with await asyncio.to_thread(ValkeyProcess) as valkey:
        async with (
            Proxy.before(valkey.port) as proxy,
            Backend.on(valkey.url) as backend,
            node_in_process(proxy.url) as gateway,
        ):

            async def kill_and_restart() -> None:
                await asyncio.to_thread(valkey.kill)
                await asyncio.to_thread(valkey.start)

            async def cut() -> None:
                await backend.client.client_kill_filter(_type="pubsub")

            if take_out is not None:
                take_out(gateway)
            strike = kill_and_restart if how == "killed" else cut
            assert await missed(gateway, proxy, backend, "gap", strike) == expected


@pytest.mark.parametrize("batch", [history.SUBSCRIBE_BATCH, 1], ids=["safeguard", "control"])
async def test_ids_come_back_in_batches(
    monkeypatch: pytest.MonkeyPatch, measured: Measured, batch: int
) -> None:
    with await asyncio.to_thread(ValkeyProcess) as alone:  # with nobody else whose SUBSCRIBE would be counted
        await ids_come_back(alone, monkeypatch, measured, batch)


async def ids_come_back(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch, measured: Measured, batch: int
) -> None:
    monkeypatch.setattr(history, "SUBSCRIBE_BATCH", batch)
    ids = 1_000
    async with node_in_process(valkey.url) as gateway, redis.asyncio.Redis(port=valkey.port) as backend:
        members = [Waiting(f"batches-{batch}-{number:0120}") for number in range(ids)]
        for member in members:
            gateway._hub.register(member.name.encode(), member)
        await until(lambda: all(member.told for member in members), "all are registered")
        back = 0
        subscribed = gateway._hub.subscribed

        def count(name: bytes, retained: bytes | None) -> None:
            nonlocal back
            back += 1
            subscribed(name, retained)

        gateway._hub.subscribed = count  # type: ignore[method-assign]
        before = await subscribe_calls(backend)
        start = time.monotonic()
        await backend.client_kill_filter(_type="pubsub")
        await until(lambda: back == ids, "all ids are back")
        measured(f"{ids} ids back after a cut, {batch} a command", time.monotonic() - start)
        calls = await subscribe_calls(backend) - before
        for member in members:
            gateway._hub.leave(f"websocket:{member.name}".encode(), member)
    assert (calls <= 4 + OWN) is (batch > 1), calls
    assert back == ids


async def test_browsers_that_register_before_redis_is_there(logged: list[Line]) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    async with (
        unconnected_node(url, registration_timeout=8) as patient,
        unconnected_node(url, registration_timeout=0.3) as impatient,
        load_clients([port_of(patient)], ["early-1", "early-2"], registered=False) as browsers,
        Raw.upgraded(port_of(impatient)) as turned_away,
    ):
        status, body = await readiness(admin_port_of(patient))
        assert status == 503
        assert body["reasons"] == ["Redis has not been reached yet"]
        turned_away.send(text({"webSocketId": "early-3"}))
        code, _ = await turned_away.closed()  # and no registrationSucceeded: false before it
        assert code == 1013
        assert not any(browser.messages for browser in browsers)
        with await asyncio.to_thread(ValkeyProcess, port=port) as valkey:
            await asyncio.gather(*(browser.registered.wait() for browser in browsers))
            assert (await readiness(admin_port_of(patient)))[0] == 200
            async with Backend.on(valkey.url) as backend:
                await backend.publish_all(["early-1", "early-2"], 1_000, retain=0)
                await until(lambda: not without_their_result(browsers), "they hear")
                assert await backend.client.pubsub_numsub("websocket:early-3") == [(b"websocket:early-3", 0)]
            await until(lambda: impatient._broker.connected, "the other one finds it too")
        assert all_undisturbed(browsers)
    assert [line["event"] for line in logged].count("redis unreachable") == 2, (
        "told once, not at each attempt"
    )


async def test_redis_goes_while_a_browser_registers() -> None:
    with await asyncio.to_thread(ValkeyProcess) as valkey:
        async with (
            node_in_process(valkey.url, registration_timeout=0.5) as gateway,
            Raw.registered(port_of(gateway), "before") as before,
        ):
            await asyncio.to_thread(valkey.kill)
            async with Raw.upgraded(port_of(gateway)) as browser:
                browser.send(text({"webSocketId": "after"}))
                assert (await browser.closed())[0] == 1013
            async with Raw.upgraded(port_of(gateway)) as second:
                second.send(text({"webSocketId": "before"}))
                assert (await second.closed())[0] == 1013, "also for an id that was registered before"
            status, body = await readiness(admin_port_of(gateway))
            assert status == 200, "it has been ready, and the others would be no better"
            assert body["redis"]["connected"] is False
            before.send(frame(9, b"still here"))
            assert await before.frame() == (10, b"still here")
