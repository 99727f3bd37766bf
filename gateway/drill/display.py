"""The progress of a drill: a live table on a terminal, a line each second elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from .ledger import LatencySummary
from .report import DrillEvent

FRAME_SECONDS = 0.25  # between two pictures on a terminal
LINE_SECONDS = 1.0  # between two lines elsewhere

UP, CLEAR = "\x1b[{}A", "\x1b[J"
DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


class Snapshot(NamedTuple):
    """The state of a drill at one moment."""

    elapsed: float
    clients: int
    registered: int
    published: int
    delivered: int
    in_flight: int
    duplicates: int
    latency: LatencySummary | None
    """Of the results delivered within the last second; None if there were none."""
    nodes: Sequence[str]
    """The state of each node, in a few words."""


class Display:
    """Writes to `out`: a live table if it is a terminal, else lines."""

    def __init__(self, out: TextIO, *, live: bool | None = None) -> None:
        self._out = out
        self._live = out.isatty() if live is None else live
        self._drawn = 0

    @property
    def pause(self) -> float:
        """Seconds from one `show` to the next."""
        return FRAME_SECONDS if self._live else LINE_SECONDS

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._wipe()
        self._out.write(f"{text}\n")
        self._out.flush()

    def progress(self, text: str) -> None:
        """Write what the drill is preparing; on a terminal this line does not stay."""
        if self._live:
            self._draw([text])
        else:
            self.say(text)

    def event(self, event: DrillEvent) -> None:
        """Write an event, which stays."""
        line = f"{event.at:6.1f} s  {event.text}"
        self.say(f"{BOLD}{line}{PLAIN}" if self._live else line)

    def show(self, now: Snapshot) -> None:
        """Write the present state; on a terminal it replaces the last one."""
        if not self._live:
            self._out.write(f"{line(now)}\n")
            self._out.flush()
            return
        self._draw(picture(now))

    def end(self) -> None:
        """Remove the live part."""
        self._wipe()
        self._out.flush()

    def _draw(self, rows: Sequence[str]) -> None:
        width = shutil.get_terminal_size().columns - 1  # a wrapped line would count as two
        self._wipe()
        self._out.write("".join(f"{DIM}{row[:width]}{PLAIN}\n" for row in rows))
        self._out.flush()
        self._drawn = len(rows)

    def _wipe(self) -> None:
        if self._drawn:
            self._out.write(UP.format(self._drawn) + CLEAR)
            self._drawn = 0


def line(now: Snapshot) -> str:
    """The state, in one line."""
    return (
        f"{now.elapsed:6.1f} s  clients {now.registered:,}/{now.clients:,}  published {now.published:,}  "
        f"delivered {now.delivered:,}  in flight {now.in_flight:,}  duplicate {now.duplicates:,}  "
        f"latency {now.latency or '-'}"
    )


def picture(now: Snapshot) -> list[str]:
    """The state, as a small table."""
    results = (
        f"{now.published:,} published, {now.delivered:,} delivered, {now.in_flight:,} in flight, "
        f"{now.duplicates:,} duplicate"
    )
    rows = [
        "",
        f"{now.elapsed:6.1f} s  clients  {now.registered:,} of {now.clients:,} registered",
        f"          results  {results}",
        f"          latency  {now.latency or 'nothing delivered in the last second'}",
    ]
    rows += [f"          node {number}   {state}" for number, state in enumerate(now.nodes, 1)]
    return rows
