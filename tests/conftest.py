"""What tests need from the machine, and fixtures that many of them share.

A test marked `needs("haproxy")` runs where that program is on the PATH. Elsewhere it is skipped, and the
summary at the end says by name what was missing; with GATEWAY_TEST_ALL=1, as in CI, it fails instead.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import Scheduling as AnyScheduling

from gateway.drill.fleet import ValkeyProcess, process

from . import scheduling
from .guard import Guard

# Where it is set, each of the hundreds of processes that tests start would compile the whole package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

NEED_ALL = os.environ.get("GATEWAY_TEST_ALL") == "1"

# Every run tries the same examples, and no limit of time makes a busy machine look like a bug. So a red run
# says something about the change, and is red again when it is repeated. New examples have a profile of their
# own: `make test-quick ARGS=--hypothesis-profile=explore`.
_REPEAT = settings(
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("repeat", _REPEAT)
settings.register_profile("explore", _REPEAT, derandomize=False, max_examples=2_000)
settings.load_profile("repeat")

GUARD = pytest.StashKey[Guard]()

_missing: dict[str, int] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*programs): runs only where these programs are on the PATH")
    config.addinivalue_line("markers", "adds_to(fixture): what it leaves behind ends with this fixture")
    config.addinivalue_line(
        "markers", "real: needs servers, processes or browsers; most get it by themselves"
    )
    config.addinivalue_line("markers", "alone: holds a limit of time, so nothing else runs meanwhile")
    # A run in the background or under nohup inherits ignored signals, which the commands do not expect.
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    process.port_locks()  # opens a file that lasts as long as this process
    config.stash[GUARD] = Guard(config.rootpath)
    config.pluginmanager.register(config.stash[GUARD], "guard")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read no files of which no test would run: that takes half as long as the quick tests."""
    quick = config.getoption("markexpr") == "not real"
    return True if quick and collection_path.name in scheduling.REAL_FOLDERS else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    scheduling.arrange(items)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return scheduling.worker_count(config)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> AnyScheduling:
    return scheduling.Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Call tests by their names, without the piece of work that the scheduler has put behind."""
    name, _, piece = report.nodeid.rpartition("@")
    if name and "]" not in piece:
        report.nodeid = name


def pytest_runtest_setup(item: pytest.Item) -> None:
    programs = [str(program) for mark in item.iter_markers("needs") for program in mark.args]
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    if NEED_ALL:
        pytest.fail(f"needs {', '.join(missing)}, and GATEWAY_TEST_ALL=1 lets nothing be missing")
    for program in missing:
        _missing[program] = _missing.get(program, 0) + 1
    pytest.skip(f"needs {', '.join(missing)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _missing:
        terminalreporter.section("not tested on this machine", sep="-", yellow=True)
        for program, count in sorted(_missing.items()):
            terminalreporter.line(f"{program} is not installed: {count} tests were left out")


@pytest.fixture(scope="session", autouse=True)
def guarded_temporary_files(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Temporary files go where the guard sees them."""
    with pytestconfig.stash[GUARD].watching_temporary_files(tmp_path_factory.mktemp("t")):
        yield


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyProcess]:
    """One real Valkey for all tests that neither harm it nor mind each other's channels."""
    with ValkeyProcess() as server:
        yield server
