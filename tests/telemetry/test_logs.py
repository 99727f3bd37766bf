"""Logging: one line an event, whatever stands in it; bursts are folded and nothing is lost."""

from __future__ import annotations

import io
import json
import logging
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


def test_the_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    structlog.get_logger().info("listening")
    captured = capsys.readouterr()
    assert '"event":"listening"' in captured.err
    assert captured.out == ""


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
    if form == "json":
        assert json.loads(written)["origin"] == text
    else:
        assert written[:-1].isprintable()


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
