"""Logging: one line for each event on stderr, for people or for machines.

    log = structlog.get_logger()
    log.warning("redis connection lost", reason="no answer for 5 s")

An event is a short stable phrase, its facts are fields. Text from clients and publishers is cut, cannot end
the line, and cannot reach a terminal or a viewer as control characters. A webSocketId is a secret of its
browser: log `short_id` of it.

Logging never blocks and never raises: `log_writer` has the thread that writes, and drops what it cannot.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import logging
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final, Literal, TextIO

import orjson
import structlog

from .log_writer import LogText, LogWriter

LogEvent = MutableMapping[str, Any]

STDERR: Final = 2
MAX_TEXT = 500  # characters of one value; clients choose some values
MAX_TRACEBACK = 20_000  # characters; the end says most
WINDOW_SECONDS = 1.0
LINES_PER_WINDOW = {True: 1, False: 10}  # with a `kind`, which clients can cause at will, and without
MAX_WINDOWS = 1_000  # far more than there are events in the code: a limit for mistakes

DROPPED_HINT: Final = "is the disk full, or has what reads this log stopped?"


class Folding:
    """A processor that folds bursts: lines that repeat within a second are counted instead of logged.

    Two lines are the same if level, event, `kind` and `code` are. An event with a `kind` is caused by clients
    or publishers and passes once a second; any other passes ten times. The next line that passes has
    `folded`, the number of lines left out since the last one; `flush` logs the last line left out if no other
    follows. So the lines and all their `folded` add up. Debug lines always pass: they serve to follow one
    session. So do lines with `audit`: each must be there.

    `now` returns seconds on a clock that only goes forward.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._windows: dict[tuple[object, ...], _Window] = {}

    def __call__(self, _logger: object, method: str, event: LogEvent) -> LogEvent:
        if method == "debug" or "audit" in event:
            return event
        key = (method, event.get("event"), event.get("kind"), event.get("code"))
        now = self._now()
        window = self._windows.get(key)
        if window is None or now - window.start >= WINDOW_SECONDS:
            folded = window.folded if window else 0
            if len(self._windows) >= MAX_WINDOWS:
                self._windows.clear()
            window = self._windows[key] = _Window(now)
            if folded:
                event["folded"] = folded
        window.seen += 1
        if window.seen <= LINES_PER_WINDOW["kind" in event]:
            return event
        window.folded += 1
        window.last = dict(event)
        raise structlog.DropEvent

    def due(self, *, at_once: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """The level and fields of a line for each burst whose second is over, or for all bursts `at_once`."""
        now = self._now()
        windows = list(self._windows.items())  # other threads log too
        over = [key for key, window in windows if at_once or now - window.start >= WINDOW_SECONDS]
        ended = [(str(key[0]), self._windows.pop(key, None)) for key in over]
        return [(method, window.folded_line()) for method, window in ended if window and window.folded]


class _Window:
    __slots__ = ("folded", "last", "seen", "start")

    def __init__(self, start: float) -> None:
        self.start = start
        self.seen = 0
        self.folded = 0
        self.last: dict[str, Any] = {}

    def folded_line(self) -> dict[str, Any]:
        # The line that is logged stands for one of them.
        return {**self.last, "folded": self.folded - 1} if self.folded > 1 else self.last


class _FromStandardLibrary(logging.Handler):
    """Passes what aiohttp, asyncio and redis-py log to the same processors."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno // 10 * 10, logging.CRITICAL) or logging.DEBUG  # structlog knows no others
        error = record.exc_info if record.exc_info and record.exc_info[0] else None
        try:
            message = record.getMessage()
        except Exception:  # its arguments do not fit; whoever logs must not fail for it
            message = str(record.msg)
        structlog.get_logger(source=record.name).log(level, message, exc_info=error)


class _LineLogger:
    """What structlog calls with each rendered line."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def msg(self, line: str) -> None:
        self._write(line + "\n")

    debug = info = warning = error = critical = exception = msg


class _Rendering:
    """A processor that turns an event into its line, whatever the event contains."""

    def __init__(self, *stages: structlog.typing.Processor) -> None:
        self._stages = stages

    def __call__(self, logger: Any, method: str, event: Any) -> str:
        name = event.get("event")
        try:
            for stage in self._stages:
                event = stage(logger, method, event)
        except Exception as error:  # a value whose repr() fails, or that contains itself
            return safe_json({"level": method, "event": repr(name), "unprintable": type(error).__name__})
        return str(event)


_folding = Folding()
_writer = LogWriter(STDERR)
_reported = 0  # dropped lines that the log tells of


def _start_anew() -> None:
    """In a child process: what is queued is its parent's to write."""
    global _reported
    _writer.reset()
    _reported = 0


os.register_at_fork(after_in_child=_start_anew)

debugging = False
"""Whether debug lines are logged. Check it where a line would be made for each session or result: structlog
needs some microseconds to check by itself."""


def configure(
    level: str = "info",
    form: Literal["auto", "console", "json"] = "auto",
    node: str = "",
    worker: int = 0,
    *,
    stream: TextIO | None = None,
) -> None:
    """Send every event of `level` and above to stderr, or at once to `stream`.

    Each line has `node` and `worker`, if they are given. `form` is the setting log_format. Call it again when
    the node's name is known.
    """
    global _folding, debugging
    _folding = Folding()
    terminal = stream.isatty() if stream else os.isatty(STDERR)
    console = form == "console" or (form == "auto" and terminal)
    least = getattr(logging, level.upper())
    debugging = least <= logging.DEBUG
    line_logger = _LineLogger(stream.write if stream else _writer.write)
    structlog.configure(
        processors=[
            _folding,
            _Rendering(
                _members(node, worker),
                structlog.processors.format_exc_info,
                _cut,
                *(_console(colours=terminal) if console else [_json]),
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: line_logger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_FromStandardLibrary()]
    root.setLevel(least)


def capture_output(*, stdout: bool) -> None:
    """Let what this process prints, and Python's warnings, go the way of the log: it cannot block either.

    That is what libraries print, and what Python prints of an exception that nobody handles. Without
    `stdout`, only stderr.
    """
    text = LogText(lambda lines: _writer.write("\n".join(map(visible, lines.split("\n")))), STDERR)
    sys.stderr = text
    if stdout:
        sys.stdout = text
    logging.captureWarnings(True)
    atexit.register(_writer.close)


def protect_crash_reports() -> None:
    """Keep faulthandler, where somebody has enabled it, from blocking a process that crashes.

    It writes amid the crash, so not by way of the thread. Its own open file may be non-blocking without harm
    to the processes that share stderr. Call it again when descriptors have been closed.
    """
    if faulthandler.is_enabled():
        with suppress(OSError):  # a socket, a system without /proc, or another user's pipe
            own = os.open(f"/proc/self/fd/{STDERR}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            faulthandler.enable(own)


def flush(*, at_once: bool = False) -> None:
    """Log the lines that `Folding` has left out: called about once a second, and `at_once` at the end."""
    global _reported
    for method, event in _folding.due(at_once=at_once):
        getattr(structlog.get_logger(), method)(**event)
    dropped = _writer.dropped
    if dropped != _reported and not (_writer.failing or _writer.crowded):
        count, _reported = dropped - _reported, dropped
        structlog.get_logger().warning("log lines dropped", count=count, total=dropped, hint=DROPPED_HINT)


def close() -> None:
    """Log what is left, and wait a moment until it is written: at the end of the process."""
    flush(at_once=True)
    _writer.close()


def dropped() -> int:
    """Lines of this process that could not be written."""
    return _writer.dropped


def short_id(web_socket_id: str) -> str:
    """The first 8 characters of an id, at most half of it: enough to find it, too few to register it."""
    return web_socket_id[: min(8, len(web_socket_id) // 2)] + "…"


def _members(node: str, worker: int) -> Callable[[object, str, LogEvent], LogEvent]:
    """A processor that puts the fields of every line first."""
    fixed: dict[str, object] = {"node": node} if node else {}
    if worker:
        fixed["worker"] = worker

    def put(_logger: object, method: str, event: LogEvent) -> LogEvent:
        now = time.time()
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        level = "error" if method == "exception" else method
        head = {
            "timestamp": f"{seconds}.{int(now % 1 * 1000):03d}Z",
            "level": level,
            "event": event.pop("event"),
        }
        return {**head, **fixed, **event}

    return put


def _cut(_logger: object, _method: str, event: LogEvent) -> LogEvent:
    for key, value in event.items():
        if not isinstance(value, str):
            continue
        if key == "exception":
            if len(value) > MAX_TRACEBACK:
                event[key] = "…" + value[-MAX_TRACEBACK:]
        elif len(value) > MAX_TEXT:
            event[key] = value[:MAX_TEXT] + "…"
    return event


def _json(_logger: object, _method: str, event: LogEvent) -> str:
    return safe_json(event)


def safe_json(body: object) -> str:
    """`body` as JSON on one line, with every character that is not printable escaped.

    JSON itself lets DEL, the C1 controls, U+2028 and the marks that turn the direction of text pass.
    """
    try:
        text = orjson.dumps(body, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # a lone surrogate, from a path that is not UTF-8; an integer of more than 64 bits
        text = json.dumps(body, default=repr)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _console(*, colours: bool) -> list[structlog.typing.Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colours, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )
    return [_escape, renderer]


def _escape(_logger: object, _method: str, event: LogEvent) -> LogEvent:
    escaped: dict[str, Any] = {}
    for key, value in event.items():
        if key == "exception":
            value = "\n".join(map(visible, value.split("\n")))
        elif not isinstance(value, (int, float)):
            # The renderer quotes values with spaces, so that none looks like further fields.
            value = visible(value if isinstance(value, str) else repr(value))
        escaped[visible(str(key))] = value
    return escaped


def visible(text: str) -> str:
    """`text` with every control, format and unassigned character as its escape sequence."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
