"""Publishing a result from Python; `SCRIPT` does the same from any Redis client.

A plain `PUBLISH websocket:<id> CONFIRMED` reaches the clients that are registered at that moment. With the
script, a client that registers or comes back within `retain` seconds gets the result too.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple, TypedDict, Unpack, overload

import orjson
import redis
import redis.asyncio

from ..errors import PublishError
from ..messages import AUTH_RESULT, MESSAGE_ID, NO_DATA, TRACEPARENT, WEB_SOCKET_ID, parse_json
from ..redis.connection import Command
from . import redis_py

SCRIPT: Final = (
    "if ARGV[2] ~= '0' then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end "
    "return redis.call(ARGV[3] or 'PUBLISH', KEYS[1], ARGV[1])"
)
"""KEYS[1]: the channel, which is also the key of the retained result. ARGV[1]: the payload.
ARGV[2]: the seconds that it is retained, 0 for not at all. ARGV[3]: SPUBLISH in a Cluster, else omitted.
Returns the number of nodes that hold the id.

It is atomic: no client can register between the two commands and miss the result. It is always sent by EVAL:
EVALSHA would save Redis a hash of 150 bytes, and cost more code than the script has."""

RETAIN_SECONDS: Final = 300
MAX_RETAIN_SECONDS: Final = 86_400  # ids live for minutes; the limit catches a value in milliseconds
CHANNEL_PREFIX: Final = "websocket:"  # the nodes' default
MAX_SIZE: Final = 65_536  # what a node forwards by default, see its setting max_result_size

RESULT_FIELDS: Final = {
    "webSocketId": "web_socket_id",
    "authResult": "auth_result",
    "messageId": "message_id",
    "data": "data",
    "retain": "retain",
    "traceparent": "traceparent",
}
"""The members of a result as JSON, and their names in Python."""


class PublishOptions(TypedDict, total=False):
    """The optional parts of a result."""

    data: object
    """Any JSON value for the page."""
    message_id: str | None
    """Identifies the result, so that a retry is not delivered twice; random by default."""
    retain: int
    """Seconds; 0 reaches only the clients that are registered now.

    A retained result replaces an announcement of the id and its time. With `--registration announced`, give
    the time that the operation has left: afterwards the id is unknown. 0 leaves the announcement as it is.
    """
    channel_prefix: str
    """The nodes' setting channel_prefix."""
    max_size: int
    """Bytes of the payload: the nodes' setting max_result_size."""
    traceparent: str | None
    """The trace of the result (W3C Trace Context); by default that of OpenTelemetry's current span."""


class Published(NamedTuple):
    """A confirmed result: how many nodes held the id, whether Redis retains it, and its messageId."""

    receivers: int
    retained: bool
    message_id: str


class Outgoing(NamedTuple):
    """A valid result in the form that goes to Redis."""

    channel: str
    payload: bytes
    retain: int
    message_id: str

    def eval(self, command: str) -> Command:
        """The command that runs `SCRIPT`, to publish by `command`: PUBLISH or SPUBLISH."""
        publish: Command = ("EVAL", SCRIPT, 1, self.channel, self.payload, self.retain)
        return publish if command == "PUBLISH" else (*publish, command)

    def published(self, receivers: int) -> Published:
        return Published(receivers, self.retain > 0, self.message_id)


@overload
def publish(
    client: redis.Redis | redis.RedisCluster,
    web_socket_id: str,
    auth_result: str,
    **options: Unpack[PublishOptions],
) -> Published: ...


@overload
def publish(
    client: redis.asyncio.Redis | redis.asyncio.RedisCluster,
    web_socket_id: str,
    auth_result: str,
    **options: Unpack[PublishOptions],
) -> Coroutine[Any, Any, Published]: ...


def publish(
    client: redis.Redis | redis.RedisCluster | redis.asyncio.Redis | redis.asyncio.RedisCluster,
    web_socket_id: str,
    auth_result: str,
    **options: Unpack[PublishOptions],
) -> Published | Coroutine[Any, Any, Published]:
    """Send `auth_result` to the browser that has registered `web_socket_id`, whichever node it is on.

    `client` is redis-py's: plain, from its Sentinel's `master_for`, or a RedisCluster. With a client of
    redis.asyncio, await what this returns. `options`: `data`, `message_id`, `retain`, `channel_prefix`,
    `max_size` and `traceparent`, as `PublishOptions` describes them.

    Raises PublishError, a ValueError, for a result that no node would forward; NotPublished when Redis has
    refused it or could not be reached; Unconfirmed when it is unknown whether it was published. Their cause
    is redis-py's error. A retry with their `message_id` is harmless.
    """
    result = outgoing(web_socket_id, auth_result, **options)
    attempts = redis_py.Attempts(result.retain, result.message_id)
    if isinstance(client, (redis.asyncio.Redis, redis.asyncio.RedisCluster)):
        return _publish_async(client, result, attempts)
    if isinstance(client, redis.RedisCluster):
        command = result.eval("SPUBLISH")
        return result.published(redis_py.execute_in_cluster(client, result.channel, command, attempts))
    return result.published(redis_py.execute(client, result.eval("PUBLISH"), attempts))


