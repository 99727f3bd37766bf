"""The codecs: how each protocol writes the messages of `messages`. Bytes in and bytes out, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from ..messages import Problem, Request, Result


class Wire(Protocol):
    """The codec of one client's protocol. A wire without state is one object for all its clients.

    Each method that returns a message may return None: there is nothing to send. Either the wire keeps the
    message until the client is ready for it, or the protocol has no such message. An empty message is a
    message, and is sent. An id that matches WEB_SOCKET_ID is ASCII. It is bytes here, as Redis and the socket
    need it.
    """

    @property
    def name(self) -> str:
        """The label `protocol` in metrics."""

    @property
    def binary(self) -> bool:
        """Whether messages are binary WebSocket messages, in both directions, instead of text."""

    @property
    def either(self) -> bool:
        """Whether clients may send the other type of WebSocket message, too. The gateway never does."""

    @property
    def greeting(self) -> bytes | None:
        """The message that the gateway sends first, when the session opens."""

    @property
    def outgoing(self) -> float:
        """Seconds without a message after which the client expects a `heartbeat`. 0 for none.

        It may change from 0 only by the time of the greeting, or together with a `Reply`.
        """

    @property
    def heartbeat(self) -> bytes:
        """The message that tells nothing except that the gateway is alive."""

    @property
    def incomplete(self) -> int:
        """Bytes of messages that are kept until the rest of something has come. 0 for most wires."""

    def receive(self, message: bytes) -> Iterable[Request]:
        """The requests in one complete message. Raises WireError if the connection must end."""

    def registered(self, web_socket_id: bytes) -> bytes | None:
        """The message: the registration is confirmed, nothing published from now on is missed."""

    def rejected(self, web_socket_id: object, problem: Problem) -> bytes | None:
        """The message: the registration is rejected, and why."""

    def error(self, problem: Problem) -> bytes | None:
        """The message: the client's message was not understood."""

    def result(self, web_socket_id: bytes, result: Result) -> bytes | None:
        """The message with a result."""

    def status(self, push: str) -> bytes | None:
        """The message with the state of push, DEGRADED or RESTORED. A `WatchStatus` has asked for it."""


WireFactory = Callable[[], Wire]
"""Makes the wire of a new session."""
