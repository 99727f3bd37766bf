"""The log's writer: real pipes and files, which are full, slow or closed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from gateway.telemetry.log_writer import MAX_PRINTED, MAX_QUEUED, MAX_WRITE, LogText, LogWriter

SECONDS = 10.0
LINE = "x" * 299

Pipe = tuple[IO[bytes], IO[bytes]]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """The two ends of a pipe, which the test may close."""
    ends = os.pipe()
    with open(ends[0], "rb", buffering=0) as reader, open(ends[1], "wb", buffering=0) as writer:  # noqa: PTH123
        yield reader, writer


@contextmanager
def writing_to(descriptor: int) -> Iterator[LogWriter]:
    writer = LogWriter(descriptor)
    try:
        yield writer
    finally:
        writer.close(SECONDS)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Reader:
    """Reads a pipe to its end."""

    def __init__(self, descriptor: int) -> None:
        self.read = b""
        self._descriptor = descriptor
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while data := os.read(self._descriptor, 65_536):
            self.read += data

    def lines(self) -> list[str]:
        """All lines, once the other end is closed."""
        self._thread.join(SECONDS)
        return self.read.decode().splitlines()


def test_a_burst_arrives_whole_and_in_order(pipe: Pipe) -> None:
    reader = Reader(pipe[0].fileno())
    with writing_to(pipe[1].fileno()) as writer:
        for number in range(10_000):
            writer.write(f"{number} {LINE}\n")
    pipe[1].close()
    assert [int(line.split()[0]) for line in reader.lines()] == list(range(10_000))
    assert writer.dropped == 0


def test_a_burst_waits_for_a_reader_that_is_late(pipe: Pipe) -> None:
    with writing_to(pipe[1].fileno()) as writer:
        for number in range(10_000):
            writer.write(f"{number} {LINE}\n")
        reader = Reader(pipe[0].fileno())
    pipe[1].close()
    assert len(reader.lines()) == 10_000
    assert writer.dropped == 0


def test_what_is_written_at_the_end_is_waited_for(pipe: Pipe) -> None:
    writer = LogWriter(pipe[1].fileno())
    writer.write("last\n")
    writer.close(SECONDS)
    assert os.read(pipe[0].fileno(), 100) == b"last\n"
    writer.write("a later one\n")
    writer.close(SECONDS)
    assert os.read(pipe[0].fileno(), 100) == b"a later one\n"
    writer.close(SECONDS)  # with nothing to do


def test_a_pipe_that_nobody_reads_blocks_nobody(pipe: Pipe) -> None:
    writer = LogWriter(pipe[1].fileno())
    lines = 2 * MAX_QUEUED // 1_000
    started = time.monotonic()
    for _ in range(lines):
        writer.write("x" * 999 + "\n")
    writer.close(0.01)
    assert time.monotonic() - started < SECONDS
    assert lines * 0.4 < writer.dropped < lines * 0.6, "the queue takes one half"
    assert writer.crowded
    assert not writer.failing, "it only waits"
    reader = Reader(pipe[0].fileno())
    until(lambda: not writer.crowded)
    writer.write("and on\n")
    writer.close(SECONDS)
    pipe[1].close()
    read = reader.lines()
    assert read[-1] == "and on"
    assert len(read) + writer.dropped == lines + 1


def test_a_reader_that_is_gone(pipe: Pipe) -> None:
    pipe[0].close()
    with writing_to(pipe[1].fileno()) as writer:
        writer.write("one\ntwo\n")
        until(lambda: writer.failing)
        writer.write("three\n")
    assert writer.dropped == 3


def test_a_disk_that_is_full() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with writing_to(full) as writer:
            writer.write("one\n")
            until(lambda: writer.failing)
        assert writer.dropped == 1
    finally:
        os.close(full)


def test_a_line_that_was_torn_is_ended_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk had room for a part of it."""
    target = tmp_path / "log"
    full = OSError(errno.ENOSPC, "full")
    outcomes: Iterator[int | OSError] = iter([3, full, full])
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        outcome = next(outcomes, None)
        if isinstance(outcome, OSError):
            raise outcome
        return real(descriptor, data[:outcome])

    with target.open("wb") as file:
        monkeypatch.setattr(os, "write", write)
        with writing_to(file.fileno()) as writer:
            writer.write("first\n")
            until(lambda: writer.dropped == 1)
            writer.write("second\n")
            until(lambda: writer.dropped == 2)
            writer.write("third\n")
        assert not writer.failing
    assert target.read_text() == "fir\nthird\n"


