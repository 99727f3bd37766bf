"""What integration tests share: places where a gateway serves, and an eye on what is logged."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import redis.asyncio
from structlog.testing import capture_logs

from gateway.drill.fleet import NodeProcess, ValkeyProcess

from .in_process import admin_port_of, node_in_process, port_of

Line = dict[str, Any]
Measured = Callable[[str, float], None]

_measured: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measured:
        terminalreporter.section("measured by the way", sep="-")
        for line in _measured:
            terminalreporter.line(line)


@pytest.fixture
def measured() -> Measured:
    """Notes what something took, in seconds, for the summary at the end of the run."""
    return lambda what, seconds: _measured.append(f"{seconds:7.3f} s  {what}")


def complaints(lines: list[Line]) -> list[Line]:
    """The log lines that tell of something that must not happen, in whatever test."""
    return [line for line in lines if line.get("log_level", line.get("level")) in ("error", "critical", None)]


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[Line]]:
    """What gateways in this process log. A test that provokes an error takes its line out again."""
    with capture_logs() as lines:
        yield lines  # type: ignore[misc]  # structlog types each line as a mapping
    assert not complaints(lines)  # type: ignore[arg-type]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@contextlib.contextmanager
def nodes_on(redis_url: str, count: int, *options: str, preface: str = "") -> Iterator[list[NodeProcess]]:
    """So many nodes, started side by side; at the end their logs must be free of complaints.

    `preface` is Python that each runs first.
    """
    with contextlib.ExitStack() as running, ThreadPoolExecutor() as pool:
        starting = [pool.submit(NodeProcess, redis_url, *options, preface=preface) for _ in range(count)]
        nodes = [running.enter_context(start.result()) for start in starting]
        yield nodes
    for node in nodes:
        assert not complaints(node.logs)


@dataclass(frozen=True)
class Place:
    """Where a gateway with default settings serves."""

    port: int
    admin_port: int
    workers: int = 1

    def holders(self, browsers: int) -> range:
        """What PUBLISH may answer when so many browsers here have the id: each worker counts for itself."""
        return range(1, 1 + min(browsers, self.workers))


@pytest.fixture(scope="session")
def node_process(valkey: ValkeyProcess) -> Iterator[NodeProcess]:
    with NodeProcess(valkey.url) as node:
        yield node


@pytest.fixture(scope="session")
def three_workers(valkey: ValkeyProcess) -> Iterator[NodeProcess]:
    with NodeProcess(valkey.url, "--workers", "3") as node:
        yield node


@pytest.fixture(params=["node_process", "three_workers", "in this loop"])
async def place(request: pytest.FixtureRequest, valkey: ValkeyProcess) -> AsyncIterator[Place]:
    """A gateway: as users run it, on uvloop, in one process and in three; and on asyncio's own loop."""
    if request.param != "in this loop":
        node = request.getfixturevalue(request.param)
        before = len(complaints(node.logs))
        yield Place(node.port, node.admin_port, 3 if request.param == "three_workers" else 1)
        assert not complaints(node.logs)[before:]
        return
    async with node_in_process(valkey.url) as gateway:
        yield Place(port_of(gateway), admin_port_of(gateway))


@pytest.fixture
async def backend(valkey: ValkeyProcess) -> AsyncIterator[redis.asyncio.Redis]:
    """A plain Redis client."""
    async with redis.asyncio.Redis(port=valkey.port) as client:
        yield client


@pytest.fixture
def new_id(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Makes ids that no other test uses: they share one Valkey."""
    count = iter(range(1_000_000))
    stem = "".join(char if char.isalnum() else "-" for char in request.node.nodeid.rpartition("::")[2])
    return lambda: f"{stem[:150]}-{next(count)}"
