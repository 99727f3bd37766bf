"""Live on a terminal, a line at a time elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from gateway.drill.display import Display, Snapshot
from gateway.drill.ledger import LatencySummary
from gateway.drill.report import DrillEvent

NOW = Snapshot(
    elapsed=12.04,
    clients=2_000,
    registered=1_999,
    published=2_400,
    delivered=2_398,
    in_flight=2,
    duplicates=0,
    latency=LatencySummary(0.001, 0.004, 0.01),
    nodes=["667 clients, Redis connected", "down"],
)


def screen(written: str) -> list[str]:
    """What a terminal shows after all this; whenever the cursor goes up, the screen is cleared below it."""
    lines = [""]
    for part in re.split(r"(\x1b\[[0-9]*[A-Za-z]|\n)", written):
        if part == "\n":
            lines.append("")
        elif up := re.fullmatch(r"\x1b\[([0-9]+)A", part):
            lines = [*lines[: -1 - int(up[1])], ""]
        elif not part.startswith("\x1b"):
            lines[-1] += part
    return lines


def test_a_pipe_gets_a_plain_line_each() -> None:
    out = io.StringIO()
    display = Display(out)
    display.progress("3 nodes start ...")
    display.show(NOW)
    display.event(DrillEvent(12.1, "Valkey is killed"))
    display.show(NOW._replace(elapsed=13.0, latency=None))
    display.end()
    state = "clients 1,999/2,000  published 2,400  delivered 2,398  in flight 2  duplicate 0"
    assert out.getvalue().splitlines() == [
        "3 nodes start ...",
        f"  12.0 s  {state}  latency p50 0.001 s, p99 0.004 s, max 0.010 s",
        "  12.1 s  Valkey is killed",
        f"  13.0 s  {state}  latency -",
    ]
    assert display.pause == 1.0


def test_a_terminal_keeps_what_happened_and_redraws_the_rest() -> None:
    out = io.StringIO()
    display = Display(out, live=True)
    display.say("redis-kill")
    display.progress("3 nodes start ...")
    display.show(NOW)
    display.event(DrillEvent(12.1, "Valkey is killed"))
    display.show(NOW._replace(elapsed=13.0, latency=None))
    assert screen(out.getvalue()) == [
        "redis-kill",
        "  12.1 s  Valkey is killed",
        "",
        "  13.0 s  clients  1,999 of 2,000 registered",
        "          results  2,400 published, 2,398 delivered, 2 in flight, 0 duplicate",
        "          latency  nothing delivered in the last second",
        "          node 1   667 clients, Redis connected",
        "          node 2   down",
        "",
    ]
    display.end()
    assert screen(out.getvalue()) == ["redis-kill", "  12.1 s  Valkey is killed", ""]
    assert display.pause < 1.0


def test_no_row_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = io.StringIO()
    Display(out, live=True).show(NOW)
    assert max(map(len, screen(out.getvalue()))) < 40
