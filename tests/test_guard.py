"""tests.guard: each kind of thing that a test can leave behind fails that test, and no other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from .paths import ROOT

pytestmark = pytest.mark.real

CONFTEST = """
import pytest
from tests import guard

guard.PATIENCE = 0.2

def pytest_configure(config):
    config.addinivalue_line("markers", "adds_to(fixture): belongs to it")
    config.addinivalue_line("markers", "real: starts processes")
    config.guard = guard.Guard(config.rootpath)
    config.pluginmanager.register(config.guard)

@pytest.fixture(scope="session", autouse=True)
def temporary(request, tmp_path_factory):
    with request.config.guard.watching_temporary_files(tmp_path_factory.mktemp("t")):
        yield
"""

BEGINNING = """
import asyncio, gc, logging, os, signal, socket, subprocess, sys, tempfile, threading, time
import pytest, structlog

kept = []
over = threading.Event()

def child():
    kept.append(subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE))
    return kept[-1]

def thread():
    threading.Thread(target=over.wait, args=(20,), daemon=True).start()

async def task():
    kept.append(asyncio.create_task(asyncio.sleep(60), name="left over"))

async def cancelled():
    asyncio.create_task(asyncio.sleep(60)).cancel()

def cycle():
    one = [socket.socket()]
    one.append(one)
"""

LEAVING = {
    "thread": ("thread()", "thread: <Thread"),
    "process": ("child()", "process: "),
    "fork": ("os.fork() or os._exit(0)", "process: "),
    "socket": ("kept.append(socket.socket())", "descriptor: .*socket"),
    "open_file": ("kept.append(open(__file__))", "descriptor: .*test_inner.py"),
    "event_loop": ("kept.append(asyncio.new_event_loop())", "descriptor: .*eventpoll"),
    "task": ("asyncio.run(task())", "task: .*left over"),
    "temporary_file": ("open(tempfile.gettempdir() + '/x', 'w').close()", "temporary file: x"),
    "file": ("open('dump.rdb', 'w').close()", "file: .*dump.rdb"),
    "new_folder": ("os.mkdir('new'); open('new/dump', 'w').close()", "file: .*/new"),
    "file_in_folder": ("open('inside/new', 'w').close()", "file: .*inside/new"),
    "folder": ("os.chdir('/')", "working directory: '.*' has become '/'"),
    "variable": ("os.environ['LEFT'] = '1'", "environment variable LEFT: None has become '1'"),
    "handler": ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", f"handler of signal {signal.SIGUSR1:d}: "),
    "collector": ("gc.set_threshold(701, 10, 10)", "garbage collector: "),
    "level": ("logging.getLogger().setLevel(7)", "log level: "),
    "log_handler": ("logging.getLogger().addHandler(logging.NullHandler())", "log handlers: "),
    "structlog": ("structlog.configure(cache_logger_on_first_use=True)", "structlog: "),
    "processor": ("structlog.get_config()['processors'].append(print)", "structlog processors: "),
}

OTHERS = """
def test_a_quick_one_starts_no_process():
    subprocess.run([sys.executable, "-S", "-c", "pass"])

@pytest.mark.real
def test_a_real_one_may():
    subprocess.run([sys.executable, "-S", "-c", "pass"])

def test_a_source_is_somebody_at_work():
    open("new.py", "w").close()

def test_what_ends_soon_is_waited_for():
    threading.Timer(0.05, int).start()

def test_what_garbage_holds_is_no_leak():
    cycle()

def test_a_cancelled_task_may_have_its_turn():
    asyncio.run(cancelled())

def test_a_quick_test_starts_no_process(complaints: dict[str, list[str]]) -> None:
    (told,) = complaints["test_a_quick_one_starts_no_process"]
    assert "mark it `real`" in told


def test_a_test_that_has_failed_is_not_blamed_twice():
    thread()
    assert not kept

@pytest.fixture(scope="module")
def server():
    socket_ = socket.socket()
    yield [socket_]
    socket_.close()

@pytest.fixture(scope="module")
def forgetful():
    kept.append(socket.socket())

def test_a_fixture_keeps_what_it_has(server):
    pass

def test_others_may_not_add_to_it(server):
    server.append(socket.socket())

@pytest.mark.adds_to("server")
def test_others_may_add_to_it_if_they_say_so(server):
    kept.append(socket.socket())

def test_what_a_fixture_forgot_is_found_at_its_end(forgetful):
    pass
"""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What was said of each test of a run: nothing of those that passed."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "inside").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "conftest.py").write_text(CONFTEST)
    leaving = "".join(
        f"\ndef test_leaves_{name}():\n    {code}\n\ndef test_after_{name}():\n    pass\n"
        for name, (code, _) in LEAVING.items()
    )
    (folder / "test_inner.py").write_text(BEGINNING + leaving + OTHERS)
    command = [sys.executable, "-m", "pytest", "--junitxml=report.xml", "--basetemp=temporary"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        found.setdefault(str(case.get("name")), []).extend(str(told.text) for told in case)
    return found


@pytest.mark.parametrize("name", LEAVING)
def test_it_fails_the_test_and_not_the_next(complaints: dict[str, list[str]], name: str) -> None:
    (told,) = complaints[f"test_leaves_{name}"]
    assert re.search("(?s)left something behind:.*  " + LEAVING[name][1], told), told
    assert complaints[f"test_after_{name}"] == []


@pytest.mark.parametrize(
    "name",
    [
        "test_a_real_one_may",
        "test_a_source_is_somebody_at_work",
        "test_what_ends_soon_is_waited_for",
        "test_what_garbage_holds_is_no_leak",
        "test_a_cancelled_task_may_have_its_turn",
        "test_a_fixture_keeps_what_it_has",
        "test_others_may_add_to_it_if_they_say_so",
    ],
)
def test_it_says_nothing_of_what_does_not_stay(complaints: dict[str, list[str]], name: str) -> None:
    assert complaints[name] == []


def test_a_test_that_has_failed_is_not_blamed_twice(complaints: dict[str, list[str]]) -> None:
    (told,) = complaints["test_a_test_that_has_failed_is_not_blamed_twice"]
    assert "assert not kept" in told


def test_who_adds_to_a_fixture_says_so(complaints: dict[str, list[str]]) -> None:
    (told,) = complaints["test_others_may_not_add_to_it"]
    assert "socket" in told


def test_what_a_fixture_made_must_end_with_it(complaints: dict[str, list[str]]) -> None:
    """The last test of the module is told, of this socket and of one that a test added to another's."""
    (told,) = complaints["test_what_a_fixture_forgot_is_found_at_its_end"]
    assert told.count("socket") == 2


def test_the_run_was_complete(complaints: dict[str, list[str]]) -> None:
    assert len(complaints) == 2 * len(LEAVING) + OTHERS.count("def test_")
