"""What the command `drill` does: plays drills one after another and prints what they found."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import orjson

from . import DRILLS, play, report
from .display import Display
from .report import DrillOptions, DrillReport
from .scenarios import Drill

CANCELLING = (signal.SIGTERM, signal.SIGHUP)


def named(names: Sequence[str]) -> list[Drill]:
    """The drills of these names, `all` for each of them. Raises LookupError with the first that is none."""
    if list(names) == ["all"]:
        return list(DRILLS.values())
    for name in names:
        if name not in DRILLS:
            raise LookupError(name)
    return [DRILLS[name] for name in names]


def listing() -> str:
    """All drills, a line each."""
    width = max(map(len, DRILLS))
    return "\n".join(f"{drill.name:{width}}  {drill.summary}" for drill in DRILLS.values())


async def play_all(
    drills: Sequence[Drill], options: DrillOptions, seconds: float | None, logs: Path | None, *, as_json: bool
) -> list[DrillReport]:
    """Play each; print its report, or with `as_json` an object, as soon as it is over.

    `seconds` replaces each drill's own. SIGTERM and SIGHUP cancel this as Ctrl-C does, so that what has been
    started is stopped.
    """
    display = Display(sys.stderr if as_json else sys.stdout)
    reports = []
    with _cancelled_by_signals():
        for number, drill in enumerate(drills):
            if number:
                display.say("")
            size = options._replace(seconds=seconds or drill.seconds)
            found = await play(drill, size, display, logs)
            reports.append(found)
            _print(orjson.dumps(report.as_json(found)).decode() if as_json else _words(found))
    if len(reports) > 1 and not as_json:
        _print(f"\n{report.table(reports)}")
    return reports


@contextmanager
def _cancelled_by_signals() -> Iterator[None]:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in CANCELLING:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in CANCELLING:
            loop.remove_signal_handler(number)


def _words(found: DrillReport) -> str:
    """The report for people; on a terminal its last line, the verdict, has a colour."""
    head, _, verdict = report.text(found).rpartition("\n")
    if sys.stdout.isatty():
        colour = "red" if found.lost else "green" if found.verdict == "pass" else "yellow"
        verdict = click.style(verdict, fg=colour, bold=True)
    return f"{head}\n{verdict}"


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # a pipe would keep it until the last drill is over
