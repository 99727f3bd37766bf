"""One connection to Redis that executes commands: RESP3, replies in the order of the commands. Disposable.

A connection never repairs itself. On any doubt it aborts, `closed` tells the reason, and whoever needs a
connection makes the next one with `Server.connect`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import hiredis

from ..errors import GatewayError

TCP_USER_TIMEOUT = 5_000
"""Milliseconds that sent bytes may stay unacknowledged; the kernel's own view of a dead peer."""

MAX_BUFFER = 1 << 20
"""Bytes that the parser keeps between reads, so that it need not allocate for each of them."""

DISK_FULL = "MISCONF"
"""Redis answers even PING with this error while it cannot save to its disk. It subscribes and publishes all
the same."""

CLOSED_BY_REDIS = "Redis closed the connection"

NOT_ENOUGH = object()

Command = tuple[str | bytes | int, ...]

T = TypeVar("T")


class ConnectionLost(GatewayError, ConnectionError):
    """A connection to Redis ended, or could not be used; the message is the reason."""


class ReplyError(ConnectionLost):
    """Redis answered a command with an error; `reply` is its text."""

    def __init__(self, command: object, reply: object) -> None:
        super().__init__(f"Redis answered {command} with: {reply}")
        self.reply = str(reply)


class UnexpectedReply(GatewayError):
    """A reply that fits no command: what this connection says can no longer be trusted."""


class PendingReply:
    """A command that was sent and has one reply."""

    __slots__ = ("reply",)

    def __init__(self, reply: Callable[[Any], object]) -> None:
        self.reply = reply


class Connection(asyncio.Protocol):
    """The protocol at the gateway's end of a connection. `Server.connect` connects it and logs in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = hiredis.Reader(replyError=_reply_error, notEnoughData=NOT_ENOUGH)
        self._parser.setmaxbuf(MAX_BUFFER)
        self._pending: deque[Any] = deque()  # Commands without a reply; a subclass adds its batches
        self._reason: str | None = None
        self.closed: asyncio.Future[str] = self._loop.create_future()
        """Gets the reason when the connection has ended."""
        self.version = b""
        """The server's version, as HELLO told it."""
        self.is_master = True
        """Whether the server is a master, as HELLO told it. A replica receives what is published on its
        master, a little later."""

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    # Called by the owner

    async def log_in(self, username: str, password: str | None, database: int, name: str) -> None:
        """Authenticate, choose RESP3 and the database, and set the name that CLIENT LIST shows.

        Raises ConnectionLost.
        """
        command: list[str | int] = ["HELLO", 3]
        if password is not None:
            command += ["AUTH", username, password]
        server = await self.execute(*command, "SETNAME", name)
        if isinstance(server, dict):
            self.version = server.get(b"version", b"")
            self.is_master = server.get(b"role", b"master") == b"master"
        if database:
            await self.execute("SELECT", database)
        try:
            # A user without the right to PING would look connected, and lose the connection later.
            await self.execute("PING")
        except ReplyError as error:
            if not error.reply.startswith(DISK_FULL):
                raise

    async def execute(self, *command: str | bytes | int, decode: Callable[[Any], Any] | None = None) -> Any:
        """Redis's reply, or the result of `decode`, which is called at the moment the reply arrives.

        Raises ReplyError for an error, and ConnectionLost when the connection ends before the reply.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()

        def replied(reply: Any) -> None:
            decoded = reply if decode is None or isinstance(reply, hiredis.ReplyError) else decode(reply)
            resolve(answer, decoded)

        self.send(replied, *command)
        reply = await self._wait_for(answer)
        if isinstance(reply, hiredis.ReplyError):
            raise ReplyError(command[0], reply)
        return reply

    async def execute_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to several commands in one write. Raises ReplyError and ConnectionLost as `execute`."""
        replies = await self.pipeline(commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                raise ReplyError(command[0], reply)
        return replies

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """As `execute_all`, but an error of Redis is a hiredis.ReplyError among the replies.

        Raises ConnectionLost when the connection ends before the last reply. It is unknown then which
        commands Redis has executed.
        """
        transport = self._writable()
        replies: list[Any] = []
        answer: asyncio.Future[list[Any]] = self._loop.create_future()

        def replied(reply: Any) -> None:
            replies.append(reply)
            if len(replies) == len(commands):
                resolve(answer, replies)

        self._pending.extend(PendingReply(replied) for _ in commands)
        transport.write(b"".join(pack(*command) for command in commands))
        return await self._wait_for(answer)

    async def _wait_for(self, answer: asyncio.Future[T]) -> T:
        """The result of `answer`. Raises ConnectionLost when the connection ends before."""
        await asyncio.wait((answer, self.closed), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ConnectionLost(self.closed.result())
        return answer.result()

    def send(self, reply: Callable[[Any], object], *command: str | bytes | int) -> None:
        """Write `command`; `reply` is called with the reply, unless the connection ends before.

        An error of Redis is a reply too, a hiredis.ReplyError. Raises ConnectionLost.
        """
        transport = self._writable()
        self._pending.append(PendingReply(reply))
        transport.write(pack(*command))

    def _writable(self) -> asyncio.Transport:
        """The transport. Raises ConnectionLost with the reason when the connection has ended or is ending."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLost(f"the connection is closed: {self._reason or CLOSED_BY_REDIS}")
        return self._transport

    def abort(self, reason: str) -> None:
        """End the connection now; `closed` is set once the transport is gone. The first reason counts."""
        if self._reason is None:
            self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class does not inherit from it
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not NOT_ENOUGH:
                if type(reply) is hiredis.PushNotification:
                    self._push_received(reply)
                else:
                    self._reply_received(reply)
        except (hiredis.ProtocolError, UnexpectedReply) as error:
            self.abort(f"Redis sent an unexpected reply: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._reason is None:
            self._reason = str(exc) if exc else CLOSED_BY_REDIS
        if not self.closed.done():
            self.closed.set_result(self._reason)

    def _push_received(self, push: list[Any]) -> None:
        """A push message of Redis; a connection without subscriptions ignores it."""

    def _reply_received(self, reply: Any) -> None:
        if not self._pending or not isinstance(self._pending[0], PendingReply):
            raise UnexpectedReply(f"a reply of type {type(reply).__name__}")
        self._pending.popleft().reply(reply)


def _reply_error(text: str) -> hiredis.ReplyError:
    """An error without the arguments that Redis quotes: those of an unknown HELLO have the password."""
    return hiredis.ReplyError(text.partition(", with args beginning with")[0])


def resolve(answer: asyncio.Future[T], value: T) -> None:
    """Set the result of `answer`, unless its waiter has given up."""
    if not answer.done():
        answer.set_result(value)


def pack(*command: str | int | bytes) -> bytes:
    """`command` in the form that Redis reads."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows 1-tuples only
    return packed
