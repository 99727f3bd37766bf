"""Logging: one line an event, whatever stands in it; bursts are folded and nothing is lost."""

from __future__ import annotations

import atexit
import faulthandler
import io
import json
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry import logs

from ..fakes import Clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_has_an_object_a_line(stream: io.StringIO) -> None:
    logs.configure("info", "json", "n1", stream=stream)
    structlog.get_logger().info("listening", port=8080)
    (line,) = parsed(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"level": "info", "event": "listening", "node": "n1", "port": 8080}


def test_less_severe_events_are_left_out(stream: io.StringIO) -> None:
    logs.configure("warning", "json", stream=stream)
    structlog.get_logger().info("no")
    structlog.get_logger().warning("yes")
    logging.getLogger("aiohttp.server").info("no")
    assert [line["event"] for line in parsed(stream)] == ["yes"]


def test_auto_is_json_unless_people_look_on(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    structlog.get_logger().info("machine")
    assert parsed(stream)[0]["event"] == "machine"
    terminal = Terminal()
    logs.configure(stream=terminal)
    structlog.get_logger().info("person")
    assert "\x1b[" in terminal.getvalue()


def test_the_stream_is_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    structlog.get_logger().info("listening")
    logs.close()
    captured = capfd.readouterr()
    assert '"event":"listening"' in captured.err
    assert captured.out == ""


def test_what_is_printed_goes_the_same_way(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    logs.configure("info", "json")
    logs.capture_output(stdout=True)
    try:
        print("a print\x1b[31m")
        sys.stderr.write("two\nlines\n")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("a warning", UserWarning, "file.py", 1)
    finally:
        logging.captureWarnings(False)
        atexit.unregister(logs._writer.close)
        logs.close()
    captured = capfd.readouterr()
    first, two, lines, warning = captured.err.splitlines()
    assert (first, two, lines) == ("a print\\x1b[31m", "two", "lines")
    assert "UserWarning: a warning" in json.loads(warning)["event"]
    assert captured.out == ""


def test_a_crash_report_gets_an_open_file_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(faulthandler, "is_enabled", lambda: False)
    monkeypatch.setattr(faulthandler, "enable", used.append)
    logs.protect_crash_reports()
    assert used == []
    monkeypatch.setattr(faulthandler, "is_enabled", lambda: True)
    logs.protect_crash_reports()
    (own,) = used
    assert not os.get_blocking(own)
    assert os.get_blocking(logs.STDERR)
    os.close(own)


def test_the_standard_librarys_loggers_go_the_same_way(stream: io.StringIO) -> None:
    logs.configure("info", "json", "n1", stream=stream)
    logging.getLogger("asyncio").error("%s failed", "it", exc_info=ValueError("why"))
    logging.getLogger("odd").log(35, "between the levels")
    first, second = parsed(stream)
    assert (first["event"], first["source"], first["level"]) == ("it failed", "asyncio", "error")
    assert first["exception"] == "ValueError: why"
    assert (second["level"], second["node"]) == ("warning", "n1")


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_keeps_its_traceback(stream: io.StringIO, form: Any) -> None:
    logs.configure("info", form, stream=stream)
    try:
        int("why\x1b[31m")
    except ValueError:
        structlog.get_logger().exception("unexpected")
    text = stream.getvalue()
    assert "Traceback" in text
    assert "ValueError: invalid literal" in text
    assert "\x1b" not in text


@given(text=st.text(), form=st.sampled_from(["json", "console"]))
def test_no_text_can_end_a_line_or_reach_the_terminal(text: str, form: Any) -> None:
    stream = io.StringIO()
    logs.configure("info", form, stream=stream)
    structlog.get_logger().info("refused", origin=text, more=[text])
    written = stream.getvalue()
    assert written.count("\n") == 1
    assert written[:-1].isprintable()
    if form == "json":
        assert json.loads(written)["origin"] == text


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "char",
    ["\x07", "\x7f", "\x85", "\x9b", "\xad", "\u061c", "\u200e", "\u2028", "\u2029", "\u202e", "\u2066",
     "\ufeff", "\udc9b", "\U000e0041"],
    ids=ascii,
)  # fmt: skip
def test_no_character_that_a_viewer_would_obey_is_written_as_itself(
    stream: io.StringIO, form: Any, char: str
) -> None:
    """Controls, separators of lines, direction marks, lone surrogates; in values, lists, names of fields."""
    logs.configure("info", form, stream=stream)
    structlog.get_logger().info(f"e{char}", value=f"v{char}", more=[f"m{char}"], **{f"k{char}": 1})
    structlog.get_logger().error("failed", exc_info=ValueError(char))
    written = stream.getvalue()
    assert char not in written
    assert written.replace("\n", "").isprintable()
    assert written.isascii() or form == "console"
    if form == "json":
        line = json.loads(written.splitlines()[0])
        assert (line["event"], line["value"], line["more"]) == (f"e{char}", f"v{char}", [f"m{char}"])
        assert line[f"k{char}"] == 1


def test_on_the_console_no_value_looks_like_a_member(stream: io.StringIO) -> None:
    logs.configure("info", "console", stream=stream)
    structlog.get_logger().info("refused", origin="x node=n2")
    assert "origin='x node=n2'" in stream.getvalue()


def test_a_long_text_is_cut(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    structlog.get_logger().info("refused", origin="x" * 10_000)
    assert len(parsed(stream)[0]["origin"]) == logs.MAX_TEXT + 1


def test_what_json_does_not_know_is_written_all_the_same(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    structlog.get_logger().info("odd", thing={1: object}, path="\udc80")
    assert parsed(stream)[0]["path"] == "\udc80"


def test_the_end_of_a_long_traceback_is_kept(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    structlog.get_logger().error("failed", exc_info=ValueError("x" * 100_000))
    (line,) = parsed(stream)
    assert len(line["exception"]) == logs.MAX_TRACEBACK + 1


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("form", ["json", "console"])
def test_nothing_that_is_logged_raises(stream: io.StringIO, form: Any) -> None:
    logs.configure("info", form, stream=stream)
    endless: list[Any] = []
    endless.append(endless)
    structlog.get_logger().info("one", value=Unprintable())
    structlog.get_logger().info("two", value=endless, more=2**70)
    logging.getLogger("asyncio").warning("%d of %d", "three")
    written = stream.getvalue().splitlines()
    assert [number in line for number, line in zip(("one", "two", "of"), written, strict=True)] == [True] * 3


def test_dropped_lines_are_reported_once_the_log_can_be_written_again(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = types.SimpleNamespace(dropped=0, failing=False, crowded=False)
    monkeypatch.setattr(logs, "_writer", writer)
    monkeypatch.setattr(logs, "_reported", 0)
    logs.configure("info", "json", stream=stream)
    logs.flush()
    writer.dropped, writer.failing = 7, True
    logs.flush()
    writer.failing, writer.crowded = False, True
    logs.flush()
    assert stream.getvalue() == ""
    writer.crowded = False
    logs.flush()
    logs.flush()
    (line,) = parsed(stream)
    assert (line["event"], line["count"], line["total"]) == ("log lines dropped", 7, 7)
    assert logs.dropped() == 7
    writer.dropped = 9
    logs.flush()
    assert parsed(stream)[1]["count"] == 2


@pytest.mark.real
def test_a_child_reports_only_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_reported", 5)
    monkeypatch.setattr(logs._writer, "dropped", 5)
    pid = os.fork()
    if not pid:
        os._exit(logs._reported + logs.dropped())
    assert os.waitpid(pid, 0)[1] == 0


def test_other_threads_may_log_while_bursts_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are sent in a thread, for example."""
    folding = logs.Folding(clock := Clock())

    class Window(logs._Window):
        """Another thread has its turn whenever this one looks at a burst."""

        @property
        def start(self) -> float:
            if others:
                passes(folding, kind=others.pop())
            return 0.0

        @start.setter
        def start(self, value: float) -> None: ...

    others: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(logs, "_Window", Window)
        for kind in range(20):
            passes(folding, kind=kind)
            folding._windows["warning", "bad", kind, None].folded = 1
    clock.now = 1
    others += range(100, 120)
    assert len(folding.due()) == 20


def passes(folding: logs.Folding, **event: object) -> dict[str, Any] | None:
    try:
        return dict(folding(None, "warning", {"event": "bad", **event}))
    except structlog.DropEvent:
        return None


def test_a_burst_of_a_kind_passes_once_a_second_and_is_counted() -> None:
    folding = logs.Folding(clock := Clock())
    assert passes(folding, kind="x", n=1) == {"event": "bad", "kind": "x", "n": 1}
    assert [passes(folding, kind="x", n=n) for n in (2, 3, 4)] == [None] * 3
    assert passes(folding, kind="y", n=1) is not None
    clock.now += 1
    assert passes(folding, kind="x", n=5) == {"event": "bad", "kind": "x", "n": 5, "folded": 3}
    clock.now += 1
    assert passes(folding, kind="x", n=6) == {"event": "bad", "kind": "x", "n": 6}


def test_events_of_the_nodes_own_pass_ten_times() -> None:
    folding = logs.Folding(Clock())
    assert [passes(folding) is not None for _ in range(12)] == [True] * 10 + [False] * 2


def test_what_a_burst_left_untold_is_due_when_its_second_is_over() -> None:
    folding = logs.Folding(clock := Clock())
    for n in range(4):
        passes(folding, kind="x", n=n)
    assert folding.due() == []
    clock.now += 1
    # The line itself is one of the three that were left out.
    assert folding.due() == [("warning", {"event": "bad", "kind": "x", "n": 3, "folded": 2})]
    assert folding.due() == []


@given(st.lists(st.sampled_from(["log", "wait", "flush"])))
def test_lines_and_folded_add_up_to_what_happened(steps: list[str]) -> None:
    folding = logs.Folding(clock := Clock())
    happened = told = 0
    for step in [*steps, "stop"]:
        if step == "wait":
            clock.now += 0.4
        elif step == "log":
            happened += 1
            line = passes(folding, kind="x")
            told += 0 if line is None else 1 + line.get("folded", 0)
        else:
            told += sum(1 + line.get("folded", 0) for _, line in folding.due(at_once=step == "stop"))
    assert told == happened


def test_kinds_without_end_do_not_fill_the_memory() -> None:
    folding = logs.Folding(Clock())
    for n in range(logs.MAX_WINDOWS * 2):
        passes(folding, kind=n)
    assert len(folding._windows) <= logs.MAX_WINDOWS


def test_flush_writes_what_is_due(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    for n in range(3):
        structlog.get_logger().warning("bad", kind="x", n=n)
    logs.flush()
    assert len(parsed(stream)) == 1
    logs.flush(at_once=True)
    assert parsed(stream)[-1].items() >= {"event": "bad", "n": 2, "folded": 1}.items()


def test_debug_lines_are_never_folded(stream: io.StringIO) -> None:
    logs.configure("debug", "json", stream=stream)
    assert logs.debugging
    for n in range(50):
        structlog.get_logger().debug("result", kind="x", n=n)
    assert [line["n"] for line in parsed(stream)] == list(range(50))
    logs.configure("info", "json", stream=stream)
    assert not logs.debugging


def test_audit_lines_are_never_folded(stream: io.StringIO) -> None:
    logs.configure(form="json", stream=stream)
    for number in range(50):
        structlog.get_logger().info("result posted", audit=True, number=number)
    assert [json.loads(line)["number"] for line in stream.getvalue().splitlines()] == [*range(50)]


def test_an_id_is_told_in_part() -> None:
    assert logs.short_id("0123456789abcdef") == "01234567…"
    assert logs.short_id("abcdef") == "abc…"
