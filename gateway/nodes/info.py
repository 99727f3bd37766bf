"""What a node answers when another node asks, and how it reads the answers of others.

A report has counters, from two of which a reader computes rates, and sentences about what is wrong: a node
itself knows best what its figures mean. Answers come through Redis, where others may write too, so they are
checked as strictly as all input from outside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .. import __version__
from ..core.session import MAX_REMEMBERED_IDS, Session
from ..messages import WEB_SOCKET_ID
from ..telemetry.latency import Histogram
from .sources import Sources

PROBE_OVERDUE_AFTER: Final = 3.0
"""Seconds without a probe until the dashboard says so: probes come every second."""

NEARLY_FULL: Final = 0.9

MAX_DESCRIBED_SESSIONS: Final = 4
"""Sessions of one id that are described; further ones are counted. Usually there is one."""

MAX_BOUNDS: Final = 40
"""Of a histogram; latencies have 14."""

NODE_QUESTION: Final = "report"
SESSION_QUESTION: Final = "session"
"""The questions."""

_ERRNO: Final = re.compile(r"\[Errno [0-9-]+\] ")

Text = Annotated[str, Field(max_length=300)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Tone = Literal["bad", "warn", "note"]


class _Info(BaseModel):
    """Part of an answer. Members that only a newer version knows are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Trouble(_Info):
    """What is wrong with a node, or worth knowing. The text follows the node's name."""

    tone: Tone
    text: Text


class RedisInfo(_Info):
    """A node and its Redis. In a Cluster it is connected when every slot has a connection."""

    connected: bool
    servers: Count
    servers_up: Count
    down_for: Seconds | None
    """Seconds of the present outage."""
    probe_age: Seconds | None
    """Seconds since a probe was received, on the connection where that is longest ago."""
    round_trip: Seconds | None
    """Of the latest probe on the slowest connection."""
    outages: Count
    outage_seconds: Seconds


class HistogramInfo(_Info):
    """Durations: how many took up to each bound in seconds; the last count is of all."""

    bounds: Annotated[tuple[Seconds, ...], Field(max_length=MAX_BOUNDS)]
    counts: Annotated[tuple[Count, ...], Field(max_length=MAX_BOUNDS + 1)]


class NodeInfo(_Info):
    """The state and the counters of a node."""

    id: Text = Field(alias="from")
    node: Text
    version: Text
    clock: float
    """Seconds on the node's own clock, to compute rates."""
    up: Seconds
    draining: bool
    sessions: Count
    room: Count
    registered: Count
    delivered: Count
    invalid: Count
    latency: HistogramInfo
    """To the socket, since a result was published or, if it does not say when, since it arrived."""
    lag: HistogramInfo
    """How late the event loop ran timers."""
    redis: RedisInfo
    troubles: Annotated[tuple[Trouble, ...], Field(max_length=10)]


class SessionInfo(_Info):
    """A session that was looked up. `registered_for` is in seconds."""

    node: Text
    state: Text
    protocol: Text
    transport: Text
    address: Text
    registered_for: Seconds | None
    results: Count
    message_ids: Annotated[tuple[Text, ...], Field(max_length=MAX_REMEMBERED_IDS)]
    degraded: bool


class HolderInfo(_Info):
    """The sessions of an id on a node."""

    node: Text
    sessions: Annotated[tuple[SessionInfo, ...], Field(max_length=MAX_DESCRIBED_SESSIONS)]
    more: Count
    """Sessions that are not described."""


