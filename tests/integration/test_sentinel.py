"""A master fails, or is deposed and does not know it: the nodes are on the next one, and nothing is lost.

Beside them runs a node without a safeguard, which stays without results.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from gateway.drill.fleet import NodeProcess, SentinelGroup, ValkeyProcess, logged_at

from .conftest import Line, Measured, nodes_on
from .faults import ask_once, never_probe
from .in_process import node_in_process, port_of
from .load import Backend, PublisherBackend, all_undisturbed, load_clients, until, without_their_result

BROWSERS = 300
CONTROLS = 20
A_SECOND = 150.0
MOVED = 3.0  # seconds until the nodes are on a new master, once it is there
CONNECTED = 2.0  # seconds until they are on the first one, whatever some of the sentinels do

# The nodes' user is another than the sentinels', so that a master can be hidden from the sentinels alone.
RIGHTS = ("on", ">secret", "~*", "&*", "+@all")
USERS = ("--user", "node", *RIGHTS, "--user", "sentinel", *RIGHTS)
AS_SENTINEL = ("auth-user mymaster sentinel", "auth-pass mymaster secret")


def url_of(sentinels: SentinelGroup) -> str:
    return sentinels.url.replace("://", "://node:secret@")


@pytest.fixture
def sentinels() -> Iterator[SentinelGroup]:
    with SentinelGroup(*USERS, lines=AS_SENTINEL) as running:
        # Two that find a master down in the same moment vote for themselves each, and try again after 6 s.
        running.sentinels[1].ask("SENTINEL", "SET", "mymaster", "down-after-milliseconds", 500)
        yield running


def moves(node: NodeProcess, master: ValkeyProcess) -> list[float]:
    """When the node came to be on `master`, each time, by time.time()."""
    lines = node.logged("redis connected")
    return [logged_at(line) for line in lines if line["redis"].endswith(f":{master.port}")]


def last_on(node: NodeProcess, master: ValkeyProcess) -> bool:
    """Whether `master` is the last that the node has connected to."""
    return bool(node.logged("redis connected")[-1]["redis"].endswith(f":{master.port}"))


def kill(sentinels: SentinelGroup, master: ValkeyProcess) -> None:
    """The master's process ends. So does a sentinel's, the first one that the nodes are told of."""
    sentinels.sentinels[0].kill()
    master.kill()


def hang(sentinels: SentinelGroup, master: ValkeyProcess) -> None:
    """The master accepts and says nothing, and the first sentinel likewise."""
    sentinels.sentinels[0].freeze()
    master.freeze()


@pytest.mark.parametrize("harm", [kill, hang])
async def test_a_master_fails(
    sentinels: SentinelGroup,
    harm: Callable[[SentinelGroup, ValkeyProcess], None],
    measured: Measured,
    logged: list[Line],
) -> None:
    names = [f"{harm.__name__}-{number}" for number in range(BROWSERS)]
    control_names = [f"{harm.__name__}-control-{number}" for number in range(CONTROLS)]
    first = sentinels.master
    with nodes_on(url_of(sentinels), 2) as nodes:
        async with (
            PublisherBackend.to(url_of(sentinels)) as backend,
            node_in_process(url_of(sentinels)) as control,
            load_clients([node.port for node in nodes], names) as browsers,
            load_clients([port_of(control)], control_names) as control_browsers,
        ):
            await ask_once(control)
            publishing = asyncio.create_task(backend.publish_all(names, A_SECOND))
            await until(lambda: len(backend.accepted) >= 60, "the load is on")
            harm(sentinels, first)
            second = await asyncio.to_thread(sentinels.await_other_master, first)
            promoted = time.time()
            await until(lambda: all(moves(node, second) for node in nodes), "the nodes are there")
            took = max(moves(node, second)[0] for node in nodes) - promoted
            measured(f"{harm.__name__}: on the new master, once it was there", took)
            assert took <= MOVED
            await publishing
            await backend.publish_all(control_names, 1_000)
            await until(lambda: not without_their_result(browsers), "every result arrives")
            assert all_undisturbed(browsers)
            late = [accepted for accepted in backend.accepted if accepted.at > promoted]
            assert len(late) > BROWSERS // 4, "the load was on all the time"
            assert len(without_their_result(control_browsers)) == CONTROLS, (
                "control: stays where there was a master"
            )
            await back_and_not_followed(sentinels, first, second, nodes)
    logged[:] = [line for line in logged if line["event"] != "redis unreachable"]  # the control


async def back_and_not_followed(
    sentinels: SentinelGroup, first: ValkeyProcess, second: ValkeyProcess, nodes: list[NodeProcess]
) -> None:
    """The old master is back and takes itself for one, for some seconds; the nodes have to choose again."""
    if first.running:
        first.thaw()
    else:
        await asyncio.to_thread(first.start)
    assert first.ask("ROLE")[0] == "master"
    before = [len(node.logged("redis connected")) for node in nodes]
    second.ask("CLIENT", "KILL", "TYPE", "pubsub")
    await until(
        lambda: all(
            len(node.logged("redis connected")) > count for node, count in zip(nodes, before, strict=True)
        ),
        "the nodes are somewhere again",
    )
    assert all(last_on(node, second) for node in nodes), "not on the one that came back"


async def test_a_master_is_deposed_and_does_not_know_it(sentinels: SentinelGroup, measured: Measured) -> None:
    """The sentinels may ask it no longer. To the nodes it is as well as ever, but nobody publishes there."""
    names = [f"deposed-{number}" for number in range(BROWSERS)]
    control_names = [f"deposed-control-{number}" for number in range(CONTROLS)]
    first = sentinels.master
    with nodes_on(url_of(sentinels), 2) as nodes:
        async with (
            PublisherBackend.to(url_of(sentinels)) as backend,
            node_in_process(url_of(sentinels)) as control,
            load_clients([node.port for node in nodes], names) as browsers,
            load_clients([port_of(control)], control_names) as control_browsers,
        ):
            never_probe(control)
            half = BROWSERS // 2
            await backend.publish_all(names[:half], A_SECOND)
            first.ask("ACL", "SETUSER", "sentinel", "off")
            first.ask("ACL", "SETUSER", "default", "-ping")  # as whom they ask when they are not let in
            first.ask("CLIENT", "KILL", "USER", "sentinel")
            second = await asyncio.to_thread(sentinels.await_other_master, first)
            promoted = time.time()
            async with Backend.on(second.url) as elsewhere:
                await elsewhere.publish_all(control_names + names[half:], A_SECOND)
            await until(lambda: all(moves(node, second) for node in nodes), "the nodes are there")
            took = max(moves(node, second)[0] for node in nodes) - promoted
            measured("deposed: on the new master, once it was there", took)
            assert took <= MOVED
            await until(lambda: not without_their_result(browsers), "every result arrives")
            assert all_undisturbed(browsers)
            assert first.ask("ROLE")[0] == "master", "it has never been told"
            assert control._broker.outages == 0, "control: without the probe the link looks well"
            assert len(without_their_result(control_browsers)) == CONTROLS, (
                "control: without the probe it is deaf"
            )
