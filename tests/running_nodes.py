"""Nodes on one Valkey, for a load balancer to stand in front of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from gateway.drill.fleet import NodeGroup, ValkeyProcess


class LoadBalancer(Protocol):
    """A running load balancer in front of nodes."""

    @property
    def port(self) -> int:
        """Where clients connect, on 127.0.0.1."""

    @property
    def ws_url(self) -> str:
        """Where a client speaks JSON."""


class BalancedNodes(NodeGroup):
    """Nodes for a load balancer, and the Valkey that they share."""

    def __init__(self, valkey: ValkeyProcess, *options_by_node: Sequence[str]) -> None:
        # When they stop nobody answers their close frames, because the test waits for the nodes.
        common = ["--trusted-proxies", "127.0.0.0/8", "--close-timeout", "0.2"]
        super().__init__(valkey.url, *([*common, *options] for options in options_by_node), balanced=True)
        self.valkey = valkey


@contextlib.contextmanager
def started(*options_by_node: Sequence[str]) -> Iterator[BalancedNodes]:
    """A node for each list of options, ready; the nodes and the Valkey are stopped at the end."""
    with ValkeyProcess() as valkey, BalancedNodes(valkey, *options_by_node) as nodes:
        yield nodes
