"""How many processors this process may use: what it may run on, and what its container is granted."""

from __future__ import annotations

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of the container's control group: microseconds of work in a period, or `max`; and the period."""


def usable(quota: Path = QUOTA) -> int:
    """At least 1. A part of a processor counts as a whole one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        work, period = quota.read_text("ascii").split()
        granted = math.ceil(int(work) / int(period))
    except (OSError, ValueError):  # there is none, or it says max
        return allowed
    return max(1, min(allowed, granted))
