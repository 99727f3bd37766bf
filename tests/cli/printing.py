"""A command as a process of its own, whose lines a test reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import IO

import redis

from gateway.drill.fleet import Process, wait_until

from ..paths import ROOT

# A child of a process that ignores SIGINT, as a shell's background job does, would ignore it too.
AS_IN_A_TERMINAL = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from gateway.__main__ import main; main()"
)


def shown_id(dev: Printing) -> str:
    """The webSocketId in what `dev` prints."""
    return dev.wait_for("Demo page").partition("?id=")[2]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}


class Printing(Process):
    """A command as a process of its own; `out` and `err` are its lines so far."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", AS_IN_A_TERMINAL, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        pipes = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in pipes]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: IO[bytes], lines: list[str]) -> None:
        with pipe:
            for line in pipe:
                lines.append(line.decode().rstrip("\n"))  # noqa: PERF401 - others read it meanwhile

    def wait_for(self, text: str) -> str:
        """The first printed line with `text` in it."""

        def found() -> list[str]:
            return [line for line in list(self.out) if text in line]

        wait_until(lambda: found() or self.process.poll() is not None, f"{text!r} is printed")
        assert found(), f"it ended without {text!r}: {self.out} {self.err}"
        return found()[0]

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.signal(signal.SIGINT)
        return self.ended()

    def ended(self) -> int:
        code = self.process.wait(20)
        for reader in self._readers:
            reader.join()
        return code


def valkey_at(url: str) -> int | None:
    """The process id of the server that answers at `url`, None if none does.

    A port that has become free may belong to another test's server a moment later.
    """
    with redis.Redis.from_url(url, socket_timeout=2) as client:
        try:
            return int(client.info("server")["process_id"])
        except redis.ConnectionError:
            return None
