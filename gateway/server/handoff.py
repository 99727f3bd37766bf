"""Connections that go from one worker of a node to another, with what has been read of them.

Each worker has an inbox: a pair of Unix sockets for datagrams that the parent makes once and all inherit.
A parcel is one datagram: its kind, the bytes that have been read, and the connection's file descriptor
(SCM_RIGHTS, unix(7)). The pair outlives a worker: its replacement finds what was sent meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

import structlog

from ..wire.handshake import Rejection
from .affinity import owner

MAX_PARCEL: Final = 131_072
"""Of a request, in a parcel; its head and body have 80 KB at most, and a datagram must fit the buffer."""

INBOX_BUFFER: Final = 1 << 20
"""Bytes that an inbox holds, as far as the kernel grants it (net.core.wmem_max): with the usual 416 KB some
150 requests."""

MAX_WAITING: Final = 1_000
"""Connections that wait for room in one inbox; a storm of polls that meets a worker busy for a second."""

PARCELS_PER_TURN: Final = 64
"""Parcels taken in before others get the loop."""

NEW_CONNECTION: Final = b"N"
"""A connection of which nothing has been read: it comes for whoever has time."""

BEGUN_REQUEST: Final = b"R"
"""A connection with the beginning of a request for a session of the worker that it is sent to."""

UNAVAILABLE: Final = Rejection(
    503, "session_unavailable", "the process with this session cannot be reached", {"Retry-After": "1"}
)
OVERSIZED: Final = Rejection(413, "too_large", "too much at once")

log = structlog.get_logger()


class Inbox(NamedTuple):
    """Both ends of a worker's inbox."""

    receiver: socket.socket
    sender: socket.socket

    @classmethod
    def new(cls) -> Inbox:
        receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (receiver, sender):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, INBOX_BUFFER)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, INBOX_BUFFER)
        return cls(receiver, sender)

    def put(self, kind: bytes, data: bytes, descriptor: int) -> bool:
        """Send a connection, which the caller still has to close; False when there is no room."""
        try:
            socket.send_fds(self.sender, [kind, data], [descriptor])
        except OSError:  # full, or more descriptors under way than a process may have (ETOOMANYREFS)
            return False
        return True

    def take(self) -> tuple[bytes, bytes, socket.socket] | None:
        """The next parcel: kind, bytes and connection; None when there is none.

        Raises OSError for one whose descriptor could not be had, since this process has too many.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self.receiver, 1 + MAX_PARCEL, 1)
        except BlockingIOError:
            return None
        if not descriptors:
            raise OSError("a connection was lost on its way: too many open files")
        return data[:1], data[1:], socket.socket(fileno=descriptors[0])

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()


class ConnectionSink(Protocol):
    """Where connections are expected; see `door.ConnectionSink`."""

    def welcome(self, transport: asyncio.Transport, rest: bytes) -> None: ...
    def readmit(self, transport: asyncio.Transport, rest: bytes) -> None: ...


class Handoff:
    """One worker's part: it sends connections to its siblings and takes in those that are sent to it."""

    def __init__(self, number: int, inboxes: Sequence[Inbox], prefix: str, door: ConnectionSink) -> None:
        """`number` is the worker's own, from 1, and its place in `inboxes`; SockJS is below `prefix`."""
        self._number = number
        self._inboxes = inboxes
        self._prefix = prefix.encode()
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._waiting: list[deque[tuple[asyncio.Transport, bytes]]] = [deque() for _ in inboxes]
        self._arriving: set[asyncio.Task[None]] = set()
        self.sent = self.taken = self.refused = 0
        """Connections so far: to siblings, from them, and those for which no room was found."""

    def open(self) -> None:
        """Begin to take in what is sent."""
        self._loop.add_reader(self._inboxes[self._number - 1].receiver, self._arrived)

    def close(self) -> None:
        """Take in nothing more, and drop what is on its way."""
        self._loop.remove_reader(self._inboxes[self._number - 1].receiver)
        for inbox, waiting in zip(self._inboxes, self._waiting, strict=True):
            self._loop.remove_writer(inbox.sender)
            for transport, _ in waiting:
                transport.abort()
            waiting.clear()
        for task in self._arriving:
            task.cancel()

    # To siblings

    def pass_on(self, transport: asyncio.Transport, data: bytes) -> bool:
        """See to a connection whose next request begins with `data`, if that belongs to a sibling.

        False if it does not; else nothing is left to do.
        """
        to = owner(data, self._prefix, len(self._inboxes))
        if to is None or to == self._number:
            return False
        waiting = self._waiting[to - 1]
        if len(data) > MAX_PARCEL:
            self._refuse(transport, OVERSIZED)
        elif transport.get_write_buffer_size() or len(waiting) >= MAX_WAITING:
            # A client that has not read its last response sends no request, or does not mean it.
            self._refuse(transport, UNAVAILABLE)
        elif waiting or not self._put(to, transport, data):
            transport.pause_reading()
            waiting.append((transport, data))
            self._loop.add_writer(self._inboxes[to - 1].sender, self._put_waiting, to)
        return True

    def _put(self, to: int, transport: asyncio.Transport, data: bytes) -> bool:
        if transport.is_closing():  # it was lost while it waited
            return True
        if not self._inboxes[to - 1].put(BEGUN_REQUEST, data, transport.get_extra_info("socket").fileno()):
            return False
        self.sent += 1
        transport.abort()  # closes the descriptor; the connection lives by the one that was sent
        return True

    def _put_waiting(self, to: int) -> None:
        waiting = self._waiting[to - 1]
        while waiting and self._put(to, *waiting[0]):
            waiting.popleft()
        if not waiting:
            self._loop.remove_writer(self._inboxes[to - 1].sender)

    def _refuse(self, transport: asyncio.Transport, refusal: Rejection) -> None:
        self.refused += 1
        transport.write(refusal.response)
        transport.close()

    # From siblings

    def _arrived(self) -> None:
        for _ in range(PARCELS_PER_TURN):
            try:
                parcel = self._inboxes[self._number - 1].take()
            except OSError as error:
                log.error("handover failed", why=str(error))  # noqa: TRY400 - the sentence says it all
                continue
            if parcel is None:
                return
            self.taken += 1
            task = self._loop.create_task(self._take_in(*parcel))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _take_in(self, kind: bytes, data: bytes, connection: socket.socket) -> None:
        connection.setblocking(False)
        arrival = ArrivingConnection()
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: arrival, connection)
        except BaseException:
            connection.close()
            raise
        if arrival.lost or transport.is_closing():
            return
        admit = self._door.welcome if kind == NEW_CONNECTION else self._door.readmit
        admit(transport, data + arrival.data)


class ArrivingConnection(asyncio.Protocol):
    """A connection until it has its transport: uvloop must not see it closed before that."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


def reject_waiting(inbox: Inbox) -> int:
    """Answer some that wait in the inbox of a worker that is gone, so that they connect anew; how many."""
    count = 0
    for _ in range(PARCELS_PER_TURN):
        with suppress(OSError):  # it has gone meanwhile
            parcel = inbox.take()
            if parcel is None:
                break
            count += 1
            with parcel[2] as connection:
                connection.setblocking(False)
                connection.send(UNAVAILABLE.response)
    return count
