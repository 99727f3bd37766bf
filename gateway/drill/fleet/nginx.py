"""nginx in front of nodes, with a configuration as the project ships it.

The addresses where nginx listens and logs, and the nodes, are replaced. The rest of the configuration stays.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from .process import ANSWER_SECONDS, Process, free_port, spawn, wait_until

ANY_SERVER = re.compile(r"^server (\S+)(.*);$", re.MULTILINE)
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def replaced(text: str, old: str, new: str) -> str:
    """`text` with `old`, which must be there, replaced everywhere."""
    if old not in text:
        raise ValueError(f"the configuration of nginx has no {old!r}")
    return text.replace(old, new)


class NginxProcess(Process):
    """nginx on a free port. It listens once the constructor returns.

    `configuration` is the text of nginx.conf, `nodes` the text of nginx-nodes.conf, which has the options of
    each server line. `addresses` and `port` are where the nodes listen.
    """

    def __init__(
        self, configuration: str, nodes: str, addresses: Sequence[str], port: int, *, connections: int = 1_000
    ) -> None:
        """`connections` is the limit for each worker process."""
        self.port = free_port()
        self.ws_url = f"ws://127.0.0.1:{self.port}/ws"
        self._status_port = free_port()
        self._temporary = tempfile.TemporaryDirectory(prefix="webflow-nginx-")
        self.folder = Path(self._temporary.name)
        (self._server_options,) = {match[2] for match in ANY_SERVER.finditer(nodes)}
        (self.folder / "nginx.conf").write_text(self._adapted(configuration, connections))
        self.set_nodes(addresses, port)
        self.process = spawn(self.command())
        self._await_start(self._answers, "nginx", self.logs)

    def _adapted(self, configuration: str, connections: int) -> str:
        folder = self.folder
        text = replaced(configuration, "listen 8080 ", f"listen 127.0.0.1:{self.port} ")
        text = replaced(text, "listen 127.0.0.1:8404;", f"listen 127.0.0.1:{self._status_port};")
        text = replaced(text, "/var/log/nginx", str(folder))
        # The shipped limits may be higher than this machine allows.
        text = replaced(text, "worker_rlimit_nofile 131072;", "")
        text = replaced(text, "worker_connections 65536;", f"worker_connections {connections};")
        paths = "".join(f"{name}_temp_path {folder}/{name};\n" for name in TEMPORARY)
        return replaced(text, "http {\n", f"http {{\n{paths}")

    def set_nodes(self, addresses: Sequence[str], port: int) -> None:
        """Write the list of nodes; nginx reads it when it starts and on `reload`."""
        lines = [f"server {address}:{port}{self._server_options};\n" for address in addresses]
        (self.folder / "nginx-nodes.conf").write_text("".join(lines))

    def command(self, *options: str) -> list[str]:
        folder = self.folder
        where = ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        own = f"daemon off; pid {folder}/nginx.pid;"
        return [shutil.which("nginx") or "nginx", *where, "-g", own, *options]

    def logs(self) -> str:
        """The access log and the error log so far."""
        return "".join(path.read_text() for path in self.folder.glob("*.log"))

    def reload(self) -> None:
        """Have nginx read its configuration again. Returns when new workers have replaced the old ones."""
        before = self.workers()
        self.signal(signal.SIGHUP)
        wait_until(lambda: not before & set(self._accepting()), "the old workers take no more clients")

    def workers(self) -> set[int]:
        """The process ids of the workers."""
        pid = self.process.pid
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def stop(self) -> None:
        super().stop()
        self._temporary.cleanup()

    def _answers(self) -> bool:
        url = f"http://127.0.0.1:{self._status_port}/status"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
                return b"Active connections" in answer.read()
        except OSError:
            return False

    def _accepting(self) -> Iterator[int]:
        for worker in self.workers():
            with contextlib.suppress(OSError):  # it has ended
                if "shutting down" not in Path(f"/proc/{worker}/cmdline").read_text():
                    yield worker
