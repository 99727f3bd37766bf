"""Thousands of clients in one event loop: they register, and reconnect when a connection ends.

They do what gateway/static/client.js does: wait with full jitter, register again with the last messageId, and
abort a connection that does not answer.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backoff import Backoff
from ..messages import AUTHORIZATION, REGISTRATION
from .connection import ClientConnection
from .ledger import Ledger, LedgerEntry

# As in client.js.
FIRST_DELAY = 0.5
LONGEST_DELAY = 10.0
OPEN_DEADLINE = 15.0

CONNECTING = 200  # concurrent handshakes while all clients connect; later each client acts alone
# With the segments of loopback (64 KB) the kernel would buffer 3 MB for a client that does not read.
NARROW_BUFFER = 4_096  # bytes
NARROW_SEGMENT = 1_460  # bytes: Ethernet's
ABNORMAL = 1006  # RFC 6455 section 7.1.5: the connection ended without a close frame
FILLER = "filler-"
"""Prefix of the messageIds of results that only fill a client's buffers; the ledger does not count them."""


class NodeAddress(NamedTuple):
    """Where clients connect: a node, or the load balancer in front of the nodes."""

    host: str
    port: int


class _Attempt(ClientConnection):
    """One connection of a client."""

    def __init__(self, client: DrillClient, via: int, registration: object) -> None:
        super().__init__(registration)
        self.via = via
        self._client = client

    def on_message(self, message: dict[str, Any]) -> None:
        self._client.on_message(self, message)

    def on_rejection(self, head: bytes) -> None:
        self._client.on_rejection(head)

    def on_close(self) -> None:
        self._client.on_close(self)


class DrillClient:
    """One browser, over all its connections."""

    __slots__ = (
        "_address",
        "_attempt",
        "_backoff",
        "_clients",
        "_last_message_id",
        "_left",
        "_lost_at",
        "_task",
        "_timer",
        "created",
        "in_flight",
        "longest_disconnect",
        "name",
        "narrow",
        "registered",
    )

    def __init__(self, clients: Clients, name: str, address: int, narrow: bool) -> None:
        self.name = name
        self.created = time.monotonic()
        self.registered = False
        self.longest_disconnect = 0.0
        """Seconds from the end of a connection to the next confirmed registration."""
        self.in_flight: LedgerEntry | None = None
        self.narrow = narrow
        """Whether its next connections have buffers as over a network, and not the large ones of loopback."""
        self._clients = clients
        self._address = address
        self._backoff = Backoff(FIRST_DELAY, LONGEST_DELAY)
        self._last_message_id: str | None = None
        self._lost_at: float | None = None
        self._attempt: _Attempt | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._left = False

    def connect(self) -> None:
        """Start a connection. However it ends, the client starts another one."""
        self._task = asyncio.get_running_loop().create_task(self._connect())

    def leave(self) -> None:
        """Close for good, as when the user leaves the page."""
        self._left = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._attempt is not None:
            self._attempt.leave()

    def pause(self) -> None:
        """Stop reading, as a device that goes to sleep with its connections open."""
        if self._attempt is not None:
            self._attempt.pause()

    def resume(self) -> None:
        if self._attempt is not None:
            self._attempt.resume()

    def reconnect(self) -> None:
        """Abort the connection; the client then reconnects as after any loss."""
        if self._attempt is not None:
            self._attempt.abort()

    def disconnected_for(self, now: float) -> float:
        """The longest time without a registration, the present one included."""
        return max(self.longest_disconnect, 0.0 if self._lost_at is None else now - self._lost_at)

    # Events of its connections

    def on_message(self, attempt: _Attempt, message: dict[str, Any]) -> None:
        topic = message.get("topic")
        if topic == REGISTRATION:
            self._answered(message)
        elif topic == AUTHORIZATION:
            self._last_message_id = str(message.get("messageId"))
            if not self._last_message_id.startswith(FILLER):
                self._clients.delivered(self, self._last_message_id, attempt.via)

    def on_rejection(self, head: bytes) -> None:
        status = head.split(b" ", 2)[1:2]
        self._clients.rejections[status[0].decode() if status else "?"] += 1
        self._address += 1

    def on_close(self, attempt: _Attempt) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._attempt = None
        if self.registered:
            self.registered = False
            self._clients.registered -= 1
            self._lost_at = time.monotonic()
        if not self._left:
            self._clients.close_codes[attempt.close_code or ABNORMAL] += 1
            self._retry()

    # Connecting

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        addresses = self._clients.addresses
        attempt = _Attempt(self, self._address % len(addresses), self._registration())
        connection = socket.socket()
        connection.setblocking(False)
        if self.narrow:  # both work only when set before the connection
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW_BUFFER)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, NARROW_SEGMENT)
        # Set before the connection exists: the answer may arrive before this task runs again.
        self._attempt = attempt
        self._timer = loop.call_later(OPEN_DEADLINE, attempt.abort)
        try:
            async with asyncio.timeout(OPEN_DEADLINE):
                await loop.sock_connect(connection, addresses[attempt.via])
                await loop.create_connection(lambda: attempt, sock=connection)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            self._address += 1  # nobody listens there
            self._attempt = None
            self._timer.cancel()
            self._retry()

    def _registration(self) -> dict[str, str]:
        body = {"topic": REGISTRATION, "webSocketId": self.name}
        if self._last_message_id is not None:
            body["lastMessageId"] = self._last_message_id
        return body

    def _answered(self, message: dict[str, Any]) -> None:
        if self.registered or message.get("registrationSucceeded") is not True:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._backoff.reset()
        self.registered = True
        now = time.monotonic()
        if self._lost_at is not None:
            self.longest_disconnect = max(self.longest_disconnect, now - self._lost_at)
            self._lost_at = None
            self._clients.reconnects.append(now)
        else:
            self._clients.slowest_registration = max(self._clients.slowest_registration, now - self.created)
        self._clients.registered += 1

    def _retry(self) -> None:
        if not self._left:
            self._timer = asyncio.get_running_loop().call_later(self._backoff.next(), self.connect)


