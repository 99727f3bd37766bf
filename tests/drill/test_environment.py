"""The processes of a drill: what they report, and the configuration that a wheel must have."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gateway.drill.environment import state
from gateway.drill.fleet import configuration

from ..paths import DEPLOY, ROOT

BODY = {"sessions": 667, "reasons": [], "redis": {"connected": True, "outages": 0, "outage_seconds": 0.0}}


def test_the_state_of_a_node_in_words() -> None:
    assert state(None) == "down"
    assert state(BODY) == "667 clients, Redis connected"
    lost = {"connected": False, "outages": 2, "outage_seconds": 1.5}
    assert state(BODY | {"redis": lost}) == "667 clients, REDIS LOST, 1.500 s without Redis"
    assert state(BODY | {"sessions": 1, "reasons": ["draining"]}) == "1 client, draining, Redis connected"


def test_drills_use_the_shipped_configuration() -> None:
    assert configuration().read_text() == (DEPLOY / "haproxy.cfg").read_text()


@pytest.mark.real
def test_a_wheel_has_the_configuration(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="builds a wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        assert files.read("gateway/drill/data/haproxy.cfg") == (DEPLOY / "haproxy.cfg").read_bytes()
