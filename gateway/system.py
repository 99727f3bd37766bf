"""File descriptors: every connection needs one, and a node that has none left cannot even reach Redis.

Then uvloop drops new connections without an answer, and if Redis goes away meanwhile, an accept takes the
descriptor that the new connection to Redis would need. So the node raises its limit as far as it may, and
lets in no more than fit, Redis having its share.
"""

from __future__ import annotations

import resource
from typing import Final, NamedTuple

import structlog

RESERVED: Final = 64
"""Descriptors for everything but browsers: Redis, both listeners, the admin port, files, the event loop."""

log = structlog.get_logger()


class Room(NamedTuple):
    """How many sessions, and connections on their way to one, there are descriptors for."""

    sessions: int
    handshakes: int


def raise_limit() -> int:
    """Raise the process's limit of open files as far as it may; returns what it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS names a hard limit that it does not grant
        return soft
    return hard


def room(limit: int, sessions: int, handshakes: int) -> Room:
    """What of these settings fits into `limit` descriptors. Says so in the log when it is less."""
    if limit == resource.RLIM_INFINITY or sessions + handshakes + RESERVED <= limit:
        return Room(sessions, handshakes)
    free = max(2, limit - RESERVED)
    fits_handshakes = min(handshakes, max(1, free // 5))
    fits = Room(min(sessions, free - fits_handshakes), fits_handshakes)
    log.info(  # the default of max_sessions is more than most systems allow at first
        "fewer file descriptors than the settings ask for; raise the limit of open files (ulimit -n)",
        limit=limit,
        max_sessions=fits.sessions,
        max_handshakes=fits.handshakes,
    )
    return fits
