"""A network between two namespaces, with packet filters."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import redis

from gateway import embedded
from gateway.drill.fleet import NodeProcess, ValkeyProcess, spawn


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


def within(namespace: str) -> list[str]:
    """Put before a command, this runs it in the namespace."""
    return [shutil.which("ip") or "ip", "netns", "exec", namespace]


class NotAllowed(Exception):
    """This process has no right to create namespaces."""


class Namespaces:
    """One namespace for Redis and one for nodes, joined by a veth pair. Needs root, `ip` and `iptables`."""

    redis_host = "10.0.0.1"

    def __init__(self, stem: str) -> None:
        self.redis = f"{stem}-redis"
        self.nodes = f"{stem}-nodes"

    @classmethod
    def joined(cls) -> AbstractContextManager[Namespaces]:
        """Both, until the block ends. Raises NotAllowed at once where there can be none."""
        both = cls(f"webflow-{secrets.token_hex(4)}")
        with ExitStack() as made:
            for name in (both.redis, both.nodes):
                try:
                    run(f"ip netns add {name}")
                except subprocess.CalledProcessError as error:
                    raise NotAllowed(error.stderr.decode().strip()) from error
                made.callback(run, f"ip netns delete {name}")
            return both._join(made.pop_all())

    @contextmanager
    def _join(self, made: ExitStack) -> Iterator[Namespaces]:
        with made:
            for name in (self.redis, self.nodes):
                run(f"ip -n {name} link set lo up")
            run(f"ip -n {self.redis} link add wire type veth peer name wire netns {self.nodes}")
            for name, address in ((self.redis, self.redis_host), (self.nodes, "10.0.0.2")):
                run(f"ip -n {name} address add {address}/24 dev wire")
                run(f"ip -n {name} link set wire up")
            yield self

    @contextmanager
    def dropping(self, *chains: str) -> Iterator[None]:
        """Drop packets to Redis (INPUT), from Redis (OUTPUT), or both."""
        iptables = f"ip netns exec {self.redis} iptables"
        for chain in chains:
            run(f"{iptables} -A {chain} -j DROP")
        try:
            yield
        finally:
            run(f"{iptables} -F")

    def connect(self, port: int, count: int) -> list[socket.socket]:
        """Open `count` connections to a node on `port`, from the namespace of the nodes."""
        made: list[socket.socket] = []

        def connect() -> None:
            # A thread may be in another namespace than its process, and a socket stays where it was made.
            with Path(f"/run/netns/{self.nodes}").open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            made.extend(socket.create_connection(("127.0.0.1", port)) for _ in range(count))

        thread = threading.Thread(target=connect)
        thread.start()
        thread.join()
        assert len(made) == count
        return made


class RemoteValkey(ValkeyProcess):
    """A Valkey in the namespace for Redis; this process connects to its Unix socket, at `url`."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespace = namespaces.redis
        super().__init__("--bind", "0.0.0.0", "--protected-mode", "no")
        self.url = f"unix://{self._socket}"
        self.remote_url = f"redis://{namespaces.redis_host}:{self.port}"

    @property
    def _socket(self) -> str:
        return f"{self._folder.name}/valkey.sock"

    def start(self) -> None:
        self.process = spawn(self._command(), stdout=self._log, stderr=self._log)
        self._await_start(self._answers, "Valkey", lambda: embedded.last_lines(self._log))

    def _answers(self) -> bool:
        with redis.Redis(unix_socket_path=self._socket) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def _command(self) -> list[str]:
        return [*within(self._namespace), *super()._command(), "--unixsocket", self._socket]


class RemoteNode(NodeProcess):
    """A node in the namespace for nodes."""

    def __init__(
        self,
        namespaces: Namespaces,
        redis_url: str,
        *options: str,
        wait_ready: bool = True,
        preface: str = "",
    ) -> None:
        self._namespace = namespaces.nodes
        super().__init__(redis_url, *options, wait_ready=wait_ready, preface=preface)

    def _command(self) -> list[str]:
        return [*within(self._namespace), *super()._command()]
