"""Every link in the README and the documentation leads to a file, and every anchor to a heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..paths import DOCS, ROOT

PAGES = (*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")))


def without_code(page: Path) -> str:
    return re.sub(r"```.*?```|^ {4}.*?$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> set[str]:
    """The targets of `[text](target)` and `[name]: target`, those on other sites left out."""
    text = without_code(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    return {target for target in targets if not re.match(r"[a-z]+:", target)}


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: there is no {path}"
        assert not anchor or anchor in anchors(target), f"{link}: {target.name} has no such heading"


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in links(page)
        if not link.startswith("#")
    }
    assert set(DOCS.glob("*.md")) <= linked


def test_the_check_sees_links_and_headings() -> None:
    """A check that saw none would always pass."""
    assert "docs/publishing.md" in links(ROOT / "README.md")
    assert "what-is-promised" in anchors(ROOT / "README.md")
