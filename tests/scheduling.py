"""Which tests run when: real things side by side first, and what holds limits of time by itself at the end.

Most of the suite waits: for processes to start, for a node to notice that Redis is gone, for a browser. So
there are more workers than processors, and a worker takes the next piece of work when it has done one. What
is expensive goes first, so that no worker is left alone with it:

* tests that share a fixture of their module, like a Cluster, are one piece;
* other tests of real things are a piece each;
* quick tests are a piece a file;
* tests marked `alone` are the last piece. It starts when all other workers have ended: such a test holds a
  limit of time, or loads the machine so that others would miss theirs.

Without workers (`pytest path`) the order is the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController

WORKERS_A_PROCESSOR = 3
ALONE = "alone"
REAL_FOLDERS = {"integration", "browser", "deploy", "docs"}
REAL_FIXTURES = {"valkey"}


def arrange(items: list[pytest.Item]) -> None:
    """Mark the tests of real things, give each test its piece of work, and sort them."""
    for item in items:
        if is_real(item):
            item.add_marker("real")
        if piece := piece_of(item):
            item.add_marker(pytest.mark.xdist_group(piece))
    items.sort(key=turn)


def is_real(item: pytest.Item) -> bool:
    """Whether the test needs more than Python: servers, processes, browsers."""
    fixtures = getattr(item, "fixturenames", ())
    return bool(
        REAL_FOLDERS.intersection(item.path.parts)
        or REAL_FIXTURES.intersection(fixtures)
        or shares_fixture(item)  # it is shared because it takes its time
        or marked(item, "real")
    )


def marked(item: pytest.Item, name: str) -> bool:
    return item.get_closest_marker(name) is not None


def piece_of(item: pytest.Item) -> str:
    """The name of the piece of work that the test is a part of; empty for one that is a piece itself."""
    if marked(item, ALONE):
        return ALONE
    if shares_fixture(item) or not marked(item, "real"):
        return item.path.relative_to(item.config.rootpath).as_posix()
    return ""


def shares_fixture(item: pytest.Item) -> bool:
    """Whether it uses a fixture that its module has for all its tests."""
    fixtures: dict[str, Sequence[pytest.FixtureDef[Any]]] = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
    return any(fixture.scope in ("module", "class") for found in fixtures.values() for fixture in found)


def turn(item: pytest.Item) -> tuple[bool, bool, float, bool]:
    """Sorts first what may take longest."""
    limit = item.get_closest_marker("timeout")
    seconds = float(limit.args[0]) if limit else 0.0
    return marked(item, ALONE), not marked(item, "real"), -seconds, not shares_fixture(item)


class Scheduling(LoadGroupScheduling):  # type: ignore[misc]  # it has no types
    """Hands out pieces of work. The one called ALONE goes to the last worker, when the others have ended."""

    def remove_node(self, node: WorkerController) -> str | None:
        crashed: str | None = super().remove_node(node)
        for other in self.nodes:
            self._reschedule(other)
        return crashed

    def _reschedule(self, node: WorkerController) -> None:
        if list(self.workqueue) == [ALONE]:
            self._assign_work_unit(node)
        else:
            super()._reschedule(node)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if list(self.workqueue) != [ALONE] or self.nodes == [node]:
            super()._assign_work_unit(node)
        elif any(other is not node and not other.shutting_down for other in self.nodes):
            node.shutdown()  # it ends when it has done what it has


def worker_count(config: pytest.Config) -> int:
    """How many workers `-n auto` starts: few for a part of the suite, since each takes a second to start."""
    processors = os.cpu_count() or 1
    narrowed = (
        config.getoption("keyword")
        or config.getoption("markexpr")
        or config.args != config.getini("testpaths")
    )
    return processors if narrowed else processors * WORKERS_A_PROCESSOR
