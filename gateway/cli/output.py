"""What commands print, whoever reads it: a terminal with few characters, nobody any more, a full disk."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from .errors import EXIT_READER_GONE, CommandFailed

STDOUT: Final = 1

CANNOT_WRITE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Commands(click.Group):
    """The group of all commands. They print by click.echo and need not care what becomes of it."""

    def main(self, *args: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # none, if the caller has closed it
                stream.reconfigure(errors="backslashreplace")  # Latin-1 lacks most characters
        return super().main(*args, **options)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _output_may_end():  # --help prints
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _output_may_end():
            return super().invoke(ctx)


@contextmanager
def _output_may_end() -> Iterator[None]:
    """End the command quietly if nobody reads what it prints, as other programs do: `… | head -1`."""
    try:
        yield
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # Python flushes what is left in its buffers at its end, and would complain.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, STDOUT)
        os.close(nowhere)
        sys.exit(EXIT_READER_GONE)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise CommandFailed(f"the output cannot be written: {error.strerror}") from None


def _reader_is_gone() -> bool:
    """Whether it was stdout that broke, and no connection."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
