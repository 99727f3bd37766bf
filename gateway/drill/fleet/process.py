"""A child process that can be stopped, killed and frozen, and that ends with its `with` block."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ... import embedded
from ...errors import EmbeddedError

START_SECONDS = 20.0  # far more than a start needs: only a hang reaches it
STOP_SECONDS = 5.0
ANSWER_SECONDS = 2.0  # for one HTTP answer of a process

# Below the ports that Linux (from 32768) and macOS (from 49152) use for outgoing connections. The port of a
# killed server must still be free when it starts again, and a client that tries to reach it meanwhile must
# not get this port as its own and connect to itself.
PORTS = range(20_000, 32_768)

# The kernel ends children when the thread that started them ends. So one thread starts all of them, and it
# lives as long as this process.
_starter = ThreadPoolExecutor(1, "starts-processes")
_given: set[int] = set()
_giving = threading.Lock()


@cache
def port_locks() -> int:
    """The descriptor of a file with a byte for each port. A process locks those of the ports it has given.

    Drills and tests may run side by side, and a port is not bound until its server has started, nor while
    the server is down. Locks end with the process, however that ends.
    """
    return os.open(f"/tmp/webflow-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)  # noqa: S108


def free_port() -> int:
    """A port that is free now, and that no other call has returned: in any process that still runs."""
    with _giving:
        while True:
            port = random.choice(PORTS)  # noqa: S311 - it only has to be free
            if port not in _given and _reserve(port) and _is_free(port):
                _given.add(port)
                return port


def _reserve(port: int) -> bool:
    try:
        fcntl.lockf(port_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))  # on every address: a node may have its own
        except OSError:
            return False
        return True


def wait_until(condition: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    """Poll `condition` until it is true. Raises TimeoutError, which names `what`, after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


def spawn(
    command: Sequence[str],
    *,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program, named by its path.

    It runs in another process group, so Ctrl-C reaches only this process, which stops it. On Linux it also
    ends when this process ends, even by SIGKILL.
    """

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - programs of ours, and no shell
            [*embedded.launcher(), *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            cwd=folder,
            process_group=0,
        )

    return _starter.submit(start).result()


class ProcessGroup:
    """Processes that start together. All of them end with the `with` block."""

    def __init__(self) -> None:
        self._running = ExitStack()

    def _start(self, running: ExitStack) -> None:
        """Start the processes, and enter each into `running` as soon as it exists."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            self._start(starting)
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()


class Process:
    """A child process that has ended when its `with` block ends, whatever happens."""

    process: subprocess.Popen[bytes]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: the process closes no connection properly."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: sockets stay open and nothing answers."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL if the process has not ended after STOP_SECONDS."""
        if self.running:
            self.thaw()
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _await_start(self, ready: Callable[[], object], name: str, output: Callable[[], str]) -> None:
        """Wait until the process is `ready`. Raises EmbeddedError with its `output` if it ends or hangs."""
        try:
            wait_until(lambda: ready() or not self.running, name)
        except TimeoutError as error:
            how = str(error)
        except BaseException:
            self.stop()
            raise
        else:
            if self.running:
                return
            how = f"it ended with {self.process.returncode}"
        self.kill()  # so that its output is complete
        last_words = output()
        self.stop()
        raise EmbeddedError(f"{name} did not start: {how}; it said:\n{last_words}")
