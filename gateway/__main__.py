"""`python -m gateway` and the console script `webflow-gateway`.

The imports take half a second. In a container a SIGTERM would be lost meanwhile: the kernel does not deliver
a signal to process 1 without a handler. So the handler comes first, and `serve` and `dev` replace it by
their own once their event loop runs.
"""

# ruff: noqa: E402 - the handler comes before the imports
from __future__ import annotations

import os
import signal
import sys


def _stop(_number: int, _frame: object) -> None:
    """Nothing serves yet, so there is nothing to drain.

    An exception instead could get lost: imports run hundreds of weakref callbacks, and what is raised in one
    is printed and forgotten.
    """
    os._exit(0)


def _open_standard_files() -> None:
    """Give descriptors 0 to 2 a file where the caller has closed them.

    Otherwise a socket or the event loop gets that number, and what is written to stderr goes there. The file
    is opened the wrong way round, so that a write still fails, as to a closed descriptor.
    """
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number is this one


if sys.argv[1:2] in (["serve"], ["dev"]):
    signal.signal(signal.SIGTERM, _stop)
if sys.argv[1:2] == ["serve"]:
    for unused in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(unused, signal.SIG_IGN)  # no file has been read that could be read again
_open_standard_files()

from .cli.main import commands


def main() -> None:
    """Run the command that the command line names."""
    commands()


if __name__ == "__main__":
    main()
