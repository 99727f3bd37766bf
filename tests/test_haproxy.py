"""HAProxy with the shipped configuration in front of real nodes: a node dies, stops or is full, clients lie.

The configuration finds the nodes by a DNS name, with one port for all. So every node gets a loopback
address of its own here, and a small DNS server names them, as Docker's does for the replicas of a service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from gateway.publishing import SCRIPT

from .clients import SECONDS, Clients, clients_at
from .processes import Node, Valkey, free_port, wait_until

pytestmark = pytest.mark.needs("haproxy")

CONFIGURATION = Path(__file__).parent.parent / "deploy" / "haproxy.cfg"
CLIENTS = 99


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


class Balancer:
    """HAProxy on free ports; it has found all its nodes, and they are ready, once `start` yields it."""

    def __init__(self, port: int, status_port: int) -> None:
        self.port = port
        self.ws_url = f"ws://127.0.0.1:{port}/ws"
        self._status = f"http://127.0.0.1:{status_port}"

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, nodes: Sequence[Node], addresses: Sequence[str], folder: Path, configuration: Path
    ) -> Iterator[Balancer]:
        port, status_port = free_port(), free_port()
        with name_server(addresses) as resolver, (folder / "haproxy.log").open("wb") as log:
            environment = {
                **os.environ,
                "LB_LISTEN": f"127.0.0.1:{port}",
                "LB_STATUS": f"127.0.0.1:{status_port}",
                "LB_FILES": "1000",
                "LB_NODES": "nodes.test",
                "LB_NODE_PORT": str(nodes[0].port),
                "LB_NODE_ADMIN": str(nodes[0].admin_port),
                "LB_RESOLVER": resolver,
            }
            # -dW: a warning about the configuration is an error.
            command = ["haproxy", "-dW", "-db", "-f", str(configuration)]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                balancer = cls(port, status_port)
                wait_until(lambda: balancer.gives_to(len(nodes)), "HAProxy finds the nodes")
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


def address(number: int) -> str:
    """Where the `number`-th node is, from 0."""
    return f"127.0.0.{number + 2}"


def node_at(number: int, valkey: Valkey, port: int, admin_port: int, *options: str) -> Node:
    """A node that is to be the `number`-th, with options of its own."""
    where = ["--host", address(number), "--admin-host", address(number), "--admin-port", str(admin_port)]
    # At the end nobody answers the nodes' close frames, because the test waits for the nodes.
    common = ["--trusted-proxies", "127.0.0.0/8", "--close-timeout", "0.2"]
    return Node(valkey.url, *where, *common, *options, port=port)


@contextlib.contextmanager
def started(
    folder: Path, *options_by_node: Sequence[str], configuration: Path = CONFIGURATION
) -> Iterator[tuple[list[Node], Balancer, Valkey]]:
    """A node for each of the lists of options, on addresses of their own, behind HAProxy, on one Valkey."""
    port, admin_port = free_port(), free_port()
    addresses = [address(number) for number in range(len(options_by_node))]

    def start(number: int) -> Node:
        return nodes.enter_context(node_at(number, valkey, port, admin_port, *options_by_node[number]))

    with Valkey() as valkey, contextlib.ExitStack() as nodes:
        with ThreadPoolExecutor() as pool:
            running = list(pool.map(start, range(len(options_by_node))))
        with Balancer.start(running, addresses, folder, configuration) as balancer:
            yield running, balancer, valkey


def sessions(number: int, node: Node) -> int:
    """The sessions on the node that was started as the `number`-th, from 0, by its own account."""
    url = f"http://{address(number)}:{node.admin_port}/readyz"
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        count: int = json.load(answer)["sessions"]
        return count


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    async with clients_at("127.0.0.1") as opened:
        yield opened


async def test_the_clients_of_a_killed_node_still_get_their_results(tmp_path: Path, clients: Clients) -> None:
    away: list[str] = []
    published = asyncio.Event()

    async def browse(name: str) -> str:
        """Wait for the result; when the connection breaks, come back once everything is published."""
        websocket = connected[name]
        message = await websocket.receive(SECONDS)
        if message.type is not aiohttp.WSMsgType.TEXT:
            away.append(name)
            await published.wait()
            websocket = await clients.register(balancer.ws_url, name)
            message = await websocket.receive(SECONDS)
        result: str = json.loads(message.data)["authResult"]
        with contextlib.suppress(TimeoutError):
            pytest.fail(f"{name} got more than its result: {await websocket.receive(0.2)}")
        return result

    with started(tmp_path, [], [], []) as (nodes, balancer, valkey):
        names = [f"client-{number}" for number in range(CLIENTS)]
        sockets = await asyncio.gather(*(clients.register(balancer.ws_url, name) for name in names))
        connected = dict(zip(names, sockets, strict=True))
        held = [sessions(number, node) for number, node in enumerate(nodes)]
        assert sum(held) == CLIENTS
        assert min(held) >= CLIENTS // 3 - 5, "leastconn spreads them evenly"

        browsing = [asyncio.create_task(browse(name)) for name in names]
        nodes[0].kill()
        await asyncio.to_thread(wait_until, lambda: len(away) == held[0], "its clients notice")
        with valkey.client() as client:
            for name in names:
                client.eval(SCRIPT, 1, f"websocket:{name}", f"RESULT_{name[7:]}", 60)
        published.set()
        results = await asyncio.gather(*browsing)

    assert results == [f"RESULT_{name[7:]}" for name in names]
    assert len(away) == held[0], "nobody else was disturbed"


async def test_a_node_that_stops_closes_its_clients_itself_and_gets_no_new_ones(
    tmp_path: Path, clients: Clients
) -> None:
    # HAProxy needs up to 1.25 s to notice; the rest is for a machine that is busy.
    drain = ["--drain-delay", "3", "--drain-seconds", "0.5"]
    with started(tmp_path, drain, drain) as (nodes, balancer, _):
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
    with started(tmp_path, ["--max-sessions", "1"], []) as (nodes, balancer, _):
        # Not through HAProxy, so that it believes the full node to be the emptiest.
        await clients.register(f"ws://127.0.0.2:{nodes[0].port}/ws", "direct")
        for number in range(6):
            await clients.register(balancer.ws_url, f"client-{number}")
        assert [sessions(number, node) for number, node in enumerate(nodes)] == [1, 6]


async def test_a_client_cannot_say_where_it_comes_from(tmp_path: Path, clients: Clients) -> None:
    with started(tmp_path, ["--max-sessions-per-ip", "2"]) as (_, balancer, _):
        for number in range(2):
            await clients.connect(balancer.ws_url, X_Forwarded_For=f"203.0.113.{number}")
        for name in ("X_Forwarded_For", "Forwarded", "X_Real_IP"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await clients.connect(balancer.ws_url, **{name: "203.0.113.9"})
            assert refused.value.status == 429
        # What HAProxy itself says is believed: another address has a count of its own.
        async with clients_at("127.0.0.99") as elsewhere:
            await elsewhere.register(balancer.ws_url, "elsewhere")
