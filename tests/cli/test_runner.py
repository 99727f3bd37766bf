"""How commands run coroutines and nodes, and how the process of a node ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from structlog.testing import capture_logs

from gateway import embedded
from gateway.cli import runner
from gateway.cli.errors import CommandFailed
from gateway.config import build
from gateway.drill.fleet import NodeProcess
from gateway.errors import ConfigError, EmbeddedError
from gateway.node.signals import UNUSED_SIGNALS
from gateway.telemetry import logs

SECONDS = 20.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is logged is no output of these tests."""
    with capture_logs():
        yield


async def failing() -> int:
    raise ConfigError("the port is taken")


async def succeeding() -> int:
    return 3


def test_a_coroutine_runs_on_uvloop_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def loop_module() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert runner.run(loop_module()) == "uvloop"
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert runner.run(loop_module()).startswith("asyncio.")


def test_a_nodes_loop_stays_open_to_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[asyncio.Runner] = []
    real = asyncio.Runner

    def noted(**options: Any) -> asyncio.Runner:
        opened.append(real(**options))
        return opened[-1]

    monkeypatch.setattr(asyncio, "Runner", noted)
    assert runner._run_and_keep(succeeding()) == 3
    assert not opened[0].get_loop().is_closed()
    opened[0].close()
    with pytest.raises(ConfigError):
        runner._run_and_keep(failing())
    with pytest.raises(RuntimeError, match="closed"):
        opened[1].get_loop()


@pytest.fixture
def handlers_as_before() -> Iterator[None]:
    """uvloop does not restore handlers when it is closed."""
    numbers = (signal.SIGTERM, signal.SIGINT, *UNUSED_SIGNALS)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers_as_before")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_node_that_cannot_start_fails_the_command(workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = build({"host": "127.0.0.1", "port": port, "admin_port": 0, "workers": workers})
        with pytest.raises(CommandFailed, match=str(port)):
            runner.run_node(config)


def test_the_process_of_a_node_ends_without_waiting_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for the log it waits a moment, once."""
    ends: list[object] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(logs, "close", lambda: ends.append("log"))
    monkeypatch.setattr("gateway.node.serve", lambda *_, **__: 3)
    monkeypatch.setattr(runner, "_run_and_keep", lambda code: code)
    leave: Callable[[int], None] = runner.leave
    leave(runner.run_node(build({})))
    assert ends == ["log", 3]


def test_an_embedded_valkey_that_does_not_start_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def binary() -> Path:
        raise EmbeddedError("it is not installed")

    monkeypatch.setattr(embedded, "binary", binary)
    with pytest.raises(click.ClickException, match="not installed"), runner.embedded_valkey():
        raise AssertionError


@pytest.mark.real
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a process another name server")
def test_a_name_server_that_is_silent_holds_no_end_up(tmp_path: Path, workers: str) -> None:
    """The C library waits for it for 10 s and more, in a thread."""
    address = f"127.83.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"  # which no other test has
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver {address}\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((address, 53))

        class Node(NodeProcess):
            def _command(self) -> list[str]:
                mounted = f'mount --bind {resolv} /etc/resolv.conf && exec "$@"'
                return ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", mounted, "sh", *super()._command()]

        if subprocess.run(
            ["/usr/bin/unshare", "--mount", "true"], capture_output=True, check=False
        ).returncode:
            pytest.skip("this process may not make namespaces")
        with Node("redis://redis.example.org:6379", "--workers", workers, wait_ready=False) as node:
            for _ in range(int(workers)):
                silent.settimeout(SECONDS)
                silent.recv(1024)  # somebody looks the name up
            start = time.monotonic()
            node.signal(signal.SIGTERM)
            assert node.process.wait(SECONDS) == 0
            assert time.monotonic() - start < 5.0, "a look-up takes 10 s"
