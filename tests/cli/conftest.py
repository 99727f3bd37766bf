"""Run a command in the test's own process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol
from unittest import mock

import pytest
from click.testing import CliRunner, Result

from gateway.cli.main import commands


class Run(Protocol):
    """Runs a command in this process, with these arguments and variables."""

    def __call__(self, *arguments: str, **variables: str) -> Result: ...


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in os.environ:
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)

    def invoke(*arguments: str, **variables: str) -> Result:
        return CliRunner().invoke(commands, arguments, env=variables, prog_name="webflow-gateway")

    return invoke


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """Restore the environment: a command sets a variable that limits its process's name look-ups."""
    with mock.patch.dict(os.environ):
        yield
