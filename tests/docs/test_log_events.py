"""The log events that docs/operations.md lists are those of the code."""

from __future__ import annotations

import re

from ..paths import DOCS, PACKAGE


def listed() -> set[str]:
    """The events in the tables of the section on logs."""
    section = (DOCS / "operations.md").read_text().partition("\n## Logs\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {event for row in rows for event in re.findall(r"`([^`]+)`", row)}


def test_every_listed_event_is_logged_somewhere() -> None:
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for event in listed():
        start = event.removesuffix("…")
        end = "" if event.endswith("…") else '"'
        assert f'"{start}{end}' in code, event


def test_the_check_sees_events() -> None:
    """A check that saw none would always pass."""
    assert {"listening", "session opened", "redis connected"} <= listed()
