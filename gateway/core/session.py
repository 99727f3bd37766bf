"""One client's session, for every protocol and transport: registration, results, deadlines and its end.

A session is a `Member` of the hub on one side. On the other side a subclass brings bytes to the client and
back (`transports.websocket.WebSocketSession`). Its `Wire` knows what the bytes mean.

         <--unknown id--
    OPEN --registers--> WAITING --confirmed--> REGISTERED
      |                    |                       |
      +--------------------+-----------+-----------+
                                       v
                                    CLOSING --> CLOSED

A session waits for the first of its deadlines: the end of its state's time, its transport's heartbeat, and
the heartbeat that its wire has agreed on with the client. The node's `TimerWheel` keeps this deadline: no
session has a task or a timer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from itertools import count
from math import inf
from typing import Any, Protocol

import structlog

from ..config import ANNOUNCED, Config
from ..errors import WireError
from ..messages import (
    DEGRADED,
    NODE_STOPPED,
    NOT_AUTHORIZED,
    OTHER,
    OTHER_CODE,
    RESTORED,
    UNKNOWN_ID,
    CloseCode,
    Disconnect,
    InvalidRegistration,
    NextMessage,
    Problem,
    Register,
    Reply,
    Request,
    Result,
    WatchStatus,
)
from ..telemetry import logs
from ..wire import Wire
from .admission import Admission, Backlog, Incoming
from .events import Delivery, EventLog
from .hub import Hub
from .rates import REFUSED_TOKEN, AddressBudgets, Prices
from .timer_wheel import TimerWheel

log = structlog.get_logger()

MAX_UNKNOWN_MESSAGES = 5
"""Unknown messages that a client may send before its connection is closed."""

TOO_MUCH_INCOMPLETE = "too many incomplete messages on this node"

MAX_REMEMBERED_IDS = 16
"""The latest messageIds that a session remembers, so that no result is sent twice after an outage."""

MAX_ENDS = 100
"""Pairs of close code and reason that are counted apart; there are some 40 in the code. Further ones are
counted as one: no client can make a node, its pages or Prometheus keep more and more of them."""


class SessionState(Enum):
    """The state of a session: see the top of this module."""

    OPEN = auto()
    WAITING = auto()
    REGISTERED = auto()
    CLOSING = auto()
    CLOSED = auto()


# Python 3.11 needs 200 ns to look up an enum's member, and 10 ns for a global.
OPEN, WAITING, REGISTERED, CLOSING, CLOSED = SessionState


class Ledger(Protocol):
    """Counts connections and unread bytes: see `transports.connections`. It takes any event loop's
    transports."""

    backlog: Backlog
    incoming: Incoming
    became_session: Callable[[str], None]

    def session_lost(self, transport: Any) -> None: ...


class TokenVerifier(Protocol):
    """Says what a registration's token proves: see `tokens.verifier`."""

    def refusal(self, web_socket_id: str, token: str | None) -> str | None:
        """Why `token` does not prove that its client may register the id; None if it does."""


@dataclass(slots=True)
class SessionContext:
    """The objects that all sessions of a node share. `clock` is monotonic, in seconds."""

    config: Config
    hub: Hub[Any]
    admission: Admission
    clock: Callable[[], float]
    ledger: Ledger
    """What the connections of the public port hold."""
    verifier: TokenVerifier | None = None
    """With `--registration signed`."""
    refused_tokens: Counter[str] = field(default_factory=Counter)
    """Tokens so far that did not prove their id, by reason; and registrations that lacked one."""
    events: EventLog | None = None
    """What happens to sessions, for backends. None if nobody wants to know."""
    deadlines: TimerWheel[Session] = field(default_factory=TimerWheel)
    ended: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Ended sessions so far, by close code and reason: see `count_end`."""
    open: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Open sessions, by the name of their wire and their transport."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Registrations rejected so far, by the problem's code. Only for `unknown_id` was Redis asked."""
    timed_out: int = 0
    """Registrations so far that Redis did not confirm in time."""
    numbers: Iterator[int] = field(default_factory=partial(count, 1))
    """Numbers that tell sessions apart in debug lines."""
    duplicates: int = 0
    """Results so far that were not sent because their messageId had been sent on that connection."""
    prices: Prices = field(init=False)
    budgets: AddressBudgets = field(init=False)

    def __post_init__(self) -> None:
        self.prices = Prices.of(self.config)
        self.budgets = AddressBudgets(self.config.max_sessions_per_ip)

    def count_end(self, code: int, reason: str) -> None:
        """A session has ended. `code` is a known code."""
        end = (code, reason)
        if end not in self.ended and len(self.ended) >= MAX_ENDS:
            end = (OTHER_CODE, OTHER)
        self.ended[end] += 1


