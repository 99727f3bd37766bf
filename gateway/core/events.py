"""What happens to sessions, for backends: the events, their fields, and the queue in which they wait. Pure.

An event is a few flat strings. `FIELDS` is the table of all kinds; docs/events.md tells readers the same. The
queue has a bound and an owner that empties it (`redis.event_writer`): when Redis is away for too long, the
oldest events are dropped and counted.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Final, NamedTuple

from ..messages import NODE_STOPPED, SLOW_CONSUMER, WEB_SOCKET_ID, CloseCode

REGISTERED: Final = "registered"
REFUSED: Final = "refused"
DELIVERED: Final = "delivered"
CLOSED: Final = "closed"

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    REGISTERED: ("address", "origin", "userAgent", "protocol", "transport", "resumed"),
    REFUSED: ("code", "address"),
    DELIVERED: ("messageId", "authResult", "retained"),
    CLOSED: ("code", "reason", "by", "seconds"),
}
"""The fields of each kind, besides those that all have: event, webSocketId, session, node, at."""

CLIENT: Final = "client"
GATEWAY: Final = "gateway"
NETWORK: Final = "network"
"""Who has ended a connection: the field `by`."""

OWN_REASONS: Final = (SLOW_CONSUMER, NODE_STOPPED)
"""Why the gateway ends a connection without a close frame."""

MAX_WAITING: Final = 100_000
"""Events that wait to be written, some 85 MB: two minutes of 400 registrations and deliveries a second."""

MAX_TEXT: Final = 256
"""Characters of what a client says about itself. Browsers' User-Agents have 80 to 200."""

MAX_REFUSED: Final = 5
"""Refused registrations of one session that are recorded. A client may send 20 a second, and the stream has
room for the events of others only as long as nobody fills it."""

MAX_KEPT: Final = 16
"""Results of one session that its wire keeps at most."""

_UNPRINTABLE: Final = re.compile(r"[^ -~]")

Value = str | bytes


class Event(NamedTuple):
    """Something that happened to a session. `values` belong to the fields of its kind."""

    kind: str
    web_socket_id: bytes
    session: str
    at: int
    """Milliseconds since 1970."""
    values: tuple[Value, ...]


class EventLog:
    """The events of a node that wait to be written, and what the node has counted of them."""

    def __init__(self, node: str, run: str, now: Callable[[], float], size: int = MAX_WAITING) -> None:
        """`node` is the node's name. `run` tells this process from all others that there ever are.

        `now` returns the seconds since 1970. When `size` events wait, each new one replaces the oldest.
        """
        self._node = node
        self._run = run
        self._now = now
        self._size = size
        self._numbers = count(1)
        self._waiting: deque[Event] = deque()
        self._waiter: Callable[[], None] | None = None
        self.recorded: Counter[str] = Counter()
        """Events so far, by kind."""
        self.dropped = 0
        """Events so far that nobody will read: too many waited."""

    def __len__(self) -> int:
        """Events that wait."""
        return len(self._waiting)

    def session(self) -> SessionEvents:
        """Records what happens to a new session."""
        return SessionEvents(self, f"{self._run}-{next(self._numbers)}")

    def add(self, kind: str, web_socket_id: bytes, session: str, values: tuple[Value, ...]) -> None:
        """Record an event. It must have a value for each of the kind's fields."""
        self.recorded[kind] += 1
        if len(self._waiting) >= self._size:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(Event(kind, web_socket_id, session, int(self._now() * 1000), values))
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            waiter()

    # For the owner

    def on_next(self, waiter: Callable[[], None]) -> None:
        """Call `waiter` once, when the next event is recorded."""
        self._waiter = waiter

    def take(self, most: int) -> list[Event]:
        """The oldest events, at most so many. They wait no longer."""
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def put_back(self, events: Sequence[Event]) -> None:
        """These could not be written: they wait again, before all others. The oldest of those that find no
        room are dropped."""
        room = max(0, self._size - len(self._waiting))
        kept = events[len(events) - min(room, len(events)) :]
        self.dropped += len(events) - len(kept)
        self._waiting.extendleft(reversed(kept))

    def drop_all(self) -> None:
        """Nobody will write those that wait."""
        self.dropped += len(self._waiting)
        self._waiting.clear()

    def fields(self, event: Event) -> list[Value]:
        """The entry of the stream: names and values by turns."""
        entry: list[Value] = [
            *("event", event.kind, "webSocketId", event.web_socket_id),
            *("session", event.session, "node", self._node, "at", str(event.at)),
        ]
        for name, value in zip(FIELDS[event.kind], event.values, strict=True):
            entry += (name, value)
        return entry


