"""Nodes on one Valkey, for a load balancer to stand in front of: an address of loopback each, one port."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from gateway.drill.fleet.balancer import address

from .processes import NodeProcess, ValkeyProcess, free_port, wait_until


class LoadBalancer(Protocol):
    """A load balancer that runs and gives clients to nodes."""

    @property
    def port(self) -> int:
        """Where browsers come in, on 127.0.0.1."""

    @property
    def ws_url(self) -> str:
        """Where a client speaks JSON."""


class Nodes(NamedTuple):
    """The nodes, by their number from 0, and the Valkey that they share."""

    nodes: list[NodeProcess]
    valkey: ValkeyProcess

    @property
    def port(self) -> int:
        return self.nodes[0].port

    @property
    def addresses(self) -> list[str]:
        return [node.host for node in self.nodes]

    def held(self) -> list[int]:
        """The sessions on each node, by its own account."""
        return [sessions(node) for node in self.nodes]

    def restart_dead(self) -> None:
        """Start every node that is not running where it was."""
        for node in self.nodes:
            if not node.running:
                node.start()

    def until_idle(self) -> None:
        """Wait until no node holds a session."""
        wait_until(lambda: not any(self.held()), "the sessions of the test before are gone")


@contextlib.contextmanager
def started(*options_by_node: Sequence[str]) -> Iterator[Nodes]:
    """A node for each of the lists of options, ready; they and the Valkey are stopped at the end."""
    port, admin_port = free_port(), free_port()
    # At the end nobody answers the nodes' close frames, because the test waits for the nodes.
    common = ["--trusted-proxies", "127.0.0.0/8", "--close-timeout", "0.2"]

    def start(number: int) -> NodeProcess:
        options = [*common, *options_by_node[number]]
        node = NodeProcess(valkey.url, *options, host=address(number), port=port, admin_port=admin_port)
        return running.enter_context(node)

    with ValkeyProcess() as valkey, contextlib.ExitStack() as running:
        with ThreadPoolExecutor() as pool:
            nodes = list(pool.map(start, range(len(options_by_node))))
        yield Nodes(nodes, valkey)


def sessions(node: NodeProcess) -> int:
    """The sessions on `node`, by its own account."""
    ready = node.readyz()
    assert ready is not None, "it does not answer"
    count: int = ready["sessions"]
    return count
