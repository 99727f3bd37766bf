"""What the system grants: file descriptors and processors.

Every connection needs a file descriptor. Without a free one, uvloop drops new connections, and a new browser
may take the descriptor that the next connection to Redis needs. So the node raises its limit as far as it
may, and admits only as many browsers as leave some descriptors for Redis.
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

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of the container's control group: microseconds of processor time in a period, or `max`; and the period."""

log = structlog.get_logger()


class Capacity(NamedTuple):
    """How many sessions and handshakes there are descriptors for."""

    sessions: int
    handshakes: int


def raise_nofile_limit() -> int:
    """Raise the process's limit of open files as far as allowed; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS names a hard limit that it does not grant
        return soft
    return hard


def capacity(limit: int, sessions: int, handshakes: int) -> Capacity:
    """These settings, or as much of them as fits into `limit` descriptors, which is then logged."""
    if limit == resource.RLIM_INFINITY or sessions + handshakes + RESERVED <= limit:
        return Capacity(sessions, handshakes)
    free = max(2, limit - RESERVED)
    fits_handshakes = min(handshakes, max(1, free // 5))
    fits = Capacity(min(sessions, free - fits_handshakes), fits_handshakes)
    log.info(  # not a warning: the default of max_sessions is more than most systems allow
        "limited by file descriptors",
        limit=limit,
        max_sessions=fits.sessions,
        max_handshakes=fits.handshakes,
        hint="raise the limit of open files (ulimit -n)",
    )
    return fits


def cpu_count(quota: Path = QUOTA) -> int:
    """Processors that this process may use, at least 1. A part of a processor counts as one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        work, period = quota.read_text("ascii").split()
        granted = math.ceil(int(work) / int(period))
    except (OSError, ValueError):  # there is no file, or it says max
        return allowed
    return max(1, min(allowed, granted))
