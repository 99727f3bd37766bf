"""Command lines that are shown can be pasted as they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.cli.invocation import program, redis_cli


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The console script in a virtual environment of a project, run by its path and not on the PATH."""
    path = tmp_path / "project" / ".venv" / "bin" / "webflow-gateway"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(path), "dev"])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path / "project")
    return path


def test_below_the_current_folder_the_path_is_short(script: Path) -> None:
    assert program() == ".venv/bin/webflow-gateway"


def test_elsewhere_it_is_whole(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert program() == str(script)


def test_in_the_scripts_own_folder_it_starts_with_a_dot(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(script.parent)
    assert program() == "./webflow-gateway"


def test_on_the_path_the_name_will_do(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == "webflow-gateway"


def test_another_program_of_that_name_on_the_path_is_not_meant(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "webflow-gateway"
    other.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == ".venv/bin/webflow-gateway"


def test_run_as_a_module_python_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/gateway/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin dir" / "python"))
    monkeypatch.chdir(tmp_path)
    assert program() == "'bin dir/python' -m gateway"


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("redis://127.0.0.1:6390/0", "redis-cli -p 6390"),
        ("redis://localhost", "redis-cli -p 6379"),
        ("redis://redis.example:6380", "redis-cli -h redis.example -p 6380"),
    ],
)
def test_redis_cli(url: str, command: str) -> None:
    assert redis_cli(url) == command