class Session:
    """The part of a session that is the same for every protocol and transport."""

    __slots__ = (
        "_address",
        "_channel",
        "_context",
        "_degraded",
        "_end",
        "_events",
        "_heartbeat_due",
        "_message_ids",
        "_number",
        "_owed_answers",
        "_proven",
        "_rate_used_until",
        "_registered_at",
        "_results",
        "_state_ends",
        "_unknown_messages",
        "_watches_status",
        "_wire",
        "due",
        "state",
    )

    def __init__(self, context: SessionContext, wire: Wire, address: str) -> None:
        """`context.admission` has admitted `address`. The session releases it at its end."""
        self._context = context
        self._wire = wire
        self._address = address
        self._channel: bytes | None = None
        self._owed_answers = 0  # registrations to confirm when the hub says so
        self._proven = False  # a token has proved that this client may register the id
        self._unknown_messages = 0
        self._rate_used_until = 0.0
        self._message_ids: tuple[str, ...] = ()  # that the client has had, the latest
        self._registered_at = 0.0  # 0 until then
        self._results = 0  # sent to the client
        self._degraded = False  # results cannot be received; a client that watches the status knows
        self._watches_status = False
        self._heartbeat_due = inf  # when the wire must send its heartbeat
        self._end: tuple[int, str] = (CloseCode.ABNORMAL, "connection lost")
        self._events = None if context.events is None else context.events.session()
        self.state = OPEN
        self.due = 0
        self._state_ends = context.clock() + context.config.registration_timeout
        context.deadlines.set(self, self._state_ends)
        context.open[wire.name, self.transport] += 1
        self._number = 0  # tells debug lines apart
        if logs.debugging:
            self._number = next(context.numbers)
            self._log("session opened", protocol=wire.name, transport=self.transport, address=address)

    def requested_with(self, headers: Mapping[str, str]) -> None:
        """These headers came with the client's request. Only events tell of them."""
        if self._events is not None:
            self._events.request(headers)

    def opened(self) -> None:
        """The transport is ready: send the wire's greeting, if it has one."""
        greeting = self._wire.greeting
        if greeting is not None:
            self._write(greeting)
        if self._wire.outgoing:
            self._begin_heartbeats()

    def _log(self, event: str, **facts: object) -> None:
        """Write a debug line. Callers look at `logs.debugging` before: the facts would cost something."""
        log.debug(event, session=self._number, **facts)

    # What a subclass must provide

    transport = "none"
    """The label `transport` in metrics."""

    def _write(self, message: bytes) -> None:
        """Send one of the wire's messages. It must not block or raise."""
        raise NotImplementedError

    def _send_close(self, code: CloseCode, reason: str) -> None:
        """Begin to close. `ended` must follow when the connection is gone."""
        raise NotImplementedError

    def _ping(self) -> bool:
        """Ask the client for a sign of life. Returns False if the last one was not answered."""
        raise NotImplementedError

    def abort(self) -> None:
        """Drop the connection now, with everything that is unsent."""
        raise NotImplementedError

    def stop(self) -> None:
        """Drop the connection, because the node stops and does not wait for the client."""
        if self.state is not CLOSING:
            self._end = (CloseCode.ABNORMAL, NODE_STOPPED)
        self.abort()

    # From the client

    def message_received(self, message: bytes) -> None:
        """Handle one complete message. Raises WireError if the connection must end."""
        for request in self._wire.receive(message):
            self._handle(request)
            if self.state is CLOSING or self.state is CLOSED:  # ignore the rest
                return
        if self._wire.incomplete:
            self._context.ledger.incoming.add(self, len(message))

    # Sender

    @property
    def incomplete(self) -> int:
        return self._wire.incomplete

    def drop_incomplete(self) -> None:
        self.close(CloseCode.TRY_AGAIN_LATER, TOO_MUCH_INCOMPLETE)

    def _handle(self, request: Request) -> None:
        if isinstance(request, Register):
            self._register(request)
        elif isinstance(request, WatchStatus):
            self._watch()
        elif isinstance(request, InvalidRegistration):
            self._reject(request.web_socket_id, request.problem)
        elif isinstance(request, Reply):
            self._reply(request.payload)
            self._begin_heartbeats()
            if request.kept:
                self._kept_result_sent(request.kept)
        elif isinstance(request, NextMessage):
            self.pay_message()
        elif isinstance(request, Disconnect):
            self._reply(request.payload)
            self.close(CloseCode.NORMAL, "disconnected", by_client=True)
        else:
            self.count_unknown_message()
            self._reply(self._wire.error(request.problem))

    def count_unknown_message(self) -> None:
        """The client has sent what cannot be understood. Raises WireError when it was too often."""
        self._unknown_messages += 1
        if self._unknown_messages > MAX_UNKNOWN_MESSAGES:
            raise WireError(CloseCode.POLICY, "too many unknown messages")

    def _reply(self, message: bytes | None) -> None:
        """Send one of the wire's messages. None is nothing to send."""
        if message is not None:
            self._write(message)

    def _register(self, request: Register) -> None:
        name = request.web_socket_id.encode()
        if self._channel is not None and self._context.hub.web_socket_id(self._channel) != name:
            problem = Problem("already_registered", "this connection has registered another webSocketId")
            self._reject(request.web_socket_id, problem)
            return
        verifier = self._context.verifier
        if verifier is not None and not self._may_register(request, verifier):
            return
        if request.last_message_id is not None:
            self._remember(request.last_message_id)
        if self._channel is None:
            self._join(name)
        elif self.state is WAITING or not self._context.hub.is_confirmed(self._channel):
            self._owed_answers += 1  # during an outage, a confirmation now would be false
        else:
            self._reply(self._wire.registered(name))

    def _may_register(self, request: Register, verifier: TokenVerifier) -> bool:
        """Whether the registration may go on. The hub refuses an id that nobody has announced, unless it is
        proven: also by a token that comes while Redis is asked."""
        if self._channel is None:
            self._proven = False  # what was proven of another id says nothing of this one
        if self.state is REGISTERED or self._proven:
            return True
        self._proven = self._is_proven(request, verifier)
        if self._proven or ANNOUNCED in self._context.config.registration:
            return True
        self._reject(request.web_socket_id, NOT_AUTHORIZED)
        return False

    def _is_proven(self, request: Register, verifier: TokenVerifier) -> bool:
        """Whether the registration's token proves that its client may register the id.

        One that does not is paid for when the next message comes: this one gets its answer in any case.
        """
        reason = verifier.refusal(request.web_socket_id, request.token)
        if reason is None:
            return True
        if not request.token and ANNOUNCED in self._context.config.registration:
            return False  # it needs none
        self._context.refused_tokens[reason] += 1
        name = logs.short_id(request.web_socket_id)
        log.warning("token refused", kind=reason, id=name, address=self._address)
        now = self._context.clock()
        self._rate_used_until = max(self._rate_used_until, now) + REFUSED_TOKEN
        self._context.budgets.charge(self._address, REFUSED_TOKEN, now)
        return False

    def _reject(self, web_socket_id: object, problem: Problem) -> None:
        self._context.rejected[problem.code] += 1
        if self._events is not None:
            self._events.refused(web_socket_id, problem.code, self._address)
        self._reply(self._wire.rejected(web_socket_id, problem))

    def _join(self, name: bytes) -> None:
        hub = self._context.hub
        channel = hub.register(name, self)
        if channel is None:
            # A rejection would be final for Web Flow's page, and end a login.
            log.warning("too many sessions of one id", id=logs.short_id(name.decode()), address=self._address)
            self.close(CloseCode.TRY_AGAIN_LATER, "too many sessions of this webSocketId")
            return
        self.state = WAITING
        self._owed_answers = 1
        self._channel = channel
        if hub.is_degraded(channel):
            self.degraded()

    def _remember(self, message_id: str | None) -> None:
        """Note that the client has had the result with this messageId."""
        if message_id is not None and message_id not in self._message_ids:
            self._message_ids = (*self._message_ids[1 - MAX_REMEMBERED_IDS :], message_id)

    def _watch(self) -> None:
        """The client wants to know the state of push. Tell it now if that is degraded."""
        self._watches_status = True
        if self._degraded:
            self._reply(self._wire.status(DEGRADED))

    def pay_message(self, size: int = 0) -> float:
        """Pay for a message of `size` bytes, before it is read: see `_pay`."""
        prices = self._context.prices
        return self._pay(prices.message + size * prices.byte)

    def pay_fragment(self) -> float:
        """Pay for a fragment that completes no message, or bytes that complete no frame: see `_pay`."""
        return self._pay(self._context.prices.fragment)

    def _pay(self, price: float) -> float:
        """Use up `price` seconds of the session's allowance, and of its address's budget.

        Returns the seconds for which nothing more should be read from this client, because its address has
        used up its budget. Raises WireError if the session is a second ahead of its own allowance. However
        high the price is, a client that has been quiet can pay it.
        """
        context = self._context
        now = context.clock()
        used = self._rate_used_until
        if used > now + context.prices.early:
            raise WireError(CloseCode.POLICY, "too many messages")
        self._rate_used_until = max(used, now) + price
        return context.budgets.charge(self._address, price, now)

    # From the hub

    def confirm(self, web_socket_id: bytes) -> None:
        """Redis has confirmed the registration."""
        now = self._context.clock()
        self.state = REGISTERED
        self._registered_at = now
        if logs.debugging:
            self._log("registered", id=logs.short_id(web_socket_id.decode()))
        self._set_heartbeat(now)
        if self._events is not None:  # before the answer, which may be too much for the client
            self._events.registered(
                web_socket_id,
                self._address,
                self._wire.name,
                self.transport,
                resumed=bool(self._message_ids),
            )
        self._answer(web_socket_id)

    def refuse_unknown(self, web_socket_id: bytes) -> bool:
        """Redis has confirmed the registration, and nobody has announced the id.

        The client may register again, this id or another one, until its time for that is over.
        """
        if self._proven:
            return False
        self._leave_hub()
        self.state = OPEN
        self._message_ids = ()  # they were said of this id, and the next may be another one
        answers, self._owed_answers = self._owed_answers, 0
        for _ in range(answers):
            self._reject(web_socket_id.decode(), UNKNOWN_ID)
        if logs.debugging:
            self._log("registration refused", id=logs.short_id(web_socket_id.decode()), kind=UNKNOWN_ID.code)
        if self._degraded:
            self._outage_over()
        return True

    def _answer(self, web_socket_id: bytes) -> None:
        answers, self._owed_answers = self._owed_answers, 0
        for _ in range(answers):
            self._reply(self._wire.registered(web_socket_id))

    def deliver(self, web_socket_id: bytes, result: Result, retained: bool = False) -> None:
        """Send `result`, unless its messageId has been sent on this connection already."""
        if self._channel is None:  # the session has left: the result before was too much for its client
            return
        message_id = result.message_id
        if message_id is not None:
            if message_id in self._message_ids:
                self._context.duplicates += 1
                return
            self._message_ids = (*self._message_ids[1 - MAX_REMEMBERED_IDS :], message_id)
        self._results += 1
        message = self._wire.result(web_socket_id, result)
        if message is not None:  # as `_reply`, without the call: this path is hot
            self._write(message)
        if self._events is not None:
            delivery = Delivery(web_socket_id, message_id, result.auth_result, retained)
            if message is None:
                self._events.kept(delivery)
            else:
                self._record_delivery(delivery)

    def _record_delivery(self, delivery: Delivery) -> None:
        """A result was given to `_write`, while there are events."""
        assert self._events is not None
        self._events.delivered(delivery)

    def _kept_result_sent(self, number: int) -> None:
        """The wire has given away a result that it had kept: see `Reply`."""
        if self._events is not None and (delivery := self._events.take_kept(number)) is not None:
            self._record_delivery(delivery)

    def degraded(self) -> None:
        """Results cannot be received at present. Tell a client that watches the status, once."""
        if not self._degraded:
            self._degraded = True
            if self._watches_status:
                self._reply(self._wire.status(DEGRADED))

    def restored(self) -> None:
        """Results are received again, and the retained ones have been delivered."""
        if self._owed_answers and self._channel is not None:
            self._answer(self._context.hub.web_socket_id(self._channel))
        if self._degraded:
            self._outage_over()

    def _outage_over(self) -> None:
        self._degraded = False
        if self._watches_status and self.state not in (CLOSING, CLOSED):  # else it has left, as in `deliver`
            self._reply(self._wire.status(RESTORED))

    def about(self) -> dict[str, object]:
        """The facts that operators may see. Times are in seconds before now. Results are not kept."""
        return {
            "state": self.state.name.lower(),
            "protocol": self._wire.name,
            "transport": self.transport,
            "address": self._address,
            "registered_for": self._context.clock() - self._registered_at if self._registered_at else None,
            "results": self._results,
            "message_ids": self._message_ids,
            "degraded": self._degraded,
        }

    # From the clock and the node

    def deadline_passed(self) -> None:
        """The first of the session's deadlines has come."""
        now = self._context.clock()
        if self.state is not CLOSING:
            self._keep_alive(now)
        if now < self._state_ends:
            self._schedule()
        elif self.state is REGISTERED:
            self._heartbeat(now)
        elif self.state is OPEN:
            self.close(CloseCode.POLICY, "registration timeout")
        elif self.state is WAITING:
            self._context.timed_out += 1
            self.close(CloseCode.TRY_AGAIN_LATER, "registration not confirmed in time")
        else:
            self.abort()

    def _heartbeat(self, now: float) -> None:
        self._set_heartbeat(now)  # before the ping: if the ping fills the buffer, the close timeout must win
        if not self._ping():
            self._end = (CloseCode.ABNORMAL, "heartbeat unanswered")
            self.abort()

    def _set_heartbeat(self, now: float) -> None:
        self._state_ends = now + self._context.config.heartbeat
        self._schedule()

    def _schedule(self) -> None:
        self._context.deadlines.set(self, self._next_deadline())

    def _next_deadline(self) -> float:
        """The first of the session's deadlines."""
        return self._state_ends if self.state is CLOSING else min(self._state_ends, self._heartbeat_due)

    def _begin_heartbeats(self) -> None:
        """Send heartbeats from now on, if the wire has just agreed on them with the client."""
        if self._wire.outgoing and self._heartbeat_due == inf:
            self._heartbeat_due = self._next_heartbeat()
            if self._heartbeat_due < self._state_ends:  # else the earlier deadline will schedule it
                self._schedule()

    def _next_heartbeat(self) -> float:
        # The timer wheel is late by two ticks at most, and a heartbeat must not be late.
        return self._context.clock() + max(self._wire.outgoing - 2 * TimerWheel.TICK, TimerWheel.TICK)

    def _keep_alive(self, now: float) -> None:
        """Send the wire's heartbeat if it is due."""
        if now >= self._heartbeat_due:
            self._heartbeat_due = self._next_heartbeat()
            self._write(self._wire.heartbeat)

    def close(self, code: CloseCode, reason: str, *, by_client: bool = False) -> None:
        """Leave the hub, and close the connection. It does no harm to call this again.

        `by_client`: the client has asked for it.
        """
        if self._begin_closing(code, reason, code if by_client else 0):
            self._send_close(code, reason)

    def _begin_closing(self, code: int, reason: str, code_of_client: int = 0) -> bool:
        """Turn CLOSING, once. Nothing is delivered from now on, and the close timeout runs.

        `code_of_client` is the code with which the client closes, which `code` may only stand for.
        """
        if self.state in (CLOSING, CLOSED):
            return False
        if self._events is not None and code_of_client:
            self._events.closed_by_client(code_of_client)
        self.state = CLOSING
        self._end = (code, reason)
        self._leave_hub()
        self._state_ends = self._context.clock() + self._context.config.close_timeout
        self._schedule()
        return True

    def _leave_hub(self) -> None:
        if self._channel is not None:
            self._context.hub.leave(self._channel, self)
            self._channel = None

    def ended(self) -> None:
        """The connection is gone."""
        if self.state is CLOSED:
            return
        self.state = CLOSED
        self._leave_hub()
        self._context.deadlines.discard(self)
        self._context.ledger.incoming.discard(self)
        self._context.admission.release(self._address)
        self._context.open[self._wire.name, self.transport] -= 1
        self._context.count_end(*self._end)
        if self._events is not None:
            self._events.closed(*self._end, self._context.clock() - self._registered_at)
        if logs.debugging:
            self._log("session ended", code=int(self._end[0]), reason=self._end[1])
