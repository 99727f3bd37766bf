"""A connection to Redis that carries commands, each with one reply: for publishing. Disposable.

What several callers ask at the same time goes out one behind the other and is answered in that order; a
batch is one write. redis-py's client would take a connection from a pool for each of them, tries again by
its own rules, and when one caller gives up others find their connection closed under them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

import hiredis

from .topology import Server

NOT_ENOUGH: Final = object()

Command = tuple[str | bytes | int, ...]


class Line(asyncio.Protocol):
    """The protocol at our end of the connection; `open` makes one."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = hiredis.Reader(notEnoughData=NOT_ENOUGH)
        self._batches: deque[_Batch] = deque()

    @classmethod
    async def open(cls, url: str) -> Line:
        """Connect to the server of a redis:// URL and log in.

        Raises OSError, of which PermissionError means that trying again is of no use.
        """
        server = Server(url)
        line = cls()
        try:
            await server.open(line)
            if server.password is not None:
                await line._must("AUTH", server.username, server.password)
            if server.database:
                await line._must("SELECT", server.database)
        except BaseException:
            line.abort()
            raise
        return line

    @property
    def lost(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to these commands, in their order; a refusal is a hiredis.ReplyError among them.

        Raises ConnectionError when the connection is lost before; what was done then is unknown.
        """
        if self._transport is None:
            raise ConnectionError("the connection is gone")
        batch = _Batch(len(commands))
        self._batches.append(batch)
        self._transport.write(b"".join(map(_pack, commands)))
        await batch.answered
        return batch.replies

    async def _must(self, *command: str | int) -> None:
        (reply,) = await self.ask([command])
        if isinstance(reply, hiredis.ReplyError):
            kind = ConnectionError if str(reply).startswith("LOADING") else PermissionError
            raise kind(f"it answered {command[0]} with: {reply}")

    def abort(self) -> None:
        """End it now, and with it everything that waits for an answer."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not NOT_ENOUGH:
                batch = self._batches[0]
                if batch.complete(reply):
                    self._batches.popleft()
        except (hiredis.ProtocolError, IndexError):  # no Redis, or a reply that nobody asked for
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for batch in self._batches:
            batch.fail(ConnectionError(str(exc) if exc else "the connection was closed"))
        self._batches.clear()


class _Batch:
    """Commands on their way that one caller waits for."""

    __slots__ = ("_size", "answered", "replies")

    def __init__(self, size: int) -> None:
        self._size = size
        self.replies: list[Any] = []
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def complete(self, reply: object) -> bool:
        """Take a reply; whether it is the last. Replies come also for a caller that has given up."""
        self.replies.append(reply)
        done = len(self.replies) == self._size
        if done and not self.answered.done():
            self.answered.set_result(None)
        return done

    def fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


class Lines:
    """The lines that are kept, one to each server."""

    def __init__(self, greet: Callable[[Line], Awaitable[None]]) -> None:
        """`greet` looks a new line over, and raises OSError if it will not do."""
        self._greet = greet
        self._kept: dict[str, _Kept] = {}

    async def to(self, url: str) -> Line:
        """A line to that server: the one that is kept, or a new one. Raises OSError."""
        kept = self._kept.setdefault(url, _Kept())
        async with kept.turn:
            if kept.line is None or kept.line.lost:
                kept.line = None
                line = await Line.open(url)
                try:
                    await self._greet(line)
                except BaseException:
                    line.abort()
                    raise
                kept.line = line
            return kept.line

    def drop(self, url: str) -> None:
        """End the line to that server, if there is one; the next caller gets a new one."""
        if url in self._kept and (line := self._kept[url].line) is not None:
            line.abort()

    def close(self) -> None:
        for url in self._kept:
            self.drop(url)


class _Kept:
    """A server's line, and whose turn it is to open it."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.line: Line | None = None


def _pack(command: Command) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows 1-tuples only
    return packed
