"""The gateway's promise as an exercise: a fault under load, against a throw-away set-up on this machine.

    fleet/       the processes: servers, nodes, HAProxy
    connection   a client's side of one WebSocket
    ledger       what was published and what arrived
    crowd        browsers by the thousand
    backend      publishes each result until Redis has accepted it
    report       what was found, in words and in JSON
    display      what is shown meanwhile
    installation Redis, nodes and HAProxy of one drill, and what the nodes say of themselves
    stage        clients, load and watch; what a play has at hand
    plays        the drills: what is done, what is measured
    command      plays and prints them

`ledger` and `report` do no I/O and take the time as an argument. Imports go one way, downwards to the top of
that list.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from .display import Display
from .environment import Plan
from .report import DrillOptions, DrillReport, conditions
from .runner import Runner
from .scenarios import DRILLS, Drill

SPARE_SECONDS = 180.0  # for set-up, faults that take their time, and what is under way at the end

__all__ = ["DRILLS", "Display", "Drill", "DrillOptions", "Plan", "DrillReport", "play"]


async def play(
    drill: Drill, options: DrillOptions, display: Display, logs: Path | None = None
) -> DrillReport:
    """Play one drill from the first process to the last. It leaves nothing behind, however it ends.

    Nothing but the nodes' logs, if `logs` names a folder for them. Raises EmbeddedError or DrillError when
    the drill cannot be played here, TimeoutError when something hangs.
    """
    display.say(f"{drill.name}: {drill.summary}")
    display.say(conditions(options))
    stage = Runner(options, drill.plan, display)
    try:
        async with asyncio.timeout(options.seconds + SPARE_SECONDS), stage.set_up():
            async with stage.load():
                await drill.play(stage)
            return stage.report(drill.name, drill.summary)
    except BaseExceptionGroup as group:  # of the tasks behind the load: the first is why
        raise group.exceptions[0] from None
    finally:
        if logs is not None:
            stage.write_logs(logs, drill.name)
