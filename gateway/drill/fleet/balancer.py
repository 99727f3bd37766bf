"""HAProxy with the shipped configuration, and the small DNS server by which it finds the nodes.

The configuration finds the nodes by a DNS name, with one port for all. So every node gets a loopback
address of its own here, and the DNS server names them, as Docker's does for the replicas of a service.
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

from ... import embedded
from .node import NodeProcess
from .process import Process, free_port, spawn

PACKAGE = Path(__file__).parents[1]
NAME = "nodes.test"
ANSWER_SECONDS = 2.0


def configuration() -> Path:
    """The shipped configuration. In a checkout it is a link to deploy/haproxy.cfg; a wheel has the file."""
    return PACKAGE / "data" / "haproxy.cfg"


def address(number: int) -> str:
    """Where the `number`-th node behind HAProxy is, from 0."""
    return f"127.0.0.{number + 2}"


def available() -> bool:
    """Whether HAProxy is installed, and loopback has the addresses that the nodes need.

    Linux has all of 127.0.0.0/8; on other systems an administrator must add them.
    """
    if shutil.which("haproxy") is None:
        return False
    with socket.socket() as probe:
        try:
            probe.bind((address(0), 0))
        except OSError:
            return False
        return True


@contextmanager
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


class Balancer(Process):
    """HAProxy on free ports; it has found all its nodes, and they are ready, once the constructor returns.

    The nodes have one port and one admin port, each on an address of its own.
    """

    def __init__(self, nodes: Sequence[NodeProcess], configuration: Path, *, files: int = 1_000) -> None:
        """`files` is how many descriptors it may have; two for each browser."""
        self.port = free_port()
        self.ws_url = f"ws://127.0.0.1:{self.port}/ws"
        status_port = free_port()
        self._status = f"http://127.0.0.1:{status_port}/stats;csv"
        self._also = ExitStack()
        resolver = self._also.enter_context(name_server([node.host for node in nodes]))
        self._log = self._also.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - that is one
        environment = {
            **os.environ,
            "LB_LISTEN": f"127.0.0.1:{self.port}",
            "LB_STATUS": f"127.0.0.1:{status_port}",
            "LB_FILES": str(files),
            "LB_NODES": NAME,
            "LB_NODE_PORT": str(nodes[0].port),
            "LB_NODE_ADMIN": str(nodes[0].admin_port),
            "LB_RESOLVER": resolver,
        }
        # -dW: a warning about the configuration is an error.
        command = [shutil.which("haproxy") or "haproxy", "-dW", "-db", "-f", str(configuration)]
        self.process = spawn(command, stdout=self._log, stderr=self._log, environment=environment)
        self._await_start(
            lambda: self.gives_to(len(nodes)), "HAProxy", lambda: embedded.last_lines(self._log)
        )

    def gives_to(self, count: int) -> bool:
        """Whether it gives clients to so many nodes, wherever they ask; False while HAProxy is not there."""
        try:
            with urllib.request.urlopen(self._status, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - our own
                lines = answer.read().decode().splitlines()
        except OSError:
            return False
        rows = [line.split(",") for line in lines]
        up = Counter(row[0] for row in rows if row[1].startswith("node") and row[17].startswith("UP"))
        return up["gateway"] == up["sockjs"] == count

    def stop(self) -> None:
        super().stop()
        self._also.close()
