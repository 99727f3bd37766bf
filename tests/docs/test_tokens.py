"""The snippets of the page on tokens make tokens that a node takes, and its lists are complete."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.tokens.keys import MAX_KEYS, MAX_SECRET, MIN_RSA, MIN_SECRET, read_keys
from gateway.tokens.verification import LEEWAY, MAX_TOKEN, REASONS, refusal
from gateway.tokens.verifier import LOOK_EVERY

from ..paths import DOCS

PAGE = (DOCS / "tokens.md").read_text()

pytestmark = pytest.mark.timeout(180)


def snippet(name: str) -> str:
    found = re.search(rf"<!-- snippet: {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, name
    return found.group(1)


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the keys that the page makes."""
    for command in re.findall(r"^    (openssl .*)$", PAGE, re.MULTILINE):
        run(tmp_path, *command.split())
    return tmp_path


def proves(folder: Path, token: str) -> bool:
    keys = read_keys(str(folder / "public.pem"))
    assert refusal(keys, "12345678", token, time.time() + 660) == "expired"
    return refusal(keys, "12345678", token, time.time()) is None


@pytest.mark.real
def test_python(folder: Path) -> None:
    assert proves(folder, run(folder, sys.executable, "-c", snippet("token-python")))


@pytest.mark.real
@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
def test_node(folder: Path) -> None:
    (folder / "token.mjs").write_text(snippet("token-node"))
    assert proves(folder, run(folder, "node", "token.mjs"))


@pytest.mark.real
@pytest.mark.skipif(not shutil.which("javac"), reason="needs a JDK")
def test_java(folder: Path) -> None:
    (folder / "Token.java").write_text(snippet("token-java"))
    assert proves(folder, run(folder, "java", "Token.java"))


def test_every_reason_is_on_the_page() -> None:
    section = PAGE.partition("| `kind` |")[2].partition("\n## ")[0]
    cells = "".join(row.split("|")[1] for row in section.splitlines() if row.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", cells)) == set(REASONS)


def test_the_bounds_are_on_the_page() -> None:
    for text in (
        f"at most {MAX_TOKEN:,} characters",
        f"differ by {LEEWAY:.0f} s",
        f"up to {MAX_KEYS} such keys",
        f"{MIN_SECRET} to {MAX_SECRET:,} bytes",
        f"{MIN_RSA:,} bits",
        f"every {LOOK_EVERY:.0f} s",
    ):
        assert text in PAGE
