"""What tests need from the machine, and fixtures that many of them share.

A test marked `needs("haproxy")` runs where that program is on the PATH. Elsewhere it is skipped, and the
summary at the end says by name what was missing; with GATEWAY_TEST_ALL=1, as in CI, it fails instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from .processes import ValkeyProcess

NEED_ALL = os.environ.get("GATEWAY_TEST_ALL") == "1"

_missing: dict[str, int] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*programs): runs only where these programs are on the PATH")


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


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyProcess]:
    """One real Valkey for all tests that neither harm it nor mind each other's channels."""
    with ValkeyProcess() as server:
        yield server
