"""Browsers by the thousand in one event loop: they register, come back when a connection ends, come and go.

They do what gateway/static/client.js does: wait with full jitter, register again with the messageId that they
had last, and give a connection up that does not answer.
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

CONNECTING = 200  # handshakes under way while the crowd gathers; afterwards everybody acts alone
# Loopback's segments of 64 KB would have the kernel take 3 MB for a client that does not read.
NARROW_BUFFER = 4_096  # bytes
NARROW_SEGMENT = 1_460  # bytes: Ethernet's
ABNORMAL = 1006  # RFC 6455 section 7.1.5: the connection ended without a Close frame
FILLER = "filler-"
"""How the messageIds begin of results that only fill a client's buffers and are none of the ledger's."""


class NodeAddress(NamedTuple):
    """Where clients connect: a node, or the load balancer."""

    host: str
    port: int


class _Attempt(ClientConnection):
    """One of a client's connections."""

    def __init__(self, client: DrillClient, part: int, opening: object) -> None:
        super().__init__(opening)
        self.part = part
        self._client = client

    def heard(self, message: dict[str, Any]) -> None:
        self._client.heard(self, message)

    def refused(self, head: bytes) -> None:
        self._client.refused(head)

    def ended(self) -> None:
        self._client.lost(self)


class DrillClient:
    """One browser, through all of its connections."""

    __slots__ = (
        "_attempt",
        "_backoff",
        "_crowd",
        "_left",
        "_lost_at",
        "_part",
        "_task",
        "_timer",
        "_told_last",
        "born",
        "longest_gap",
        "name",
        "narrow",
        "registered",
        "under_way",
    )

    def __init__(self, crowd: Clients, name: str, part: int, narrow: bool) -> None:
        self.name = name
        self.born = time.monotonic()
        self.registered = False
        self.longest_gap = 0.0
        """Seconds: from a connection's end to the next answered registration."""
        self.under_way: LedgerEntry | None = None
        self.narrow = narrow
        """Whether its next connections have the buffers of a network rather than those of loopback."""
        self._crowd = crowd
        self._part = part
        self._backoff = Backoff(FIRST_DELAY, LONGEST_DELAY)
        self._told_last: str | None = None
        self._lost_at: float | None = None
        self._attempt: _Attempt | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._left = False

    def connect(self) -> None:
        """Begin a connection; whatever becomes of it, the client sees to it that there is another."""
        self._task = asyncio.get_running_loop().create_task(self._connect())

    def leave(self) -> None:
        """Close as a page does that is left, for good."""
        self._left = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._attempt is not None:
            self._attempt.leave()

    def pause(self) -> None:
        """Stop reading, as a device does that has gone to sleep with its connections open."""
        if self._attempt is not None:
            self._attempt.pause()

    def resume(self) -> None:
        if self._attempt is not None:
            self._attempt.resume()

    def reconnect(self) -> None:
        """Drop the connection; the next one comes as after any loss."""
        if self._attempt is not None:
            self._attempt.abort()

    def gap(self, now: float) -> float:
        """The longest gap, with the one that goes on at present."""
        return max(self.longest_gap, 0.0 if self._lost_at is None else now - self._lost_at)

    # What its connections say

    def heard(self, attempt: _Attempt, message: dict[str, Any]) -> None:
        topic = message.get("topic")
        if topic == REGISTRATION:
            self._answered(message)
        elif topic == AUTHORIZATION:
            self._told_last = str(message.get("messageId"))
            if not self._told_last.startswith(FILLER):
                self._crowd.delivered(self, self._told_last, attempt.part)

    def refused(self, head: bytes) -> None:
        status = head.split(b" ", 2)[1:2]
        self._crowd.refusals[status[0].decode() if status else "?"] += 1
        self._part += 1

    def lost(self, attempt: _Attempt) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._attempt = None
        if self.registered:
            self.registered = False
            self._crowd.registered -= 1
            self._lost_at = time.monotonic()
        if not self._left:
            self._crowd.closes[attempt.close_code or ABNORMAL] += 1
            self._retry()

    # Connecting

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        places = self._crowd.places
        attempt = _Attempt(self, self._part % len(places), self._registration())
        connection = socket.socket()
        connection.setblocking(False)
        if self.narrow:  # both count only when they are chosen before connecting
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW_BUFFER)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, NARROW_SEGMENT)
        # Before the connection is there: the answer may come before this task's next turn.
        self._attempt = attempt
        self._timer = loop.call_later(OPEN_DEADLINE, attempt.abort)
        try:
            async with asyncio.timeout(OPEN_DEADLINE):
                await loop.sock_connect(connection, places[attempt.part])
                await loop.create_connection(lambda: attempt, sock=connection)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            self._part += 1  # nobody is there
            self._attempt = None
            self._timer.cancel()
            self._retry()

    def _registration(self) -> dict[str, str]:
        body = {"topic": REGISTRATION, "webSocketId": self.name}
        if self._told_last is not None:
            body["lastMessageId"] = self._told_last
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
            self.longest_gap = max(self.longest_gap, now - self._lost_at)
            self._lost_at = None
            self._crowd.returned.append(now)
        else:
            self._crowd.slowest_welcome = max(self._crowd.slowest_welcome, now - self.born)
        self._crowd.registered += 1

    def _retry(self) -> None:
        if not self._left:
            self._timer = asyncio.get_running_loop().call_later(self._backoff.next(), self.connect)


