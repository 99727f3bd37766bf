"""One client, whatever it speaks: registration, results, deadlines and how it ends.

A session is a `Member` of the hub on one side; on the other a subclass brings bytes to the client and
back (`websocket.WebSocketSession`). What the bytes mean is its `Wire`'s to say.

    OPEN --registers--> WAITING --acknowledged--> REGISTERED
      |                    |                          |
      +--------------------+------------+-------------+
                                        v
                                     CLOSING --> CLOSED

Each state has one deadline at most, kept by the node's `Deadlines`: no session has a task or a timer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from .config import Config
from .errors import WireError
from .hub import Hub
from .limits import Admission, Deadlines
from .messages import CloseCode, Leave, Problem, Register, Rejected, Reply, Request, Result
from .wire import Wire

MAX_STRIKES = 5
"""Messages that mean nothing here, before the client is taken for one that never will."""

REMEMBERED = 16
"""The latest messageIds that a session remembers, so as not to send one twice after a gap."""


class State(Enum):
    """Where in its life a session is; see the top of this module."""

    OPEN = auto()
    WAITING = auto()
    REGISTERED = auto()
    CLOSING = auto()
    CLOSED = auto()


# Python 3.11 takes 200 ns to look an enum's member up, and 10 ns for a global.
OPEN, WAITING, REGISTERED, CLOSING, CLOSED = State


@dataclass(slots=True)
class Node:
    """What all sessions of a node share. `clock` is monotonic, in seconds."""

    config: Config
    hub: Hub
    admission: Admission
    clock: Callable[[], float]
    deadlines: Deadlines[Session] = field(default_factory=Deadlines)
    ended: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Sessions so far by close code and reason."""


class Session:
    """The part of a client's session that is the same for every protocol and transport."""

    __slots__ = (
        "_address",
        "_answers",
        "_channel",
        "_had",
        "_node",
        "_rate",
        "_strikes",
        "_why",
        "_wire",
        "due",
        "state",
    )

    def __init__(self, node: Node, wire: Wire, address: str) -> None:
        """A session that `node.admission` has admitted for `address`; it is released at its end."""
        self._node = node
        self._wire = wire
        self._address = address
        self._channel: bytes | None = None
        self._answers = 0  # registrations to acknowledge once the hub says so
        self._strikes = 0
        self._rate = 0.0
        self._had: tuple[str, ...] = ()
        self._why: tuple[int, str] = (CloseCode.ABNORMAL, "connection lost")
        self.state = OPEN
        self.due = 0
        node.deadlines.set(self, node.clock() + node.config.registration_timeout)

    # What a subclass brings

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

    def _handle(self, request: Request) -> None:
        if isinstance(request, Register):
            self._register(request.web_socket_id)
        elif isinstance(request, Rejected):
            self._write(self._wire.reject(request.web_socket_id, request.problem))
        elif isinstance(request, Reply):
            self._write(request.payload)
        elif isinstance(request, Leave):
            if request.payload:
                self._write(request.payload)
            self.close(CloseCode.NORMAL, "disconnected")
        else:
            self._strikes += 1
            if self._strikes > MAX_STRIKES:
                raise WireError(CloseCode.POLICY, "too many unknown messages")
            self._write(self._wire.complain(request.problem))

    def _register(self, web_socket_id: str) -> None:
        name = web_socket_id.encode()
        if self._channel is None:
            self.state = WAITING
            self._answers = 1
            self._channel = self._node.hub.register(name, self)
        elif self._node.hub.web_socket_id(self._channel) != name:
            problem = Problem("already_registered", "this connection has registered another webSocketId")
            self._write(self._wire.reject(web_socket_id, problem))
        elif self.state is WAITING:
            self._answers += 1
        else:
            self._write(self._wire.acknowledge(name))

    def count_message(self) -> None:
        """Hold the client to its rate. Raises WireError when it sends faster, over a second's worth.

        The generic cell rate algorithm: one number says until when the client has used up its share.
        Below one message a second a share is longer than a second, and the first must pass all the same.
        """
        now, share = self._node.clock(), 1 / self._node.config.messages_per_second
        self._rate = max(self._rate, now) + share
        if self._rate > now + max(1, share) and self.state is not CLOSING:
            raise WireError(CloseCode.POLICY, "too many messages")

    # What the hub says

    def acknowledge(self, web_socket_id: bytes) -> None:
        """Redis has confirmed the registration."""
        self.state = REGISTERED
        self._set_heartbeat()
        answer = self._wire.acknowledge(web_socket_id)
        for _ in range(self._answers):
            self._write(answer)

    def deliver(self, web_socket_id: bytes, result: Result) -> None:
        """Send `result`, unless its messageId has been sent on this connection already."""
        if self._channel is None:  # it has left: the result before this one was too much for it
            return
        message_id = result.message_id
        if message_id is not None:
            if message_id in self._had:
                return
            self._had = (*self._had[1 - REMEMBERED :], message_id)
        self._write(self._wire.result(web_socket_id, result))

    def refuse(self, web_socket_id: bytes, problem: Problem) -> None:
        """Redis does not allow the registration; the client may try another id until its deadline."""
        self._channel = None
        if self.state is REGISTERED:  # it was allowed once, so only a reconnect can help it
            self.close(CloseCode.TRY_AGAIN_LATER, problem.message)
            return
        self.state = OPEN
        self._write(self._wire.reject(web_socket_id.decode(), problem))

    # What time and the node say

    def deadline_passed(self) -> None:
        """The deadline of the session's state has come."""
        if self.state is REGISTERED:
            self._heartbeat()
        elif self.state is OPEN:
            self.close(CloseCode.POLICY, "registration timeout")
        elif self.state is WAITING:
            self.close(CloseCode.TRY_AGAIN_LATER, "results cannot be heard at the moment")
        else:
            self.abort()

    def _heartbeat(self) -> None:
        self._set_heartbeat()  # before the ping: if that fills the buffer, the close timeout counts
        if not self._probe():
            self._why = (CloseCode.ABNORMAL, "heartbeat unanswered")
            self.abort()

    def _set_heartbeat(self) -> None:
        self._node.deadlines.set(self, self._node.clock() + self._node.config.heartbeat)

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
        self._node.deadlines.set(self, self._node.clock() + self._node.config.close_timeout)
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
        self._node.ended[self._why] += 1
