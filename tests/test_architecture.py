"""The order of gateway's packages, compared with the imports in the code.

docs/architecture.md gives the reasons. A module belongs to the package that it lies in, so a new module in a
package changes nothing here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from .paths import PACKAGE

ORDER = (
    "messages", "errors", "backoff", "system", "wire", "redis", "publishing", "tokens", "config", "telemetry",
    "core", "transports", "server", "nodes", "admin", "node", "workers", "embedded", "client", "healthcheck",
    "canary", "drill", "cli", "__main__",
)  # fmt: skip
"""Packages and modules of gateway. Each may import from those before it, and from no other."""

PURE = ("messages", "errors", "wire", "core")
"""Those that import none of the libraries below. Only direct imports count: `core` imports `config`, which
imports redis-py."""

IMPURE_LIBRARIES = {
    "aiohttp", "asyncio", "hiredis", "logging", "os", "random", "redis", "signal", "socket", "threading",
    "time",
}  # fmt: skip


def files(package: str) -> list[Path]:
    """The source files of a package or a module."""
    return sorted((PACKAGE / package).rglob("*.py")) or [PACKAGE / f"{package}.py"]


def imports(path: Path) -> Iterator[str]:
    """All that a file imports, anywhere in its code, by absolute names: gateway.core.hub, asyncio."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            source = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def packages_used(package: str) -> set[str]:
    """The other packages that a package imports from."""
    names = {
        name.split(".")[1] for path in files(package) for name in imports(path) if name.startswith("gateway.")
    }
    return names.intersection(ORDER) - {package}


def libraries_used(package: str) -> set[str]:
    return {name.partition(".")[0] for path in files(package) for name in imports(path)}


def test_every_package_has_its_place_in_the_order() -> None:
    found = {
        path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()
    }
    assert found - {"__init__", "__pycache__", "static", "py.typed"} == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package: str) -> None:
    assert packages_used(package) <= set(ORDER[: ORDER.index(package)])


@pytest.mark.parametrize("package", PURE)
def test_pure_packages_know_neither_input_nor_output_nor_the_clock(package: str) -> None:
    assert not libraries_used(package) & IMPURE_LIBRARIES


def test_the_check_sees_imports() -> None:
    """A check that saw no imports would always pass."""
    assert {"messages", "core", "wire"} <= packages_used("transports")
    assert {"node", "client", "publishing"} <= packages_used("cli"), "imports inside functions count too"
    assert "asyncio" in libraries_used("redis")
