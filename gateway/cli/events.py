"""The command events."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from ..config import Config
from ..messages import WEB_SOCKET_ID
from ..redis.url import redact
from ..telemetry import logs
from .errors import CommandFailed, UsageFailed
from .publish import REDIS_HELP, REDIS_SECONDS, limit_name_lookups, settings_with_redis, shown
from .runner import run
from .settings import settings_options

if TYPE_CHECKING:
    from ..publishing.events import Event

SHOWN_APART: Final = ("event", "webSocketId", "at")
"""Fields that stand before the others."""

_BARE: Final = re.compile(r"[^\s\"'\\]+")
"""A text that can stand in a line as it is, and is one field for everybody who reads it."""


@click.command(short_help="Print what happened to browsers.")
@click.argument("web_socket_id", metavar="ID", required=False)
@click.option("--follow", is_flag=True, help="Print what comes, too, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each event.")
@settings_options("redis_file", "redis", "channel_prefix", "event_streams", helps={"redis": REDIS_HELP})
def events(web_socket_id: str | None, follow: bool, as_json: bool, **_: object) -> None:
    """Print the events that Redis keeps, of ID or of all ids, the oldest first.

    Nodes write them with --events redis. Nobody else misses an event because of this command.
    """
    if web_socket_id is not None and not WEB_SOCKET_ID.fullmatch(web_socket_id):
        raise UsageFailed("ID must be 1 to 200 of A-Z a-z 0-9 . _ ~ -")
    config = settings_with_redis("events")
    with suppress(KeyboardInterrupt):
        run(_print(config, web_socket_id, follow=follow, as_json=as_json))


async def _print(config: Config, web_socket_id: str | None, *, follow: bool, as_json: bool) -> None:
    from ..publishing.event_history import EventHistory  # with redis-py, only for this command
    from ..redis.event_streams import event_streams, stream_of

    limit_name_lookups()
    streams = event_streams(config.channel_prefix, config.event_streams)
    if web_socket_id is not None:
        streams = (stream_of(web_socket_id.encode(), streams),)
    found = False
    async with EventHistory(config.redis, timeout=REDIS_SECONDS) as history:
        try:
            async for event in history.read(streams, follow=follow):
                if web_socket_id in (None, event.web_socket_id):
                    found = True
                    print_json(event) if as_json else print_line(event)
        except OSError as error:
            reason = str(error) or f"no answer in {REDIS_SECONDS:g} s"
            raise CommandFailed(f"Redis at {redact(config.redis)}: {reason}") from None
    if not found:
        click.echo("No events. Nodes write them with --events redis.", err=True)


def print_json(event: Event) -> None:
    others = {name: value for name, value in event.fields.items() if name != "id"}
    click.echo(logs.safe_json({"id": event.id, **others}).encode())


def print_line(event: Event) -> None:
    name = shown(event.web_socket_id)
    rest = " ".join(
        f"{_field(member)}={_field(value)}"
        for member, value in event.fields.items()
        if member not in SHOWN_APART and value
    )
    kind = _field(event.kind) if event.kind else "-"
    click.echo(f"{_time(event)}  {kind:<10}  {_field(name) if name else '-':<9}  {rest}")


def _field(text: str) -> str:
    """`text` in quotes, if it could be taken for more than one field; what is not printable is escaped."""
    return logs.visible(text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False))


def _time(event: Event) -> str:
    """When it happened, by the node's clock, as local time."""
    at = event.fields.get("at", "")
    milliseconds = int(at) if at.isdecimal() and len(at) <= len("1700000000000") else 0
    return f"{time.strftime('%H:%M:%S', time.localtime(milliseconds / 1000))}.{milliseconds % 1000:03}"
