"""A drill while it runs: a live table on a terminal, a plain line a second elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from .ledger import Late
from .report import Happening

FRAME_SECONDS = 0.25  # between two pictures on a terminal
LINE_SECONDS = 1.0  # between two lines elsewhere

UP, CLEAR = "\x1b[{}A", "\x1b[J"
DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


class Snapshot(NamedTuple):
    """How a drill is at one moment."""

    elapsed: float
    clients: int
    registered: int
    published: int
    delivered: int
    under_way: int
    duplicates: int
    late: Late | None
    """Of what has come within the last second; None if nothing has."""
    nodes: Sequence[str]
    """How each of them is, in a few words."""


class Display:
    """Writes to `out`: live if that is a terminal, or line by line."""

    def __init__(self, out: TextIO, *, live: bool | None = None) -> None:
        self._out = out
        self._live = out.isatty() if live is None else live
        self._drawn = 0

    @property
    def pause(self) -> float:
        """Seconds from one `show` to the next."""
        return FRAME_SECONDS if self._live else LINE_SECONDS

    def say(self, text: str) -> None:
        """A line that stays."""
        self._wipe()
        self._out.write(f"{text}\n")
        self._out.flush()

    def prepare(self, text: str) -> None:
        """What is waited for before the drill begins; on a terminal it does not stay."""
        if self._live:
            self._draw([text])
        else:
            self.say(text)

    def happened(self, event: Happening) -> None:
        """Something was done or seen."""
        line = f"{event.at:6.1f} s  {event.text}"
        self.say(f"{BOLD}{line}{PLAIN}" if self._live else line)

    def show(self, now: Snapshot) -> None:
        """The state of things, in place of the last one on a terminal."""
        if not self._live:
            self._out.write(f"{line(now)}\n")
            self._out.flush()
            return
        self._draw(picture(now))

    def end(self) -> None:
        """Take the live part away."""
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
    """The state in one line."""
    return (
        f"{now.elapsed:6.1f} s  clients {now.registered:,}/{now.clients:,}  published {now.published:,}  "
        f"delivered {now.delivered:,}  under way {now.under_way:,}  duplicate {now.duplicates:,}  "
        f"late {now.late or '-'}"
    )


def picture(now: Snapshot) -> list[str]:
    """The state in a small table."""
    results = (
        f"{now.published:,} published, {now.delivered:,} delivered, {now.under_way:,} under way, "
        f"{now.duplicates:,} duplicate"
    )
    rows = [
        "",
        f"{now.elapsed:6.1f} s  clients  {now.registered:,} of {now.clients:,} registered",
        f"          results  {results}",
        f"          late     {now.late or 'nothing has come for a second'}",
    ]
    rows += [f"          node {number}   {state}" for number, state in enumerate(now.nodes, 1)]
    return rows
