"""The same findings in words and in JSON."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from gateway.drill.ledger import LatencySummary
from gateway.drill.report import (
    Disconnects,
    DrillEvent,
    DrillOptions,
    DrillReport,
    Measure,
    NodeOutage,
    as_json,
    conditions,
    count,
    table,
    text,
)

KEPT = DrillReport(
    drill="node-kill",
    summary="a node is killed",
    options=DrillOptions(),
    redis="Valkey 9.1.2",
    balanced=True,
    events=[DrillEvent(0.0, "results begin"), DrillEvent(4.00049, "node 1 is killed")],
    published=4_000,
    delivered=4_000,
    lost=0,
    duplicates=1,
    strays=0,
    unaccepted=0,
    latency=LatencySummary(0.0012, 0.3, 0.41),
    measures=[Measure("back -> again", 0.25, 1.0), Measure("closed", 20, unit="of 20")],
    nodes=[NodeOutage("node 1", 3.5, 1, 0, 4.25), NodeOutage("node 2")],
    clients=Disconnects(0.518, 667, 600, 0.2, {1006: 667}),
)

WORDS = """
published 4,000   delivered 4,000   lost 0   duplicate 1
latency p50 0.001 s, p99 0.300 s, max 0.410 s from the first attempt to publish

back -> again   0.250 s  limit 1 s  pass
closed         20 of 20

outages
  node 1   3.500 s without Redis in 1 outage, 4.250 s down
  node 2   0.000 s without Redis
  clients  disconnected for at most 0.518 s
           connections closed: 667 with 1006
           reconnects: 667, 600 in the busiest second
           slowest first registration: 0.200 s

node-kill: no result was lost"""


def test_in_words() -> None:
    assert text(KEPT) == WORDS


@pytest.mark.parametrize(
    ("changes", "words", "verdict", "broken"),
    [
        ({}, "no result was lost", "pass", False),
        ({"lost": 1}, "LOST 1 retained result", "LOST 1", True),
        ({"lost": 1_200}, "LOST 1,200 retained results", "LOST 1,200", True),
        (
            {"lost": 2, "options": DrillOptions(retain=0)},
            "2 results lost, none of them retained",
            "LOST 2",
            False,
        ),
        (
            {"measures": [Measure("a", 2.0, 1.0), Measure("b", None, 1.0), Measure("c", 1.0, 1.0)]},
            "no result was lost; 2 limits missed",
            "MISSED",
            False,
        ),
    ],
)
def test_only_a_lost_retained_result_breaks_the_promise(
    changes: dict[str, object], words: str, verdict: str, broken: bool
) -> None:
    report = replace(KEPT, **changes)  # type: ignore[arg-type]
    assert text(report).endswith(f"\nnode-kill: {words}")
    assert report.verdict == verdict
    assert report.broken is broken
    assert as_json(report)["kept"] is not broken


def test_what_must_not_happen_is_said_when_it_does() -> None:
    nodes = [NodeOutage("node 1", repaired=2)]
    said = text(replace(KEPT, strays=3, unaccepted=4, nodes=nodes, measures=[Measure("noticed", None, 6.0)]))
    assert "3 REACHED THE WRONG CLIENT\n" in said
    assert "4 more were not accepted by Redis before the end\n" in said
    assert "noticed  never  limit 6 s  MISSED\n" in said
    assert "2 subscriptions REPAIRED" in said


def test_in_json() -> None:
    found = orjson.loads(orjson.dumps(as_json(KEPT)))
    assert found["clients"] == 2_000
    assert found["published"] == found["delivered"] == 4_000
    assert (found["lost"], found["duplicate"], found["stray"], found["unaccepted"]) == (0, 1, 0, 0)
    assert found["latency"] == {"p50": 0.0012, "p99": 0.3, "max": 0.41}
    assert found["events"][1] == {"at": 4.0, "text": "node 1 is killed"}
    assert found["measures"] == [
        {"what": "back -> again", "value": 0.25, "unit": "s", "limit": 1.0, "verdict": "pass"},
        {"what": "closed", "value": 20, "unit": "of 20", "limit": None, "verdict": None},
    ]
    assert found["outages"][0] == {
        "node": "node 1",
        "outage_seconds": 3.5,
        "outages": 1,
        "repaired": 0,
        "down_for": 4.25,
    }
    assert found["disconnects"]["close_codes"] == {"1006": 667}
    assert found["kept"] is True


def test_several_drills_are_a_table() -> None:
    rows = table([KEPT, replace(KEPT, drill="redis-kill", lost=12)]).splitlines()
    words = [" ".join(row.split()) for row in rows]
    assert words[0] == "drill published delivered lost duplicate latency p99 latency max verdict"
    assert words[1] == "node-kill 4,000 4,000 0 1 0.300 s 0.410 s pass"
    assert rows[2].endswith("LOST 12")
    assert len({row.index("4,000") for row in rows[1:]}) == 1, "columns stand below each other"


def test_conditions() -> None:
    assert conditions(DrillOptions()) == ("3 nodes, 2,000 clients, 200 results/s for 20 s, retained for 60 s")
    assert (
        conditions(DrillOptions(1, 0.5, 1, 7.5, 0))
        == "1 node, 1 client, 0.5 results/s for 7.5 s, not retained"
    )
    assert count(0, "outage") == "0 outages"
