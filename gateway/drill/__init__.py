"""Drills: a fault under load, with real processes on this machine. No retained result may be lost.

    fleet/       the processes: Valkey, Sentinel, Cluster, nodes, HAProxy, nginx
    connection   the client side of one WebSocket
    ledger       what was published and what was delivered
    clients      thousands of clients
    backend      publishes each result until Redis has accepted it
    report       the results, as text and as JSON
    display      the progress meanwhile
    environment  Redis, nodes and HAProxy of one drill, and what the nodes report
    runner       runs one drill; the steps that scenarios use
    scenarios    the drills: the fault, and what is measured
    command      runs drills and prints their reports

`ledger` and `report` do no I/O and take the time as an argument. Modules import only those above them.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from .display import Display
from .environment import Plan
from .report import DrillOptions, DrillReport, conditions
from .runner import Runner
from .scenarios import DRILLS, Drill

SPARE_SECONDS = 180.0  # for the start, slow faults, and results in flight at the end

__all__ = ["DRILLS", "Display", "Drill", "DrillOptions", "Plan", "DrillReport", "run_drill"]


async def run_drill(
    drill: Drill, options: DrillOptions, display: Display, logs: Path | None = None
) -> DrillReport:
    """Run one drill. However it ends, it leaves no process and no file behind.

    Writes the logs of the nodes to the folder `logs`, if one is given. Raises EmbeddedError or DrillError
    when the drill cannot run here, TimeoutError when something hangs.
    """
    display.say(f"{drill.name}: {drill.summary}")
    display.say(conditions(options))
    runner = Runner(options, drill.plan, display)
    try:
        async with asyncio.timeout(options.seconds + SPARE_SECONDS), runner.set_up():
            async with runner.load():
                await drill.run(runner)
            return runner.report(drill.name, drill.summary)
    except BaseExceptionGroup as group:  # from the tasks behind the load: the first is the cause
        raise group.exceptions[0] from None
    finally:
        if logs is not None:
            runner.write_logs(logs, drill.name)
