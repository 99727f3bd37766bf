"""HAProxy with the shipped configuration before real nodes: one dies, stops or is full, and clients lie."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from gateway.drill.fleet import HAProxyProcess, wait_until

from .. import running_nodes as nodes
from ..clients import SECONDS, Clients, clients_at
from ..paths import DEPLOY
from ..running_nodes import BalancedNodes
from . import balanced

pytestmark = pytest.mark.needs("haproxy")

CONFIGURATION = DEPLOY / "haproxy.cfg"


@contextlib.contextmanager
def started(*options_by_node: Sequence[str]) -> Iterator[tuple[BalancedNodes, HAProxyProcess]]:
    """A node for each of the lists of options, behind HAProxy."""
    with nodes.started(*options_by_node) as behind, HAProxyProcess(behind.nodes) as balancer:
        yield behind, balancer


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


async def test_the_clients_of_a_killed_node_still_get_their_results(clients: Clients) -> None:
    with started([], [], []) as (behind, balancer):
        await balanced.clients_of_a_killed_node_get_their_results(behind, balancer, clients)


async def test_a_node_that_stops_closes_its_clients_itself_and_gets_no_new_ones(clients: Clients) -> None:
    # HAProxy needs up to 1.25 s to notice; the rest is for a machine that is busy.
    drain = ["--drain-delay", "3", "--drain-seconds", "0.5"]
    with started(drain, drain) as (behind, balancer):
        sockets = [await clients.register(balancer.ws_url, f"first-{number}") for number in range(8)]
        closes = [asyncio.create_task(websocket.receive(SECONDS)) for websocket in sockets]
        held = behind.nodes[0].sessions()
        behind.nodes[0].signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: balancer.serves_nodes(1), "HAProxy notices")
        assert not any(closed.done() for closed in closes), "the node closes them, HAProxy does not"
        for number in range(8):
            await clients.register(balancer.ws_url, f"second-{number}")
        assert behind.nodes[1].sessions() == 16 - held
        await asyncio.to_thread(
            wait_until, lambda: sum(closed.done() for closed in closes) >= held, "the node closes its clients"
        )
        await asyncio.to_thread(behind.nodes[0].process.wait, SECONDS)
        codes = [closed.result().data for closed in closes if closed.done()]
        for closed in closes:
            closed.cancel()
        behind.nodes[1].kill()  # or it would take its time to stop, too
    assert held
    assert codes == [aiohttp.WSCloseCode.SERVICE_RESTART] * held


async def test_a_client_that_a_full_node_refuses_is_taken_to_another(clients: Clients) -> None:
    with started(["--max-sessions", "1"], []) as (behind, balancer):
        await balanced.a_client_refused_by_a_full_node_is_taken_to_another(behind, balancer, clients)


async def test_a_client_cannot_say_where_it_comes_from(clients: Clients) -> None:
    with started(["--max-sessions-per-ip", "2"]) as (_, balancer):
        await balanced.a_client_cannot_say_where_it_comes_from(balancer, clients)


async def test_no_web_socket_id_and_no_session_is_logged() -> None:
    """Whoever knows the path of a SockJS session can fetch its results."""
    with started([]) as (_, balancer):
        url = f"http://127.0.0.1:{balancer.port}"
        async with aiohttp.ClientSession() as http:
            (await http.get(f"{url}/events?webSocketId=secret-1&token=secret-4")).close()
            assert await (await http.post(f"{url}/websocket/000/secret-2/xhr")).text() == "o\n"
            assert (await http.get(f"{url}/websocket/info")).status == 200
        expected = ("GET /events", "POST /websocket/-/-/xhr", "GET /websocket/info")
        await asyncio.to_thread(
            wait_until, lambda: all(line in balancer.logs() for line in expected), "the requests are logged"
        )
        assert "secret" not in balancer.logs()


def refused(connection: socket.socket, seconds: float) -> bool:
    """Whether a connection on which nothing was sent is ended within so many seconds."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


async def test_one_address_does_not_take_all_connections(clients: Clients) -> None:
    with (
        nodes.started([]) as behind,
        HAProxyProcess(behind.nodes, source_connections=20) as balancer,
        balanced.connections_from("127.0.7.1", balancer.port, 30) as silent,
    ):
        await clients.register(balancer.ws_url, "another-address")

        def as_many_as_there_are_too_many() -> bool:
            # Which ones depends on HAProxy's threads.
            return sum(refused(each, 0.001) for each in silent) == 10

        await asyncio.to_thread(wait_until, as_many_as_there_are_too_many, "10 of 30 are refused", SECONDS)


@pytest.mark.parametrize("bounded", [True, False])
async def test_what_a_client_does_not_read_stays_in_the_node(tmp_path: Path, bounded: bool) -> None:
    """Without the limits of the shipped configuration, it would be in HAProxy's kernel buffers, up to 10
    MB."""
    configuration = tmp_path / "haproxy.cfg"
    text = CONFIGURATION.read_text()
    configuration.write_text(text if bounded else re.sub(r"tune\.(snd|rcv)buf", r"#\g<0>", text))
    with nodes.started([]) as behind, HAProxyProcess(behind.nodes, configuration) as balancer:
        assert await balanced.a_client_that_does_not_read_is_closed(behind, balancer) is bounded
