"""Verifies tokens with the keys of a file, which is read again when it changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from .keys import KeySet, Version, read_keys, version_of
from .verification import refusal

LOOK_EVERY: Final = 5.0
"""Seconds between two looks at the file. A look takes some µs, to read eight keys 1 ms at most."""

log = structlog.get_logger()


class Verifier:
    """Says whether a token proves an id. The keys are those that the file had when it could last be used."""

    def __init__(self, path: str, keys: KeySet, now: Callable[[], float] = time.time) -> None:
        """`keys` are those that the file had at some time. `now` returns seconds since 1970."""
        self._path = path
        self._keys = keys
        self._now = now
        self._seen = keys.version

    def refusal(self, web_socket_id: str, token: str | None) -> str | None:
        """Why `token` does not prove the id: one of a few words; None if it does."""
        return refusal(self._keys, web_socket_id, token, self._now())

    def reload(self) -> None:
        """Read the file again. If it cannot be used, an error in the log says so, and the keys stay."""
        self._seen = self._version()
        try:
            self._keys = read_keys(self._path, self._keys)
        except ValueError as error:
            log.error(  # noqa: TRY400 - the place says nothing
                "registration keys not read again",
                reason=str(error),
                hint="the keys that the file had before stay in use: correct the file of --registration-keys",
            )
            return
        log.info(
            "registration keys read again",
            algorithms=[key.algorithms[0] for key in self._keys.keys],
            kids=[key.kid for key in self._keys.keys],
        )

    def look(self) -> None:
        """Read the file again if it has changed."""
        if self._version() != self._seen:
            self.reload()

    async def watch(self) -> None:
        """Look at the file at once, since the keys may be old, then every LOOK_EVERY seconds, for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY)

    def _version(self) -> Version:
        """That of the file now. Kubernetes replaces a link to its folder, so links are followed."""
        try:
            return version_of(Path(self._path).stat())
        except OSError:
            return ()
