"""One connection to Redis that asks questions: RESP3, answers in the order of the questions. Disposable.

It never repairs itself. On any doubt it aborts, `closed` tells why, and whoever needs one builds the next.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

import hiredis

TCP_USER_TIMEOUT = 5_000
"""Milliseconds that sent bytes may stay unacknowledged; the kernel's own view of a dead peer."""

MAX_BUFFER = 1 << 20
"""Bytes that the parser keeps between reads, so that it need not allocate for each of them."""

DISK_FULL = "MISCONF"
"""How Redis answers PING, too, while it cannot save to its disk. It subscribes and publishes all the same."""

CLOSED_BY_REDIS = "Redis closed the connection"

NOT_ENOUGH = object()

T = TypeVar("T")


class ConnectionLost(Exception):
    """Why a connection ended, or was of no use."""


class ReplyError(ConnectionLost):
    """Redis answered a command with an error, whose text this is."""

    def __init__(self, command: object, reply: object) -> None:
        super().__init__(f"Redis answered {command} with: {reply}")
        self.reply = str(reply)


class UnexpectedReply(Exception):
    """A reply that fits no question: what this connection says can no longer be trusted."""


class PendingReply:
    """A command on its way that has one reply."""

    __slots__ = ("reply",)

    def __init__(self, reply: Callable[[Any], object]) -> None:
        self.reply = reply


class Connection(asyncio.Protocol):
    """The protocol at our end. Once it is connected, `hello` first, then `ask`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = hiredis.Reader(notEnoughData=NOT_ENOUGH)
        self._parser.setmaxbuf(MAX_BUFFER)
        self._unanswered: deque[Any] = deque()  # Questions, and what a subclass asks in other forms
        self._why: str | None = None
        self.closed: asyncio.Future[ConnectionLost] = self._loop.create_future()
        self.version = b""
        """Of the server, as HELLO told."""
        self.is_master = True
        """Whether HELLO told so; a replica hears what is published on its master, a little later."""

    # What the owner says

    async def hello(self, username: str, password: str | None, database: int, name: str) -> None:
        """Introduce ourselves and choose RESP3 and the database. Raises LinkLost if Redis will not."""
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
            await self.execute(
                "PING"
            )  # a user who may not would look connected, and lose the link in silence
        except ReplyError as refusal:
            if not refusal.reply.startswith(DISK_FULL):
                raise

    async def execute(self, *command: str | bytes | int, decode: Callable[[Any], Any] | None = None) -> Any:
        """Redis's answer, or what `decode` makes of it at the very moment that it comes.

        Raises Refusal for an error, and LinkLost when the connection ends before the answer.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()

        def replied(reply: Any) -> None:
            judged = reply if decode is None or isinstance(reply, hiredis.ReplyError) else decode(reply)
            resolve(answer, judged)

        self.send(replied, *command)
        await asyncio.wait((answer, self.closed), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise self.closed.result()
        reply = answer.result()
        if isinstance(reply, hiredis.ReplyError):
            raise ReplyError(command[0], reply)
        return reply

    def send(self, reply: Callable[[Any], object], *command: str | bytes | int) -> None:
        """Write `command`; `reply` is called with its answer, unless the connection ends before.

        An error of Redis is an answer too, a hiredis.ReplyError. Raises LinkLost.
        """
        transport = self._writable()
        self._unanswered.append(PendingReply(reply))
        transport.write(pack(*command))

    def _writable(self) -> asyncio.Transport:
        """The transport. Raises LinkLost, with what has ended it, when it is gone or about to go."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLost(f"the connection is gone: {self._why or CLOSED_BY_REDIS}")
        return self._transport

    def abort(self, why: str) -> None:
        """End the connection now; `closed` is set once the transport is gone."""
        if self._why is None:
            self._why = why
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is none of asyncio's
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not NOT_ENOUGH:
                if type(reply) is hiredis.PushNotification:
                    self._pushed(reply)
                else:
                    self._replied(reply)
        except (hiredis.ProtocolError, UnexpectedReply) as error:
            self.abort(f"Redis sent what nobody asked for: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.closed.done():
            why = self._why or (str(exc) if exc else CLOSED_BY_REDIS)
            self.closed.set_result(ConnectionLost(why))

    def _pushed(self, push: list[Any]) -> None:
        """What Redis says of its own accord; here nothing is expected."""

    def _replied(self, reply: Any) -> None:
        if not self._unanswered or not isinstance(self._unanswered[0], PendingReply):
            raise UnexpectedReply(f"a reply of type {type(reply).__name__}")
        self._unanswered.popleft().reply(reply)


def resolve(answer: asyncio.Future[T], value: T) -> None:
    """Give `value` to who waits for it, unless nobody does any more."""
    if not answer.done():
        answer.set_result(value)


def pack(*command: str | int | bytes) -> bytes:
    """`command` as Redis reads it."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows 1-tuples only
    return packed
