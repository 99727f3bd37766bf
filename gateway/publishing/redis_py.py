"""One command over redis-py's clients, and what is known when it fails.

redis-py retries by itself and raises the error of the last attempt. An answer of Redis to that one does not
prove that an earlier attempt, whose connection was lost, was not executed. So on one server the connection is
watched for being replaced; in a Cluster each attempt is made alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, cast

import redis
import redis.asyncio
from redis import exceptions

from ..errors import NotPublished, Unconfirmed
from ..redis.connection import Command
from .refusals import is_refusal

LOST: Final = (exceptions.ConnectionError, exceptions.TimeoutError)
"""No answer, unless Redis's answer to the login is such an error too."""

RETRIED: Final = (*LOST, exceptions.ClusterDownError, exceptions.SlotNotCoveredError)
"""What redis-py's RedisCluster retries, after it has read the slots again."""

CONNECTING: Final = ("connect", "connect_check_health")
"""The methods of redis-py's connections that connect: what they raise has sent nothing."""


class Attempts:
    """What is known of the attempts to publish one result."""

    def __init__(self, retain: int, message_id: str) -> None:
        self._retain = retain
        self._message_id = message_id
        self._may_be_out = False
        """Whether an attempt was sent, and not answered."""

    def reconnected(self, _connection: object) -> None:
        """The connection was replaced after it was taken: redis-py has lost one, perhaps with an attempt."""
        self._may_be_out = True

    def failed(self, error: BaseException, *, sent: bool) -> None:
        """An attempt has failed; `sent` says whether its bytes may have reached Redis."""
        if (answer := redis_answer(error)) is not None:
            self._may_be_out |= not is_refusal(answer, self._retain)
        elif isinstance(error, LOST) and not isinstance(error, exceptions.MaxConnectionsError):
            self._may_be_out |= sent

    def outcome(self, error: BaseException) -> NotPublished | Unconfirmed:
        """What is known in the end; `error` is the last one."""
        kind = Unconfirmed if self._may_be_out else NotPublished
        return kind(redis_answer(error) or str(error) or type(error).__name__, self._message_id)

    @contextmanager
    def watching(self, connection: Any) -> Iterator[None]:
        """Whatever fails meanwhile was sent."""
        connection.register_connect_callback(self.reconnected)
        try:
            yield
        except redis.RedisError as error:
            self.failed(error, sent=True)
            raise
        finally:
            connection.deregister_connect_callback(self.reconnected)


def redis_answer(error: BaseException) -> str | None:
    """The text of an error that Redis has answered; None for an error of another kind.

    redis-py takes the known codes out of the texts.
    """
    code = getattr(error, "status_code", None)
    if code is None:
        return str(error) if isinstance(error, exceptions.ResponseError) else None
    return str(error) if str(error).startswith(code) else f"{code} {error}"


def execute(client: redis.Redis, command: Command, attempts: Attempts) -> int:
    """Redis's reply. Raises NotPublished and Unconfirmed."""
    try:
        # `client` takes a connection from the pool: what fails there has sent nothing. A client with a single
        # connection may have said something on it, AUTH perhaps.
        taken = client.client() if client.connection is None else nullcontext(client)  # type: ignore[no-untyped-call]
        with taken as alone, attempts.watching(alone.connection):
            return cast("int", alone.execute_command(*command))
    except redis.RedisError as error:
        raise attempts.outcome(error) from error


async def execute_async(client: redis.asyncio.Redis, command: Command, attempts: Attempts) -> int:
    """As `execute`."""
    try:
        if single := client.single_connection_client:
            await client.initialize()
        async with nullcontext(client) if single else client.client() as alone:
            with attempts.watching(alone.connection):
                return cast("int", await alone.execute_command(*command))  # type: ignore[no-untyped-call]
    except redis.RedisError as error:
        raise attempts.outcome(error) from error


def execute_in_cluster(client: redis.RedisCluster, key: str, command: Command, attempts: Attempts) -> int:
    """As `execute`, at the node of `key`. Retries as often as the client is set to."""
    for left in range(client.retry.get_retries(), -1, -1):
        try:
            node = client.get_node_from_key(key)  # type: ignore[no-untyped-call]
            return cast("int", client.execute_command(*command, target_nodes=node))  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            _end_attempt(error, attempts, left)
    raise AssertionError("the last attempt returns or raises")


async def execute_in_cluster_async(
    client: redis.asyncio.RedisCluster, key: str, command: Command, attempts: Attempts
) -> int:
    """As `execute_in_cluster`."""
    for left in range(client.retry.get_retries(), -1, -1):
        try:
            await client.initialize()  # reads the slots, if it has to
            node = client.get_node_from_key(key)
            return cast("int", await client.execute_command(*command, target_nodes=node))
        except redis.RedisError as error:
            _end_attempt(error, attempts, left)
    raise AssertionError("the last attempt returns or raises")


def _end_attempt(error: redis.RedisError, attempts: Attempts, left: int) -> None:
    """Note that an attempt in a Cluster has failed. Raises the outcome unless it is retried, `left` times."""
    attempt = _attempt(error)
    attempts.failed(attempt, sent=not _failed_to_connect(attempt))
    if not left or not isinstance(error, RETRIED):
        raise attempts.outcome(attempt) from error


def _attempt(error: redis.RedisError) -> BaseException:
    """The error of an attempt. If the slots cannot be read after it, redis-py raises that instead."""
    hides = isinstance(error, exceptions.RedisClusterException) and error.__context__ is not None
    return cast("BaseException", error.__context__) if hides else error


def _failed_to_connect(error: BaseException) -> bool:
    """Whether there was no connection to send on. The error does not say so, but where it was raised."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name in CONNECTING for frame, _ in frames)
