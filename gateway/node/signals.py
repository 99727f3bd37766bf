"""What each signal means to a node. With several workers, the parent gets them.

SIGTERM     drain, then stop
SIGINT      stop without a delay
SIGHUP      read again the files that settings name
SIGUSR1, 2  nothing: other programs rotate logs by them, and unhandled they would end the process
SIGPIPE     nothing: Python ignores it, and a write fails instead
SIGQUIT     as everywhere, ends the process at once, with a core dump where that is allowed
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from ..config import Config
from ..errors import ConfigError
from ..redis.url import RedisURL, parse_redis_url

UNUSED_SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2)

log = structlog.get_logger()


class StopOrder(NamedTuple):
    """An order to drain and stop: seconds until the first session is closed, and from there to the last."""

    delay: float
    seconds: float


def stop_orders(config: Config) -> dict[signal.Signals, StopOrder]:
    """What each signal orders."""
    return {
        signal.SIGTERM: StopOrder(config.drain_delay, config.drain_seconds),
        signal.SIGINT: StopOrder(0, 0),
    }


def handle_stop_signals(config: Config, stop: Callable[[StopOrder], None]) -> None:
    """Have the running loop call `stop` at SIGTERM and SIGINT, and survive signals that mean nothing."""
    loop = asyncio.get_running_loop()
    for number, order in stop_orders(config).items():
        loop.add_signal_handler(number, stop, order)
    for number in UNUSED_SIGNALS:
        loop.add_signal_handler(number, _ignore, number)


def _ignore(number: signal.Signals) -> None:
    log.info(
        "signal ignored",
        signal=number.name,
        hint="the log goes to stderr; SIGHUP reads files again, SIGTERM stops the node",
    )


class Reread(NamedTuple):
    """What the files contain now that settings name."""

    config: Config
    redis: RedisURL | None
    """The URL of Redis, if new connections must be made as it says; None if there is nothing to change."""


def reread(config: Config) -> Reread | None:
    """`config` with what its files contain now; None, and an error in the log, if one cannot be used.

    A file of keys that cannot be used is an error in the log, and holds up no other secret.
    """
    try:
        found = config.reread()
    except ConfigError as error:
        log.error("files not read again", reason=str(error), hint="what they contained before stays in use")  # noqa: TRY400
        return None
    if problem := found.keys_problem():
        log.error(
            "files not read again",
            reason=problem,
            hint="its keys stay in use; the other files are read again",
        )
    log.info("files read again")
    if found.redis == config.redis:
        return Reread(found, None)
    url = parse_redis_url(found.redis)
    if url.place == parse_redis_url(config.redis).place:
        log.info("redis url changed", hint="new connections use it; those that are open stay")
        return Reread(found, url)
    log.warning(
        "redis url changed",
        hint="it leads to another Redis, which is used from the next start: restart the nodes one by one",
    )
    return Reread(found.model_copy(update={"redis": config.redis}), None)
