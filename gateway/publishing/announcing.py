"""Announcing an id from Python; `SET websocket:<id> "" EX 600 NX` does the same from any Redis client.

With `--registration announced`, nodes register only ids that have a retained value. An announcement is an
empty one. The result that is retained for the id replaces it.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final, NamedTuple, NoReturn, TypedDict, Unpack, overload

import redis
import redis.asyncio

from ..errors import NotAnnounced, PublishError
from ..redis.connection import Command
from .api import CHANNEL_PREFIX, check_id
from .redis_py import redis_answer

ANNOUNCE_SECONDS: Final = 600
MAX_ANNOUNCE_SECONDS: Final = 86_400  # operations last for minutes; the limit catches a value in milliseconds

ANNOUNCEMENT_FIELDS: Final = {"webSocketId": "web_socket_id", "ttl": "ttl"}
"""The members of an announcement as JSON, and their names in Python."""


class AnnounceOptions(TypedDict, total=False):
    """The optional parts of an announcement."""

    ttl: int
    """Seconds in which the id may register: as long as its operation may last.

    An announcement does not prolong the time of an id that is known. A result that is retained later replaces
    it, and the id is known for as long as that result is retained.
    """
    channel_prefix: str
    """The nodes' setting channel_prefix."""


class Announcement(NamedTuple):
    """A valid announcement in the form that goes to Redis."""

    channel: str
    ttl: int

    @property
    def command(self) -> Command:
        """NX: a result that is retained already is never overwritten."""
        return ("SET", self.channel, b"", "EX", self.ttl, "NX")


Client = redis.Redis | redis.RedisCluster
AsyncClient = redis.asyncio.Redis | redis.asyncio.RedisCluster


@overload
def announce(client: Client, web_socket_id: str, **options: Unpack[AnnounceOptions]) -> bool: ...


@overload
def announce(
    client: AsyncClient, web_socket_id: str, **options: Unpack[AnnounceOptions]
) -> Coroutine[Any, Any, bool]: ...


def announce(
    client: Client | AsyncClient, web_socket_id: str, **options: Unpack[AnnounceOptions]
) -> bool | Coroutine[Any, Any, bool]:
    """Let browsers register `web_socket_id` for `ttl` seconds, at nodes with `--registration announced`.

    `client` is one that `publish` takes. With a client of redis.asyncio, await what this returns. `options`:
    `ttl` (600) and `channel_prefix`, as `AnnounceOptions` describes them.

    Returns whether the id is new. False: it has a retained value already, which stays as it is, with the time
    that it has left: announcing it again does not prolong that. It is an announcement (perhaps an earlier
    attempt of this one) or a result. A result that is retained later replaces the announcement, so from then
    on the id is known for `retain` seconds.

    Raises PublishError, a ValueError, for an id that no node would register, and NotAnnounced when Redis has
    refused it or has not answered. Its cause is redis-py's error. A retry is harmless.
    """
    wanted = announcement(web_socket_id, **options)
    if isinstance(client, (redis.asyncio.Redis, redis.asyncio.RedisCluster)):
        return _announce_async(client, wanted)
    try:
        return bool(client.set(wanted.channel, b"", ex=wanted.ttl, nx=True))
    except redis.RedisError as error:
        _raise(error)


async def _announce_async(client: AsyncClient, wanted: Announcement) -> bool:
    try:
        return bool(await client.set(wanted.channel, b"", ex=wanted.ttl, nx=True))
    except redis.RedisError as error:
        _raise(error)


def _raise(error: redis.RedisError) -> NoReturn:
    raise NotAnnounced(redis_answer(error) or str(error) or type(error).__name__) from error


def announcement(
    web_socket_id: str, *, ttl: int = ANNOUNCE_SECONDS, channel_prefix: str = CHANNEL_PREFIX
) -> Announcement:
    """The announcement in the form that goes to Redis. Raises PublishError for a wrong id or ttl."""
    check_id(web_socket_id)
    if type(ttl) is not int or not 1 <= ttl <= MAX_ANNOUNCE_SECONDS:
        raise PublishError(f"ttl must be 1 to {MAX_ANNOUNCE_SECONDS} whole seconds, not {ttl!r:.80}")
    return Announcement(channel_prefix + web_socket_id, ttl)


def from_json(item: object, channel_prefix: str) -> Announcement:
    """The announcement that a JSON object describes, with the members of `ANNOUNCEMENT_FIELDS`.

    Raises PublishError, also for an unknown member: it may be a known one with a typing mistake.
    """
    if not isinstance(item, dict):
        raise PublishError("an announcement must be a JSON object with webSocketId")
    unknown = [name for name in item if name not in ANNOUNCEMENT_FIELDS]
    if unknown:
        raise PublishError(f"unknown member {unknown[0][:40]!r}; use {', '.join(ANNOUNCEMENT_FIELDS)}")
    if "webSocketId" not in item:
        raise PublishError("webSocketId is missing")
    arguments: dict[str, Any] = {ANNOUNCEMENT_FIELDS[name]: value for name, value in item.items()}
    return announcement(**arguments, channel_prefix=channel_prefix)
