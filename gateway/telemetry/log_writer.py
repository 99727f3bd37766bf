"""Write the log so that it never blocks, raises or ends anything.

A write can block (a full pipe that nobody reads, a disk that hangs) or fail (the reader of the pipe is gone,
the disk is full). So a thread writes, from a bounded queue. O_NONBLOCK would not do: it belongs to the open
file, which other processes share, it has no effect on a disk, and a container's user may not open its own
stderr anew. Lines that cannot be written are dropped and counted.
"""

from __future__ import annotations

import io
import os
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final

MAX_QUEUED: Final = 8 << 20
"""Bytes that wait for the thread: 20,000 lines, since a burst must arrive whole when the reader only is slow.
Further lines are dropped."""

MAX_WRITE: Final = select.PIPE_BUF
"""Bytes that one write joins. Workers share a pipe, and up to here the kernel never mixes their writes."""

END: Final = b""
"""In the queue, it ends the thread."""

MAX_PRINTED: Final = 64 << 10
"""Characters of a printed line; a longer one is cut into several."""

CLOSE_SECONDS: Final = 2.0
"""How long the end of the process waits for the queue to be written."""


class LogWriter:
    """Writes lines to a file descriptor, in a thread that is started with the first line.

    Any thread may write, and so may a finalizer or a signal handler amid a write: nothing here waits for a
    lock that its own thread holds.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.reset()

    def reset(self) -> None:
        """Forget what is queued, and the thread: in a child process, which has neither."""
        self.dropped = 0
        """Lines that were not written."""
        self.failing = False
        """Whether the latest write failed."""
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._queued = 0
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._starting = False
        self._torn = False  # a write failed in the middle of a line

    def write(self, text: str) -> None:
        """Write `text`, which consists of whole lines."""
        lines = text.encode(errors="backslashreplace")
        with self._lock:
            if self._queued + len(lines) > MAX_QUEUED or not self._started():
                self.dropped += lines.count(b"\n")
                return
            self._queued += len(lines)
        self._queue.put(lines)

    @property
    def crowded(self) -> bool:
        """Whether more than half of the queue is in use."""
        return self._queued > MAX_QUEUED // 2

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until all is written, for `seconds` at most. A later line starts another thread."""
        thread = self._thread
        if thread is not None:
            self._queue.put(END)
            thread.join(seconds)

    def _started(self) -> bool:
        """Whether a thread runs, or can be started."""
        if self._starting or self._thread is not None:
            return True
        # As a daemon it does not keep the process from ending while a write never returns.
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._starting = True  # a finalizer that writes meanwhile must not start a second one
        # A thread inherits this mask: signals are for the main thread.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        except RuntimeError:  # the system grants no thread now; it may for a later line
            self._thread = None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._starting = False
        return self._thread is not None

    def _run(self) -> None:
        held: bytes | None = None
        while True:
            lines = self._queue.get() if held is None else held
            if lines != END:
                lines, held = self._joined(lines)
                self._write_out(lines)
            elif self._ended():
                return
            else:
                held = None

    def _joined(self, lines: bytes) -> tuple[bytes, bytes | None]:
        """`lines` and what follows, as far as one write takes it; and what else was taken from the queue."""
        with suppress(Empty):
            while len(lines) < MAX_WRITE:
                more = self._queue.get_nowait()
                if more == END or len(lines) + len(more) > MAX_WRITE:
                    return lines, more
                lines += more
        return lines, None

    def _ended(self) -> bool:
        """Whether the thread may end: unless a line has come behind END."""
        with self._lock:
            if self._queued == 0:
                self._thread = None
            return self._thread is None

    def _write_out(self, lines: bytes) -> None:
        whole = b"\n" + lines if self._torn else lines
        left = memoryview(whole)
        try:
            while left:
                left = left[self._write(left) :]
        except OSError:
            written = len(whole) - len(left)
            self._torn = whole[written - 1 : written] != b"\n" if written else self._torn
            self._settle(len(lines), dropped=lines[-len(left) :].count(b"\n"))
        else:
            self._torn = False
            self._settle(len(lines))

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # another process has made the shared file non-blocking
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll()
            return 0

    def _settle(self, size: int, dropped: int = 0) -> None:
        with self._lock:
            self._queued -= size
            self.dropped += dropped
            self.failing = dropped > 0


class LogText(io.TextIOBase):
    """In the place of sys.stderr and sys.stdout: whatever is printed goes through the log's writer."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, write: Callable[[str], None], descriptor: int) -> None:
        """`write` takes whole lines; `descriptor` is for those who must have one, like faulthandler."""
        self._write = write
        self._descriptor = descriptor
        self._line = ""

    def write(self, text: str) -> int:
        """Write the lines that are complete. The rest waits for its end."""
        whole, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            self._write(whole + newline)
        if len(self._line) > MAX_PRINTED:
            self.write("\n")
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)
