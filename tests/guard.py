"""Fails a test that leaves something behind: a thread, a task, a process, a descriptor, a file, a setting.

A later test then needs neither order nor luck. What a fixture of a wider scope has made may stay until that
fixture ends, and must be gone then. A test that adds something to such a fixture, like one more server to a
module's cluster, says so: `@pytest.mark.adds_to("cluster")`.

A test that starts a process is marked `real`, so that the quick tests stay quick.

The guard looks once after each test, which takes about 0.2 ms. Only when it finds something does it collect
garbage and wait, because a descriptor may hang on a reference cycle and a thread may be about to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog

PATIENCE = 2.0
"""Seconds that something may take to go away. Only a test that leaves something waits so long."""

LASTING_THREADS = ("starts-processes",)
"""Beginnings of the names of threads that live as long as the process does, and may."""

LOOK_UPS = (["/sbin/ldconfig", "-p"], ["uname", "-p"])
"""Processes by which Python's own `ctypes.util` and `platform` find something out, once."""

TURNS = 20
"""Turns of the event loop that tasks get to end in: one that was cancelled needs two or three."""

UNWATCHED_FOLDERS = {"__pycache__", "node_modules", "build", "dist"}

SOURCES = {".py", ".md", ".txt", ".toml", ".json", ".yml", ".html", ".css", ".js", ".svg", ".png", ".cfg"}
"""Endings of files that people add to a checkout, also while its tests run."""

FDS = Path("/proc/self/fd" if Path("/proc/self/fd").exists() else "/dev/fd")


class Thing(NamedTuple):
    """What a test can leave behind."""

    kind: str
    key: Hashable


class Inventory:
    """What this process has at this moment."""

    def __init__(self, checkout: Path) -> None:
        self._folders = [_Folder(path) for path in _watched_folders(checkout)]
        self.temporary_folder: str | None = None
        self.commands: list[object] = []
        self._pids: set[int] = set()
        self._tasks: list[str] = []

    def started(self, pid: int, command: object) -> None:
        """A child process has been started."""
        self._pids.add(pid)
        self.commands.append(command)

    def abandoned(self, task: asyncio.Task[Any]) -> None:
        """An event loop was closed while `task` had not ended."""
        self._tasks.append(repr(task))

    def look(self) -> set[Thing]:
        """All of it."""
        self._pids = {pid for pid in self._pids if _is_child(pid)}
        found = {Thing("process", pid) for pid in self._pids}
        found.update(Thing("thread", it) for it in threading.enumerate() if not _lasts(it))
        found.update(Thing("descriptor", it) for it in _descriptors())
        if self.temporary_folder is not None:
            found.update(Thing("temporary file", name) for name in os.listdir(self.temporary_folder))  # noqa: PTH208
        found.update(Thing("task", task) for task in self._tasks)
        for folder in self._folders:
            found.update(Thing("file", folder.path / name) for name in folder.added())
        return found

    def forget_tasks(self) -> None:
        """They have been reported."""
        self._tasks.clear()


class _Folder:
    """A folder of the checkout. Its time of modification tells cheaply whether a name has come or gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = str(path)
        self._modified = self._modification()
        self._names = set(os.listdir(path))  # noqa: PTH208
        self._added: set[str] = set()

    def added(self) -> set[str]:
        """The names that were not there at first, other than of caches and sources."""
        if (modified := self._modification()) != self._modified:
            self._modified = modified
            new = set(os.listdir(self._name)) - self._names  # noqa: PTH208
            self._added = {name for name in new if not (_is_cache(name) or _is_source(self.path / name))}
        return self._added

    def _modification(self) -> int:
        try:
            return os.stat(self._name).st_mtime_ns  # noqa: PTH116 - a third of the time
        except FileNotFoundError:
            return 0


def _is_cache(name: str) -> bool:
    return name.startswith(".") or name in UNWATCHED_FOLDERS


def _is_source(path: Path) -> bool:
    if path.is_dir():
        inner = list(path.iterdir())
        return bool(inner) and all(_is_cache(one.name) or _is_source(one) for one in inner)
    return path.suffix in SOURCES


def _watched_folders(top: Path) -> Iterator[Path]:
    yield top
    for path in top.iterdir():
        if path.is_dir() and not _is_cache(path.name) and not (path / "pyvenv.cfg").exists():
            yield from _watched_folders(path)


def _lasts(thread: threading.Thread) -> bool:
    return thread.name.startswith(LASTING_THREADS)


def _is_child(pid: int) -> bool:
    """Whether it runs, or has ended and nobody has waited for it."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _descriptors() -> list[tuple[int, int, int]]:
    """Each descriptor with what it leads to, because a number is used again at once."""
    found = []
    for name in os.listdir(FDS):  # noqa: PTH208
        number = int(name)
        try:
            status = os.fstat(number)
        except OSError:  # that of the listing itself
            continue
        found.append((number, status.st_dev, status.st_ino))
    return found


def describe(thing: Thing) -> str:
    """For the message of a failed test."""
    what = str(thing.key)
    if thing.kind == "descriptor" and isinstance(thing.key, tuple):
        number = thing.key[0]
        try:
            what = f"{number} -> {os.readlink(FDS / str(number))}"  # noqa: PTH115
        except OSError:
            what = str(number)
    return f"{thing.kind}: {what}"


# Settings of the whole process


