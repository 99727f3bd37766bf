"""`python -m gateway` and the console script `webflow-gateway`.

The imports take half a second. In a container a SIGTERM would be lost meanwhile: the kernel does not deliver
a signal to process 1 without a handler. So the handler comes first, and `serve` and `dev` replace it by
their own once their event loop runs.
"""

# ruff: noqa: E402 - the handler comes before the imports
from __future__ import annotations

import signal
import sys


def _stop(_number: int, _frame: object) -> None:
    """Nothing serves yet, so there is nothing to drain."""
    sys.exit(0)


if sys.argv[1:2] in (["serve"], ["dev"]):
    signal.signal(signal.SIGTERM, _stop)

from .cli.main import commands


def main() -> None:
    """Run the command that the command line names."""
    commands()


if __name__ == "__main__":
    main()
