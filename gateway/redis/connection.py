"""One connection to Redis that executes commands: RESP3, replies in the order of the commands. Disposable.

A connection never repairs itself. On any doubt it aborts, `closed` tells the reason, and whoever needs a
connection makes the next one with `Server.connect`.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import hiredis

from ..errors import GatewayError
from .reply_limits import ReplyLimits, UnexpectedReply, printable

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


class LoginRejected(GatewayError, PermissionError):
    """The server rejects the login, or is not of the kind that the URL says: a retry does not help."""


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
        parser = hiredis.Reader(replyError=_reply_error, notEnoughData=NOT_ENOUGH)
        parser.setmaxbuf(MAX_BUFFER)
        self._feed, self._gets, self._has_data = parser.feed, parser.gets, parser.has_data
        self._pending: deque[Any] = deque()  # Commands without a reply; a subclass adds its batches
        self._limits = ReplyLimits()
        self._reason: str | None = None
        self._last_words: hiredis.ReplyError | None = None
        self.closed: asyncio.Future[str] = self._loop.create_future()
        """Gets the reason when the connection has ended."""
        self.is_master = True
        """Whether the server is a master, as HELLO told it. A replica receives what is published on its
        master, a little later."""
        self.mode = b""
        """What HELLO told: standalone, sentinel or cluster."""

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    # Called by the owner

    async def log_in(self, username: str, password: str | None, database: int, name: str) -> None:
        """Authenticate, choose RESP3 and the database, and set the name that CLIENT LIST shows.

        All commands go out in one write, so that a slow network costs one round trip. Raises ReplyError,
        other kinds of ConnectionLost, and UnexpectedReply.
        """
        credentials: Command = () if password is None else ("AUTH", username, password)
        checks: list[Command] = [("SELECT", database)] if database else []
        # A user without the right to PING would look connected, and lose the connection later.
        checks.append(("PING",))
        commands = [*checks, *self._trials()]
        hello, *replies = await self._exchange([("HELLO", 3, *credentials, "SETNAME", name), *commands])
        if _lacks_options(hello):
            hello, *replies = await self._log_in_by_steps(username, password, name, commands)
        _raise_errors([("HELLO",)], [hello])
        self._read_hello(hello)
        _raise_errors(checks, replies)
        await self._tried(replies[len(checks) :])

    async def _log_in_by_steps(
        self, username: str, password: str | None, name: str, commands: Sequence[Command]
    ) -> list[Any]:
        """The replies to HELLO and `commands`, for servers that know HELLO but not all of its options."""
        steps: list[Command] = []
        if password is not None:
            steps.append(("AUTH", password) if username == "default" else ("AUTH", username, password))
        replies = await self._exchange([*steps, ("HELLO", 3), *commands, ("CLIENT", "SETNAME", name)])
        _raise_errors(steps, replies)
        return replies[len(steps) : -1]  # the name is for people, so it may be missing

    def _trials(self) -> list[Command]:
        """Commands that show what the server knows, for the same write. `_tried` gets the replies."""
        return []

    async def _tried(self, replies: list[Any]) -> None:
        """Act on the replies to `_trials`. Raises ReplyError if the connection cannot be used."""

    def _read_hello(self, hello: Any) -> None:
        if not isinstance(hello, dict):
            raise UnexpectedReply("the reply to HELLO is no map, so this is no server that speaks RESP3")
        self.is_master = hello.get(b"role", b"master") == b"master"
        self.mode = hello.get(b"mode", b"")

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """As `pipeline`, for the login: an error that the server sends before it hangs up counts.

        A server without room for more clients (maxclients, protected mode) sends one to whoever connects.
        """
        replies: list[Any] = []
        try:
            return await self.pipeline(commands, replies)
        except ConnectionLost:
            words = self._last_words or next((r for r in replies if isinstance(r, hiredis.ReplyError)), None)
            if words is None:
                raise
            raise ReplyError(commands[0][0], words) from None

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
        _raise_errors(commands, replies)
        return replies

    async def pipeline(self, commands: Sequence[Command], replies: list[Any] | None = None) -> list[Any]:
        """As `execute_all`, but an error of Redis is a hiredis.ReplyError among the replies.

        Raises ConnectionLost when the connection ends before the last reply. It is unknown then which
        commands Redis has executed; the list `replies` has the replies up to then.
        """
        transport = self._writable()
        replies = [] if replies is None else replies
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
        gets, has_data, limits = self._gets, self._has_data, self._limits
        answered = False
        try:
            limits.check(data)
            self._feed(data)
            while (reply := gets()) is not NOT_ENOUGH:
                answered = True
                if type(reply) is hiredis.PushNotification:
                    self._push_received(reply)
                else:
                    self._reply_received(reply)
                if not has_data():
                    if limits.unusual:
                        limits.complete()
                    break
            else:
                limits.incomplete(data, answered=answered)
        except Exception as error:
            self._distrust(error)

    def _distrust(self, error: Exception) -> None:
        """What Redis sent could not be understood: end the connection, whatever it was."""
        expected = isinstance(error, (hiredis.ProtocolError, UnexpectedReply))
        what = str(error) if expected else f"{type(error).__name__}: {error}"
        self.abort(f"Redis sent an unexpected reply: {printable(what)}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._reason is None:
            self._reason = str(exc) if exc else CLOSED_BY_REDIS
        if not self.closed.done():
            self.closed.set_result(self._reason)

    def _push_received(self, push: list[Any]) -> None:
        """A push message of Redis; a connection without subscriptions ignores it."""

    def _reply_received(self, reply: Any) -> None:
        if not self._pending and isinstance(reply, hiredis.ReplyError):
            self._last_words = reply
            self.abort(f"Redis answered: {reply}")
            return
        if not self._pending or not isinstance(self._pending[0], PendingReply):
            raise UnexpectedReply(f"a reply of type {type(reply).__name__}")
        self._pending.popleft().reply(reply)


def _reply_error(text: str) -> hiredis.ReplyError:
    """An error without the arguments that Redis quotes: those of an unknown HELLO have the password."""
    return hiredis.ReplyError(printable(text.partition(", with args beginning with")[0]))


def _raise_errors(commands: Sequence[Command], replies: Sequence[Any]) -> None:
    """Raises ReplyError for the first reply to `commands` that is an error."""
    for command, reply in zip(commands, replies, strict=False):
        disk_full = command == ("PING",) and str(reply).startswith(DISK_FULL)
        if isinstance(reply, hiredis.ReplyError) and not disk_full:
            raise ReplyError(command[0], reply)


def _lacks_options(hello: Any) -> bool:
    """Whether a server seems to know HELLO, but not with these arguments."""
    if not isinstance(hello, hiredis.ReplyError):
        return False
    return re.match("ERR .*(syntax|option|argument)", str(hello), re.IGNORECASE) is not None


def resolve(answer: asyncio.Future[T], value: T) -> None:
    """Set the result of `answer`, unless its waiter has given up."""
    if not answer.done():
        answer.set_result(value)


def pack(*command: str | int | bytes) -> bytes:
    """`command` in the form that Redis reads."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows 1-tuples only
    return packed
