"""Nodes on one Valkey, for a load balancer to stand in front of: an address of loopback each, one port."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from .clients import SECONDS
from .processes import Node, Valkey, free_port, wait_until


class Balancer(Protocol):
    """A load balancer that runs and gives clients to nodes."""

    @property
    def port(self) -> int:
        """Where browsers come in, on 127.0.0.1."""

    @property
    def ws_url(self) -> str:
        """Where a client speaks JSON."""


class Fleet(NamedTuple):
    """The nodes, by their number from 0, and the Valkey that they share."""

    nodes: list[Node]
    valkey: Valkey

    @property
    def addresses(self) -> list[str]:
        return [address(number) for number in range(len(self.nodes))]

    @property
    def port(self) -> int:
        return self.nodes[0].port

    def held(self) -> list[int]:
        """The sessions on each node, by its own account."""
        return [sessions(number, node) for number, node in enumerate(self.nodes)]

    def restart_dead(self) -> None:
        """Start every node that is not running where it was."""
        for number, node in enumerate(self.nodes):
            if node.process.poll() is not None:
                self.restart(number)

    def restart(self, number: int) -> None:
        """Start the `number`-th node, which has been killed, where it was."""
        old = self.nodes[number]
        self.nodes[number] = node_at(number, self.valkey, old.port, old.admin_port)

    def until_idle(self) -> None:
        """Wait until no node holds a session."""
        wait_until(lambda: not any(self.held()), "the sessions of the test before are gone")


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
def fleet(*options_by_node: Sequence[str]) -> Iterator[Fleet]:
    """A node for each of the lists of options, ready; they and the Valkey are stopped at the end."""
    port, admin_port = free_port(), free_port()

    def start(number: int) -> Node:
        return started.enter_context(node_at(number, valkey, port, admin_port, *options_by_node[number]))

    with Valkey() as valkey, contextlib.ExitStack() as started:
        with ThreadPoolExecutor() as pool:
            running = Fleet(list(pool.map(start, range(len(options_by_node)))), valkey)
        yield running
        for node in running.nodes:  # those that have been started again are not in `started`
            node.stop()


def sessions(number: int, node: Node) -> int:
    """The sessions on the node that was started as the `number`-th, from 0, by its own account."""
    url = f"http://{address(number)}:{node.admin_port}/readyz"
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        count: int = json.load(answer)["sessions"]
        return count
