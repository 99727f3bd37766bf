"""Writes a node's events to their streams, over connections of its own.

One task owns what waits. It takes a batch of all that has come since its last one, sends it in one write to
each server, and waits for the replies before it takes the next. So there is never more than one batch on its
way, and the busier the node is, the more events share a write.

What Redis has not confirmed is written again: after a lost connection some events may be in the stream twice.
Nothing that goes wrong here harms a session, or is seen by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, Protocol, TypeVar

import hiredis
import structlog

from ..backoff import Backoff
from .cluster.slots import parse_redirection
from .connection import Command
from .event_streams import stream_of
from .hints import hint_for
from .reminder import REMIND_EVERY, Reminder
from .router import Router
from .server import Server
from .url import Address, RedisURL

BATCH: Final = 200
"""Events in one batch: 80 KB, and less than 1 ms of this process's and of Redis's time."""

ATTEMPT_TIMEOUT: Final = 5.0
"""Seconds to find the servers, and the same again for their replies."""

FIRST_PAUSE: Final = 0.05
LAST_PAUSE: Final = 2.0
"""Seconds between attempts while events cannot be written, doubling."""

FLUSH_STEP: Final = 0.01
"""Seconds between two looks at whether the last events are written."""

DROPS_EVERY: Final = 5.0
"""Seconds between log lines about events that are dropped."""

NOPERM_HINT: Final = "give the node's Redis user (+xadd ~{name}*), as docs/redis-access.md says"

BUG_HINT: Final = "this is a bug, and these events are dropped: report it"

_HINTS: Final = {
    "OOM": "Redis is out of memory: raise maxmemory, or lower --events-kept (GATEWAY_EVENTS_KEPT)",
    "WRONGTYPE": "something else is stored under the stream's name: choose another --channel-prefix",
}

log = structlog.get_logger()


class WaitingEvent(Protocol):
    """An event, as far as its writer needs to know it."""

    @property
    def web_socket_id(self) -> bytes: ...


E = TypeVar("E", bound=WaitingEvent)


class EventQueue(Protocol[E]):
    """The events that wait: see `core.events.EventLog`."""

    dropped: int

    def __len__(self) -> int: ...
    def on_next(self, waiter: Callable[[], None]) -> None: ...
    def take(self, most: int) -> list[E]: ...
    def put_back(self, events: Sequence[E]) -> None: ...
    def drop_all(self) -> None: ...
    def fields(self, event: E) -> Sequence[str | bytes]: ...


class EventWriter(Generic[E]):
    """Empties a queue of events into streams. `run` it in a task, `flush` and then `close` it at the end."""

    def __init__(
        self,
        queue: EventQueue[E],
        router: Router,
        streams: Sequence[str],
        kept: int,
        clock: Callable[[], float],
    ) -> None:
        """`streams` are their keys, trimmed to about `kept` entries in all. `clock` is monotonic."""
        self._queue = queue
        self._router = router
        self._streams = streams
        self._trim: Command = ("MAXLEN", "~", max(1, kept // len(streams)), "*")
        self._clock = clock
        self._on_their_way = 0
        self._failing_since: float | None = None
        self._reminder = Reminder(REMIND_EVERY)
        self._drop_reminder = Reminder(DROPS_EVERY)
        self._drops_told = 0
        self._stopping = asyncio.Event()
        self.failures = 0
        """Batches so far of which something was not written: Redis was out of reach, or refused it."""

    @property
    def waiting(self) -> int:
        """Events that Redis has not confirmed yet."""
        return len(self._queue) + self._on_their_way

    def use(self, url: RedisURL) -> None:
        """Connect as `url` says from the next connection on. It leads to the same place."""
        self._router.use(url)

    async def run(self) -> None:
        """Write events until cancelled."""
        backoff = Backoff(FIRST_PAUSE, LAST_PAUSE, jitter=0.5)
        while True:
            await self._some_wait()
            written = await self._write_batch(self._queue.take(BATCH))
            self._tell_drops()
            if written:
                backoff.reset()
            else:
                await self._pause(backoff.next())

    async def _write_batch(self, batch: list[E]) -> bool:
        """Write a batch, and put back what could not be written. Returns whether all is written."""
        left = batch
        self._on_their_way = len(batch)
        try:
            left = await self._write(batch)
        except Exception as error:  # a bug: the same events must not fail for ever
            log.exception("event writer failed", error=type(error).__name__, events=len(batch), hint=BUG_HINT)
            left = []
            self._queue.dropped += len(batch)
            self._drops_told += len(batch)
            return False
        finally:
            self._on_their_way = 0
            self._queue.put_back(left)
        self.failures += bool(left)
        return not left

    async def flush(self, seconds: float, expected: Callable[[], int]) -> None:
        """Wait until everything is written and no more events are `expected`, for so many seconds at most."""
        self._stopping.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.waiting or expected():  # noqa: ASYNC110 - the last events have nobody else to tell
                    await asyncio.sleep(FLUSH_STEP)

    async def close(self) -> None:
        """Close the connections, after `run` was cancelled. What still waits is dropped, counted and told."""
        await self._router.close()
        self._queue.drop_all()
        if untold := self._queue.dropped - self._drops_told:
            log.error(
                "events dropped", events=untold, hint="the node has stopped, and Redis did not take them"
            )

    async def _some_wait(self) -> None:
        if not len(self._queue):
            filled = asyncio.Event()
            self._queue.on_next(filled.set)
            await filled.wait()
            await asyncio.sleep(0)  # what happens in this turn of the loop goes with it

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt. A node that stops has no time for long pauses."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        if self._stopping.is_set():
            await asyncio.sleep(FIRST_PAUSE)

    # One batch

    async def _write(self, batch: list[E]) -> list[E]:
        """Write the events of a batch. Returns those that are not written, in their order."""
        streams = self._streams
        names = [stream_of(event.web_socket_id, streams) for event in batch]
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                servers = await self._router.servers([name.encode() for name in names])
        except OSError as error:
            self._failed(str(error) or "Redis does not say where its servers are")
            return batch
        groups: dict[Server | None, list[tuple[int, Command]]] = {}
        for number, (event, name, server) in enumerate(zip(batch, names, servers, strict=True)):
            command: Command = ("XADD", name, *self._trim, *self._queue.fields(event))
            groups.setdefault(server, []).append((number, command))
        # All of them end before a bug in one is raised, so that none writes beside the next batch.
        tasks = (self._write_to(*group) for group in groups.items())
        left: list[int] = []
        bugs: list[BaseException] = []
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                bugs.append(result)
            else:
                left += result
        if bugs:
            raise bugs[0]
        if not left:
            self._succeeded()
        return [batch[number] for number in sorted(left)]

    async def _write_to(self, server: Server | None, group: list[tuple[int, Command]]) -> list[int]:
        """Send commands to their server. Returns the numbers of those that have no effect yet."""
        if server is None:
            self._router.forget()
            self._failed("no node of the Cluster serves the slot of a stream")
            return [number for number, _ in group]
        replies = await self._execute(server, [command for _, command in group])
        left: list[int] = []
        moved: dict[Server, list[tuple[int, Command]]] = {}
        for (number, command), reply in zip(group, replies, strict=False):
            if isinstance(reply, hiredis.ReplyError):
                target = self._refused(server, str(command[1]), str(reply))
                if target is None:
                    left.append(number)
                else:
                    moved.setdefault(target, []).append((number, command))
        left += [number for number, _ in group[len(replies) :]]
        for target, those in moved.items():
            left += await self._write_migrating(target, those)
        return left

    async def _write_migrating(self, target: Server, group: list[tuple[int, Command]]) -> list[int]:
        """Send commands to the node to which their slot migrates. Returns the numbers as `_write_to`."""
        replies = await self._execute(target, [c for _, command in group for c in (("ASKING",), command)])
        done = replies[1::2]
        for (_, command), reply in zip(group, done, strict=False):
            if isinstance(reply, hiredis.ReplyError):
                self._failed(str(reply), str(command[1]))
        written = [not isinstance(reply, hiredis.ReplyError) for reply in done]
        written += [False] * (len(group) - len(written))
        return [number for (number, _), ok in zip(group, written, strict=True) if not ok]

    async def _execute(self, server: Server, commands: Sequence[Command]) -> list[Any]:
        """The replies, as many as there are before something goes wrong."""
        replies: list[Any] = []
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                connection = await self._router.pool.get(server)
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                await connection.pipeline(commands, replies)
        except OSError as error:
            self._router.pool.drop(server)
            self._router.forget()
            self._failed(str(error) or f"{server.display_url} gave no answer")
        return replies

    def _refused(self, server: Server, stream: str, error: str) -> Server | None:
        """Redis refuses an event of a stream: the server to which its slot migrates, or None."""
        redirection = parse_redirection(error)
        if redirection is not None and redirection.kind == "ASK":
            return self._router.server_at(Address(redirection.host or server.host, redirection.port))
        # A master that has become a replica, a slot that has moved, a user that has new rights: look again.
        self._router.pool.drop(server)
        self._router.forget()
        self._failed(error, stream)
        return None

    # What the log says

    def _failed(self, reason: str, stream: str | None = None) -> None:
        """`stream`: the one that Redis refuses, if it is one."""
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        if self._reminder.is_due(f"{stream}: {reason}", now):
            hint = self._hint(reason)
            log.warning("events not written", reason=reason, stream=stream, waiting=self.waiting, hint=hint)

    def _hint(self, reason: str) -> str | None:
        if reason.startswith("NOPERM"):
            return NOPERM_HINT.format(name=self._streams[0].removesuffix(":0"))
        found = (hint for beginning, hint in _HINTS.items() if reason.startswith(beginning))
        return next(found, None) or hint_for(reason)

    def _succeeded(self) -> None:
        if self._failing_since is not None:
            seconds = self._clock() - self._failing_since
            log.info("events written again", after=round(seconds, 3), waiting=len(self._queue))
            self._failing_since = None
            self._reminder = Reminder(REMIND_EVERY)

    def _tell_drops(self) -> None:
        dropped = self._queue.dropped
        if dropped > self._drops_told and self._drop_reminder.is_due("", self._clock()):
            log.error("events dropped", events=dropped - self._drops_told, hint="too many wait for Redis")
            self._drops_told = dropped
