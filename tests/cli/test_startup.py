"""A signal that comes while the command is still being imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.drill.fleet import wait_until

from ..paths import ROOT
from .printing import environment

SLOW_IMPORT = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            print("importing", flush=True)
            time.sleep(30)

sys.meta_path.insert(0, Slow())
from gateway.__main__ import main
main()
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("command", "code"),
    [("serve", 0), ("dev", 0), ("publish", -signal.SIGTERM)],
    ids=lambda value: str(value),
)
def test_sigterm_during_the_imports(command: str, code: int) -> None:
    """`serve` and `dev` end with 0 at once, also as process 1; other commands are killed as usual."""
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT, command], stdout=subprocess.PIPE, env=environment(), cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == code


@pytest.mark.real
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("after", [0.0, 0.3, 0.6], ids=lambda seconds: f"after {seconds} s")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make namespaces")
def test_sigterm_as_process_1(workers: str, after: float) -> None:
    """The kernel discards a signal to process 1 that has no handler, except in Python's own start."""
    unshare = ["/usr/bin/unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("this process may not make namespaces")
    serve = ["serve", "--redis", "redis://127.0.0.1:1", "--port", "0", "--admin-port", "0"]
    options = ["--host", "127.0.0.1", "--drain-delay", "0", "--drain-seconds", "0", "--workers", workers]
    with subprocess.Popen(
        [*unshare, sys.executable, "-m", "gateway", *serve, *options],
        stderr=subprocess.DEVNULL,
        env=environment(),
        cwd=ROOT,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(children.read_text, "it has a process 1")
        first = int(children.read_text())
        wait_until(lambda: handles_sigterm(first), "it has a handler")
        time.sleep(after)  # it may be importing, starting workers, or serving
        os.kill(first, signal.SIGTERM)
        assert process.wait(20) == 0


def handles_sigterm(pid: int) -> bool:
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


SWALLOWED = """
import os, signal, sys, weakref
sys.argv[1:] = ["serve"]
class Thing: pass
thing = Thing()
reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
class Dropping:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            global thing
            thing = None
sys.meta_path.insert(0, Dropping())
import gateway.__main__
"""


@pytest.mark.real
def test_sigterm_in_a_weakref_callback() -> None:
    """Imports have hundreds of them, and an exception that is raised in one is printed and forgotten."""
    process = subprocess.run(
        [sys.executable, "-c", SWALLOWED], capture_output=True, env=environment(), cwd=ROOT, check=False
    )
    assert (process.returncode, process.stderr) == (0, b"")


@pytest.mark.real
def test_a_signal_at_any_time_ends_a_node_with_0() -> None:
    """Also one that comes when all is over and only the process has to end."""
    arguments = ["--redis", "redis://127.0.0.1:1", "--port", "0", "--admin-port", "0", "--host", "127.0.0.1"]
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", *arguments],
        stderr=subprocess.DEVNULL,
        env=environment(),
        cwd=ROOT,
    ) as process:
        wait_until(lambda: handles_sigterm(process.pid), "it has a handler")
        time.sleep(1.0)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert process.returncode == 0
