"""Publishing a result from Python; `SCRIPT` does the same from any Redis client.

A plain `PUBLISH websocket:<id> CONFIRMED` reaches whoever is registered at that moment. With the script a
client that registers, or comes back, within `retain` seconds gets the result too.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable
from typing import NamedTuple, cast

import orjson
import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from .errors import PublishError
from .messages import AUTH_RESULT, MESSAGE_ID, NO_DATA, WEB_SOCKET_ID

SCRIPT = (
    "if ARGV[2] ~= '0' then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end "
    "return redis.call('PUBLISH', KEYS[1], ARGV[1])"
)
"""KEYS[1]: the channel, which is also the key of the retained result. ARGV[1]: the payload.
ARGV[2]: for how many seconds it is retained, 0 for not at all. Returns how many nodes hold the id.

One step of Redis: nobody can register between the two commands and miss the result."""

SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()  # by which EVALSHA knows it
RETAIN_SECONDS = 300
MAX_RETAIN_SECONDS = 86_400  # ids live for minutes; it catches milliseconds
MAX_SIZE = 65_536  # what a node forwards unless its max_result_size says otherwise


class Published(NamedTuple):
    """What became of a result: how many nodes held the id, whether Redis keeps it, and its messageId."""

    receivers: int
    retained: bool
    message_id: str


class _Call(NamedTuple):
    channel: str
    payload: bytes
    retain: int
    message_id: str


async def publish(
    client: redis.asyncio.Redis,
    web_socket_id: str,
    auth_result: str,
    *,
    data: object = NO_DATA,
    message_id: str | None = None,
    retain: int = RETAIN_SECONDS,
    channel_prefix: str = "websocket:",
    max_size: int = MAX_SIZE,
) -> Published:
    """Send `auth_result` to the browser that has registered `web_socket_id`, wherever it is.

    `data` is any JSON value for the page. `message_id` tells repetitions apart; a random one by default.
    `retain` is in seconds; 0 reaches only who is registered now. `channel_prefix` and `max_size` (bytes of
    the payload) are the nodes' settings channel_prefix and max_result_size.

    Raises PublishError, a ValueError, for what no node would forward, and what redis-py raises when Redis
    does not do it; then it is unknown whether the result went out, and publishing it again with the same
    `message_id` does no harm.
    """
    call = _call(web_socket_id, auth_result, data, message_id, retain, channel_prefix, max_size)
    try:
        # redis-py types the two clients' commands alike, so the await needs a cast.
        reply = client.evalsha(SHA, 1, call.channel, call.payload, call.retain)
        receivers = await cast("Awaitable[int]", reply)
    except NoScriptError:
        reply = client.eval(SCRIPT, 1, call.channel, call.payload, call.retain)
        receivers = await cast("Awaitable[int]", reply)
    return Published(receivers, call.retain > 0, call.message_id)


def publish_sync(
    client: redis.Redis,
    web_socket_id: str,
    auth_result: str,
    *,
    data: object = NO_DATA,
    message_id: str | None = None,
    retain: int = RETAIN_SECONDS,
    channel_prefix: str = "websocket:",
    max_size: int = MAX_SIZE,
) -> Published:
    """`publish` for code without asyncio."""
    call = _call(web_socket_id, auth_result, data, message_id, retain, channel_prefix, max_size)
    try:
        receivers = client.evalsha(SHA, 1, call.channel, call.payload, call.retain)
    except NoScriptError:
        receivers = client.eval(SCRIPT, 1, call.channel, call.payload, call.retain)
    return Published(cast("int", receivers), call.retain > 0, call.message_id)


def _call(
    web_socket_id: str,
    auth_result: str,
    data: object,
    message_id: str | None,
    retain: int,
    channel_prefix: str,
    max_size: int,
) -> _Call:
    message_id = uuid.uuid4().hex if message_id is None else message_id
    _check(web_socket_id, auth_result, message_id, retain)
    body: dict[str, object] = {"authResult": auth_result, "messageId": message_id}
    if data is not NO_DATA:
        body["data"] = data
    try:
        payload = orjson.dumps(body)
    except TypeError as error:
        raise PublishError(f"data has no form in JSON: {error}") from None
    if len(payload) > max_size:
        raise PublishError(f"the payload has {len(payload)} bytes; nodes forward at most {max_size}")
    return _Call(channel_prefix + web_socket_id, payload, retain, message_id)


def _check(web_socket_id: str, auth_result: str, message_id: str, retain: int) -> None:
    if not WEB_SOCKET_ID.fullmatch(web_socket_id):
        raise PublishError(f"the webSocketId has 1 to 200 of A-Z a-z 0-9 . _ ~ - and not {web_socket_id!r}")
    if not AUTH_RESULT.fullmatch(auth_result):
        raise PublishError(
            f"the authResult is a word such as CONFIRMED, of up to 64 of A-Z 0-9 _, and not {auth_result!r}"
        )
    if not MESSAGE_ID.fullmatch(message_id):
        raise PublishError(f"the messageId has 1 to 200 visible ASCII characters and not {message_id!r}")
    if not 0 <= retain <= MAX_RETAIN_SECONDS:
        raise PublishError(f"a result is retained for 0 to {MAX_RETAIN_SECONDS} seconds and not {retain}")
