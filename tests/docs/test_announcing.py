"""The command that announces an id is recommended in one form, in documents, help and docstrings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..paths import DOCS, ROOT

COMMAND = re.compile(r'\bSET websocket:\S+ "".*')

PLACES = sorted([*DOCS.glob("*.md"), *(ROOT / "gateway").rglob("*.py")])


def recommended(place: Path) -> list[str]:
    return COMMAND.findall(place.read_text())


def test_it_is_found_where_it_must_be() -> None:
    names = {place.name for place in PLACES if recommended(place)}
    assert {"publishing.md", "configuration.md", "migration.md", "config.py", "announcing.py"} <= names


@pytest.mark.parametrize(
    "place", [place for place in PLACES if recommended(place)], ids=lambda place: place.name
)
def test_it_expires_and_never_overwrites_a_result(place: Path) -> None:
    """Without NX, a command that is sent again would replace a result that came in between."""
    for command in recommended(place):
        assert re.match(r'SET websocket:\S+ "" EX \d+ NX\b', command), command