async def _publish_async(
    client: redis.asyncio.Redis | redis.asyncio.RedisCluster, result: Outgoing, attempts: redis_py.Attempts
) -> Published:
    if isinstance(client, redis.asyncio.RedisCluster):
        command = result.eval("SPUBLISH")
        return result.published(
            await redis_py.execute_in_cluster_async(client, result.channel, command, attempts)
        )
    return result.published(await redis_py.execute_async(client, result.eval("PUBLISH"), attempts))


def outgoing(
    web_socket_id: str,
    auth_result: str,
    *,
    data: object = NO_DATA,
    message_id: str | None = None,
    retain: int = RETAIN_SECONDS,
    channel_prefix: str = CHANNEL_PREFIX,
    max_size: int = MAX_SIZE,
    traceparent: str | None = None,
) -> Outgoing:
    """The result in the form that goes to Redis. Raises PublishError if no node would forward it.

    It contains the time of publication, from which nodes compute their delivery latency.
    """
    message_id = uuid.uuid4().hex if message_id is None else message_id
    _check(web_socket_id, auth_result, message_id, retain)
    now = round(time.time() * 1000, 3)
    body: dict[str, object] = {"authResult": auth_result, "messageId": message_id, "publishedAt": now}
    if data is not NO_DATA:
        body["data"] = data
    trace = traceparent if is_trace(traceparent) else current_trace()
    if trace is not None:
        body["traceparent"] = trace
    payload = _written(body)
    if len(payload) > max_size:
        raise PublishError(f"the payload has {len(payload)} bytes; nodes forward at most {max_size}")
    return Outgoing(channel_prefix + web_socket_id, payload, retain, message_id)


def _written(body: dict[str, object]) -> bytes:
    """`body` as JSON in UTF-8. Half of a surrogate pair in it becomes U+FFFD. Raises PublishError."""
    try:
        return orjson.dumps(body)
    except TypeError as error:
        try:  # orjson refuses half of a pair, json escapes it
            return orjson.dumps(parse_json(json.dumps(body).encode()))
        except (TypeError, ValueError, RecursionError):
            raise PublishError(f"data cannot be written as JSON: {error}") from None


def from_json(item: object, channel_prefix: str, max_size: int) -> Outgoing:
    """The result that a JSON object describes, with the members of `RESULT_FIELDS`. Raises PublishError.

    An unknown member is an error: it may be a known one with a typing mistake.
    """
    if not isinstance(item, dict):
        raise PublishError("a result must be a JSON object with webSocketId and authResult")
    unknown = [name for name in item if name not in RESULT_FIELDS]
    if unknown:
        raise PublishError(f"unknown member {unknown[0][:40]!r}; use {', '.join(RESULT_FIELDS)}")
    missing = [name for name in ("webSocketId", "authResult") if name not in item]
    if missing:
        raise PublishError(f"{missing[0]} is missing")
    arguments: dict[str, Any] = {
        RESULT_FIELDS[name]: value for name, value in item.items() if name in RESULT_FIELDS
    }
    return outgoing(**arguments, channel_prefix=channel_prefix, max_size=max_size)


def is_trace(value: object) -> bool:
    """Whether `value` is a traceparent. Another is left out: the result matters more than its trace."""
    return isinstance(value, str) and TRACEPARENT.fullmatch(value) is not None


def current_trace() -> str | None:
    """OpenTelemetry's current span as a traceparent (W3C Trace Context, section 3.2); None without one.

    A program with a span has imported OpenTelemetry already; for others it need not be installed.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def check_id(web_socket_id: object) -> None:
    """Raises PublishError for what is no id. Takes any object: not every caller checks types."""
    if not (isinstance(web_socket_id, str) and WEB_SOCKET_ID.fullmatch(web_socket_id)):
        raise PublishError(
            f"webSocketId must have 1 to 200 of the characters A-Z a-z 0-9 . _ ~ -, not {web_socket_id!r:.80}"
        )


def _check(web_socket_id: object, auth_result: object, message_id: object, retain: object) -> None:
    """Raises PublishError. Takes any object, as `check_id`."""
    check_id(web_socket_id)
    if not (isinstance(auth_result, str) and AUTH_RESULT.fullmatch(auth_result)):
        raise PublishError(
            f"authResult must be a word such as CONFIRMED, 1 to 64 of A-Z 0-9 _, not {auth_result!r:.80}"
        )
    if not (isinstance(message_id, str) and MESSAGE_ID.fullmatch(message_id)):
        raise PublishError(f"messageId must have 1 to 200 visible ASCII characters, not {message_id!r:.80}")
    if type(retain) is not int or not 0 <= retain <= MAX_RETAIN_SECONDS:
        raise PublishError(f"retain must be 0 to {MAX_RETAIN_SECONDS} whole seconds, not {retain!r:.80}")
