"""The command `drill`: runs drills one after another and prints their reports."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import orjson

from . import DRILLS, report, run_drill
from .display import Display
from .report import DrillOptions, DrillReport
from .scenarios import Drill

CANCELLING = (signal.SIGTERM, signal.SIGHUP)


def named(names: Sequence[str]) -> list[Drill]:
    """The drills with these names; `all` for all drills. Raises LookupError with the first unknown name."""
    if list(names) == ["all"]:
        return list(DRILLS.values())
    for name in names:
        if name not in DRILLS:
            raise LookupError(name)
    return [DRILLS[name] for name in names]


def listing() -> str:
    """All drills, one line each."""
    width = max(map(len, DRILLS))
    return "\n".join(f"{drill.name:{width}}  {drill.summary}" for drill in DRILLS.values())


async def run_all(
    drills: Sequence[Drill], options: DrillOptions, seconds: float | None, logs: Path | None, *, as_json: bool
) -> list[DrillReport]:
    """Run each drill and print its report when it ends, as text or as a JSON object.

    `seconds` replaces the duration of each drill. SIGTERM and SIGHUP cancel, as Ctrl-C does, so that all
    processes are stopped.
    """
    display = Display(sys.stderr if as_json else sys.stdout)
    reports = []
    with _cancelled_by_signals():
        for number, drill in enumerate(drills):
            if number:
                display.say("")
            size = options._replace(seconds=seconds or drill.seconds)
            drill_report = await run_drill(drill, size, display, logs)
            reports.append(drill_report)
            _print(orjson.dumps(report.as_json(drill_report)).decode() if as_json else _text(drill_report))
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


def _text(drill_report: DrillReport) -> str:
    """The report as text; on a terminal its last line, the verdict, has a colour."""
    head, _, verdict = report.text(drill_report).rpartition("\n")
    if sys.stdout.isatty():
        colour = "red" if drill_report.lost else "green" if drill_report.verdict == "pass" else "yellow"
        verdict = click.style(verdict, fg=colour, bold=True)
    return f"{head}\n{verdict}"


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # a pipe would buffer it until the last drill ends
