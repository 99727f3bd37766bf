"""How each protocol says what `messages` names: one codec a protocol, bytes in and bytes out, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..messages import Problem, Request, Result


class Wire(Protocol):
    """One client's protocol. A wire without state is one object for all its clients.

    What it has to say may be empty: the wire keeps it until the client is ready for it, or has no words for
    it. An id that has passed WEB_SOCKET_ID is ASCII, and bytes, since Redis and the socket want it so.
    """

    @property
    def name(self) -> str:
        """What it is called in metrics."""

    @property
    def outgoing(self) -> float:
        """Seconds after which a silent gateway owes the client a `heartbeat`; 0 for never.

        It is 0 until the client and the wire have agreed on it, which a `Reply` tells.
        """

    @property
    def heartbeat(self) -> bytes:
        """The message that says nothing but: still here."""

    def receive(self, message: bytes) -> Iterable[Request]:
        """What one complete message asks for. Raises WireError for what deserves no answer."""

    def acknowledge(self, web_socket_id: bytes) -> bytes:
        """The message that says: registered, nothing published from now on is missed."""

    def reject(self, web_socket_id: object, problem: Problem) -> bytes:
        """The message that says: not registered, and why."""

    def complain(self, problem: Problem) -> bytes:
        """The message that says: not understood."""

    def result(self, web_socket_id: bytes, result: Result) -> bytes:
        """The message that carries a result."""

    def status(self, push: str) -> bytes:
        """The message that says how push is: DEGRADED or RESTORED. A `WatchStatus` has asked for it."""
