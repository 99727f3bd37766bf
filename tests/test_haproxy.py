"""HAProxy with the shipped configuration in front of real nodes: a node dies, stops or is full, clients lie.

The configuration finds the nodes by a DNS name, with one port for all. So a small DNS server names them here,
as Docker's does for the replicas of a service.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from . import balanced
from .clients import SECONDS, Clients, clients_at
from .fleet import Fleet, fleet, sessions
from .processes import free_port, wait_until

pytestmark = pytest.mark.needs("haproxy")

CONFIGURATION = Path(__file__).parent.parent / "deploy" / "haproxy.cfg"


@contextlib.contextmanager
def name_server(addresses: Sequence[str]) -> Iterator[str]:
    """A DNS server that answers every question for A records with `addresses`; yields where it listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=_answer, args=(server, addresses), daemon=True)
        thread.start()
        own: tuple[str, int] = server.getsockname()
        try:
            yield f"{own[0]}:{own[1]}"
        finally:
            server.sendto(b"", own)
            thread.join()


def _answer(server: socket.socket, addresses: Sequence[str]) -> None:
    while query_from := server.recvfrom(4096):
        query, client = query_from
        if not query:
            return
        end = query.index(b"\0", 12) + 5  # the one question: a name, its type and its class
        asks_for_a = query[end - 4 : end - 2] == b"\0\1"
        records = [socket.inet_aton(address) for address in addresses if asks_for_a]
        # RFC 1035: the same id, "an answer, recursion available", and a pointer to the question's name.
        header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(records), 0, 0)
        answer = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + record for record in records)
        server.sendto(header + query[12:end] + answer, client)


class HAProxy:
    """HAProxy on free ports; it has found all its nodes, and they are ready, once `start` yields it."""

    def __init__(self, port: int, status_port: int) -> None:
        self.port = port
        self.ws_url = f"ws://127.0.0.1:{port}/ws"
        self._status = f"http://127.0.0.1:{status_port}"

    @classmethod
    @contextlib.contextmanager
    def start(cls, fleet: Fleet, folder: Path, configuration: Path = CONFIGURATION) -> Iterator[HAProxy]:
        port, status_port = free_port(), free_port()
        with name_server(fleet.addresses) as resolver, (folder / "haproxy.log").open("wb") as log:
            environment = {
                **os.environ,
                "LB_LISTEN": f"127.0.0.1:{port}",
                "LB_STATUS": f"127.0.0.1:{status_port}",
                "LB_FILES": "1000",
                "LB_NODES": "nodes.test",
                "LB_NODE_PORT": str(fleet.port),
                "LB_NODE_ADMIN": str(fleet.nodes[0].admin_port),
                "LB_RESOLVER": resolver,
            }
            # -dW: a warning about the configuration is an error.
            command = ["haproxy", "-dW", "-db", "-f", str(configuration)]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                balancer = cls(port, status_port)
                wait_until(lambda: balancer.gives_to(len(fleet.nodes)), "HAProxy finds the nodes")
                yield balancer
            finally:
                process.terminate()
                process.wait(SECONDS)

    def gives_to(self, count: int) -> bool:
        """Whether it gives clients to so many nodes, wherever they ask; False while HAProxy is not there."""
        try:
            with urllib.request.urlopen(f"{self._status}/stats;csv", timeout=SECONDS) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return False
        rows = [line.split(",") for line in lines]
        up = Counter(row[0] for row in rows if row[1].startswith("node") and row[17].startswith("UP"))
        return up["gateway"] == up["sockjs"] == count


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
