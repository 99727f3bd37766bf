"""A signal that comes while the command is still being imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

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
