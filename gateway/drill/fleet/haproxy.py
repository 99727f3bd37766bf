"""HAProxy with the shipped configuration, and a small DNS server that names the nodes.

The configuration finds the nodes by a DNS name, and expects the same port on all of them. So each node has
its own loopback address (`NodeGroup`, balanced), and the DNS server returns these, as Docker's DNS server
does for the replicas of a service.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import tempfile
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ... import embedded
from .node import NodeProcess
from .nodes import node_address
from .process import ANSWER_SECONDS, Process, free_port, spawn

CONFIGURATION: Final = Path(__file__).parents[1] / "data" / "haproxy.cfg"
"""The shipped configuration: in a checkout a link to deploy/haproxy.cfg, in a wheel the file itself."""

NAME = "nodes.test"


def haproxy_available() -> bool:
    """Whether HAProxy is installed, and loopback has the addresses that the nodes need.

    Linux has all of 127.0.0.0/8; on other systems an administrator must add them.
    """
    if shutil.which("haproxy") is None:
        return False
    with socket.socket() as probe:
        try:
            probe.bind((node_address(0), 0))
        except OSError:
            return False
        return True


@contextmanager
def name_server(addresses: Sequence[str]) -> Iterator[str]:
    """A DNS server that answers every query for A records with `addresses`. Yields its host and port."""
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


class HAProxyProcess(Process):
    """HAProxy on free ports. It sends clients to all `nodes` once the constructor returns."""

    def __init__(
        self,
        nodes: Sequence[NodeProcess],
        configuration: Path = CONFIGURATION,
        *,
        files: int = 1_000,
        source_connections: int = 1_000_000,
    ) -> None:
        """`files` is the limit of file descriptors; HAProxy needs two for each client. One address may have
        so many `source_connections`, and open as many in ten seconds."""
        self.port = free_port()
        self.ws_url = f"ws://127.0.0.1:{self.port}/ws"
        status_port = free_port()
        self._status = f"http://127.0.0.1:{status_port}/stats;csv"
        self._resources = ExitStack()
        resolver = self._resources.enter_context(name_server([node.host for node in nodes]))
        self._log = self._resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - that is one
        environment = {
            **os.environ,
            "LB_LISTEN": f"127.0.0.1:{self.port}",
            "LB_STATUS": f"127.0.0.1:{status_port}",
            "LB_FILES": str(files),
            "LB_SOURCE_CONNECTIONS": str(source_connections),
            "LB_SOURCE_RATE": str(source_connections),
            "LB_NODES": NAME,
            "LB_NODE_PORT": str(nodes[0].port),
            "LB_NODE_ADMIN": str(nodes[0].admin_port),
            "LB_RESOLVER": resolver,
        }
        # -dW: a warning about the configuration is an error.
        command = [shutil.which("haproxy") or "haproxy", "-dW", "-db", "-f", str(configuration)]
        self.process = spawn(command, stdout=self._log, stderr=self._log, environment=environment)
        self._await_start(
            lambda: self.serves_nodes(len(nodes)), "HAProxy", lambda: embedded.last_lines(self._log)
        )

    def serves_nodes(self, count: int) -> bool:
        """Whether all backends use `count` nodes; False while HAProxy does not answer."""
        return set(self.nodes_by_backend().values()) == {count}

    def nodes_by_backend(self) -> dict[str, int]:
        """How many nodes each backend uses; empty while HAProxy does not answer."""
        try:
            with urllib.request.urlopen(self._status, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - our own
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        nodes = [row for row in (line.split(",") for line in lines) if row[1].startswith("node")]
        used = Counter(row[0] for row in nodes if row[17].startswith("UP"))
        return {backend: used[backend] for backend in {row[0] for row in nodes}}

    def logs(self) -> str:
        """What it has logged so far."""
        file = self._log.fileno()  # whose position HAProxy shares
        return os.pread(file, os.fstat(file).st_size, 0).decode()

    def stop(self) -> None:
        super().stop()
        self._resources.close()
