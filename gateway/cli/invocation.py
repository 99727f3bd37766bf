"""Command lines that work when they are pasted into the shell that started this process."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

NAME = "webflow-gateway"


def program() -> str:
    """How to call the commands from the current folder: `webflow-gateway`, `.venv/bin/webflow-gateway`, …"""
    started = Path(sys.argv[0])
    if started.name != NAME:
        return f"{_shortest(Path(sys.executable))} -m gateway"
    found = shutil.which(NAME)
    if found is not None and started.exists() and started.samefile(found):
        return NAME
    return _shortest(started)


def redis_cli(url: str) -> str:
    """The redis-cli command for a `redis://` URL without a password, without the Redis command."""
    parts = urlsplit(url)
    host = [] if parts.hostname in (None, "localhost", "127.0.0.1") else ["-h", str(parts.hostname)]
    return shlex.join(["redis-cli", *host, "-p", str(parts.port or 6379)])


def _shortest(path: Path) -> str:
    """The relative path if it is below the current folder, else the absolute path."""
    whole = path.absolute()  # not resolve(): a virtual environment's python is a link
    here = Path.cwd()
    if whole.is_relative_to(here):
        short = whole.relative_to(here)
        return shlex.quote(str(short if len(short.parts) > 1 else f"./{short}"))
    return shlex.quote(str(whole))
