"""The command publish."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from typing import IO, TYPE_CHECKING, Final

import click

from ..config import EMBEDDED, Config
from ..errors import NotPublished, PublishError, Unconfirmed
from ..messages import NO_DATA, parse_json
from ..redis.url import redact
from ..telemetry import logs
from .errors import EXIT_NO_RECEIVERS, CommandFailed, PublishFailed, UsageFailed
from .runner import run
from .settings import read_settings, settings_options

if TYPE_CHECKING:
    from ..publishing.api import Published, PublishOptions

REDIS_SECONDS: Final = 3.0
"""Seconds for all that the command does with Redis."""

REDIS_HELP: Final = (
    "The Redis or Valkey server of the nodes: redis://…, rediss://…, unix://…, redis+sentinel://… or "
    "redis+cluster://…, in the same form as for serve."
)

WHOLE_ID: Final = 8
"""Characters; a longer id is cut where it is shown."""


@click.command(short_help="Send a result to a browser.")
@click.argument("web_socket_id", metavar="ID", required=False)
@click.argument("auth_result", metavar="RESULT", required=False)
@click.option("--data", metavar="JSON", help="Any JSON value, which the page receives with the result.")
@click.option(
    "--message-id", metavar="X", help="A retry with the same messageId is idempotent. [default: a random one]"
)
@click.option(
    "--retain",
    type=click.IntRange(0, 86_400),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long the result is retained for a browser that registers later; 0: not at all. It replaces the "
    "time of an announcement: with --registration announced, give the time that the operation has left.",
)
@click.option(
    "--from",
    "lines",
    type=click.File("rb"),
    metavar="FILE",
    help="Instead of ID and RESULT: a file, or - for standard input, with one JSON object a line, as "
    "POST /publish takes them. The outcome of each is printed as such a line.",
)
@settings_options("redis_file", "redis", "channel_prefix", "max_result_size", helps={"redis": REDIS_HELP})
def publish(
    web_socket_id: str | None,
    auth_result: str | None,
    data: str | None,
    message_id: str | None,
    retain: int,
    lines: IO[bytes] | None,
    **_: object,
) -> None:
    """Send RESULT (CONFIRMED, FAILED, …) to the browser that has registered ID.

    Exit code 0: a node held the id, or the result was retained. 1: Redis did not answer, so it is unknown
    whether the result was published: retry with the same --message-id. 2: wrong usage; nothing was
    published. 3: no node held the id, and the result was not retained. 4: Redis refused the result or was
    not reached; nothing was published. With --from, the code is the first of 1, 4, 2 and 3 that applies to
    any of the results, otherwise 0.
    """
    config = settings_with_redis("publish")
    if lines is not None:
        if web_socket_id is not None or data is not None or message_id is not None:
            raise UsageFailed("with --from, write ID, RESULT, data and messageId into the file")
        sys.exit(run(_publish_lines(config, lines, retain)))
    if web_socket_id is None or auth_result is None:
        raise UsageFailed("name the ID and the RESULT, or a file with --from")
    message_id = uuid.uuid4().hex if message_id is None else message_id
    options: PublishOptions = {
        "data": _json(data),
        "message_id": message_id,
        "retain": retain,
        "channel_prefix": config.channel_prefix,
        "max_size": config.max_result_size,
    }
    published = run(_publish(config, web_socket_id, auth_result, options))
    count = published.receivers
    held = "No node holds" if count == 0 else "1 node holds" if count == 1 else f"{count} nodes hold"
    kept = f"retained for {retain} s" if published.retained else "not retained"
    click.echo(f"{held} {shown(web_socket_id)}; the result is {kept} (messageId {message_id})")
    sys.exit(0 if count or published.retained else EXIT_NO_RECEIVERS)


def settings_with_redis(command: str) -> Config:
    """The settings of a `command` that needs a Redis that runs. Raises UsageFailed."""
    config = read_settings().config()
    if config.redis == EMBEDDED:
        raise UsageFailed(f"{command} needs the URL of a Redis that runs: --redis redis://HOST:PORT")
    return config


async def _publish(
    config: Config, web_socket_id: str, auth_result: str, options: PublishOptions
) -> Published:
    from ..publishing.publisher import Publisher  # with redis-py, only for this command

    limit_name_lookups()
    async with Publisher(config.redis, timeout=REDIS_SECONDS) as publisher:
        try:
            return await publisher.publish(web_socket_id, auth_result, **options)
        except PublishError as error:
            raise UsageFailed(str(error)) from None
        except NotPublished as error:
            raise PublishFailed(f"Redis at {redact(config.redis)}: {error}") from None
        except Unconfirmed as error:
            retry = f"--message-id {shlex.quote(error.message_id)}"
            raise CommandFailed(
                f"Redis at {redact(config.redis)}: {error.reason}; "
                f"it is unknown whether the result was published: retry with {retry}"
            ) from None


async def _publish_lines(config: Config, lines: IO[bytes], retain: int) -> int:
    """Publish the JSON object on each line as it comes; the exit code."""
    from ..publishing.publisher import Publisher, outcome_as_json

    limit_name_lookups()
    codes = {0}
    async with Publisher(config.redis, timeout=REDIS_SECONDS) as publisher:
        for line in filter(bytes.strip, lines):
            try:
                item = parse_json(line)
            except ValueError:
                item = None  # which the publisher rejects too
            if isinstance(item, dict):
                item = {"retain": retain, **item}
            (outcome,) = await publisher.send_json([item], config.channel_prefix, config.max_result_size)
            click.echo(logs.safe_json(outcome_as_json(item, outcome)).encode())
            match outcome:
                case PublishError():
                    codes.add(UsageFailed.exit_code)
                case NotPublished():
                    codes.add(PublishFailed.exit_code)
                case Unconfirmed():
                    codes.add(CommandFailed.exit_code)
                case _:
                    codes.add(0 if outcome.receivers or outcome.retained else EXIT_NO_RECEIVERS)
    return next(code for code in (1, PublishFailed.exit_code, 2, EXIT_NO_RECEIVERS, 0) if code in codes)


def shown(web_socket_id: str) -> str:
    """An id as the commands show it."""
    return web_socket_id if len(web_socket_id) <= WHOLE_ID else logs.short_id(web_socket_id)


def limit_name_lookups() -> None:
    """Ask the next name server after a second. The C library waits for 5 s; by then the command has ended."""
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")


def _json(text: str | None) -> object:
    if text is None:
        return NO_DATA
    try:
        return parse_json(text.encode())
    except ValueError as error:
        raise UsageFailed(f"--data is not JSON: {error}") from None
