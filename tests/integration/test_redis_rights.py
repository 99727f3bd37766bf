"""The rights that docs/redis-access.md gives to a node: with them all works, and each of them is needed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence

import pytest

from gateway.drill.fleet import ValkeyCluster, ValkeyProcess
from gateway.node import Node
from gateway.redis import probe, reconciler
from gateway.redis.cluster.slots import SLOT_COUNT as SLOTS
from gateway.redis.server_broker import ServerBroker

from ..paths import DOCS
from .conftest import Line
from .in_process import port_of, unconnected_node
from .load import SECONDS, PublisherBackend, load_clients, until, without_their_result
from .test_cluster import names_in

ACCESS = DOCS / "redis-access.md"

ONE_SERVER, CLUSTER = (
    rights.split() for rights in re.findall(r"ACL SETUSER node on >… (.*)\n", ACCESS.read_text())
)

FOR_THE_PROBE = {"(+publish &websocket::*)", "(+spublish &websocket::*)"}
FOR_THE_RECONCILER = {"+client|info", "+pubsub|numsub", "+pubsub|shardnumsub"}

PATIENCE = 1.5  # seconds for what takes milliseconds when it is allowed

MIGRATING = 5  # a slot on its way to another node


def separately(rights: Sequence[str]) -> list[str]:
    """What can be given or left out; the rules in parentheses are one."""
    return re.findall(r"\(.*?\)|\S+", " ".join(rights))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_INTERVAL", 0.1)
    monkeypatch.setattr(reconciler, "RECONCILE_INTERVAL", 0.1)


def brokers_of(gateway: Node) -> list[ServerBroker]:
    return list(gateway._broker.server_brokers)


async def comes(what: str, condition: Callable[[], object], *, expected: bool) -> bool:
    try:
        await until(condition, what, SECONDS if expected else PATIENCE)
    except TimeoutError:
        return False
    return True


async def what_works(url: str, names: list[str], backend: PublisherBackend, expected: set[str]) -> set[str]:
    """Which of serving, probing and reconciling work. It waits less for what is not `expected` to work."""
    works: set[str] = set()
    serves = "serve" in expected
    deadline = SECONDS if serves else PATIENCE
    async with unconnected_node(url, registration_timeout=deadline) as gateway:
        if not await comes("Redis", lambda: gateway._broker.connected, expected=serves):
            return works
        await backend.publish_all(names, 1_000)
        async with load_clients([port_of(gateway)], names, registered=False) as browsers:
            if not await comes("the results", lambda: not without_their_result(browsers), expected=serves):
                return works
            brokers = brokers_of(gateway)
            if await comes(
                "probes",
                lambda: all(broker.probe.received for broker in brokers),
                expected="probe" in expected,
            ):
                works.add("probe")
            enough = {broker: broker.reconciler.runs + 2 for broker in brokers}
            if await comes(
                "reconciles",
                lambda: all(broker.reconciler.runs >= enough[broker] for broker in brokers),
                expected="reconcile" in expected,
            ):
                works.add("reconcile")
        gone = await comes("the end", lambda: not gateway._hub.channels, expected=serves)
        if gone and not gateway._broker.outages:
            works.add("serve")
    return works


def expected_without(right: str) -> set[str]:
    if right == "nothing":
        return {"serve", "probe", "reconcile"}
    if right in FOR_THE_PROBE:
        return {"serve", "reconcile"}
    return {"serve", "probe"} if right in FOR_THE_RECONCILER else set()


async def try_each(
    servers: Sequence[ValkeyProcess], url: str, rights: Sequence[str], names: Callable[[int], list[str]]
) -> dict[str, set[str]]:
    """What works without each of the rights, and with all of them."""
    parts = [part for part in separately(rights) if part != "resetchannels"]
    trials = {"nothing": parts} | {part: [p for p in parts if p != part] for part in parts}
    async with PublisherBackend.to(url) as backend:
        for number, rest in enumerate(trials.values()):
            for server in servers:
                server.ask("ACL", "SETUSER", f"node-{number}", "on", ">x", *" ".join(rest).split())
        users = [url.replace("//", f"//node-{number}:x@") for number in range(len(trials))]
        tried = await asyncio.gather(
            *(
                what_works(user, names(number), backend, expected_without(left_out))
                for number, (user, left_out) in enumerate(zip(users, trials, strict=True))
            )
        )
        return dict(zip(trials, tried, strict=True))


def check(found: dict[str, set[str]], logged: list[Line]) -> None:
    for right, works in found.items():
        expected = expected_without(right)
        assert (works == expected) if expected else ("serve" not in works), (right, works)
    said = [line["event"] for line in logged]
    assert said.count("probe not published") >= 1
    assert said.count("reconciler: command denied") >= 2
    logged.clear()


async def test_one_server(logged: list[Line]) -> None:
    with await asyncio.to_thread(ValkeyProcess) as server:
        check(await try_each([server], server.url, ONE_SERVER, lambda number: [f"one-{number}"]), logged)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(masters=2, replicas=0) as running:
        yield running


async def test_a_cluster(cluster: ValkeyCluster, logged: list[Line]) -> None:
    """With a slot that is on its way, of which the results are read by ASKING."""
    source, target = cluster.nodes
    target.ask("CLUSTER", "SETSLOT", MIGRATING, "IMPORTING", source.id)
    source.ask("CLUSTER", "SETSLOT", MIGRATING, "MIGRATING", target.id)

    def names(number: int) -> list[str]:
        parts = ([MIGRATING], range(MIGRATING + 1, SLOTS // 2), range(SLOTS // 2, SLOTS))
        return [name for part in parts for name in names_in(f"cluster-{number}", part, 1)]

    check(await try_each(cluster.nodes, cluster.url, CLUSTER, names), logged)
