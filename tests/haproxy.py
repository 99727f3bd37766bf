"""HAProxy with the shipped configuration, or one that differs from it.

The configuration finds the nodes by a DNS name, with one port for all. So a small DNS server names them here,
as Docker's does for the replicas of a service.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from .clients import SECONDS
from .fleet import Fleet
from .processes import free_port, wait_until

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

    def __init__(self, process: subprocess.Popen[bytes], port: int, status_port: int) -> None:
        self.process = process
        self.port = port
        self.ws_url = f"ws://127.0.0.1:{port}/ws"
        self._status = f"http://127.0.0.1:{status_port}"

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, fleet: Fleet, folder: Path, configuration: Path = CONFIGURATION, files: int = 1000
    ) -> Iterator[HAProxy]:
        """HAProxy before `fleet`, with so many file descriptors."""
        port, status_port = free_port(), free_port()
        with name_server(fleet.addresses) as resolver, (folder / "haproxy.log").open("wb") as log:
            environment = {
                **os.environ,
                "LB_LISTEN": f"127.0.0.1:{port}",
                "LB_STATUS": f"127.0.0.1:{status_port}",
                "LB_FILES": str(files),
                "LB_NODES": "nodes.test",
                "LB_NODE_PORT": str(fleet.port),
                "LB_NODE_ADMIN": str(fleet.nodes[0].admin_port),
                "LB_RESOLVER": resolver,
            }
            # -dW: a warning about the configuration is an error.
            command = ["haproxy", "-dW", "-db", "-f", str(configuration)]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                balancer = cls(process, port, status_port)
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