class Clients:
    """All clients of a drill, and whose turn it is to get a result.

    A client has one result under way at a time: Redis keeps the latest of an id, so a second one would
    replace a first that has not arrived.
    """

    def __init__(self, places: Sequence[NodeAddress], ledger: Ledger, stem: str) -> None:
        self.places = places
        self.clients: dict[str, DrillClient] = {}
        self.registered = 0
        self.closes: Counter[int] = Counter()
        """How connections ended that their client did not end, by close code."""
        self.refusals: Counter[str] = Counter()
        """Upgrades that were not granted, by HTTP status."""
        self.returned: list[float] = []
        """When clients were registered again after a loss."""
        self.slowest_welcome = 0.0
        """Seconds from a client's first attempt to its first answer, at most."""
        self.longest_gap_of_those_left = 0.0
        self._ledger = ledger
        self._stem = stem
        self._born = 0
        self._idle: deque[DrillClient] = deque()

    async def gather(self, count: int, seconds: float) -> None:
        """Let so many clients come and register. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while len(self.clients) < count or self.registered < count:
                room = CONNECTING - (len(self.clients) - self.registered)
                for _ in range(min(room, count - len(self.clients))):
                    self._idle.append(self.newcomer())
                await asyncio.sleep(0.005)

    def newcomer(self, narrow: bool = False) -> DrillClient:
        """A further client, which begins to connect, and is not in line for a result yet."""
        self._born += 1
        client = DrillClient(self, f"{self._stem}-{self._born}", self._born, narrow)
        self.clients[client.name] = client
        client.connect()
        return client

    def take(self) -> DrillClient | None:
        """The client whose turn it is to get a result; None if all have one under way."""
        while self._idle:
            client = self._idle.popleft()
            if client.name in self.clients:
                return client
        return None

    def send(self, client: DrillClient, result: LedgerEntry) -> None:
        """`client`, which was taken, has `result` under way."""
        client.under_way = result

    def settle(self, client: DrillClient) -> None:
        """Put it back in line if its result is both accepted and delivered."""
        if client.under_way is not None and client.under_way.settled:
            client.under_way = None
            self._idle.append(client)

    def delivered(self, client: DrillClient, message_id: str, part: int) -> None:
        if self._ledger.deliver(client.name, message_id, time.monotonic(), part) is not None:
            self.settle(client)

    def swap(self) -> None:
        """One leaves that has nothing to wait for, and another comes.

        Every second one is next in line for a result, which is thus published while it registers.
        """
        client = self.take()
        if client is not None:
            self.remove(client)
            successor = self.newcomer()
            if random.random() < 0.5:  # noqa: S311 - no secret
                self._idle.appendleft(successor)
            else:
                self._idle.append(successor)

    def remove(self, client: DrillClient) -> None:
        self.longest_gap_of_those_left = max(self.longest_gap_of_those_left, client.gap(time.monotonic()))
        del self.clients[client.name]
        if client.registered:
            client.registered = False
            self.registered -= 1
        client.leave()

    def longest_gap(self, now: float) -> float:
        """The longest time that any client was without a registration."""
        outages = (client.gap(now) for client in self.clients.values())
        return max(self.longest_gap_of_those_left, max(outages, default=0.0))

    async def close(self) -> None:
        """All leave."""
        for client in list(self.clients.values()):
            self.remove(client)
        await asyncio.sleep(0)
