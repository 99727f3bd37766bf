"""The command id."""

from __future__ import annotations

import hashlib

import pytest

from .conftest import Run


def test_id_is_the_sha_512_in_hex(run: Run) -> None:
    assert run("id", "opération").stdout == hashlib.sha512("opération".encode()).hexdigest() + "\n"


@pytest.mark.parametrize("empty", ["", " "])
def test_id_of_nothing_is_refused(run: Run, empty: str) -> None:
    result = run("id", empty)
    assert (result.exit_code, result.stdout) == (2, "")
