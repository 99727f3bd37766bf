"""File descriptors: every connection needs one, and a node that has none left cannot even reach Redis.

Then uvloop drops new connections without an answer, and if Redis goes away meanwhile, an accept takes the
descriptor that the new connection to Redis would need. So the node raises its limit as far as it may, and
lets in no more than fit, Redis having its share.
"""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path
from typing import Final, NamedTuple

import structlog

RESERVED: Final = 64
"""Descriptors for everything but browsers: Redis, both listeners, the admin port, files, the event loop."""

log = structlog.get_logger()


class Capacity(NamedTuple):
    """How many sessions, and connections on their way to one, there are descriptors for."""

    sessions: int
    handshakes: int


def raise_nofile_limit() -> int:
    """Raise the process's limit of open files as far as it may; returns what it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS names a hard limit that it does not grant
        return soft
    return hard


def capacity(limit: int, sessions: int, handshakes: int) -> Capacity:
    """What of these settings fits into `limit` descriptors. Says so in the log when it is less."""
    if limit == resource.RLIM_INFINITY or sessions + handshakes + RESERVED <= limit:
        return Capacity(sessions, handshakes)
    free = max(2, limit - RESERVED)
    fits_handshakes = min(handshakes, max(1, free // 5))
    fits = Capacity(min(sessions, free - fits_handshakes), fits_handshakes)
    log.info(  # the default of max_sessions is more than most systems allow at first
        "fewer file descriptors than the settings ask for; raise the limit of open files (ulimit -n)",
        limit=limit,
        max_sessions=fits.sessions,
        max_handshakes=fits.handshakes,
    )
    return fits


QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of the container's control group: microseconds of work in a period, or `max`; and the period."""


def cpu_count(quota: Path = QUOTA) -> int:
    """At least 1. A part of a processor counts as a whole one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        work, period = quota.read_text("ascii").split()
        granted = math.ceil(int(work) / int(period))
    except (OSError, ValueError):  # there is none, or it says max
        return allowed
    return max(1, min(allowed, granted))
