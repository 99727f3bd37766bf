"""What the system grants: file descriptors, memory and processors.

Every connection needs a file descriptor. Without a free one, uvloop drops new connections, and a new browser
may take the descriptor that the next connection to Redis needs. So the node raises its limit as far as it
may, and accepts only as many connections as leave descriptors for Redis and for the admin port.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import structlog

RESERVED: Final = 96
"""Descriptors for everything but accepted connections: Redis (in a Cluster, a few for each master),
listeners, files, the event loop, and what the kernel accepts before the node can refuse it."""

ADMIN_CONNECTIONS: Final = 1_000
"""Connections of the admin port at most: health checks, Prometheus, dashboards, and backends that publish."""

ADMIN_PART: Final = 8
"""The admin port has one in so many descriptors, if that is less than ADMIN_CONNECTIONS."""

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of the container's control group: microseconds of processor time in a period, or `max`; and the period."""

MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Of the container's control group, version 2 and version 1: bytes of memory, or `max`."""

UNREAD_PART: Final = 4
"""Clients may leave a quarter of the memory unread."""

log = structlog.get_logger()


class Capacity(NamedTuple):
    """What there are descriptors for."""

    sessions: int
    handshakes: int
    connections: int
    """On the public port, whatever happens on them."""
    admin_connections: int


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
    """These settings, or as much of them as fits into `limit` descriptors, which is then logged.

    A session without a WebSocket has two connections, so there may be more connections than sessions.
    """
    wanted = 2 * sessions + handshakes
    admin = admin_connections(limit)
    if limit == resource.RLIM_INFINITY:
        return Capacity(sessions, handshakes, wanted, admin)
    free = max(2, limit - RESERVED - admin)
    if sessions + handshakes <= free:
        return Capacity(sessions, handshakes, min(wanted, free), admin)
    fits_handshakes = min(handshakes, max(1, free // 5))
    fits = Capacity(min(sessions, free - fits_handshakes), fits_handshakes, free, admin)
    log.info(  # not a warning: the default of max_sessions is more than most systems allow
        "limited by file descriptors",
        limit=limit,
        max_sessions=fits.sessions,
        max_handshakes=fits.handshakes,
        hint="raise the limit of open files (ulimit -n)",
    )
    return fits


def admin_connections(limit: int) -> int:
    """Connections of the admin port, of a process that may have `limit` descriptors."""
    if limit == resource.RLIM_INFINITY:
        return ADMIN_CONNECTIONS
    return max(1, min(ADMIN_CONNECTIONS, limit // ADMIN_PART))


def unread_limit(setting: int, processes: int, limits: Sequence[Path] = MEMORY_LIMITS) -> int:
    """Bytes that the clients of one of `processes` may leave unread: its part of `setting`, and at most of a
    quarter of the container's memory."""
    return min([setting, *(memory // UNREAD_PART for memory in _memory_limits(limits))]) // processes


def _memory_limits(limits: Sequence[Path]) -> Iterator[int]:
    for path in limits:
        with suppress(OSError, ValueError):  # there is no file, or it says max
            yield int(path.read_text("ascii"))


def cpu_count(quota: Path = QUOTA) -> int:
    """Processors that this process may use, at least 1. A part of a processor counts as one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        work, period = quota.read_text("ascii").split()
        granted = math.ceil(int(work) / int(period))
    except (OSError, ValueError):  # there is no file, or it says max
        return allowed
    return max(1, min(allowed, granted))
