"""Several gateway nodes on one Redis."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from .node import NodeProcess
from .process import ProcessGroup, free_port, wait_until


def node_address(number: int) -> str:
    """The loopback address of the `number`-th node, from 0, behind a load balancer."""
    return f"127.0.0.{number + 2}"


class NodeGroup(ProcessGroup):
    """Nodes that start at once; `options_by_node` has the command-line flags of each.

    With `balanced` they are as a load balancer expects them: each has its own loopback address, and all have
    the same port and the same admin port.
    """

    def __init__(
        self,
        redis_url: str,
        *options_by_node: Sequence[str],
        balanced: bool = False,
        preface: str = "",
    ) -> None:
        """`preface` is Python that every node runs first."""
        super().__init__()
        self.nodes: list[NodeProcess] = []
        self._redis_url = redis_url
        self._options_by_node = options_by_node
        self._balanced = balanced
        self._preface = preface

    @property
    def port(self) -> int:
        """The port of a balanced group."""
        return self.nodes[0].port

    @property
    def addresses(self) -> list[str]:
        """The hosts of the nodes."""
        return [node.host for node in self.nodes]

    def sessions(self) -> list[int]:
        """The number of sessions on each node, as the node reports it."""
        return [node.sessions() for node in self.nodes]

    def restart_ended(self) -> None:
        """Start every node that is not running, on its old ports."""
        for node in self.nodes:
            if not node.running:
                node.start()

    def await_idle(self) -> None:
        """Wait until no node has a session."""
        wait_until(lambda: not any(self.sessions()), "all sessions have ended")

    def _start(self, running: ExitStack) -> None:
        ports = (free_port(), free_port()) if self._balanced else (0, 0)

        def start(number: int) -> NodeProcess:
            host = node_address(number) if self._balanced else "127.0.0.1"
            node = NodeProcess(
                self._redis_url,
                *self._options_by_node[number],
                host=host,
                port=ports[0],
                admin_port=ports[1],
                preface=self._preface,
            )
            return running.enter_context(node)  # here, because another node may fail to start

        count = len(self._options_by_node)
        with ThreadPoolExecutor(count) as pool:
            self.nodes = list(pool.map(start, range(count)))
