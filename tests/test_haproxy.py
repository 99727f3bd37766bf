"""HAProxy with the shipped configuration before real nodes: one dies, stops or is full, and clients lie."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from . import balanced
from .clients import SECONDS, Clients, clients_at
from .fleet import Fleet, fleet, sessions
from .haproxy import CONFIGURATION, HAProxy
from .processes import wait_until

pytestmark = pytest.mark.needs("haproxy")


@contextlib.contextmanager
def started(folder: Path, *options_by_node: Sequence[str]) -> Iterator[tuple[Fleet, HAProxy]]:
    """A node for each of the lists of options, behind HAProxy."""
    with fleet(*options_by_node) as nodes, HAProxy.start(nodes, folder) as balancer:
        yield nodes, balancer


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    async with clients_at("127.0.0.1") as opened:
        yield opened


def test_haproxy_finds_nothing_wrong_with_it() -> None:
    # -dW: nor anything to warn of.
    check = subprocess.run(
        ["haproxy", "-c", "-dW", "-f", CONFIGURATION], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


async def test_the_clients_of_a_killed_node_still_get_their_results(tmp_path: Path, clients: Clients) -> None:
    with started(tmp_path, [], [], []) as (nodes, balancer):
        await balanced.clients_of_a_killed_node_get_their_results(nodes, balancer, clients)


async def test_a_node_that_stops_closes_its_clients_itself_and_gets_no_new_ones(
    tmp_path: Path, clients: Clients
) -> None:
    # HAProxy needs up to 1.25 s to notice; the rest is for a machine that is busy.
    drain = ["--drain-delay", "3", "--drain-seconds", "0.5"]
    with started(tmp_path, drain, drain) as ((nodes, _), balancer):
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


async def test_a_client_that_a_full_node_refuses_is_taken_to_another(
    tmp_path: Path, clients: Clients
) -> None:
    with started(tmp_path, ["--max-sessions", "1"], []) as (nodes, balancer):
        await balanced.a_client_refused_by_a_full_node_is_taken_to_another(nodes, balancer, clients)


async def test_a_client_cannot_say_where_it_comes_from(tmp_path: Path, clients: Clients) -> None:
    with started(tmp_path, ["--max-sessions-per-ip", "2"]) as (_, balancer):
        await balanced.a_client_cannot_say_where_it_comes_from(balancer, clients)
