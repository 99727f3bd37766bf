"""The drawn tree of exceptions, held against the classes of the package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import gateway
from gateway import errors
from gateway.errors import NotAnnounced, NotPublished, Unconfirmed, WireError
from gateway.messages import CloseCode

ENTRY = re.compile(r"^(?P<indent>[│├└─ ]*)(?P<name>\w+)(?: +(?:\[(?P<module>[\w.]+)\] )?\S.*)?$")


def drawn() -> dict[str, tuple[str | None, str]]:
    """The parent of each drawn exception, and the module that the drawing names."""
    found: dict[str, tuple[str | None, str]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines()[1:]:
        match = ENTRY.fullmatch(line)
        if match is None or (not match["indent"] and " " in line):  # a sentence
            continue
        depth = len(match["indent"]) // 4
        path[depth:] = [match["name"]]
        if match["indent"] or match["name"] == "GatewayError":
            found[match["name"]] = (path[-2] if depth else None, match["module"] or "errors")
    return found


def defined() -> dict[str, type[BaseException]]:
    """Every exception class that a module of the package defines."""
    names = [info.name for info in pkgutil.walk_packages(gateway.__path__, "gateway.")]
    members = [member for name in names for member in vars(importlib.import_module(name)).values()]
    classes = [member for member in members if inspect.isclass(member)]
    return {
        cls.__name__: cls for cls in classes if issubclass(cls, BaseException) and cls.__module__ in names
    }


def test_the_tree_names_every_exception_and_its_module() -> None:
    modules = {name: module for name, (_, module) in drawn().items()}
    assert modules == {name: cls.__module__.removeprefix("gateway.") for name, cls in defined().items()}


def test_the_tree_is_the_one_of_the_classes() -> None:
    classes = defined()
    for name, (parent, _) in drawn().items():
        if parent is not None:
            assert parent in {base.__name__ for base in classes[name].__bases__}, name


def test_what_an_error_carries() -> None:
    unconfirmed = Unconfirmed("no answer", "m-1")
    assert (unconfirmed.reason, unconfirmed.message_id) == ("no answer", "m-1")
    assert "retry with messageId m-1" in str(unconfirmed)
    refused = NotPublished("OOM", "m-1")
    assert (refused.reason, refused.message_id) == ("OOM", "m-1")
    assert str(refused) == "OOM; the result was not published"
    unknown = NotAnnounced("OOM")
    assert unknown.reason == "OOM"
    assert str(unknown) == "OOM; Redis has not confirmed the announcement"
    broken = WireError(CloseCode.POLICY, "too fast", last_message=b"bye")
    assert (broken.code, broken.reason, broken.last_message) == (CloseCode.POLICY, "too fast", b"bye")
    assert str(broken) == "too fast"
