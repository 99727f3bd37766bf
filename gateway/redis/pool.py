"""The connections that results are published over: one to each server, for whoever publishes. Disposable.

What several callers ask at the same time goes out one behind the other and is answered in that order; a
batch is one write. redis-py's client would take a connection from a pool for each of them, try again by its
own rules, and close the connections of others when one caller gives up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from .connection import Connection, ConnectionLost, PendingReply, ReplyError, pack, resolve
from .topology import Server

PUBLISHER_NAME: Final = "webflow-publisher"
"""What CLIENT LIST shows."""

RETRYABLE_REPLIES: Final = ("LOADING", "BUSY", "ERR max number of clients")
"""How Redis answers whom it would have had a moment ago, or will."""

Command = tuple[str | bytes | int, ...]


class PipelineConnection(Connection):
    """A connection that takes batches; `open` makes one."""

    @classmethod
    async def open(cls, server: Server) -> PipelineConnection:
        """Connect to `server` and log in.

        Raises OSError, of which PermissionError means that trying again is of no use.
        """
        line = cls()
        try:
            await server.open(line)
            await line.hello(server.username, server.password, server.database, PUBLISHER_NAME)
        except ReplyError as refusal:
            line.abort("not welcome")
            kind = ConnectionError if refusal.reply.startswith(RETRYABLE_REPLIES) else PermissionError
            raise kind(str(refusal)) from None
        except ConnectionLost as lost:
            line.abort("not connected")
            raise ConnectionError(str(lost)) from None
        except BaseException:
            line.abort("not connected")
            raise
        return line

    @property
    def lost(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    async def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to these commands, in their order; a refusal is a hiredis.ReplyError among them.

        Raises ConnectionError when the connection ends before; what was done by then is unknown.
        """
        try:
            transport = self._writable()
        except ConnectionLost as lost:
            raise ConnectionError(str(lost)) from None
        replies: list[Any] = []
        answered: asyncio.Future[None] = self._loop.create_future()

        def replied(reply: Any) -> None:
            replies.append(reply)
            if len(replies) == len(commands):
                resolve(answered, None)

        self._unanswered.extend(PendingReply(replied) for _ in commands)
        transport.write(b"".join(pack(*command) for command in commands))
        await asyncio.wait((answered, self.closed), return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise ConnectionError(str(self.closed.result()))
        return replies


class ConnectionPool:
    """The lines that are kept, one to each server."""

    def __init__(self, *, only_masters: bool = False) -> None:
        """With `only_masters` a server that says it is a replica is the wrong one."""
        self._only_masters = only_masters
        self._kept: dict[Server, _PoolEntry] = {}

    async def to(self, server: Server) -> PipelineConnection:
        """A line to `server`: the one that is kept, or a new one. Raises OSError."""
        kept = self._kept.setdefault(server, _PoolEntry())
        async with kept.turn:
            if kept.line is None or kept.line.lost:
                kept.line = None
                line = await PipelineConnection.open(server)
                if self._only_masters and not line.is_master:
                    line.abort("no master")
                    raise ConnectionError(f"{server.display_url} is no master, or does not know it yet")
                kept.line = line
            return kept.line

    def drop(self, server: Server) -> None:
        """End the line to `server`, if there is one; the next caller gets a new one."""
        if server in self._kept and (line := self._kept[server].line) is not None:
            line.abort("no longer trusted")

    def close(self) -> None:
        for server in self._kept:
            self.drop(server)


class _PoolEntry:
    """A server's line, and whose turn it is to open it."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.line: PipelineConnection | None = None
