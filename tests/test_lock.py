"""requirements/ is the lock: every package that pyproject.toml asks for, at one version, with its hashes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

# File: the extras and groups of pyproject.toml that are in it, beside the dependencies themselves.
EVERYTHING = ("embedded", "jwt", "otel", "test", "bench", "build", "lint", "kubernetes")
LOCKS = {
    "serve": ("jwt",),
    "run": ("embedded", "build"),
    "test": ("embedded", "jwt", "otel", "test", "bench", "build"),
    "check": EVERYTHING,
}
PYTHONS = ["3.11.0", "3.12.0", "3.13.0"]
SYSTEMS = ["linux", "darwin"]


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def asked_for(names: tuple[str, ...]) -> Iterator[Requirement]:
    """The dependencies, and what these extras and groups add to them."""
    sets = project()["project"]["optional-dependencies"] | project()["dependency-groups"]
    lines = [*project()["project"]["dependencies"], *(line for name in names for line in sets[name])]
    yield from map(Requirement, lines)


def read(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


@cache
def locked(name: str) -> dict[str, tuple[Requirement, int]]:
    """What the file pins, by package, each with the number of its hashes."""
    found: dict[str, tuple[Requirement, int]] = {}
    for line in read(name).replace("\\\n", " ").splitlines():
        if not line.lstrip().startswith("#"):
            pin, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
            requirement = Requirement(pin)
            found[canonicalize_name(requirement.name)] = (requirement, len(hashes))
    return found


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", pin
    return specifier.version


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_satisfies_what_pyproject_asks_for(name: str) -> None:
    for requirement in asked_for(LOCKS[name]):
        pin, _ = locked(name)[canonicalize_name(requirement.name)]
        assert version(pin) in requirement.specifier, "run: make lock UPGRADE="
        for python in PYTHONS:
            for system in SYSTEMS:
                here = {
                    "python_full_version": python,
                    "sys_platform": system,
                    "platform_python_implementation": "CPython",
                }
                if requirement.marker is None or requirement.marker.evaluate(here):
                    assert pin.marker is None or pin.marker.evaluate(here), f"{pin} on {here}"


@pytest.mark.parametrize("name", [*LOCKS, "build"])
def test_every_pin_has_hashes_and_the_version_of_the_largest_lock(name: str) -> None:
    assert locked(name)
    for package, (pin, hashes) in locked(name).items():
        assert hashes, f"{pin} has no hash"
        assert version(pin) == version(locked("check")[package][0])


@pytest.mark.parametrize("name", [*LOCKS, "build"])
def test_the_lock_names_no_index(name: str) -> None:
    """Every machine takes the packages from the index that it is set up for; the hashes say what they are."""
    assert "://" not in read(name)
    assert "--index" not in read(name)


def test_every_group_and_extra_is_locked() -> None:
    names = {*project()["project"]["optional-dependencies"], *project()["dependency-groups"]}
    assert names == set(EVERYTHING)


def test_the_build_group_is_what_the_build_requires() -> None:
    assert project()["dependency-groups"]["build"] == project()["build-system"]["requires"]
    for line in project()["build-system"]["requires"]:
        requirement = Requirement(line)
        pin, _ = locked("build")[canonicalize_name(requirement.name)]
        assert version(pin) in requirement.specifier