def test_a_pipe_that_somebody_has_made_non_blocking(pipe: Pipe) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETFL, os.O_NONBLOCK)
    writer = LogWriter(pipe[1].fileno())
    for _ in range(1_000):  # more than it holds
        writer.write(LINE + "\n")
    reader = Reader(pipe[0].fileno())
    writer.close(SECONDS)
    pipe[1].close()
    assert len(reader.lines()) == 1_000


def test_lines_of_several_writers_are_never_mixed(pipe: Pipe) -> None:
    """As workers share their parent's stderr: what is joined stays within what the kernel writes as one."""
    reader = Reader(pipe[0].fileno())
    with writing_to(pipe[1].fileno()) as one, writing_to(pipe[1].fileno()) as two:
        for _ in range(2_000):
            one.write("a" * 700 + "\n")
            two.write("b" * 900 + "\n")
    pipe[1].close()
    lines = reader.lines()
    assert set(lines) == {"a" * 700, "b" * 900}
    assert len(lines) == 4_000


def test_a_long_line_is_written_by_itself(pipe: Pipe) -> None:
    reader = Reader(pipe[0].fileno())
    long = "y" * (3 * MAX_WRITE)
    with writing_to(pipe[1].fileno()) as writer:
        for line in ("short", long, "short", long, long):
            writer.write(line + "\n")
    pipe[1].close()
    assert reader.lines() == ["short", long, "short", long, long]


def test_without_a_thread_lines_are_dropped(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with writing_to(pipe[1].fileno()) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            writer.write("lost\n")
        assert writer.dropped == 1
        writer.write("kept\n")
    assert os.read(pipe[0].fileno(), 100) == b"kept\n"


def test_who_writes_while_the_thread_starts_starts_no_other(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a finalizer may."""
    start = threading.Thread.start
    started = []

    with writing_to(pipe[1].fileno()) as writer:

        def finalize(thread: threading.Thread) -> None:
            started.append(thread)
            writer.write("from a finalizer\n")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", finalize)
        writer.write("first\n")
    assert len(started) == 1
    assert os.read(pipe[0].fileno(), 100) == b"from a finalizer\nfirst\n"


def test_the_thread_leaves_signals_to_the_main_thread(pipe: Pipe) -> None:
    with writing_to(pipe[1].fileno()) as writer:
        writer.write("line\n")
        thread = writer._thread
        assert thread is not None
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert blocked >> (signal.SIGTERM - 1) & 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.real
def test_a_child_writes_only_what_is_its_own(pipe: Pipe) -> None:
    writer = LogWriter(pipe[1].fileno())
    while not writer.crowded:  # more than the pipe holds, so that the thread is busy
        writer.write(LINE + "\n")
    pid = os.fork()
    if not pid:
        writer.reset()
        os._exit(0 if (writer.dropped, writer.crowded) == (0, False) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    reader = Reader(pipe[0].fileno())
    writer.close(SECONDS)
    pipe[1].close()
    assert set(reader.lines()) == {LINE}


def test_printed_lines_wait_for_their_end() -> None:
    written: list[str] = []
    text = LogText(written.append, 2)
    print("one", "two", file=text)
    print("not yet", end="", file=text, flush=True)
    assert written == ["one two\n"]
    print(" over\nnext", file=text)
    assert "".join(written[1:]) == "not yet over\nnext\n"
    text.write("z" * (MAX_PRINTED + 1))
    assert written[-1] == "z" * (MAX_PRINTED + 1) + "\n", "a line without an end fills no memory"
    assert text.writable()
    assert (text.fileno(), text.isatty()) == (2, os.isatty(2))