class InfoSource:
    """Answers the questions of other nodes."""

    def __init__(self, name: str, sources: Sources) -> None:
        """`name` is shown on the dashboard; each worker of a node has its own."""
        self._name = name
        self._sources = sources
        self._started = sources.context.clock()

    def answer(self, question: Mapping[str, Any]) -> dict[str, object]:
        """The answer to a question. For a question that only a newer version knows, it is the node's name."""
        wanted = question.get("webSocketId")
        if question.get("ask") == NODE_QUESTION:
            return self.node_info()
        if (
            question.get("ask") == SESSION_QUESTION
            and isinstance(wanted, str)
            and WEB_SOCKET_ID.fullmatch(wanted)
        ):
            return self.holder_info(wanted)
        return {"node": self._name}

    def node_info(self) -> dict[str, object]:
        """The members of a NodeInfo, without `from`."""
        sources, context = self._sources, self._sources.context
        hub, now = context.hub, context.clock()
        redis = self._redis()
        return {
            "node": self._name,
            "version": __version__,
            "clock": now,
            "up": now - self._started,
            "draining": sources.readiness.draining,
            "sessions": context.admission.sessions,
            "room": sources.max_sessions,
            "registered": hub.registrations_confirmed,
            "delivered": hub.delivered,
            "invalid": sum(hub.invalid.values()),
            "latency": _times(sources.latency.from_publisher, sources.latency.from_arrival),
            "lag": _times(sources.lag),
            "redis": redis.model_dump(),
            "troubles": [trouble.model_dump() for trouble in self._troubles(redis)],
        }

    def _redis(self) -> RedisInfo:
        broker = self._sources.broker
        probes = [server.probe for server in broker.server_brokers]
        trips = [probe.round_trip for probe in probes if probe.round_trip is not None]
        return RedisInfo(
            connected=broker.connected,
            servers=len(broker.server_brokers),
            servers_up=sum(server.connected for server in broker.server_brokers),
            down_for=broker.down_for,
            probe_age=broker.probe_age,
            round_trip=max(trips, default=None),
            outages=broker.outages,
            outage_seconds=broker.outage_seconds(),
        )

    def _troubles(self, redis: RedisInfo) -> list[Trouble]:
        broker, sources = self._sources.broker, self._sources
        probes = [server.probe for server in broker.server_brokers]
        not_published = next((probe.last_error for probe in probes if probe.last_error), "")
        sessions = sources.context.admission.sessions
        return [
            *redis_troubles(redis, broker.last_error, not_published, ever=broker.ever_connected),
            *denial_troubles(broker.denied_channels),
            *node_troubles(sessions, sources.max_sessions, draining=sources.readiness.draining),
        ]

    def holder_info(self, web_socket_id: str) -> dict[str, object]:
        """The members of a HolderInfo."""
        sessions = [
            member
            for member in self._sources.context.hub.members(web_socket_id.encode())
            if isinstance(member, Session)  # there are no others
        ]
        return {
            "node": self._name,
            "sessions": [
                {"node": self._name, **session.about()} for session in sessions[:MAX_DESCRIBED_SESSIONS]
            ],
            "more": max(0, len(sessions) - MAX_DESCRIBED_SESSIONS),
        }


def redis_troubles(redis: RedisInfo, last_error: str, not_published: str, *, ever: bool) -> list[Trouble]:
    """What is wrong between a node and its Redis.

    `last_error` is why it cannot connect, `not_published` why a probe was not published; empty if they do not
    apply. `ever` says whether the node has been connected at all.
    """
    if not redis.connected:
        what = "has been without Redis" if ever else "has not reached Redis"
        text = f"{what} for {_seconds(redis.down_for or 0.0)}{_because(last_error)}"
        if redis.servers > 1:
            text += f"; {redis.servers_up} of {redis.servers} servers of the Cluster are connected"
        return [Trouble(tone="bad", text=_cut(text))]
    if redis.probe_age is None or redis.probe_age < PROBE_OVERDUE_AFTER:
        return []
    # If the probe was not published, its absence says nothing about the connection.
    text = f"has not received its probe for {_seconds(redis.probe_age)}{_because(not_published)}"
    return [Trouble(tone="warn" if not_published else "bad", text=_cut(text))]


def denial_troubles(channels: int) -> list[Trouble]:
    """What Redis denies a node."""
    if not channels:
        return []
    text = f"is denied {channels:,} channels by Redis: its log names the missing access rule"
    return [Trouble(tone="bad", text=text)]


def node_troubles(sessions: int, room: int, *, draining: bool) -> list[Trouble]:
    """What is wrong within a node, or worth knowing."""
    found = []
    if sessions >= room:
        found.append(Trouble(tone="bad", text=f"is full: it has {sessions:,} sessions and rejects more"))
    elif sessions >= NEARLY_FULL * room:
        found.append(Trouble(tone="warn", text=f"has {sessions:,} of at most {room:,} sessions"))
    if draining:
        found.append(Trouble(tone="note", text="is draining: it closes its sessions and accepts no new ones"))
    return found


def _times(*histograms: Histogram) -> dict[str, object]:
    """The sum of histograms that have the same bounds."""
    counts = zip(*([number for _, number in each.cumulative()] for each in histograms), strict=True)
    return {"bounds": histograms[0].bounds, "counts": [sum(numbers) for numbers in counts]}


def parse_node_info(answer: Mapping[str, Any]) -> NodeInfo | None:
    """A node's answer to NODE_QUESTION; None if it is not valid."""
    try:
        return NodeInfo.model_validate(answer)
    except ValidationError:
        return None


def parse_holder_info(answer: Mapping[str, Any]) -> HolderInfo | None:
    """A node's answer to SESSION_QUESTION; None if it is not valid."""
    try:
        return HolderInfo.model_validate(answer)
    except ValidationError:
        return None


def _because(reason: str) -> str:
    """The reason in brackets, without the error number."""
    return f" ({_ERRNO.sub('', reason)})" if reason else ""


def _cut(text: str) -> str:
    return text if len(text) <= 300 else text[:299] + "…"


def _seconds(seconds: float) -> str:
    """For people: 4 s, 2 min, 3 h."""
    if seconds < 120:
        return f"{int(seconds)} s"
    return f"{int(seconds / 60)} min" if seconds < 7200 else f"{int(seconds / 3600)} h"
