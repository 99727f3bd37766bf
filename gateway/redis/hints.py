"""What to do about the errors with which Redis rejects a login. Pure."""

from __future__ import annotations

from typing import Final

_HINTS: Final = {
    "NOAUTH": "write the password into the URL: redis://user:password@host",
    "WRONGPASS": "check user and password in the URL; write @ : / ? # in them as %40 %3A %2F %3F %23",
    "NOPERM": "give the node's Redis user the rights that docs/redis-access.md lists",
    "NOPROTO": "Redis 6.2, Valkey 7.2 or later is needed",
    "ERR unknown command": "Redis 6.2, Valkey 7.2 or later is needed",
    "DENIED": "Redis is in protected mode: give its users passwords, or bind it to an address of its own",
    "ERR max number of clients": "raise maxclients in Redis, or stop other clients",
    "LOADING": "Redis reads its data from disk: wait",
    "MASTERDOWN": "this replica has lost its master, and replica-serve-stale-data is no",
}
"""By the beginning of the error."""


def hint_for(reason: str) -> str | None:
    """What helps against `reason`, the text of a failed attempt to connect; None if nobody knows."""
    _, _, error = reason.partition(" with: ")
    return next((hint for beginning, hint in _HINTS.items() if error.startswith(beginning)), None)
