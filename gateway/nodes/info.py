"""What a node tells of itself when another asks, and what it believes of what others tell.

A report has counters, from which whoever reads two of them makes rates, and in words what is wrong: a node
knows best itself what its figures mean. What comes from another node has come through Redis, where others may
write too, so it is read as strictly as anything from outside.
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
"""Seconds without a probe that are worth a word: it comes every second, and a late one within another."""

NEARLY_FULL: Final = 0.9

MAX_DESCRIBED_SESSIONS: Final = 4
"""Sessions of one id that are described; further ones are counted. Usually there is one."""

MAX_BOUNDS: Final = 40
"""Of a histogram; latencies have 14."""

NODE_QUESTION: Final = "report"
SESSION_QUESTION: Final = "session"
"""What can be asked."""

_ERRNO: Final = re.compile(r"\[Errno [0-9-]+\] ")

Text = Annotated[str, Field(max_length=300)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Tone = Literal["bad", "warn", "note"]


class _Info(BaseModel):
    """Part of an answer. What a newer version tells besides is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Trouble(_Info):
    """What is wrong with a node, or good to know of it, in words that go on where its name ends."""

    tone: Tone
    text: Text


class RedisInfo(_Info):
    """A node and its Redis. In a Cluster it is connected when every slot has its line."""

    connected: bool
    lines: Count
    servers_up: Count
    down_for: Seconds | None
    """Seconds, up to now."""
    probe_age: Seconds | None
    """Seconds since a probe was heard, on the line where that is longest ago."""
    round_trip: Seconds | None
    """Of the slowest line's latest probe."""
    outages: Count
    outage_seconds: Seconds


class HistogramInfo(_Info):
    """Durations: how many took up to each of these seconds, and in the end how many there were."""

    bounds: Annotated[tuple[Seconds, ...], Field(max_length=MAX_BOUNDS)]
    counts: Annotated[tuple[Count, ...], Field(max_length=MAX_BOUNDS + 1)]


class NodeInfo(_Info):
    """A node at a moment."""

    id: Text = Field(alias="from")
    node: Text
    version: Text
    clock: float
    """Seconds on the node's own clock, for rates."""
    up: Seconds
    draining: bool
    sessions: Count
    room: Count
    registered: Count
    delivered: Count
    invalid: Count
    latency: HistogramInfo
    """Of results until they were written to the socket; since they were published, if they say when that was,
    or else since they arrived."""
    lag: HistogramInfo
    """How late the event loop was."""
    redis: RedisInfo
    troubles: Annotated[tuple[Trouble, ...], Field(max_length=10)]


class SessionInfo(_Info):
    """A session that was looked up. Times are in seconds before now."""

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
    """What a node has of an id."""

    node: Text
    sessions: Annotated[tuple[SessionInfo, ...], Field(max_length=MAX_DESCRIBED_SESSIONS)]
    more: Count
    """Sessions that are not described."""


class InfoSource:
    """Answers for this node."""

    def __init__(self, name: str, sources: Sources) -> None:
        """`name` is shown; of a node's workers, each has its own."""
        self._name = name
        self._sources = sources
        self._started = sources.context.clock()

    def answer(self, question: Mapping[str, Any]) -> dict[str, object]:
        """To what another node asks. A question of a newer version gets the node's name."""
        wanted = question.get("webSocketId")
        if question.get("ask") == NODE_QUESTION:
            return self.report()
        if (
            question.get("ask") == SESSION_QUESTION
            and isinstance(wanted, str)
            and WEB_SOCKET_ID.fullmatch(wanted)
        ):
            return self.held(wanted)
        return {"node": self._name}

    def report(self) -> dict[str, object]:
        """A Report, but for who it is from."""
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
            lines=len(broker.server_brokers),
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
        unpublished = next((probe.last_error for probe in probes if probe.last_error), "")
        sessions = sources.context.admission.sessions
        return [
            *redis_troubles(redis, broker.last_error, unpublished, ever=broker.ever_connected),
            *node_troubles(sessions, sources.max_sessions, draining=sources.readiness.draining),
        ]

    def held(self, web_socket_id: str) -> dict[str, object]:
        """A Held."""
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


def redis_troubles(redis: RedisInfo, why: str, unpublished: str, *, ever: bool) -> list[Trouble]:
    """What is wrong between a node and its Redis.

    `why` no connection came about, and why a probe could not be published, where that is so; `ever` whether
    there has been a connection at all.
    """
    if not redis.connected:
        lines = f"{redis.servers_up} of {redis.lines} servers of the Cluster are connected"
        what = "has been without Redis" if ever else "has not reached Redis"
        text = f"{what} for {_seconds(redis.down_for or 0.0)}"
        return [Trouble(tone="bad", text=_cut(f"{text}{_because(why)}" + (f"; {lines}" * (redis.lines > 1))))]
    if redis.probe_age is None or redis.probe_age < PROBE_OVERDUE_AFTER:
        return []
    # Silence proves nothing when nothing could be published; but then nothing is proved at all.
    text = f"has not heard its probe for {_seconds(redis.probe_age)}{_because(unpublished)}"
    return [Trouble(tone="warn" if unpublished else "bad", text=_cut(text))]


def node_troubles(sessions: int, room: int, *, draining: bool) -> list[Trouble]:
    """What is wrong within a node, or good to know."""
    found = []
    if sessions >= room:
        found.append(Trouble(tone="bad", text=f"is full: it has {sessions:,} sessions and refuses more"))
    elif sessions >= NEARLY_FULL * room:
        found.append(Trouble(tone="warn", text=f"has {sessions:,} of the {room:,} sessions that it takes"))
    if draining:
        found.append(Trouble(tone="note", text="is draining: it closes its sessions and takes no new ones"))
    return found


def _times(*histograms: Histogram) -> dict[str, object]:
    """Times of histograms that have the same bounds, all together."""
    counts = zip(*([number for _, number in each.cumulative()] for each in histograms), strict=True)
    return {"bounds": histograms[0].bounds, "counts": [sum(numbers) for numbers in counts]}


def parse_node_info(answer: Mapping[str, Any]) -> NodeInfo | None:
    """The report that a node has sent; None if it is none."""
    try:
        return NodeInfo.model_validate(answer)
    except ValidationError:
        return None


def parse_holder_info(answer: Mapping[str, Any]) -> HolderInfo | None:
    """What a node has told of an id; None if it is nothing of that kind."""
    try:
        return HolderInfo.model_validate(answer)
    except ValidationError:
        return None


def _because(why: str) -> str:
    """As an aside, without the number that the system's words begin with."""
    return f" ({_ERRNO.sub('', why)})" if why else ""


def _cut(text: str) -> str:
    return text if len(text) <= 300 else text[:299] + "…"


def _seconds(seconds: float) -> str:
    """As people say it: 4 s, 2 min, 3 h."""
    if seconds < 120:
        return f"{int(seconds)} s"
    return f"{int(seconds / 60)} min" if seconds < 7200 else f"{int(seconds / 3600)} h"
