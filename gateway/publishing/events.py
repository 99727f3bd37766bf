"""Reading events from Python, as a member of a consumer group, with redis-py's clients.

Several consumers of one group share the events. Redis remembers what each has been given and has not
acknowledged: a consumer that comes back begins with that, and others claim it when it stays away. So each
event is handled at least once.

The conversation with Redis is one generator, `_Reader.steps`, for sync and async clients.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypedDict, Unpack, overload

import redis
import redis.asyncio

from ..redis.connection import Command
from ..redis.event_streams import event_streams

BATCH: Final = 20
"""Events that a consumer is given at once. Those that it has not come to yet are claimed by others when it
takes longer than `claim_after` for all of them."""

BLOCK: Final = 1.0
"""Seconds that Redis waits for an event, below every client's socket timeout."""

CLAIM_AFTER: Final = 60.0

log = logging.getLogger(__name__)


class ReadOptions(TypedDict, total=False):
    """The optional parts of `events`."""

    channel_prefix: str
    """The nodes' setting channel_prefix."""
    streams: int
    """The nodes' setting event_streams."""
    start: str
    """Where a new group begins: 0, with the oldest event that is kept, or $, with the next one."""
    claim_after: float
    """Seconds after which an event that another consumer has been given, and has not acknowledged, is taken
    over. A consumer must handle a batch of 20 in less."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: docs/events.md describes the kinds and their fields."""

    stream: str
    id: str
    """The entry's id in its stream."""
    fields: Mapping[str, str]

    @property
    def kind(self) -> str:
        """registered, refused, delivered or closed; later versions have more."""
        return self.fields.get("event", "")

    @property
    def web_socket_id(self) -> str:
        return self.fields.get("webSocketId", "")

    @property
    def session(self) -> str:
        """One connection of a browser. No two have the same, on whichever nodes."""
        return self.fields.get("session", "")


@overload
def events(
    client: redis.Redis | redis.RedisCluster, group: str, consumer: str, **options: Unpack[ReadOptions]
) -> Iterator[Event]: ...


@overload
def events(
    client: redis.asyncio.Redis | redis.asyncio.RedisCluster,
    group: str,
    consumer: str,
    **options: Unpack[ReadOptions],
) -> AsyncIterator[Event]: ...


def events(
    client: redis.Redis | redis.RedisCluster | redis.asyncio.Redis | redis.asyncio.RedisCluster,
    group: str,
    consumer: str,
    **options: Unpack[ReadOptions],
) -> Iterator[Event] | AsyncIterator[Event]:
    """The events of all nodes, for ever: `for event in events(client, "anti-fraud", "server-1")`.

    With a client of redis.asyncio, use `async for`. The group is made if there is none; all its consumers
    share the events, and each needs a name of its own that it keeps. An event is acknowledged when the loop
    goes on to the next one. If the loop is left before, the event comes again. `options`: `channel_prefix`,
    `streams`, `start` and `claim_after`, as `ReadOptions` describes them.

    Raises `redis.RedisError` or, for a Cluster, `redis.exceptions.RedisClusterException` while Redis is away:
    call it again. Raises ValueError for a name that is empty. Logs a warning, once, if an event that a
    consumer was given was trimmed before it was handled.
    """
    if not group or not consumer:
        raise ValueError("group and consumer need names")
    reader = _Reader(
        group,
        consumer,
        event_streams(options.get("channel_prefix", "websocket:"), options.get("streams", 1)),
        options.get("start", "0"),
        options.get("claim_after", CLAIM_AFTER),
        apart=isinstance(client, (redis.RedisCluster, redis.asyncio.RedisCluster)),
        clock=time.monotonic,
    )
    if isinstance(client, (redis.asyncio.Redis, redis.asyncio.RedisCluster)):
        return _run_async(client, reader)
    return _run(client, reader)


def _run(client: redis.Redis | redis.RedisCluster, reader: _Reader) -> Iterator[Event]:
    steps = reader.steps()
    step = next(steps)
    while True:
        if isinstance(step, Event):
            yield step
            step = next(steps)
            continue
        try:
            where = _target(client, step.stream) if isinstance(client, redis.RedisCluster) else {}
            reply = client.execute_command(*step.command, **where)  # type: ignore[no-untyped-call]
        except redis.ResponseError as error:
            step = steps.throw(error)
        else:
            step = steps.send(reply)


async def _run_async(
    client: redis.asyncio.Redis | redis.asyncio.RedisCluster, reader: _Reader
) -> AsyncIterator[Event]:
    steps = reader.steps()
    step = next(steps)
    while True:
        if isinstance(step, Event):
            yield step
            step = next(steps)
            continue
        try:
            where: dict[str, Any] = {}
            if isinstance(client, redis.asyncio.RedisCluster):
                await client.initialize()  # reads the slots, if it has to
                where = _target(client, step.stream)
            reply = await client.execute_command(*step.command, **where)
        except redis.ResponseError as error:
            step = steps.throw(error)
        else:
            step = steps.send(reply)


