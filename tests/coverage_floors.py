"""`python -m tests.coverage_floors`: what each module's own tests reach of it, held against a floor.

A module counts as tested by what stands beside it in `tests/`, and by nothing else: a test of the whole
gateway passes through many lines without a look at what each does. So all own tests run once, and coverage.py
notes for each line and branch in which test file it ran.

The floor of a pure module is 100 %, that of any other one is 95 %, of statements and branches together.
`tests/coverage_floors.json` names the modules that are not there yet, each with the floor that it has now.
`--write` raises floors and takes modules out that have arrived. It lowers no floor.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).parents[1]
FLOORS = Path(__file__).with_suffix(".json")

PURE = ("gateway/messages.py", "gateway/errors.py", "gateway/wire/", "gateway/core/")
PURE_FLOOR = 100
FLOOR = 95

ELSEWHERE = {
    # These are about processes: other programs' or several of our own. Their tests wait for those.
    "gateway/admin/backend.py": ["admin/test_publish.py", "admin/test_announce.py"],
    "gateway/admin/dashboard.py": ["integration/test_dashboard.py"],
    "gateway/drill/": ["integration/test_drill_clients.py", "integration/test_drill_command.py"],
    "gateway/drill/fleet/": ["integration/test_drill_fleet.py"],
    "gateway/publishing/publisher.py": ["integration/test_publisher.py", "publishing/test_announcing.py"],
    # The commands share these modules.
    "gateway/cli/": ["cli/test_config.py", "cli/test_publish.py", "cli/test_serve.py", "cli/test_watch.py"],
    "gateway/cli/drill.py": ["integration/test_drill_command.py"],
    # What ties modules together is tested by using what it has tied.
    "gateway/admin/": ["integration/test_gateway.py", "integration/test_dashboard.py"],
    "gateway/node/": ["integration/test_gateway.py", "integration/test_drain.py"],
    "gateway/server/": ["integration/test_gateway.py", "integration/test_limits.py"],
    "gateway/transports/": ["integration/test_gateway.py", "integration/test_events.py"],
    "gateway/transports/sockets.py": ["transports/test_connections.py"],
    "gateway/server/port.py": [
        "server/test_app.py",
        "integration/test_gateway.py",
        "integration/test_limits.py",
    ],
    "gateway/server/sockjs.py": ["integration/test_sockjs.py"],
    "gateway/server/sse.py": ["integration/test_events.py"],
    # The public face hands on what publishing.api has.
    "gateway/__init__.py": ["publishing/test_api.py"],
}
"""Tests that are not beside a module: of a file, or of all files of a folder that have none there."""

MARGIN = 1
"""Percent that a floor leaves open where tests are about real time: which branch of a race runs, differs."""


def own_tests(module: Path) -> list[Path]:
    """The test files of a module: `wire/json.py` has `wire/test_json.py` and `wire/test_json_*.py`."""
    relative = module.relative_to(ROOT / "gateway")
    folder = ROOT / "tests" / relative.parent
    beside = [folder / f"test_{module.stem}.py", *folder.glob(f"test_{module.stem}_*.py")]
    found = [path for path in beside if path.exists()]
    name = module.relative_to(ROOT).as_posix()
    keys = (
        [name] if name in ELSEWHERE else [] if found else [f"{module.relative_to(ROOT).parent.as_posix()}/"]
    )
    return found + [ROOT / "tests" / path for key in keys for path in ELSEWHERE.get(key, [])]


def modules() -> list[Path]:
    """All modules that have code."""
    return [path for path in sorted((ROOT / "gateway").rglob("*.py")) if path.stat().st_size]


class Contexts:
    """Tells coverage.py which test file runs."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self._measured = measured

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._measured.switch_context(item.path.relative_to(ROOT).as_posix())
        try:
            return (yield)
        finally:
            self._measured.switch_context("")


def measure(data: Path, tests: list[Path], arguments: list[str]) -> tuple[coverage.Coverage, int]:
    """Run `tests`; returns what was measured, and pytest's exit code."""
    measured = coverage.Coverage(data_file=str(data), branch=True, source=["gateway"], config_file=False)
    measured.start()
    try:
        code = pytest.main([*map(str, tests), *arguments], plugins=[Contexts(measured)])
    finally:
        measured.stop()
        measured.save()
    return measured, int(code)


def reached(measured: coverage.Coverage, module: Path, tests: list[Path], folder: Path) -> tuple[float, str]:
    """The percentage of `module` that `tests` reach, and what they miss."""
    out = folder / "report.json"
    # What runs when a module is imported is in no test's context.
    contexts = ["^$", *(f"^{path.relative_to(ROOT).as_posix()}$" for path in tests)]
    try:
        measured.json_report(morfs=[str(module)], contexts=contexts, outfile=str(out))
    except coverage.exceptions.NoDataError:
        return 0.0, "everything"
    (found,) = json.loads(out.read_text())["files"].values()
    lines = [str(line) for line in found["missing_lines"]]
    branches = [f"{start}->{end}" for start, end in found["missing_branches"] if str(start) not in lines]
    return found["summary"]["percent_covered"], ", ".join([*lines, *branches])


def goal(name: str) -> int:
    return PURE_FLOOR if name.startswith(PURE) else FLOOR


def raised(name: str, percent: float, floor: int) -> int:
    """The floor that a module may have, now that its tests reach so much."""
    return min(goal(name), max(floor, int(percent) - (0 if name.startswith(PURE) else MARGIN)))


def verdict(name: str, percent: float, floor: int, missing: str) -> str:
    if percent < floor:
        return f"BELOW ITS FLOOR; not reached: {missing}"
    return "--write raises its floor" if raised(name, percent, floor) > floor else ""


def main(arguments: list[str]) -> int:
    write = "--write" in arguments
    floors: dict[str, int] = json.loads(FLOORS.read_text())
    tests = {module: own_tests(module) for module in modules()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = sorted({path for found in tests.values() for path in found})
        measured, code = measure(folder / "data", files, [it for it in arguments if it != "--write"])
        found = {
            module.relative_to(ROOT).as_posix(): reached(measured, module, own, folder)
            for module, own in tests.items()
        }
    if write and not code:
        # A module that is new or was moved starts where it is.
        floors = {name: raised(name, percent, floors.get(name, 0)) for name, (percent, _) in found.items()}
        floors = {name: floor for name, floor in floors.items() if floor < goal(name)}
        FLOORS.write_text(json.dumps(floors, indent=2) + "\n")
    low = False
    for name, (percent, missing) in found.items():
        floor = floors.get(name, goal(name))
        low |= percent < floor
        print(f"{percent:6.1f} %  floor {floor:3}  {name}  {verdict(name, percent, floor, missing)}".rstrip())
    return int(low or code != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
