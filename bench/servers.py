"""The processes of a benchmark: the servers that are measured, and the Redis behind them."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.errors import BenchError
from tests.processes import ValkeyProcess, free_port

ROOT = Path(__file__).parent.parent
BUILD = ROOT / ".bench"
SPARE_DESCRIPTORS = 500  # listeners, logs, libraries: all that is no session
START_SECONDS = 20.0

Address = tuple[str, int]  # host and port


class Server:
    """A server under test: its process, and the counters that the kernel keeps of it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = 0
        self._process = process

    def cpu(self) -> int:
        """Nanoseconds of CPU, user and system, that all threads of the process have had so far.

        From `schedstat`, which the scheduler keeps to the nanosecond. The `utime` and `stime` of
        `/proc/PID/stat` come in ticks of 10 ms: over 8,000 deliveries that is more than 1 µs each, too coarse
        where the floor takes about 10.
        """
        self.check()
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks)

    def memory(self) -> int:
        """Bytes of memory: the proportional set size, so that shared libraries do not count in full."""
        self.check()
        return memory(self._process.pid)

    def check(self) -> None:
        """Raise BenchError when the process has ended."""
        if self._process.poll() is not None:
            raise BenchError(f"the {self.name} ended with {self._process.returncode}: see {_log(self.name)}")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def memory(process: int) -> int:
    """Bytes of memory of the process with this id: the proportional set size."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchError("this kernel does not tell a process's Pss")


@contextmanager
def running(name: str, redis: Address, sessions: int, core: int | None) -> Iterator[Server]:
    """Start the server called `name` on `core`, and stop it at the end of the block."""
    command = COMMANDS[name](redis, sessions)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
    with _log(name).open("wb") as log, on_core(core):
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment)
    server = Server(name, process)
    try:
        server.port = _wait_for_port(server)
        yield server
    finally:
        server.stop()


def _wait_for_port(server: Server) -> int:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        server.check()
        lines = _log(server.name).read_text().splitlines()
        port = _announced(lines)
        if port is not None:
            return port
        time.sleep(0.02)
    raise BenchError(f"the {server.name} did not say where it listens: see {_log(server.name)}")


def _announced(lines: list[str]) -> int | None:
    """The port out of a server's first lines: a bare number, or the gateway's log once it has Redis."""
    if lines and lines[0].isdecimal():
        return int(lines[0])
    events = {}
    for line in lines:
        if line.startswith("{"):
            entry = json.loads(line)
            events[entry.get("event")] = entry
    if "listening" in events and "redis connected" in events:
        return int(events["listening"]["port"])
    return None


def _log(name: str) -> Path:
    return BUILD / f"{name}.log"


# --- what to start ---


def compile_floor() -> None:
    """Compile bench/floor.c into .bench/; raises BenchError without a C compiler."""
    BUILD.mkdir(exist_ok=True)
    command = ["cc", "-O2", "-o", str(BUILD / "floor"), str(ROOT / "bench" / "floor.c")]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise BenchError("the floor is in C, and there is no cc; on Debian: apt-get install gcc") from None
    except subprocess.CalledProcessError:
        raise BenchError("the floor did not compile: see the compiler's message above") from None


def _floor(redis: Address, _sessions: int) -> list[str]:
    return [str(BUILD / "floor"), redis[0], str(redis[1])]


def _gateway(redis: Address, sessions: int) -> list[str]:
    port = free_port()
    options = {
        "--redis": f"redis://{redis[0]}:{redis[1]}",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--admin-port": "0",
        "--log-format": "json",
        # One address holds all sessions here, and no limit that a node has by default may end the run.
        "--max-sessions": str(2 * sessions),
        "--max-sessions-per-ip": str(2 * sessions),
        "--allowed-origins": f"http://127.0.0.1:{port}",
        "--drain-delay": "0",
        "--drain-seconds": "0",
    }
    return [sys.executable, "-m", "gateway", "serve", *(word for pair in options.items() for word in pair)]


def _peer(redis: Address, _sessions: int) -> list[str]:
    return [sys.executable, "-m", "bench.peer", redis[0], str(redis[1])]


COMMANDS: dict[str, Callable[[Address, int], list[str]]] = {
    "floor": _floor,
    "gateway": _gateway,
    "stomp": _gateway,
    "stomp-at-once": _gateway,
    "peer": _peer,
}

# --- the machine ---


def raise_descriptor_limit(sessions: int) -> None:
    """Let this process and its children have a descriptor per session; BenchError where that is forbidden."""
    wanted = sessions + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
    except (ValueError, PermissionError):
        raise BenchError(
            f"{sessions} sessions need {wanted} open files, and this account may have {hard}: "
            f"raise the limit (ulimit -Hn {wanted}) or measure fewer (--sessions {hard - SPARE_DESCRIPTORS})"
        ) from None


def cores() -> tuple[int | None, int | None]:
    """The core of the server under test and that of everything else; (None, None) where there is but one."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else (None, None)


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Run the block, and every process started in it, on this core alone; None changes nothing."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def redis_server(address: str | None) -> Iterator[Address]:
    """The Redis to measure with: the one at `address` (`redis://HOST:PORT`), else a Valkey of our own."""
    if address is not None:
        yield _parse(address)
        return
    with ValkeyProcess() as valkey:
        yield ("127.0.0.1", valkey.port)


def _parse(address: str) -> Address:
    """Host, as a number, and port of a `redis://` URL; the floor understands nothing more than that."""
    url = urlsplit(address)
    if url.scheme != "redis" or not url.hostname or url.username or url.password or url.path not in ("", "/"):
        raise BenchError(f"{address}: the floor connects to a plain redis://HOST:PORT only")
    return (socket.gethostbyname(url.hostname), url.port or 6379)
