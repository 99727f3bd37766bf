"""The parts of a node whose counters metrics, readiness and the dashboard read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core.events import Event
from ..core.session import SessionContext
from ..redis.broker import Broker
from ..redis.event_writer import EventWriter
from ..server.acceptor import Acceptor
from ..server.access import AccessControl
from ..telemetry.latency import Histogram, Latency


@dataclass(slots=True)
class Readiness:
    """Whether load balancers should send browsers to this node. There are two answers.

    By the first one, a node stays ready while Redis is away, for however long: all nodes share Redis, and if
    every node turned browsers away, logins would end that only have to wait. By the strict answer, a node is
    ready only while it receives results. A balancer that prefers strictly ready nodes, and falls back to all
    ready ones, spares browsers the node that alone is cut off.
    """

    broker: Broker
    draining: bool = False
    """True as soon as the node is told to stop."""

    def reasons(self) -> list[str]:
        """Why the node is not ready; empty if it is."""
        reasons = []
        if self.draining:
            reasons.append("draining")
        if not self.broker.ever_connected:
            reasons.append("Redis has not been reached yet")
        return reasons

    def strict_reasons(self) -> list[str]:
        """Why the node is not strictly ready; empty if it is."""
        deaf = self.broker.deaf
        return [*self.reasons(), *([deaf] if deaf else [])]


@dataclass(frozen=True, slots=True)
class Sources:
    """What a process with browsers counts, and where."""

    name: str
    """The node's."""
    max_sessions: int
    """As many as there are file descriptors for; it may be less than the setting."""
    context: SessionContext
    broker: Broker
    acceptor: Acceptor
    access: AccessControl
    readiness: Readiness
    latency: Latency
    lag: Histogram
    """How late the event loop's timers were."""
    session_kinds: Sequence[tuple[str, str]]
    """Every kind of session that there can be: the wire's name and the transport's."""
    published: Counter[str]
    """Results of POST /publish, by outcome."""
    announced: Counter[str] = field(default_factory=Counter)
    """Ids of POST /announce, by outcome."""
    event_writer: EventWriter[Event] | None = None
    """None without events, as `context.events` is then."""

    def connections(self) -> dict[str, int]:
        """The connections of the public port, by what happens on them."""
        acceptor, counted = self.acceptor, self.acceptor.ledger.connections
        waiting = {
            "handshake": acceptor.handshakes,
            "idle": acceptor.idle,
            "session": counted.sessions,
            "closing": counted.closing,
        }
        return {**waiting, "request": counted.total - sum(waiting.values())}
