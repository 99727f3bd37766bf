"""The structure that docs/architecture.md and gateway/__init__.py describe, held against the syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import gateway
from gateway import drill

PACKAGE = Path(gateway.__file__).parent
DRILL_FILES = sorted((PACKAGE / "drill").rglob("*.py"))
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"

# Each may import those before it, and no other.
ORDER = [
    "messages",
    "errors",
    "wire",
    "frames",
    "handshake",
    "latency",
    "redis_url",
    "slots",
    "subscriptions",
    "limits",
    "ownership",
    "restarts",
    "health",
    "invocation",
    "logs",
    "processors",
    "config",
    "hub",
    "session",
    "websocket",
    "stream",
    "sockjs",
    "quorum",
    "sentinels",
    "topology",
    "connection",
    "link",
    "probe",
    "audit",
    "notice",
    "broker",
    "shard_link",
    "cluster",
    "roster",
    "report",
    "publishing",
    "line",
    "routes",
    "publisher",
    "publish_views",
    "descriptors",
    "handover",
    "door",
    "gate",
    "sockjs_views",
    "events",
    "metrics",
    "tracing",
    "views",
    "live",
    "app",
    "control",
    "worker",
    "posts",
    "workers_views",
    "supervisor",
    "watching",
    "embedded",
    "drill",
    "cli",
    "__main__",
]

PURE = [
    "messages",
    "errors",
    "wire",
    "frames",
    "handshake",
    "latency",
    "redis_url",
    "slots",
    "subscriptions",
    "limits",
    "ownership",
    "restarts",
    "health",
]
IMPURE_LIBRARIES = {"asyncio", "aiohttp", "redis", "hiredis", "time", "socket", "structlog", "random", "os"}

# They work together, and know each other only as a protocol of a few methods that the one defines.
STRANGERS = [
    ("hub", "session"),
    ("hub", "broker"),
    ("hub", "link"),
    ("link", "hub"),
    ("broker", "hub"),
    ("broker", "shard_link"),
    ("cluster", "hub"),
    ("audit", "hub"),
    ("session", "broker"),
    ("session", "websocket"),
    ("door", "views"),
    ("door", "websocket"),
    ("sockjs", "door"),
    ("session", "sockjs"),
    ("wire", "session"),
    ("door", "handover"),
    ("handover", "door"),
    ("workers_views", "supervisor"),
]


@cache
def modules() -> dict[str, list[Path]]:
    """The package's modules, `wire` and the like as one; all of their files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name != "__init__":
            found.setdefault(name, []).append(path)
    return found


def imports(name: str) -> Iterator[str]:
    """What module `name` imports, anywhere in its code: our modules by name, libraries by their first."""
    for path in modules()[name]:
        depth = len(path.relative_to(PACKAGE).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.removeprefix("gateway.").partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from _imported_from(node, name, depth)


def _imported_from(node: ast.ImportFrom, name: str, depth: int) -> Iterator[str]:
    """What one `from … import …` in a file `depth` levels inside the package brings."""
    source = (node.module or "").removeprefix("gateway.")
    if 0 < node.level < depth:  # within a package of ours, such as wire
        yield name
    elif source in ("", "gateway"):
        yield from (alias.name for alias in node.names)
    else:
        yield source.partition(".")[0]


def ours(name: str) -> set[str]:
    """The other modules of the package that module `name` imports."""
    return {other for other in imports(name) if other in modules() and other != name}


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == sorted(modules())


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_one_way(name: str) -> None:
    assert ours(name) <= set(ORDER[: ORDER.index(name)])


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_neither_io_nor_the_clock(name: str) -> None:
    assert not IMPURE_LIBRARIES.intersection(imports(name))
    assert ours(name) <= set(PURE)


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_strangers(one: str, other: str) -> None:
    assert other not in ours(one)


def test_the_check_finds_what_it_looks_for() -> None:
    """A check that found no imports at all would hold for ever."""
    assert {"broker", "cluster", "config", "hub", "views"} <= ours("app")
    assert {"messages", "errors"} <= ours("wire")
    assert "frames" in ours("websocket")
    assert {"app", "watching", "publisher"} <= ours("cli"), "also those inside functions"
    assert "asyncio" in set(imports("link"))


def reading_order() -> list[list[str]]:
    """The list in the package's docstring: the modules of each line."""
    assert gateway.__doc__ is not None
    listed = gateway.__doc__.partition("Reading order")[2].split("\n\n")[1]
    heads = [re.split(r"  +", line.strip())[0] for line in listed.splitlines()]
    return [[name.strip().rstrip("/") for name in head.split(",")] for head in heads]


def test_the_reading_order_names_every_module() -> None:
    named = [name for line in reading_order() for name in line]
    assert sorted(named) == sorted(set(modules()) - {"__main__"})


def test_the_reading_order_is_one_to_read_in() -> None:
    """Nothing is used before it has been told."""
    told: set[str] = set()
    for line in reading_order():
        told.update(line)
        for name in line:
            assert ours(name) <= told, name


def test_the_architecture_page_says_what_each_module_owns() -> None:
    rows = [line for line in ARCHITECTURE.read_text().splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z_/]+)`", row.split("|")[1])]
    assert sorted(name.rstrip("/") for name in named) == sorted(set(modules()) - {"__main__"})


def drill_order() -> list[str]:
    """The list in the docstring of gateway.drill."""
    assert drill.__doc__ is not None
    return re.findall(r"^    ([a-z]+)/? ", drill.__doc__, re.MULTILINE)


def drill_imports(name: str) -> Iterator[str]:
    """What a module of gateway.drill imports: its neighbours by name, everything else by its first."""
    for node in ast.walk(ast.parse((PACKAGE / "drill" / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is None:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_a_drill_imports_one_way_too() -> None:
    order = drill_order()
    files = {path.relative_to(PACKAGE / "drill").parts[0].removesuffix(".py") for path in DRILL_FILES}
    assert sorted(order) == sorted(files - {"__init__"})
    for place, name in enumerate(order[1:], 1):
        assert set(drill_imports(name)).intersection(order) <= set(order[:place]), name
    for name in ("ledger", "report"):
        assert not IMPURE_LIBRARIES.intersection(drill_imports(name))
