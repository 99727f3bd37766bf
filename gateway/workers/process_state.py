"""What the kernel says of another process: whether it wants a processor, and how much of one it got."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from .liveness import ProcessState

TICKS: Final = os.sysconf("SC_CLK_TCK")
"""Units in a second of the times in /proc (proc(5))."""


def read(pid: int) -> ProcessState | None:
    """The present state; None if there is no such process, or no /proc."""
    states, ticks = "", 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            # The name in brackets may contain anything.
            fields = (thread / "stat").read_bytes().rpartition(b")")[2].split()
            states += fields[0].decode()
            ticks += int(fields[11]) + int(fields[12])
    except OSError:  # it has ended, or one of its threads has
        return None
    return ProcessState(states, ticks / TICKS)
