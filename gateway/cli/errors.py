"""How a command ends: exit codes, and the exceptions behind them.

0    success
1    the command failed (CommandFailed); canary: a stage failed, or with --warning: it took longer
2    wrong usage or wrong settings (UsageFailed); canary, with --warning or --critical: as Nagios has it
3    publish: no node holds the id, and the result is not retained
4    publish: Redis refused the result or was not reached, so nothing was published (PublishFailed);
     watch: the gateway rejects this client for good (WatchRejected)
5    serve: the node stopped as told, but a worker ended before it had closed its sessions
130  drill: interrupted by Ctrl-C
141  what reads the output is gone, as in `… | head -1`
"""

from __future__ import annotations

from typing import Final

import click

from ..telemetry.logs import visible

EXIT_NO_RECEIVERS: Final = 3
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""
EXIT_READER_GONE: Final = 141
"""128 + SIGPIPE, which ends other programs then. 1 would say that the command failed."""


class CommandFailed(click.ClickException):
    """The command failed: one message on stderr, exit code 1."""

    def format_message(self) -> str:
        """The message, which may quote what a server said, without control characters."""
        return "\n".join(map(visible, super().format_message().split("\n")))


class UsageFailed(CommandFailed):
    """What was asked for is not possible."""

    exit_code = 2


class PublishFailed(CommandFailed):
    """Nothing was published."""

    exit_code = 4


class WatchRejected(CommandFailed):
    """The gateway rejects `watch` for good."""

    exit_code = 4
