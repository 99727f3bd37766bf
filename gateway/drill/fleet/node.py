"""A gateway node, run as the command `serve`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from .process import ANSWER_SECONDS, Process, free_port, spawn

PACKAGE_PARENT = Path(__file__).parents[3]  # as working directory: nodes run this package's own code
RUN = "from gateway.__main__ import main; main()"


class NodeProcess(Process):
    """A node on `host`, on free ports. It is connected to Redis once the constructor returns.

    `options` are more command-line flags of `serve`. `logs` holds the log lines so far, parsed. `start` after
    the end of the process starts it on the same ports. `preface` is Python that the process runs first; a
    control run disables a safeguard with it.
    """

    def __init__(
        self,
        redis_url: str,
        *options: str,
        host: str = "127.0.0.1",
        port: int = 0,
        admin_port: int = 0,
        wait_ready: bool = True,
        preface: str = "",
    ) -> None:
        self.host = host
        self.port = port or free_port()
        self.admin_port = admin_port or free_port()
        self.logs: list[dict[str, Any]] = []
        self._redis_url = redis_url
        self._options = options
        self._preface = preface
        self.start(wait_ready=wait_ready)

    def start(self, *, wait_ready: bool = True) -> None:
        """Start the node. Returns when it listens and, with `wait_ready`, is connected to Redis."""
        before = len(self.logs)
        # Without the settings of the user's environment.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
        self.process = spawn(
            self._command(), stderr=subprocess.PIPE, environment=environment, folder=PACKAGE_PARENT
        )
        self._reader = threading.Thread(target=self._read_logs, args=(self.process,), daemon=True)
        self._reader.start()

        def said() -> str:
            self._reader.join()
            return "\n".join(map(str, self.logs[before:]))

        def logged(event: str) -> Iterator[dict[str, Any]]:
            return (line for line in self.logs[before:] if line.get("event") == event)

        self._await_start(lambda: any(logged("listening")), "the node", said)
        listening = next(logged("listening"))
        self.port = listening["port"]
        self.admin_port = listening["admin_port"]
        self.ws_url = f"ws://{self.host}:{self.port}/ws"
        if wait_ready:
            self._await_start(lambda: any(logged("redis connected")), "the node's connection to Redis", said)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log lines whose `event` is this one."""
        return [line for line in list(self.logs) if line.get("event") == event]

    def readyz(self) -> dict[str, Any] | None:
        """The body of /readyz, whatever its status; None if the node does not answer."""
        url = f"http://{self.host}:{self.admin_port}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
                body: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                body = json.load(error)
        except (OSError, ValueError):
            return None
        return body

    def sessions(self) -> int:
        """The number of sessions, as the node reports it. Raises TimeoutError if it does not answer."""
        body = self.readyz()
        if body is None:
            raise TimeoutError(f"the node at {self.host}:{self.admin_port} does not answer")
        count: int = body["sessions"]
        return count

    def _command(self) -> list[str]:
        start = ["-c", f"{self._preface}\n{RUN}"] if self._preface else ["-m", "gateway"]
        where = ["--host", self.host, "--port", str(self.port)]
        where += ["--admin-host", self.host, "--admin-port", str(self.admin_port)]
        no_drain = ["--drain-delay", "0", "--drain-seconds", "0"]
        serve = ["serve", "--redis", self._redis_url, *where, "--log-format", "json", *no_drain]
        return [sys.executable, *start, *serve, *self._options]

    def _read_logs(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                try:
                    self.logs.append(json.loads(line))
                except ValueError:
                    self.logs.append({"event": "not JSON", "line": line.decode(errors="replace")})


def logged_at(line: dict[str, Any]) -> float:
    """The time of a log line, as of time.time()."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()
