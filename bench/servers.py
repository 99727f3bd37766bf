"""The processes of a benchmark: the servers that are measured, and the Redis behind them."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.errors import BenchError
from gateway.drill.fleet import NodeProcess, Process, ValkeyProcess, free_port, spawn

ROOT = Path(__file__).parent.parent
BUILD = ROOT / ".bench"
SPARE_DESCRIPTORS = 500  # listeners, logs, libraries: everything that is not a session

Address = tuple[str, int]  # host and port


class Server:
    """A process under test, and the counters that the kernel keeps of it."""

    def __init__(self, name: str, process: Process, port: int = 0) -> None:
        self.name = name
        self.port = port
        self._process = process

    def cpu(self) -> int:
        """Nanoseconds of CPU time, user and system, of all threads of the process so far."""
        self.check()
        return cpu(self._process.process.pid)

    def memory(self) -> int:
        """Bytes of memory of the process."""
        self.check()
        return memory(self._process.process.pid)

    def check(self) -> None:
        """Raise BenchError when the process has ended."""
        if not self._process.running:
            raise BenchError(f"the {self.name} ended with {self._process.process.returncode}")


def cpu(process: int) -> int:
    """Nanoseconds of CPU time of the process with this id.

    From `schedstat`, which the scheduler keeps to the nanosecond. The `utime` and `stime` of
    `/proc/PID/stat` come in ticks of 10 ms: over 8,000 deliveries that is more than 1 µs each, too coarse
    where the floor takes about 10.
    """
    tasks = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks)


def memory(process: int) -> int:
    """Bytes of memory of the process with this id: its proportional set size (shared pages count in part)."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchError("this kernel does not report a process's Pss")


# --- what to start ---


class PinnedNode(NodeProcess):
    """The gateway on one core, with limits for so many sessions."""

    def __init__(self, redis: Address, sessions: int, core: int | None) -> None:
        self._core = core
        port = free_port()
        options = {
            # All sessions come from one address, and no default limit may end the run.
            "--max-sessions": str(2 * sessions),
            "--max-sessions-per-ip": str(2 * sessions),
            "--allowed-origins": f"http://127.0.0.1:{port}",
        }
        flags = [word for pair in options.items() for word in pair]
        super().__init__(f"redis://{redis[0]}:{redis[1]}", *flags, port=port)

    def _command(self) -> list[str]:
        return [*pinned_to(self._core), *super()._command()]


class PrintingServer(Process):
    """A server on one core whose first line of output is its port. Its output goes to a file in .bench/."""

    def __init__(self, name: str, command: Sequence[str], core: int | None) -> None:
        self._log = BUILD / f"{name}.log"
        with self._log.open("wb") as log:
            self.process = spawn([*pinned_to(core), *command], stdout=log, stderr=log, folder=ROOT)
        self._await_start(lambda: self._lines()[:1], f"the {name}", lambda: "\n".join(self._lines()))
        self.port = int(self._lines()[0])

    def _lines(self) -> list[str]:
        return self._log.read_text().splitlines()


def _floor(redis: Address, _sessions: int, core: int | None) -> PrintingServer:
    return PrintingServer("floor", [str(BUILD / "floor"), redis[0], str(redis[1])], core)


def _peer(redis: Address, _sessions: int, core: int | None) -> PrintingServer:
    command = [sys.executable, "-m", "bench.peer", redis[0], str(redis[1])]
    return PrintingServer("peer", command, core)


START: dict[str, Callable[[Address, int, int | None], PinnedNode | PrintingServer]] = {
    "floor": _floor,
    "gateway": PinnedNode,
    "stomp": PinnedNode,
    "stomp-at-once": PinnedNode,
    "peer": _peer,
}


@contextmanager
def running(name: str, redis: Address, sessions: int, core: int | None) -> Iterator[Server]:
    """Start the server called `name` on `core`, and stop it at the end of the block."""
    with START[name](redis, sessions, core) as process:
        yield Server(name, process, process.port)


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


# --- the machine ---


def raise_descriptor_limit(sessions: int) -> None:
    """Allow a descriptor for each session, here and in children. Raises BenchError if not permitted."""
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
    """The core for the server under test, and the core for the rest; (None, None) if there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else (None, None)


def pinned_to(core: int | None) -> list[str]:
    """Put before a command, this runs it on one core only; None changes nothing."""
    return [] if core is None else [shutil.which("taskset") or "taskset", "-c", str(core)]


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Run the block on this core only; None changes nothing.

    The fleet's thread that starts processes inherits the core if the first process starts in this block.
    """
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def redis_server(address: str | None) -> Iterator[Address]:
    """The Redis to measure with: the one at `address` (`redis://HOST:PORT`), or a new Valkey."""
    if address is not None:
        yield _parse(address)
        return
    with ValkeyProcess() as valkey:
        yield ("127.0.0.1", valkey.port)


def _parse(address: str) -> Address:
    """Host, as a number, and port of a `redis://` URL: all that the floor understands."""
    url = urlsplit(address)
    if url.scheme != "redis" or not url.hostname or url.username or url.password or url.path not in ("", "/"):
        raise BenchError(f"{address}: the floor connects to a plain redis://HOST:PORT only")
    return (socket.gethostbyname(url.hostname), url.port or 6379)