def _target(client: redis.RedisCluster | redis.asyncio.RedisCluster, stream: str) -> dict[str, Any]:
    """redis-py would ask the server for the keys of XREADGROUP, each time."""
    return {"target_nodes": client.get_node_from_key(stream)}


class _Ask(NamedTuple):
    """A command for Redis, at the server of `stream`."""

    stream: str
    command: Command


Steps = Generator[_Ask | Event, Any, Any]
"""Yields commands, and is sent the reply or thrown Redis's error; and events, and is resumed when they have
been handled."""


class _Reader:
    """One consumer's conversation with Redis."""

    def __init__(
        self,
        group: str,
        consumer: str,
        streams: Sequence[str],
        start: str,
        claim_after: float,
        *,
        apart: bool,
        clock: Callable[[], float],
    ) -> None:
        """`apart`: each stream may be on another server, so that no command can name two."""
        self._group = group
        self._consumer = consumer
        self._streams = streams
        self._start = start
        self._idle = int(claim_after * 1000)
        self._clock = clock
        self._questions = [[stream] for stream in streams] if apart else [streams]
        self._block = max(1, int(BLOCK * 1000 / len(self._questions)))
        self._missed = False

    def steps(self) -> Steps:
        """The whole conversation. It ends only by an error of Redis."""
        yield from self._create_groups(self._start)
        while True:
            try:
                yield from self._read()
            except redis.ResponseError as error:
                if not _code(error, "NOGROUP"):
                    raise
                # The streams were deleted. Those that have come since are new from their beginning.
                yield from self._create_groups("0")

    def _create_groups(self, start: str) -> Steps:
        for stream in self._streams:
            try:
                yield _Ask(stream, ("XGROUP", "CREATE", stream, self._group, start, "MKSTREAM"))
            except redis.ResponseError as error:
                if not _code(error, "BUSYGROUP"):
                    raise

    def _read(self) -> Steps:
        claim_at = self._clock()
        while True:
            if self._clock() >= claim_at:
                claim_at = self._clock() + self._idle / 2000
                for stream in self._streams:
                    yield from self._read_own(stream)
                    yield from self._claim(stream)
            for streams in self._questions:
                yield from self._handle((yield self._ask(streams, ">", "BLOCK", self._block)))

    def _ask(self, streams: Sequence[str], after: str, *options: str | int) -> _Ask:
        who = ("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", BATCH)
        return _Ask(streams[0], (*who, *options, "STREAMS", *streams, *[after] * len(streams)))

    def _read_own(self, stream: str) -> Steps:
        """What this consumer was given, and has not acknowledged: before its start, or by a reply that was
        lost, after which the client has asked again. All that it was handed out here is acknowledged."""
        while (yield from self._handle((yield self._ask([stream], "0")))):
            pass

    def _claim(self, stream: str) -> Steps:
        """What others were given, and have not acknowledged for too long."""
        cursor: object = "0-0"
        while True:
            who = (stream, self._group, self._consumer, self._idle)
            reply = yield _Ask(stream, ("XAUTOCLAIM", *who, _text(cursor), "COUNT", BATCH))
            cursor, entries, *trimmed = reply
            if any(trimmed):  # Redis 7 names those that it has not found, and forgets them
                self._warn(stream)
            yield from self._handle([(stream, entries)])
            if _text(cursor) == "0-0":
                return

    def _handle(self, reply: Any) -> Generator[_Ask | Event, Any, int]:
        """Hand out entries, and acknowledge each. Returns how many there were."""
        count = 0
        for name, entries in _streams_of(reply):
            stream = _text(name)
            for entry_id, fields in entries:
                count += 1
                if fields:
                    yield Event(stream, _text(entry_id), _fields_of(fields))
                else:
                    self._warn(stream)
                if entry_id is None:  # Redis 6.2 claims what is gone without its id; `_read_own` finds it
                    continue
                yield _Ask(stream, ("XACK", stream, self._group, _text(entry_id)))
        return count

    def _warn(self, stream: str) -> None:
        """Entries were trimmed before anybody has handled them: tell it once."""
        if not self._missed:
            self._missed = True
            log.warning("events of %s were trimmed before group %s handled them", stream, self._group)


def _streams_of(reply: Any) -> Iterable[tuple[Any, Any]]:
    """Streams with their entries. A reply is None, pairs or, in RESP3, a dict with its entries in a list."""
    if not reply:
        return ()
    if not isinstance(reply, Mapping):
        return reply  # type: ignore[no-any-return]
    return [(name, next(iter(entries), ())) for name, entries in reply.items()]


def _fields_of(fields: Any) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in fields.items()}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _code(error: redis.ResponseError, code: str) -> bool:
    """Whether Redis's error has this code. redis-py takes some codes out of the texts."""
    return str(error).startswith(code) or getattr(error, "status_code", "") == code
