"""nginx with the shipped configuration, or one that differs from it.

Where it listens and logs, and which nodes there are, is replaced; the rest is as it is.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..clients import SECONDS
from ..paths import DEPLOY
from ..processes import free_port, wait_until
from ..running_nodes import Nodes

CONFIGURATION = (DEPLOY / "nginx.conf").read_text()
NODES = (DEPLOY / "nginx-nodes.conf").read_text()
ANY_SERVER = re.compile(r"^server (\S+)(.*);$", re.MULTILINE)
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def replaced(text: str, old: str, new: str) -> str:
    """`text` with `old`, which must be there, replaced everywhere."""
    assert old in text, old
    return text.replace(old, new)


class Nginx:
    """nginx on a free port, in a folder of its own."""

    def __init__(self, folder: Path, configuration: str = CONFIGURATION, connections: int = 1000) -> None:
        """Write down `configuration` for this place, with so many a worker; no nodes are named yet."""
        self.port = free_port()
        self.ws_url = f"ws://127.0.0.1:{self.port}/ws"
        self._status = free_port()
        self._folder = folder
        here = replaced(configuration, "listen 8080 ", f"listen 127.0.0.1:{self.port} ")
        here = replaced(here, "listen 127.0.0.1:8404;", f"listen 127.0.0.1:{self._status};")
        here = replaced(here, "/var/log/nginx", str(folder))
        # More than may be had where the tests run.
        here = replaced(here, "worker_rlimit_nofile 131072;", "")
        here = replaced(here, "worker_connections 65536;", f"worker_connections {connections};")
        own = "".join(f"{name}_temp_path {folder}/{name};\n" for name in TEMPORARY)
        (folder / "nginx.conf").write_text(replaced(here, "http {\n", f"http {{\n{own}"))

    def name(self, addresses: Sequence[str], port: int) -> None:
        """Name the nodes, with the options that the shipped file gives each."""
        (options,) = {match[2] for match in ANY_SERVER.finditer(NODES)}
        lines = [f"server {address}:{port}{options};\n" for address in addresses]
        (self._folder / "nginx-nodes.conf").write_text("".join(lines))

    def command(self, *words: str) -> list[str]:
        config = self._folder / "nginx.conf"
        own = f"daemon off; pid {self._folder}/nginx.pid;"
        return [
            "nginx",
            "-p",
            str(self._folder),
            "-c",
            str(config),
            "-e",
            str(self.errors),
            "-g",
            own,
            *words,
        ]

    @property
    def errors(self) -> Path:
        return self._folder / "error.log"

    @property
    def logged(self) -> str:
        """All that nginx has logged, of both kinds."""
        return "".join(path.read_text() for path in self._folder.glob("*.log"))

    @contextlib.contextmanager
    def running(self) -> Iterator[Nginx]:
        self.process = subprocess.Popen(self.command())
        try:
            wait_until(lambda: self._answers() or self.process.poll() is not None, "nginx listens")
            assert self.process.poll() is None, self.logged
            yield self
        finally:
            self.process.terminate()
            self.process.wait(SECONDS)

    def reload(self) -> None:
        """Have it read its configuration again, and wait for the new workers."""
        before = self.workers()
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not before & set(self._accepting()), "the old workers take no more clients")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._status}/status", timeout=SECONDS) as answer:
                return b"Active connections" in answer.read()
        except OSError:
            return False

    def workers(self) -> set[str]:
        """The process ids of its workers."""
        return set(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split())

    def _accepting(self) -> Iterator[str]:
        for worker in self.workers():
            with contextlib.suppress(OSError):  # it has ended
                if "shutting down" not in Path(f"/proc/{worker}/cmdline").read_text():
                    yield worker


@contextlib.contextmanager
def before(
    nodes: Nodes, folder: Path, configuration: str = CONFIGURATION, connections: int = 1000
) -> Iterator[Nginx]:
    """nginx before these nodes."""
    nginx = Nginx(folder, configuration, connections)
    nginx.name(nodes.addresses, nodes.port)
    with nginx.running():
        yield nginx
