"""The command canary."""

from __future__ import annotations

import re
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ..config import Config, normalise_origin
from ..errors import ConfigError
from ..telemetry import logs
from .errors import CommandFailed, UsageFailed
from .publish import REDIS_HELP, settings_with_redis
from .runner import run
from .settings import settings_options
from .watch import check_url

if TYPE_CHECKING:
    from ..canary.check import Check, Outcome
    from ..canary.report import Thresholds

ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z._-]*)):([0-9]{1,5})")

SECONDS = click.FloatRange(0.0, 86_400.0, min_open=True)


@click.command(short_help="Prove DNS, TLS, proxy, node and Redis in one go.")
@click.argument("url", metavar="URL")
@click.option("--origin", help="The page's origin. [default: the host of the URL]")
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="PEM file with the CAs to trust instead of the system's.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600.0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="For the whole check.",
)
@click.option(
    "--warning",
    type=SECONDS,
    metavar="SECONDS",
    help="Exit codes of Nagios: 1 if the check takes longer, 2 if it fails.",
)
@click.option(
    "--critical",
    type=SECONDS,
    metavar="SECONDS",
    help="Exit codes of Nagios: 2 if the check takes longer, or fails.",
)
@click.option(
    "--every",
    type=click.FloatRange(1.0, 86_400.0),
    metavar="SECONDS",
    help="Check again and again, until SIGTERM or Ctrl-C.",
)
@click.option(
    "--listen",
    metavar="[HOST]:PORT",
    help="With --every: serve metrics for Prometheus at /metrics; :9099 is port 9099 on every address.",
)
@settings_options("redis_file", "redis", "channel_prefix", helps={"redis": REDIS_HELP})
def canary(
    url: str,
    origin: str | None,
    ca_file: str | None,
    timeout: float,
    warning: float | None,
    critical: float | None,
    every: float | None,
    listen: str | None,
    **_: object,
) -> None:
    """Announce an id as a backend would, register it at URL (wss://bank.example/ws) as a browser would,
    publish a result, and measure until it is back.

    One line says how long each stage took, or which has failed and where to look: lookup (of the name), tcp,
    tls, upgrade (proxy, origin, node), announce (Redis), registration (node and Redis), publish, delivery.
    The webSocketId is random and begins with canary-; Redis retains its result for 30 s. The canary has no
    token, so no check succeeds with --registration signed alone.

    Exit code 0: the result came back. 1: a stage has failed. 2: wrong usage. With --warning or --critical
    the codes are those of Nagios: 0 OK, 1 WARNING (slow), 2 CRITICAL (too slow, or failed).

    With --every a line is printed when the state changes, and the exit code is 0.
    """
    from ..canary.check import Check  # with aiohttp and redis-py
    from ..canary.report import Thresholds

    check_url(url, "URL")
    try:
        origin = origin and normalise_origin(origin)
    except ValueError as error:
        raise UsageFailed(f"--origin: {error}") from None
    config = settings_with_redis("canary")
    check = Check(url, config.redis, config.channel_prefix, origin, ca_file, timeout)
    if warning is not None and critical is not None and warning > critical:
        raise UsageFailed("--warning must not be above --critical")
    thresholds = Thresholds(warning, critical)
    if every is None:
        if listen is not None:
            raise UsageFailed("--listen needs --every SECONDS")
        sys.exit(_check_once(check, thresholds))
    if thresholds.given:
        raise UsageFailed("--warning and --critical are for a single check: leave out --every")
    _check_again_and_again(check, config, every, listen)


def _check_once(check: Check, thresholds: Thresholds) -> int:
    from ..canary import check as engine
    from ..canary import report

    async def checked() -> Outcome:
        return await engine.run(check)

    outcome = run(checked())
    click.echo(report.line(outcome, thresholds))
    return thresholds.judge(outcome).exit_code


def _check_again_and_again(check: Check, config: Config, every: float, listen: str | None) -> None:
    from ..canary import check as engine
    from ..canary import service

    listeners = [] if listen is None else _listeners(listen, config.backlog)
    logs.configure("warning")

    async def checked() -> Outcome:
        nonlocal check
        # A password in the file may have been replaced. While the file is, the latest URL is as good.
        with suppress(ConfigError):
            check = replace(check, redis=config.reread().redis)
        return await engine.run(check)

    try:
        run(service.serve(checked, every, Changes(), config, listeners))
    finally:
        logs.flush(at_once=True)


def _listeners(listen: str, backlog: int) -> list[socket.socket]:
    """The sockets for the text of --listen; without a host, on every address."""
    from ..server.listeners import cannot_listen, open_sockets

    found = ADDRESS.fullmatch(listen)
    if found is None or int(found[3]) > 65_535:
        raise UsageFailed("--listen must be HOST:PORT, [IPv6]:PORT or :PORT, such as :9099")
    host, port = found[1] or found[2] or "::", int(found[3])
    try:
        (listeners,) = open_sockets((host,), port, backlog)
    except OSError as error:
        raise CommandFailed(f"--listen: {cannot_listen(error, (host,), port)}") from None
    return listeners


class Changes:
    """Prints a check's line when its state, or the stage that fails, is not that of the check before."""

    def __init__(self) -> None:
        self._last: object = object()

    def __call__(self, outcome: Outcome) -> None:
        from ..canary import report

        state = outcome.failure and outcome.failure.stage
        if state != self._last:
            click.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {report.line(outcome)}")
        self._last = state
