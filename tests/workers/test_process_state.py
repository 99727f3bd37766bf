"""What the kernel says of real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.drill.fleet import wait_until
from gateway.workers import process_state
from gateway.workers.liveness import ProcessState

pytestmark = pytest.mark.real

SLEEPS = (
    "import signal, threading; threading.Thread(target=signal.pause, daemon=True).start(); signal.pause()"
)
RUNS = "while True: pass"


def until_state(program: str, wanted: Callable[[ProcessState], bool], *signals: int) -> None:
    """Start a Python program, send it `signals`, and wait until its state is as wanted."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", program])
    try:
        for number in signals:
            os.kill(process.pid, number)

        def reached() -> bool:
            state = process_state.read(process.pid)
            return state is not None and wanted(state)

        wait_until(reached, "the state")
    finally:
        process.kill()
        process.wait()


def test_a_process_that_sleeps_in_two_threads() -> None:
    until_state(SLEEPS, lambda state: state.states == "SS")


def test_a_process_that_runs() -> None:
    until_state(RUNS, lambda state: state.states == "R" and state.cpu_seconds > 0.1)


def test_a_process_that_is_stopped() -> None:
    until_state(RUNS, lambda state: state.states == "T", signal.SIGSTOP)


def test_a_process_whose_name_is_meant_to_mislead(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 1"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        wait_until(lambda: process_state.read(process.pid) == ("S", 0.0), "it sleeps")
    finally:
        process.kill()
        process.wait()


def test_a_process_that_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    process.wait()
    assert process_state.read(process.pid) is None