class Clients:
    """All clients of a drill, and the queue of those that get the next results.

    A client has one result in flight at a time. Redis retains only the newest result of an id, so a second
    one would replace a first that was not delivered yet.
    """

    def __init__(self, addresses: Sequence[NodeAddress], ledger: Ledger, stem: str) -> None:
        self.addresses = addresses
        self.by_name: dict[str, DrillClient] = {}
        self.registered = 0
        self.close_codes: Counter[int] = Counter()
        """Connections that a client did not end, by close code."""
        self.rejections: Counter[str] = Counter()
        """Rejected upgrades, by HTTP status."""
        self.reconnects: list[float] = []
        """The times at which clients were registered again after a loss."""
        self.slowest_registration = 0.0
        """Seconds: the longest time from a client's first attempt to its confirmed registration."""
        self.longest_disconnect_of_removed = 0.0
        self._ledger = ledger
        self._stem = stem
        self._created = 0
        self._idle: deque[DrillClient] = deque()

    async def connect_all(self, count: int, seconds: float) -> None:
        """Add clients until there are `count`, and wait until all are registered. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while len(self.by_name) < count or self.registered < count:
                room = CONNECTING - (len(self.by_name) - self.registered)
                for _ in range(min(room, count - len(self.by_name))):
                    self._idle.append(self.add())
                await asyncio.sleep(0.005)

    def add(self, narrow: bool = False) -> DrillClient:
        """A new client, which starts to connect. It is not in the queue for a result yet."""
        self._created += 1
        client = DrillClient(self, f"{self._stem}-{self._created}", self._created, narrow)
        self.by_name[client.name] = client
        client.connect()
        return client

    def next_idle(self) -> DrillClient | None:
        """Take the client that gets the next result; None if every client has a result in flight."""
        while self._idle:
            client = self._idle.popleft()
            if client.name in self.by_name:
                return client
        return None

    def assign(self, client: DrillClient, result: LedgerEntry) -> None:
        """Note that `result` is in flight to `client`, which `next_idle` has returned."""
        client.in_flight = result

    def settle(self, client: DrillClient) -> None:
        """Put the client back into the queue if its result is both accepted and delivered."""
        if client.in_flight is not None and client.in_flight.settled:
            client.in_flight = None
            self._idle.append(client)

    def delivered(self, client: DrillClient, message_id: str, via: int) -> None:
        if self._ledger.deliver(client.name, message_id, time.monotonic(), via) is not None:
            self.settle(client)

    def replace_one(self) -> None:
        """Remove a client that has no result in flight, and add a new one.

        Every second new client is first in the queue, so its result is published while it registers.
        """
        client = self.next_idle()
        if client is not None:
            self.remove(client)
            successor = self.add()
            if random.random() < 0.5:  # noqa: S311 - no secret
                self._idle.appendleft(successor)
            else:
                self._idle.append(successor)

    def remove(self, client: DrillClient) -> None:
        self.longest_disconnect_of_removed = max(
            self.longest_disconnect_of_removed, client.disconnected_for(time.monotonic())
        )
        del self.by_name[client.name]
        if client.registered:
            client.registered = False
            self.registered -= 1
        client.leave()

    def longest_disconnect(self, now: float) -> float:
        """Seconds: the longest time that any client was without a registration."""
        times = (client.disconnected_for(now) for client in self.by_name.values())
        return max(self.longest_disconnect_of_removed, max(times, default=0.0))

    async def close(self) -> None:
        """Remove all clients."""
        for client in list(self.by_name.values()):
            self.remove(client)
        await asyncio.sleep(0)
