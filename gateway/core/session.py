"""One client, whatever it speaks: registration, results, deadlines and how it ends.

A session is a `Member` of the hub on one side; on the other a subclass brings bytes to the client and
back (`websocket.WebSocketSession`). What the bytes mean is its `Wire`'s to say.

    OPEN --registers--> WAITING --acknowledged--> REGISTERED
      |                    |                          |
      +--------------------+------------+-------------+
                                        v
                                     CLOSING --> CLOSED

A session waits for one deadline at a time, the first of those that it has: the end of its state's time, its
transport's heartbeat, and what its wire has agreed on to keep it alive. The node's `TimerWheel` keep it: no
session has a task or a timer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from itertools import count
from math import inf

import structlog

from ..config import Config
from ..errors import WireError
from ..messages import (
    DEGRADED,
    RESTORED,
    CloseCode,
    Disconnect,
    InvalidRegistration,
    Problem,
    Register,
    Reply,
    Request,
    Result,
    WatchStatus,
)
from ..telemetry import logs
from ..wire import Wire
from .admission import Admission
from .hub import Hub
from .timer_wheel import TimerWheel

log = structlog.get_logger()

MAX_STRIKES = 5
"""Messages that mean nothing here, before the client is taken for one that never will."""

MAX_REMEMBERED_IDS = 16
"""The latest messageIds that a session remembers, so as not to send one twice after a gap."""


class SessionState(Enum):
    """Where in its life a session is; see the top of this module."""

    OPEN = auto()
    WAITING = auto()
    REGISTERED = auto()
    CLOSING = auto()
    CLOSED = auto()


# Python 3.11 takes 200 ns to look an enum's member up, and 10 ns for a global.
OPEN, WAITING, REGISTERED, CLOSING, CLOSED = SessionState


@dataclass(slots=True)
class SessionContext:
    """What all sessions of a node share. `clock` is monotonic, in seconds."""

    config: Config
    hub: Hub
    admission: Admission
    clock: Callable[[], float]
    deadlines: TimerWheel[Session] = field(default_factory=TimerWheel)
    ended: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Sessions so far by close code and reason."""
    open: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Sessions by their wire's name and their transport."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Registrations that could not be asked of Redis, so far, by the problem's code."""
    timed_out: int = 0
    """Registrations that Redis has not confirmed in time, so far."""
    numbers: Iterator[int] = field(default_factory=partial(count, 1))
    """For sessions, when there are debug lines to tell them apart."""
    duplicates: int = 0
    """Results that were not sent, so far, since their messageId had been on that connection."""


class Session:
    """The part of a client's session that is the same for every protocol and transport."""

    __slots__ = (
        "_address",
        "_answers",
        "_beat",
        "_channel",
        "_degraded",
        "_had",
        "_limit",
        "_node",
        "_number",
        "_rate",
        "_registered",
        "_results",
        "_strikes",
        "_watches",
        "_why",
        "_wire",
        "due",
        "state",
    )

    def __init__(self, node: SessionContext, wire: Wire, address: str) -> None:
        """A session that `node.admission` has admitted for `address`; it is released at its end."""
        self._node = node
        self._wire = wire
        self._address = address
        self._channel: bytes | None = None
        self._answers = 0  # registrations to acknowledge once the hub says so
        self._strikes = 0
        self._rate = 0.0
        self._had: tuple[str, ...] = ()
        self._registered = 0.0  # when; 0 until then
        self._results = 0  # that it was sent
        self._degraded = False  # results cannot be heard; a client that watches the status knows
        self._watches = False
        self._beat = inf  # when the wire owes the client a heart-beat
        self._why: tuple[int, str] = (CloseCode.ABNORMAL, "connection lost")
        self.state = OPEN
        self.due = 0
        self._limit = node.clock() + node.config.registration_timeout  # the end of the state's time
        node.deadlines.set(self, self._limit)
        node.open[wire.name, self.transport] += 1
        self._number = 0  # by which debug lines are told apart
        if logs.debugging:
            self._number = next(node.numbers)
            self._tell("session opened", protocol=wire.name, transport=self.transport, address=address)

    def _tell(self, event: str, **about: object) -> None:
        if logs.debugging:
            log.debug(event, session=self._number, **about)

    # What a subclass brings

    transport = "none"
    """What brings the bytes, in a word that metrics have."""

    def _write(self, message: bytes) -> None:
        """Send one of the wire's messages; must not block or raise."""
        raise NotImplementedError

    def _say_goodbye(self, code: CloseCode, reason: str) -> None:
        """Begin to close; `ended` follows once the connection is gone."""
        raise NotImplementedError

    def _probe(self) -> bool:
        """See to it that the client shows itself until the next heartbeat; False if it did not."""
        raise NotImplementedError

    def abort(self) -> None:
        """Drop the connection now, whatever is still unsent."""
        raise NotImplementedError

    # What the client says

    def message_received(self, message: bytes) -> None:
        """Handle one complete message. Raises WireError when the client cannot be talked to."""
        for request in self._wire.receive(message):
            self._handle(request)
            if self.state is CLOSING or self.state is CLOSED:  # nothing counts any more
                return

    def _handle(self, request: Request) -> None:
        if isinstance(request, Register):
            self._register(request)
        elif isinstance(request, WatchStatus):
            self._watch()
        elif isinstance(request, InvalidRegistration):
            self._reject(request.web_socket_id, request.problem)
        elif isinstance(request, Reply):
            self._say(request.payload)
            self._begin_heartbeats()
        elif isinstance(request, Disconnect):
            self._say(request.payload)
            self.close(CloseCode.NORMAL, "disconnected")
        else:
            self._strikes += 1
            if self._strikes > MAX_STRIKES:
                raise WireError(CloseCode.POLICY, "too many unknown messages")
            self._say(self._wire.complain(request.problem))

    def _say(self, message: bytes) -> None:
        """Send one of the wire's messages; an empty one is none."""
        if message:
            self._write(message)

    def _register(self, request: Register) -> None:
        name = request.web_socket_id.encode()
        if self._channel is not None and self._node.hub.web_socket_id(self._channel) != name:
            problem = Problem("already_registered", "this connection has registered another webSocketId")
            self._reject(request.web_socket_id, problem)
            return
        self._remember(request.last_message_id)
        if self._channel is None:
            self._join(name)
        elif self.state is WAITING or not self._node.hub.is_confirmed(self._channel):
            self._answers += 1  # to say so amid a gap would promise what nobody can hear
        else:
            self._say(self._wire.acknowledge(name))

    def _reject(self, web_socket_id: object, problem: Problem) -> None:
        self._node.rejected[problem.code] += 1
        self._say(self._wire.reject(web_socket_id, problem))

    def _join(self, name: bytes) -> None:
        self.state = WAITING
        self._answers = 1
        self._channel = self._node.hub.register(name, self)
        if self._node.hub.is_degraded(self._channel):
            self.degraded()

    def _remember(self, message_id: str | None) -> None:
        """The client has had this messageId."""
        if message_id is not None and message_id not in self._had:
            self._had = (*self._had[1 - MAX_REMEMBERED_IDS :], message_id)

    def _watch(self) -> None:
        """The client wants to know how push is: at once if it is degraded."""
        self._watches = True
        if self._degraded:
            self._say(self._wire.status(DEGRADED))

    def count_message(self) -> None:
        """Hold the client to its rate. Raises WireError when it sends faster, over a second's worth.

        The generic cell rate algorithm: one number says until when the client has used up its share.
        """
        now, share = self._node.clock(), 1 / self._node.config.messages_per_second
        self._rate = max(self._rate, now) + share
        if self._rate > now + 1 and self.state is not CLOSING:
            raise WireError(CloseCode.POLICY, "too many messages")

    # What the hub says

    def acknowledge(self, web_socket_id: bytes) -> None:
        """Redis has confirmed the registration."""
        self.state = REGISTERED
        self._registered = self._node.clock()
        if logs.debugging:
            self._tell("registered", id=logs.short_id(web_socket_id.decode()))
        self._set_heartbeat()
        self._answer(web_socket_id)

    def _answer(self, web_socket_id: bytes) -> None:
        answers, self._answers = self._answers, 0
        for _ in range(answers):
            self._say(self._wire.acknowledge(web_socket_id))

    def deliver(self, web_socket_id: bytes, result: Result) -> None:
        """Send `result`, unless its messageId has been sent on this connection already."""
        if self._channel is None:  # it has left: the result before this one was too much for it
            return
        message_id = result.message_id
        if message_id is not None:
            if message_id in self._had:
                self._node.duplicates += 1
                return
            self._had = (*self._had[1 - MAX_REMEMBERED_IDS :], message_id)
        self._results += 1
        message = self._wire.result(web_socket_id, result)
        if message:  # as in _say, of which this is the hot twin
            self._write(message)

    def degraded(self) -> None:
        """Results cannot be heard at present; a client that watches is told once."""
        if not self._degraded:
            self._degraded = True
            if self._watches:
                self._say(self._wire.status(DEGRADED))

    def restored(self) -> None:
        """Results are heard, and what was retained has been delivered."""
        if self._answers and self._channel is not None:
            self._answer(self._node.hub.web_socket_id(self._channel))
        if self._degraded:
            self._degraded = False
            if self._watches and self._channel is not None:  # else a result was too much for it, as above
                self._say(self._wire.status(RESTORED))

    def refuse(self, web_socket_id: bytes, problem: Problem) -> None:
        """Redis does not allow the registration; the client may try another id until its deadline."""
        self._channel = None
        if self.state is REGISTERED:  # it was allowed once, so only a reconnect can help it
            self.close(CloseCode.TRY_AGAIN_LATER, problem.message)
            return
        self.state = OPEN
        self._say(self._wire.reject(web_socket_id.decode(), problem))

    def about(self) -> dict[str, object]:
        """What operators may know of it. Times are in seconds before now; what results said is not kept."""
        return {
            "state": self.state.name.lower(),
            "protocol": self._wire.name,
            "transport": self.transport,
            "address": self._address,
            "registered_for": self._node.clock() - self._registered if self._registered else None,
            "results": self._results,
            "message_ids": self._had,
            "degraded": self._degraded,
        }

    # What time and the node say

    def deadline_passed(self) -> None:
        """The first of the session's deadlines has come."""
        now = self._node.clock()
        if self.state is not CLOSING:
            self._keep_alive(now)
        if now < self._limit:
            self._schedule()
        elif self.state is REGISTERED:
            self._heartbeat()
        elif self.state is OPEN:
            self.close(CloseCode.POLICY, "registration timeout")
        elif self.state is WAITING:
            self._node.timed_out += 1
            self.close(CloseCode.TRY_AGAIN_LATER, "results cannot be heard at the moment")
        else:
            self.abort()

    def _heartbeat(self) -> None:
        self._set_heartbeat()  # before the ping: if that fills the buffer, the close timeout counts
        if not self._probe():
            self._why = (CloseCode.ABNORMAL, "heartbeat unanswered")
            self.abort()

    def _set_heartbeat(self) -> None:
        self._limit = self._node.clock() + self._node.config.heartbeat
        self._schedule()

    def _schedule(self) -> None:
        self._node.deadlines.set(self, self._next_deadline())

    def _next_deadline(self) -> float:
        """When the session has to be looked after next."""
        return self._limit if self.state is CLOSING else min(self._limit, self._beat)

    def _begin_heartbeats(self) -> None:
        """See to heart-beats from now on, if the wire has just agreed with the client on any."""
        if self._wire.outgoing and self._beat == inf:
            self._beat = self._next_beat()
            if self._beat < self._limit:  # else it will be looked after before, and comes to it then
                self._schedule()

    def _next_beat(self) -> float:
        # The wheel of deadlines is late by two ticks at most, and a heart-beat must not be.
        return self._node.clock() + max(self._wire.outgoing - 2 * TimerWheel.TICK, TimerWheel.TICK)

    def _keep_alive(self, now: float) -> None:
        """Send the wire's heart-beat if one is due."""
        if now >= self._beat:
            self._beat = self._next_beat()
            self._write(self._wire.heartbeat)

    def close(self, code: CloseCode, reason: str) -> None:
        """Say goodbye and leave the hub; no harm if that has been done."""
        if self._leave(code, reason):
            self._say_goodbye(code, reason)

    def _leave(self, code: int, reason: str) -> bool:
        """Turn CLOSING, once; from now on nothing is delivered and the close timeout runs."""
        if self.state in (CLOSING, CLOSED):
            return False
        self.state = CLOSING
        self._why = (code, reason)
        self._forget()
        self._limit = self._node.clock() + self._node.config.close_timeout
        self._schedule()
        return True

    def _forget(self) -> None:
        if self._channel is not None:
            self._node.hub.leave(self._channel, self)
            self._channel = None

    def ended(self) -> None:
        """The connection is gone."""
        if self.state is CLOSED:
            return
        self.state = CLOSED
        self._forget()
        self._node.deadlines.discard(self)
        self._node.admission.release(self._address)
        self._node.open[self._wire.name, self.transport] -= 1
        self._node.ended[self._why] += 1
        self._tell("session ended", code=int(self._why[0]), reason=self._why[1])