class Delivery(NamedTuple):
    """A result on its way to a client."""

    web_socket_id: bytes
    message_id: str | None
    auth_result: str
    retained: bool


class SessionEvents:
    """Records what happens to one session, from its registration to its end.

    `closed` follows `registered`, once. A session without an answer to its registration leaves nothing but
    what was refused.
    """

    __slots__ = (
        "_agent",
        "_closed_with",
        "_id",
        "_kept",
        "_log",
        "_origin",
        "_refused",
        "_session",
        "_unsent",
    )

    def __init__(self, log: EventLog, session: str) -> None:
        self._log = log
        self._session = session
        self._id = b""  # empty unless it is registered
        self._origin = self._agent = ""
        self._refused = 0
        self._kept: tuple[Delivery, ...] = ()  # by the wire, until its client is ready for them
        self._unsent: tuple[Delivery, ...] = ()  # by the transport, until its client listens again
        self._closed_with = 0

    def request(self, headers: Mapping[str, str]) -> None:
        """Remember what the client's request says about it, until the registration."""
        self._origin = _printable(headers.get("Origin", ""))
        self._agent = _printable(headers.get("User-Agent", ""))

    def registered(
        self, web_socket_id: bytes, address: str, protocol: str, transport: str, *, resumed: bool
    ) -> None:
        """The client is given its answer. `resumed`: it has named the last result that it has had."""
        self._id = web_socket_id
        values = (address, self._origin, self._agent, protocol, transport, _flag(resumed))
        self._origin = self._agent = ""
        self._log.add(REGISTERED, web_socket_id, self._session, values)

    def refused(self, web_socket_id: object, code: str, address: str) -> None:
        """A registration was refused. An id of the wrong form becomes an empty one."""
        self._refused += 1
        if self._refused <= MAX_REFUSED:
            known = isinstance(web_socket_id, str) and WEB_SOCKET_ID.fullmatch(web_socket_id)
            name = web_socket_id.encode() if known and isinstance(web_socket_id, str) else b""
            self._log.add(REFUSED, name, self._session, (code, address))

    def delivered(self, delivery: Delivery) -> None:
        """A result was written to the connection."""
        if self._id:
            message_id, auth_result = delivery.message_id or "", delivery.auth_result
            values = (message_id, auth_result, _flag(delivery.retained))
            self._log.add(DELIVERED, delivery.web_socket_id, self._session, values)

    def kept(self, delivery: Delivery) -> None:
        """The wire keeps a result until its client is ready for it."""
        self._kept = (*self._kept[1 - MAX_KEPT :], delivery)

    def take_kept(self, number: int) -> Delivery | None:
        """The kept result that is the `number`-th from the newest. The wire gives it away, and then those
        after it."""
        index = len(self._kept) - number
        if index < 0:
            return None
        found = self._kept[index]
        self._kept = self._kept[index + 1 :]
        return found

    def unsent(self, delivery: Delivery) -> None:
        """The transport keeps a result until its client listens again."""
        self._unsent += (delivery,)

    def sent(self) -> None:
        """All that the transport has kept is written."""
        unsent, self._unsent = self._unsent, ()
        for delivery in unsent:
            self.delivered(delivery)

    def closed_by_client(self, code: int) -> None:
        """The client ends the connection with this code, which may be any."""
        self._closed_with = code

    def closed(self, code: int, reason: str, seconds: float) -> None:
        """The connection has ended, so many seconds after the registration."""
        if not self._id:
            return
        if self._closed_with:
            code, by = self._closed_with, CLIENT
        else:
            by = NETWORK if code == CloseCode.ABNORMAL and reason not in OWN_REASONS else GATEWAY
        values = (str(int(code)), reason, by, f"{seconds:.3f}")
        self._log.add(CLOSED, self._id, self._session, values)
        self._id = b""


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _printable(text: str) -> str:
    """What a client says, in printable ASCII: readers show it to people, and write it into logs."""
    return _UNPRINTABLE.sub("?", text[:MAX_TEXT])
