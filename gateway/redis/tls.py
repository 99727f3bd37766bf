"""TLS to Redis: the certificates and keys that a URL names, as they are on disk at each connection."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import redis.asyncio

FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""Options of a URL that name files. OpenSSL reads those in `ssl_ca_path` itself, for each connection."""

Stamp = tuple[tuple[int, int, int] | None, ...]
"""For each file, what differs when it was replaced; None if it cannot be read."""


class _Built(NamedTuple):
    stamp: Stamp
    context: ssl.SSLContext


_contexts: dict[str, _Built] = {}
"""By options. To build one takes 20 to 50 ms with the certificates of the system, and the options of a node
are the same for each server and Sentinel that it connects to."""


class ClientTLS:
    """The TLS options of a rediss:// URL, in redis-py's notation."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """`options` are those of redis-py's connections; others than TLS's are ignored."""
        self._options = {name: value for name, value in options.items() if name.startswith("ssl_")}
        self._key = repr(sorted(self._options.items()))
        self._files = {name: self._options[name] for name in FILES if self._options.get(name)}

    def context(self) -> ssl.SSLContext:
        """The context for the next connection: a new one if a file was replaced since the last.

        Raises OSError, which names the files, if one of them is missing, or if they do not fit together.
        """
        system = ssl.get_default_verify_paths().cafile
        stamp = tuple(_stamp(path) for path in (*self._files.values(), *filter(None, [system])))
        built = _contexts.get(self._key)
        if built is None or built.stamp != stamp:
            built = _contexts[self._key] = _Built(stamp, self._build())
        return built.context

    def _build(self) -> ssl.SSLContext:
        try:
            return redis.asyncio.SSLConnection(**self._options).ssl_context.get()
        except OSError as error:  # ssl.SSLError is one, and neither says which file it is about
            files = ", ".join(f"{name}={path}" for name, path in self._files.items())
            raise OSError(f"{files} cannot be used: {error}") from error


def _stamp(path: str) -> tuple[int, int, int] | None:
    with suppress(OSError):
        found = Path(path).stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None
