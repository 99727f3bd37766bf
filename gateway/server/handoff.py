"""Hands connections from one worker of a node to another, with the bytes that were read from them.

Each worker has an inbox: a pair of Unix datagram sockets that the parent makes once and all workers inherit.
A parcel is one datagram: its kind, the bytes that were read, and the connection's file descriptor
(SCM_RIGHTS, unix(7)). The pair outlives a worker: its replacement finds the parcels that were sent in
between.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

import structlog

from ..transports import http
from ..transports.hijack import end_input
from ..transports.sockets import reset
from ..wire.handshake import Rejection
from .affinity import owner

MAX_PARCEL: Final = 131_072
"""Bytes of a request in a parcel. Its head and body have 80 KB at most, and a datagram must fit the
buffer."""

INBOX_BUFFER: Final = 1 << 20
"""Bytes that an inbox holds, if the kernel allows it (net.core.wmem_max). The usual 416 KB hold about 150
requests."""

MAX_WAITING: Final = 1_000
"""Connections that wait for room in one inbox: enough for a storm of polls while a worker is busy for a
second."""

PARCELS_PER_TURN: Final = 64
"""Parcels that are taken before the event loop serves others."""

NEW_CONNECTION: Final = b"N"
"""A new connection, from which nothing was read: any worker may serve it."""

BEGUN_REQUEST: Final = b"R"
"""A connection with the start of a request. The worker that receives it owns the request's session."""

UNAVAILABLE: Final = Rejection(
    503, "session_unavailable", "the process with this session cannot be reached", {"Retry-After": "1"}
)
OVERSIZED: Final = Rejection(413, "too_large", "the request is too large")

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
        """Send a connection, which the caller must then close. Returns False when there is no room."""
        try:
            socket.send_fds(self.sender, [kind, data], [descriptor])
        except OSError:  # full, or too many descriptors in flight (ETOOMANYREFS)
            return False
        return True

    def take(self) -> tuple[bytes, bytes, socket.socket] | None:
        """The next parcel: kind, bytes and connection. None when there is none.

        Raises OSError for a parcel whose descriptor was lost because this process has too many.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self.receiver, 1 + MAX_PARCEL, 1)
        except BlockingIOError:
            return None
        if not descriptors:
            raise OSError("too many open files: the connection is lost")
        return data[:1], data[1:], socket.socket(fileno=descriptors[0])

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()


class Siblings(NamedTuple):
    """The workers that serve one port together, from the view of one of them."""

    number: int
    """This worker's number, from 1."""
    inboxes: Sequence[Inbox]
    """The inboxes of all workers, in the order of their numbers."""


class ConnectionSink(Protocol):
    """Takes the connections that arrive: see `acceptor.Acceptor`."""

    def accept(self, transport: asyncio.Transport, rest: bytes) -> None: ...
    def take_over(self, transport: asyncio.Transport, rest: bytes) -> None: ...
    def let_go(self, transport: asyncio.Transport) -> None: ...
    def close_gracefully(self, transport: asyncio.Transport) -> None: ...


class Handoff:
    """One worker's part: sends connections to its siblings, and takes those that they send."""

    def __init__(self, siblings: Siblings, prefixes: Iterable[str], sink: ConnectionSink) -> None:
        """`prefixes` are the paths below which SockJS is served. `sink` takes the connections that arrive,
        and learns which ones leave."""
        self._number, self._inboxes = siblings
        self._prefixes = tuple(prefixes)
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._waiting: list[deque[tuple[asyncio.Transport, bytes]]] = [deque() for _ in self._inboxes]
        self._arriving: set[asyncio.Task[None]] = set()
        self.sent = self.taken = self.rejected = 0
        """Connections so far: sent to siblings, taken from them, and rejected because no inbox had room."""

    def open(self) -> None:
        """Begin to take connections."""
        self._loop.add_reader(self._inboxes[self._number - 1].receiver, self._receive)

    def close(self) -> None:
        """Take no more connections, and drop those that wait."""
        self._loop.remove_reader(self._inboxes[self._number - 1].receiver)
        for inbox, waiting in zip(self._inboxes, self._waiting, strict=True):
            self._loop.remove_writer(inbox.sender)
            for transport, _ in waiting:
                reset(transport)
            waiting.clear()
        for task in self._arriving:
            task.cancel()

    # To siblings

    def hand_off(self, transport: asyncio.Transport, data: bytes) -> bool:
        """Hand the connection to the worker that owns its next request, which begins with `data`.

        Returns False if that is this worker, or if any worker can answer the request.
        """
        to = owner(data, self._prefixes, len(self._inboxes))
        if to is None or to == self._number:
            return False
        waiting = self._waiting[to - 1]
        if len(data) > MAX_PARCEL:
            self._reject(transport, OVERSIZED)
        elif transport.get_write_buffer_size() or len(waiting) >= MAX_WAITING:
            # A client that has not read its last response should not send another request.
            self._reject(transport, UNAVAILABLE)
        elif waiting or not self._put(to, transport, data):
            transport.pause_reading()
            waiting.append((transport, data))
            self._loop.add_writer(self._inboxes[to - 1].sender, self._put_waiting, to)
        return True

    def _put(self, to: int, transport: asyncio.Transport, data: bytes) -> bool:
        if transport.is_closing():  # the connection was lost while it waited
            return True
        if not self._inboxes[to - 1].put(BEGUN_REQUEST, data, transport.get_extra_info("socket").fileno()):
            return False
        self.sent += 1
        self._sink.let_go(transport)  # the descriptor that was sent keeps the connection open
        return True

    def _put_waiting(self, to: int) -> None:
        waiting = self._waiting[to - 1]
        while waiting and self._put(to, *waiting[0]):
            waiting.popleft()
        if not waiting:
            self._loop.remove_writer(self._inboxes[to - 1].sender)

    def _reject(self, transport: asyncio.Transport, rejection: Rejection) -> None:
        self.rejected += 1
        http.write(transport, rejection.response)
        self._sink.close_gracefully(transport)

    # From siblings

    def _receive(self) -> None:
        for _ in range(PARCELS_PER_TURN):
            try:
                parcel = self._inboxes[self._number - 1].take()
            except OSError as error:
                log.error("handoff failed", reason=str(error))  # noqa: TRY400 - a traceback would add nothing
                continue
            if parcel is None:
                return
            self.taken += 1
            task = self._loop.create_task(self._take(*parcel))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _take(self, kind: bytes, data: bytes, connection: socket.socket) -> None:
        connection.setblocking(False)
        arrival = ArrivingConnection()
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: arrival, connection)
        except BaseException:
            connection.close()
            raise
        if arrival.lost or transport.is_closing():
            return
        take = self._sink.accept if kind == NEW_CONNECTION else self._sink.take_over
        take(transport, data + arrival.data)
        if arrival.ended:
            end_input(transport)


class ArrivingConnection(asyncio.Protocol):
    """A connection until it has its transport. uvloop must not see it closed before that."""

    def __init__(self) -> None:
        self.data = b""
        self.ended = False
        """The client has closed its half."""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        """True keeps the other half open, for the response."""
        self.ended = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


def reject_waiting(inbox: Inbox) -> int:
    """Reject some connections in the inbox of a worker that is gone. Returns how many."""
    count = 0
    for _ in range(PARCELS_PER_TURN):
        with suppress(OSError):  # the client has disconnected
            parcel = inbox.take()
            if parcel is None:
                break
            count += 1
            with parcel[2] as connection:
                connection.setblocking(False)
                connection.send(UNAVAILABLE.response)
    return count
