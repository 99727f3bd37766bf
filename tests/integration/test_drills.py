"""Each drill loses nothing and holds its limits, and each fails without its safeguard.

The drills run as users run them, as the command in another process, but smaller and with less calm.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway.drill import DRILLS, Display, DrillOptions, run_drill, runner, scenarios
from gateway.drill.report import DrillReport, text

from .conftest import Measured

LESS_CALM = (
    "from gateway.drill import scenarios; scenarios.CALM = 1.0; from gateway.__main__ import main; main()"
)
DRILL = [sys.executable, "-c", LESS_CALM, "drill", "--json"]
# An outage of 8 s at this rate leaves clients that have no result under way.
DRILL += ["--clients", "500", "--rate", "50", "--seconds", "10"]
SECONDS = 150.0  # far over what a drill takes, so that only a hang fails

BEHIND_HAPROXY = {"node-kill", "rolling-restart"}
CONNECTIONS_END = BEHIND_HAPROXY | {"slow-clients"}
"""Drills in which connections end. In all others, where Redis fails, every connection must stay open."""

ALL = [
    pytest.param(name, marks=pytest.mark.needs("haproxy") if name in BEHIND_HAPROXY else ())
    for name in DRILLS
]


@pytest.mark.alone
@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ALL)
def test_no_result_is_lost(name: str, measured: Measured) -> None:
    done = subprocess.run([*DRILL, name], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    for measure in found["measures"]:
        if measure["unit"] == "s" and measure["value"] is not None:
            measured(f"{name}: {measure['what']}", measure["value"])

    assert (found["clients"], found["rate"], found["nodes"]) == (500, 50, 3)
    assert found["published"] >= 250, "half of the load would do"
    assert found["delivered"] == found["published"]
    assert (found["lost"], found["duplicate"], found["stray"], found["unaccepted"]) == (0, 0, 0, 0)
    assert [measure for measure in found["measures"] if measure["verdict"] == "MISSED"] == []
    assert [node["repaired"] for node in found["outages"]] == [0, 0, 0], (
        "the reconciler finds nothing to repair"
    )
    if name not in CONNECTIONS_END:
        assert found["disconnects"]["close_codes"] == {}, "clients do not notice that Redis has failed"
    if name == "slow-clients":
        assert ("of 50", 50) in [(measure["unit"], measure["value"]) for measure in found["measures"]]
    if name in BEHIND_HAPROXY:
        assert found["haproxy"] is True
        assert found["disconnects"]["longest"] < 5
    if name == "rolling-restart":
        assert_rolling(found)


@pytest.mark.alone
@pytest.mark.timeout(200)
@pytest.mark.needs("haproxy")
def test_nodes_of_several_workers_are_rolled_over() -> None:
    done = subprocess.run(
        [*DRILL, "rolling-restart", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["lost"], found["duplicate"], found["unaccepted"]) == (0, 0, 0)
    assert found["delivered"] == found["published"]
    assert_rolling(found)


def assert_rolling(found: dict[str, Any]) -> None:
    """Every client was closed with 1012, and not all of them in the same second."""
    clients = found["disconnects"]
    assert set(clients["close_codes"]) == {"1012"}, "nobody is cut off"
    assert clients["reconnects"] >= found["clients"], "each at least once, for all nodes were restarted"
    assert [measure for measure in found["measures"] if measure["verdict"] != "pass"] == []
    ended = [event["text"] for event in found["events"] if "has ended" in event["text"]]
    assert ended == [f"node {number} has ended with 0" for number in (1, 2, 3)]


# The controls: the same drills, smaller, with a safeguard disabled in the nodes or in the publisher.

SMALL = DrillOptions(clients=300, rate=200.0, seconds=8.0)
PUBLISHED_ONCE = SMALL._replace(retain=0)

NO_DEADLINE = """
from gateway.redis import probe, subscriber
subscriber.DEAD_AFTER = probe.PROBE_GRACE = 1e9
"""
ASKED_ONCE = """
from gateway.redis.topology import SentinelTopology
find = SentinelTopology.find
async def find_once(self):
    if self._found is None:
        await find(self)
    return self._found[1]
SentinelTopology.find = find_once
"""
FIRST_MAP = """
from gateway.redis.cluster.topology import ClusterTopology
refresh = ClusterTopology.refresh
async def refresh_once(self):
    if not self.map.masters:
        await refresh(self)
ClusterTopology.refresh = refresh_once
ClusterTopology.claim = lambda self, slot, owner: None
"""
PATIENT = """
from gateway.transports.websocket import WebSocketSession
WebSocketSession.pause_writing = lambda self: None
"""


def loses(report: DrillReport) -> bool:
    return report.lost > 0


def notices_nothing(report: DrillReport) -> bool:
    return next(measure.value for measure in report.measures if "noticed" in measure.what) is None


def closes_nobody(report: DrillReport) -> bool:
    return next(measure.value for measure in report.measures if "1008" in measure.what) == 0


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("name", "options", "preface", "fails"),
    [
        ("redis-kill", PUBLISHED_ONCE, "", loses),
        ("redis-freeze", SMALL, NO_DEADLINE, notices_nothing),
        ("sentinel-failover", SMALL, ASKED_ONCE, loses),
        ("cluster-failover", SMALL, FIRST_MAP, loses),
        ("cluster-reshard", SMALL, FIRST_MAP, loses),
        ("node-kill", PUBLISHED_ONCE, "", loses),
        ("rolling-restart", PUBLISHED_ONCE, "", loses),
        ("slow-clients", SMALL, PATIENT, closes_nobody),
    ],
    ids=list(DRILLS),
)
async def test_without_the_safeguard(
    name: str,
    options: DrillOptions,
    preface: str,
    fails: Callable[[DrillReport], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "SETTLE_SECONDS", 2.0)  # lost results do not arrive, however long it waits
    monkeypatch.setattr(scenarios, "WARM_UP", 1.0)
    drill = DRILLS[name]
    drill = drill._replace(plan=replace(drill.plan, preface=preface))
    out = io.StringIO()
    report = await run_drill(drill, options, Display(out))
    assert fails(report), out.getvalue() + text(report)