def settings() -> dict[str, object]:
    """What a test may change for itself, and must then put back."""
    root = logging.getLogger()
    configured = structlog.get_config()
    found: dict[str, object] = {
        "working directory": os.getcwd(),  # noqa: PTH109 - a string compares faster
        "garbage collector": (gc.isenabled(), gc.get_threshold()),
        "log level": (root.level, logging.root.manager.disable),
        "log handlers": [it for it in root.handlers if type(it).__module__ != "_pytest.logging"],
        "structlog processors": list(configured["processors"]),
        "structlog": [value for name, value in configured.items() if name != "processors"],
    }
    found.update((f"handler of signal {number}", signal.getsignal(number)) for number in _SIGNALS)
    environment = os.environ.copy()
    environment.pop("PYTEST_CURRENT_TEST", None)
    found.update((f"environment variable {name}", value) for name, value in environment.items())
    return found


_SIGNALS = sorted(signal.valid_signals() - {signal.SIGALRM})  # pytest-timeout sets that one for each test


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """What is another setting than before, for the message of a failed test."""
    if before == after:
        return []
    return [
        f"{name}: {before.get(name)!r} has become {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


# What pytest calls


class Guard:
    """The plugin."""

    def __init__(self, checkout: Path) -> None:
        self._inventory = Inventory(checkout)
        self._known: set[Thing] = set()
        self._made_by: dict[pytest.FixtureDef[Any], set[Thing]] = {}
        self._settings: dict[str, object] = {}
        self._failed: set[str] = set()
        self._undo = pytest.MonkeyPatch()
        self._watch_processes()
        self._watch_tasks()

    @contextlib.contextmanager
    def watching_temporary_files(self, folder: Path) -> Iterator[None]:
        """Let temporary files go into `folder`, which this process shares with nobody but its children."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(folder))
            patch.setenv("TMPDIR", str(folder))
            self._inventory.temporary_folder = str(folder)
            yield
            self._inventory.temporary_folder = None

    def pytest_sessionstart(self) -> None:
        with contextlib.suppress(ImportError):  # its C library makes a pipe once for the process
            import uvloop

            uvloop.new_event_loop().close()
        self._known = self._inventory.look()
        self._settings = settings()

    def pytest_unconfigure(self) -> None:
        self._undo.undo()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        before, settings_before = self._inventory.look(), settings()
        try:
            return (yield)
        finally:
            self._made_by[fixturedef] = self._inventory.look() - before
            after = settings().items()
            self._settings |= {name: it for name, it in after if settings_before.get(name) != it}

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        if self._made_by.pop(fixturedef, None) is not None:
            self._settings = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        try:
            return (yield)
        finally:
            self._check(item)

    def _check(self, item: pytest.Item) -> None:
        left = self._left()
        after = settings()
        changed = changes(self._settings, after) if self._settings else []
        self._settings = after
        if left and (mark := item.get_closest_marker("adds_to")) and self._adopt(left, str(mark.args[0])):
            left = set()
        if self._inventory.commands and not item.get_closest_marker("real"):
            changed.append(f"mark it `real`, because it starts a process: {self._inventory.commands[0]}")
        self._inventory.commands.clear()
        if left and item.nodeid not in self._failed:
            left = self._after_patience()
        self._known |= left  # so that no other test answers for it
        self._inventory.forget_tasks()
        # The traceback of a test that has failed holds all that the test had.
        if (left or changed) and item.nodeid not in self._failed:
            lines = sorted(map(describe, left)) + changed
            pytest.fail("It left something behind:\n  " + "\n  ".join(lines), pytrace=False)

    def _left(self) -> set[Thing]:
        return self._inventory.look().difference(self._known, *self._made_by.values())

    def _after_patience(self) -> set[Thing]:
        end = time.monotonic() + PATIENCE
        gc.collect()
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.01)
        return left

    def _adopt(self, things: set[Thing], name: str) -> bool:
        """They belong to the fixture called `name`, and must end with it; False if it is not in use."""
        for fixture, made in self._made_by.items():
            if fixture.argname == name:
                made |= things
                return True
        return False

    def _watch_processes(self) -> None:
        start, fork = subprocess.Popen.__init__, os.fork

        @functools.wraps(start)
        def noted_start(process: subprocess.Popen[Any], *args: Any, **options: Any) -> None:
            start(process, *args, **options)
            if process.args not in LOOK_UPS:
                self._inventory.started(process.pid, process.args)

        def noted_fork() -> int:
            pid = fork()
            if pid:
                self._inventory.started(pid, "fork")
            return pid

        self._undo.setattr(subprocess.Popen, "__init__", noted_start)
        self._undo.setattr(os, "fork", noted_fork)

    def _watch_tasks(self) -> None:
        close: Callable[[asyncio.Runner], None] = asyncio.Runner.close

        def noted_close(runner: asyncio.Runner) -> None:
            for task in unfinished(runner):
                self._inventory.abandoned(task)
            close(runner)

        self._undo.setattr(asyncio.Runner, "close", noted_close)


def unfinished(runner: asyncio.Runner) -> set[asyncio.Task[Any]]:
    """The tasks that would be cancelled because `runner` is closed: they had time to end, and have not."""
    try:
        loop = runner.get_loop()
    except RuntimeError:  # it is closed
        return set()
    for _ in range(TURNS):
        if not (tasks := asyncio.all_tasks(loop)):
            return set()
        loop.call_soon(loop.stop)
        loop.run_forever()
    return tasks
