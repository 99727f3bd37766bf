"""gateway.processors: how many there are to use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.processors import usable

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("max 100000\n", ALLOWED),
        ("50000 100000\n", 1),
        ("100000 100000\n", 1),
        ("110000 100000\n", min(2, ALLOWED)),
        ("99900000 100000\n", ALLOWED),
        ("", ALLOWED),
    ],
)
def test_what_the_container_grants(tmp_path: Path, text: str, count: int) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert usable(quota) == count


def test_without_a_container(tmp_path: Path) -> None:
    assert usable(tmp_path / "none") == ALLOWED
    assert usable() >= 1
