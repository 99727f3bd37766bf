"""What becomes of a command's output: real processes, whose output goes to real pipes and files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import IO

import click
import pytest
from click.testing import CliRunner, Result

from gateway.cli import output
from gateway.cli.errors import EXIT_READER_GONE
from gateway.cli.output import Commands

from ..paths import ROOT
from .printing import AS_IN_A_TERMINAL, environment

pytestmark = pytest.mark.real

PRINTS = """
import click
from gateway.cli.main import commands

@commands.command()
@click.argument("text")
def prints(text):
    for _ in range(20_000):  # more than a pipe takes
        click.echo(text)
"""
"""A command besides the shipped ones."""


def ended(
    *arguments: str, stdout: IO[bytes] | int, encoding: str = "utf-8", preface: str = ""
) -> tuple[int, str]:
    """The exit code, and what it wrote to stderr."""
    process = subprocess.run(
        [sys.executable, "-c", preface + AS_IN_A_TERMINAL, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment() | {"PYTHONIOENCODING": encoding},
        cwd=ROOT,
        timeout=50,
        check=False,
    )
    return process.returncode, process.stderr.decode()


def without_reader() -> IO[bytes]:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "wb", buffering=0)  # noqa: PTH123 - the caller closes it


@pytest.mark.parametrize(
    "arguments",
    [
        ("prints", "x"),
        ("id", "operation"),
        ("config",),
        ("config", "--json"),
        ("--help",),
        ("serve", "--help"),
    ],
    ids=" ".join,
)
def test_a_reader_that_is_gone_ends_a_command_quietly(arguments: tuple[str, ...]) -> None:
    with without_reader() as pipe:
        assert ended(*arguments, stdout=pipe, preface=PRINTS) == (141, "")


def test_a_reader_that_reads_one_line() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as lines, open(writer, "wb", buffering=0) as pipe:  # noqa: PTH123
        process = subprocess.Popen(
            [sys.executable, "-c", PRINTS + AS_IN_A_TERMINAL, "prints", "line"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )
        pipe.close()
        assert lines.readline() == b"line\n"
        lines.close()
        assert process.communicate(timeout=50)[1] == b""
    assert process.returncode == 141


def test_a_disk_that_is_full() -> None:
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        code, said = ended("id", "operation", stdout=full)
    assert (code, said) == (1, "Error: the output cannot be written: No space left on device\n")


def test_another_connection_that_breaks_is_an_error() -> None:
    breaks = PRINTS.replace("click.echo(text)", "raise BrokenPipeError(text)")
    code, said = ended("prints", "why", stdout=subprocess.DEVNULL, preface=breaks)
    assert (code, said.splitlines()[-1]) == (1, "BrokenPipeError: why")


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [("latin-1", b"\xdf \\u0159\\u2026\n"), ("utf-8", "ß ř…\n".encode())],
)
def test_what_the_encoding_lacks_is_escaped(encoding: str, printed: bytes) -> None:
    reader, writer = os.pipe()
    once = PRINTS.replace("20_000", "1")
    with open(reader, "rb") as lines, open(writer, "wb", buffering=0) as pipe:  # noqa: PTH123
        assert ended("prints", "ß ř…", stdout=pipe, encoding=encoding, preface=once) == (0, "")
        pipe.close()
        assert lines.read() == printed


# The same in this process


def invoke(monkeypatch: pytest.MonkeyPatch, error: OSError, *, gone: bool) -> Result:
    """Run a command that raises `error`; `gone` is whether anybody reads the output."""

    @click.command()
    def fails() -> None:
        raise error

    group = Commands(commands={"fails": fails})
    monkeypatch.setattr(output, "_reader_is_gone", lambda: gone)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    return CliRunner().invoke(group, ["fails"])


def test_how_a_command_ends_whose_output_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    broken, full = BrokenPipeError(errno.EPIPE, "broken"), OSError(errno.ENOSPC, "No space left on device")
    assert invoke(monkeypatch, broken, gone=True).exit_code == EXIT_READER_GONE
    result = invoke(monkeypatch, full, gone=False)
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: the output cannot be written: No space left on device\n",
    )
    other = invoke(monkeypatch, BrokenPipeError("of a connection"), gone=False)
    assert isinstance(other.exception, BrokenPipeError)
    assert isinstance(invoke(monkeypatch, ConnectionResetError("x"), gone=False).exception, OSError)


def test_who_reads_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as lines, open(writer, "wb") as pipe:  # noqa: PTH123
        monkeypatch.setattr(output, "STDOUT", pipe.fileno())
        assert not output._reader_is_gone()
        lines.close()
        assert output._reader_is_gone()
