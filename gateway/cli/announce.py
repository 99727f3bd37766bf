"""The command announce."""

from __future__ import annotations

import click

from ..config import Config
from ..errors import NotAnnounced, PublishError
from ..redis.url import redact
from .errors import CommandFailed, UsageFailed
from .publish import REDIS_HELP, REDIS_SECONDS, limit_name_lookups, settings_with_redis, shown
from .runner import run
from .settings import settings_options


@click.command(short_help="Let an id register at nodes that know ids.")
@click.argument("web_socket_id", metavar="ID")
@click.option(
    "--ttl",
    type=click.IntRange(1, 86_400),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long the id may register: as long as its operation may last. "
    "It does not prolong the time of an id that is known.",
)
@settings_options("redis_file", "redis", "channel_prefix", helps={"redis": REDIS_HELP})
def announce(web_socket_id: str, ttl: int, **_: object) -> None:
    """Let browsers register ID at nodes with --registration announced.

    An id that is announced already, or has a result, keeps the time that it has left. A retry is idempotent.
    A result that is retained later replaces the announcement and its time.

    Exit code 0: the id is known now. 1: Redis refused it, was not reached or did not answer. 2: wrong usage.
    """
    config = settings_with_redis("announce")
    if run(_announce(config, web_socket_id, ttl)):
        click.echo(f"{shown(web_socket_id)} may register for {ttl} s")
    else:
        click.echo(f"{shown(web_socket_id)} is known already; its announcement or result stays as it is")


async def _announce(config: Config, web_socket_id: str, ttl: int) -> bool:
    from ..publishing.publisher import Publisher  # with redis-py, only for this command

    limit_name_lookups()
    async with Publisher(config.redis, timeout=REDIS_SECONDS) as publisher:
        try:
            return await publisher.announce(web_socket_id, ttl=ttl, channel_prefix=config.channel_prefix)
        except PublishError as error:
            raise UsageFailed(str(error)) from None
        except NotAnnounced as error:
            raise CommandFailed(f"Redis at {redact(config.redis)}: {error}") from None
