"""Pages that use real client libraries from the npm registry, and a site that serves them."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGES = Path(__file__).parent / "client_libraries"
INSTALL_SECONDS = 120.0  # far over what it takes, so that only a hang fails


def versions() -> dict[str, str]:
    """The exact version of each client library, by its name in the npm registry."""
    found: dict[str, str] = json.loads((PAGES / "package.json").read_text())["dependencies"]
    return found


def install(folder: Path) -> None:
    """Copy the pages into `folder`, and install the libraries there. Raises RuntimeError if npm fails."""
    shutil.copytree(PAGES, folder, dirs_exist_ok=True)
    # Browsers get the libraries' bundles, so nothing has to be built, and no script of theirs has to run.
    command = ["npm", "install", "--ignore-scripts", "--omit=optional", "--no-package-lock"]
    command += ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"npm install failed: {done.stdout}{done.stderr}")


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """The tests look at what browsers show."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve `folder` until the block ends. Yields the origin, which is another site than the nodes.

    For browsers `localhost` and `127.0.0.1`, where nodes listen, are different sites.
    """
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
