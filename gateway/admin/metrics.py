"""The metrics of `GET /metrics` on the admin port.

Nothing is counted here. The parts of a node keep their own counters, mostly plain integers, and `NodeMetrics`
reads them for each scrape. So a scrape costs about 1 ms, and a delivery costs no more than an addition.

Each worker of a node renders its own metrics. `merge` makes one text of them, in which each sample has the
label `worker`.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from prometheus_client import exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from .. import __version__
from ..core.events import FIELDS
from ..core.session import SessionContext
from ..messages import INVALID_KINDS, NOT_AUTHORIZED, SLOW_CONSUMER, UNKNOWN_ID, code_label
from ..nodes.sources import Sources
from ..telemetry import logs
from ..tokens.verification import REASONS
from ..wire.handshake import (
    ADDRESS_BUSY,
    ADDRESS_FULL,
    BUSY,
    CUT_OFF,
    HTTP_REJECTIONS,
    NODE_FULL,
    ORIGIN,
    STOPPING,
)
from .announce import OUTCOMES as ANNOUNCE_OUTCOMES
from .hosts import HOST_NOT_ALLOWED

CONTENT_TYPE: Final = exposition.CONTENT_TYPE_PLAIN_0_0_4
"""Every version of Prometheus reads it."""

LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds; uvloop's timers come up to a millisecond late by themselves."""

Samples = Mapping[Any, Any]
"""A metric's values (Histograms for a histogram) by the values of its labels, in their order."""


class Family(NamedTuple):
    """One metric: its name as in queries, its help text, and its labels."""

    kind: Any
    """Prometheus-client's class for it."""
    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """Its type, as Prometheus calls it."""
        return {
            CounterMetricFamily: "counter",
            HistogramMetricFamily: "histogram",
        }.get(self.kind, "gauge")


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(CounterMetricFamily, name, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(GaugeMetricFamily, name, text, labels)


def _histogram(name: str, text: str, *labels: str) -> Family:
    return Family(HistogramMetricFamily, name, text, labels)


BUILD = Family(
    InfoMetricFamily,
    "gateway_build_info",
    "Always 1; the labels are the version, Python's version, and the node's name.",
    ("version", "python", "node"),
)
READY = _gauge("gateway_ready", "1 while /readyz answers 200, else 0.")
STRICTLY_READY = _gauge("gateway_strictly_ready", "1 while /readyz/strict answers 200, else 0.")
SESSIONS = _gauge("gateway_sessions", "Open sessions, by protocol and transport.", "protocol", "transport")
MAX_SESSIONS = _gauge(
    "gateway_max_sessions", "Sessions that the node admits, by --max-sessions and the limit of open files."
)
HANDSHAKES = _gauge("gateway_handshakes", "Connections on the public port that have not sent a request yet.")
CONNECTIONS = _gauge(
    "gateway_connections",
    "Connections on the public port, by state: handshake; request, while it is read or answered; idle "
    "between two requests; session; closing, while the client reads the last bytes.",
    "state",
)
MAX_CONNECTIONS = _gauge(
    "gateway_max_connections", "Connections that the public port accepts, by the limit of open files."
)
UNREAD = _gauge("gateway_unread_bytes", "Bytes that wait in this process because clients do not read.")
UNREAD_DROPS = _counter(
    "gateway_unread_drops_total",
    "Clients that were dropped because all of them together had left more than --max-unread unread.",
)
INCOMPLETE_DROPS = _counter(
    "gateway_incomplete_drops_total",
    "Clients that were dropped because all of them together had begun to send too much: heads of requests, "
    "and messages that were not complete.",
)
REGISTRATIONS = _counter(
    "gateway_registrations_total",
    "Registrations by outcome: confirmed by Redis; rejected (kind says what is wrong: unknown_id, if nobody "
    "has announced the id; not_authorized, if no token proves it); timed_out, since Redis did not confirm "
    "them in time.",
    "outcome",
    "kind",
)
REFUSED_TOKENS = _counter(
    "gateway_refused_tokens_total",
    "Tokens that did not prove their id, and registrations without one, by reason. Only with --registration "
    "signed.",
    "reason",
)
RESULTS = _counter(
    "gateway_results_total",
    "Results by outcome: delivered to a session; duplicate, not sent again; no_session, if the session had "
    "just ended; invalid payload (kind says what is wrong).",
    "outcome",
    "kind",
)
LATENCY = _histogram(
    "gateway_publish_to_socket_seconds",
    "Time until a result is written to the socket: since=published if the payload says when that was, else "
    "since=arrived at this node. Retained results are not counted.",
    "since",
)
CLOCK_SKEW = _counter(
    "gateway_clock_skew_total",
    "Results whose publishedAt was in the future or more than a minute ago: clocks differ. Their latency is "
    "the time in this node.",
)
PUBLISHED = _counter(
    "gateway_published_total",
    "Results of POST /publish on this node, by outcome: received by a node; retained only; no_receivers, so "
    "lost; not_published, because Redis refused or was away; unconfirmed by Redis; invalid. denied counts "
    "requests without the token or without a valid body.",
    "outcome",
)
ANNOUNCED = _counter(
    "gateway_announced_total",
    "Ids of POST /announce on this node, by outcome: new; known, since they had a retained value; "
    "not_announced, because Redis refused or was away; invalid. denied counts requests without the token or "
    "without a valid body.",
    "outcome",
)
CLOSES = _counter(
    "gateway_sessions_closed_total", "Sessions that ended, by close code and reason.", "code", "reason"
)
SLOW_CONSUMERS = _counter(
    "gateway_slow_consumers_total",
    "Sessions closed because their client left more than --write-buffer unread.",
)
REJECTED = _counter(
    "gateway_rejected_total", "Requests that were rejected, on either port, by reason.", "kind"
)
CONNECTED = _gauge(
    "gateway_redis_connected", "1 while the subscriber connection to this server is up, else 0.", "server"
)
OUTAGES = _counter(
    "gateway_redis_outages_total",
    "Outages so far: times that the connection to Redis, or to a part of a Cluster, was lost.",
)
OUTAGE_SECONDS = _counter(
    "gateway_redis_outage_seconds_total", "Seconds of all outages, the present one included."
)
CHANNELS = _gauge(
    "gateway_redis_channels",
    "Channels: wanted by sessions of this node; of these, confirmed by Redis, and denied by it.",
    "state",
)
MISSING_SLOTS = _gauge(
    "gateway_redis_missing_slots",
    "Slots of a Cluster that are not connected, or that no master serves. Their ids get no results.",
)
ROUND_TRIP = _gauge(
    "gateway_redis_probe_round_trip_seconds",
    "The latest probe, from its PUBLISH to its arrival as a message.",
    "server",
)
PROBES = _counter(
    "gateway_redis_probes_total",
    "Probes by outcome: received; not_published; missed, so the connection was replaced.",
    "server",
    "outcome",
)
RECONCILIATIONS = _counter(
    "gateway_redis_reconciliations_total",
    "Times that the reconciler compared the subscriptions with Redis.",
    "server",
)
REPAIRED = _counter(
    "gateway_redis_repaired_total", "Channels that differed and were repaired. It should stay 0."
)
MOVED = _counter("gateway_redis_moved_slots_total", "Slots of a Cluster that moved to another master.")
EVENTS = _counter(
    "gateway_events_total",
    "Events for backends so far, by kind: docs/events.md. 0 while --events is off.",
    "kind",
)
EVENTS_WAITING = _gauge("gateway_events_waiting", "Events that Redis has not confirmed yet.")
EVENTS_DROPPED = _counter(
    "gateway_events_dropped_total", "Events that no backend will read, because too many waited for Redis."
)
EVENT_FAILURES = _counter(
    "gateway_event_write_failures_total",
    "Batches of events that Redis refused or did not confirm. They are written again.",
)
LAG = _histogram(
    "gateway_event_loop_lag_seconds", "How late the event loop runs a timer, measured four times a second."
)
LOG_DROPPED = _counter(
    "gateway_log_lines_dropped_total",
    "Lines of the log that could not be written: the disk is full, or nobody reads the pipe.",
)
CPU = _counter("process_cpu_seconds_total", "User and system time of this process.")
MEMORY = _gauge("process_resident_memory_bytes", "Resident memory of this process.")
STARTED = _gauge("process_start_time_seconds", "When these metrics began, since 1970.")
MAX_FILES = _gauge("process_max_fds", "Files and connections that this process may have open.")

WORKERS_UP = _gauge(
    "gateway_worker_up", "1 while this worker listens and sends heartbeats, else 0.", "worker"
)
WORKER_RESTARTS = _counter(
    "gateway_worker_restarts_total",
    "Times that this worker was replaced.",
    "worker",
)

PARENT_FAMILIES: Final = (
    WORKERS_UP,
    WORKER_RESTARTS,
    PUBLISHED,
    ANNOUNCED,
    REJECTED,
    LOG_DROPPED,
    CPU,
    MEMORY,
    STARTED,
)
"""The metrics of the parent of several workers."""

FAMILIES: Final = (
    BUILD,
    READY,
    STRICTLY_READY,
    SESSIONS,
    MAX_SESSIONS,
    HANDSHAKES,
    CONNECTIONS,
    MAX_CONNECTIONS,
    UNREAD,
    UNREAD_DROPS,
    INCOMPLETE_DROPS,
    REGISTRATIONS,
    REFUSED_TOKENS,
    RESULTS,
    LATENCY,
    CLOCK_SKEW,
    PUBLISHED,
    ANNOUNCED,
    CLOSES,
    SLOW_CONSUMERS,
    REJECTED,
    CONNECTED,
    OUTAGES,
    OUTAGE_SECONDS,
    CHANNELS,
    MISSING_SLOTS,
    ROUND_TRIP,
    PROBES,
    RECONCILIATIONS,
    REPAIRED,
    MOVED,
    EVENTS,
    EVENTS_WAITING,
    EVENTS_DROPPED,
    EVENT_FAILURES,
    LAG,
    LOG_DROPPED,
    CPU,
    MEMORY,
    STARTED,
    MAX_FILES,
)
"""The metrics of each process with sessions, in the order in which they are shown."""


class NodeMetrics(Collector):
    """Renders the counters of a node's parts."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._started = time.time()

    def render(self) -> bytes:
        """All metrics as text, for a scrape or for `merge`."""
        return exposition.generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        samples: dict[Family, Samples] = {}
        for part in (self._sessions, self._results, self._redis, self._events, self._process):
            samples.update(part())
        for family in FAMILIES:
            yield to_metric(family, samples.get(family, {}))

    def _sessions(self) -> dict[Family, Samples]:
        sources, context = self._sources, self._sources.context
        rejected = {("rejected", code): count for code, count in context.rejected.items()}
        turned_away = sources.access.rejected + sources.acceptor.rejected
        kinds = (NODE_FULL, ADDRESS_FULL, ADDRESS_BUSY, BUSY, STOPPING, ORIGIN, CUT_OFF, *HTTP_REJECTIONS)
        return {
            READY: {(): float(not sources.readiness.reasons())},
            STRICTLY_READY: {(): float(not sources.readiness.strict_reasons())},
            SESSIONS: {**dict.fromkeys(sources.session_kinds, 0), **context.open},
            MAX_SESSIONS: {(): sources.max_sessions},
            HANDSHAKES: {(): sources.acceptor.handshakes},
            CONNECTIONS: {(state,): count for state, count in sources.connections().items()},
            MAX_CONNECTIONS: {(): sources.acceptor.ledger.connections.limit},
            UNREAD: {(): context.ledger.backlog.unread},
            UNREAD_DROPS: {(): context.ledger.backlog.dropped},
            INCOMPLETE_DROPS: {(): context.ledger.incoming.dropped},
            REGISTRATIONS: {
                ("confirmed", ""): context.hub.registrations_confirmed,
                ("timed_out", ""): context.timed_out,
                ("rejected", "invalid_id"): 0,
                ("rejected", UNKNOWN_ID.code): 0,
                ("rejected", NOT_AUTHORIZED.code): 0,
                **rejected,
            },
            REFUSED_TOKENS: _refused_tokens(context),
            CLOSES: {(code_label(code), reason): count for (code, reason), count in context.ended.items()},
            SLOW_CONSUMERS: {
                (): sum(n for (_, reason), n in context.ended.items() if reason == SLOW_CONSUMER)
            },
            REJECTED: {
                **{(kind.code,): 0 for kind in kinds},
                (HOST_NOT_ALLOWED,): 0,
                **{(code,): count for code, count in turned_away.items()},
            },
        }

    def _results(self) -> dict[Family, Samples]:
        sources, context = self._sources, self._sources.context
        hub, latency = context.hub, sources.latency
        return {
            RESULTS: {
                ("delivered", ""): hub.delivered - context.duplicates,
                ("duplicate", ""): context.duplicates,
                ("no_session", ""): hub.unclaimed,
                **{("invalid", kind): hub.invalid[kind] for kind in INVALID_KINDS},
            },
            LATENCY: {("published",): latency.from_publisher, ("arrived",): latency.from_arrival},
            CLOCK_SKEW: {(): latency.clock_skews},
            PUBLISHED: {(outcome,): sources.published[outcome] for outcome in OUTCOMES},
            ANNOUNCED: {(outcome,): sources.announced[outcome] for outcome in ANNOUNCE_OUTCOMES},
        }

    def _redis(self) -> dict[Family, Samples]:
        broker, hub = self._sources.broker, self._sources.context.hub
        servers = {server.display_url: server for server in broker.server_brokers}
        probes = {shown: server.probe for shown, server in servers.items()}
        return {
            CONNECTED: {(shown,): float(server.connected) for shown, server in servers.items()},
            OUTAGES: {(): broker.outages},
            OUTAGE_SECONDS: {(): broker.outage_seconds()},
            CHANNELS: {
                ("wanted",): hub.channels,
                ("confirmed",): hub.count_confirmed(),
                ("denied",): broker.denied_channels,
            },
            MISSING_SLOTS: {(): len(broker.missing_slots)},
            ROUND_TRIP: {
                (shown,): probe.round_trip for shown, probe in probes.items() if probe.round_trip is not None
            },
            PROBES: {
                (shown, outcome): getattr(probe, outcome)
                for shown, probe in probes.items()
                for outcome in ("received", "not_published", "missed")
            },
            RECONCILIATIONS: {(shown,): server.reconciler.runs for shown, server in servers.items()},
            REPAIRED: {(): broker.repaired},
            MOVED: {(): broker.slots_moved},
        }

    def _events(self) -> dict[Family, Samples]:
        recorded, writer = self._sources.context.events, self._sources.event_writer
        if recorded is None or writer is None:
            values = Counter[str](), 0, 0, 0
        else:
            values = recorded.recorded, writer.waiting, recorded.dropped, writer.failures
        by_kind, waiting, dropped, failures = values
        return {
            EVENTS: {(kind,): by_kind[kind] for kind in FIELDS},
            EVENTS_WAITING: {(): waiting},
            EVENTS_DROPPED: {(): dropped},
            EVENT_FAILURES: {(): failures},
        }

    def _process(self) -> dict[Family, Samples]:
        # prometheus-client's own collector would list /proc/self/fd, with an entry for each connection.
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            BUILD: {(__version__, platform.python_version(), self._sources.name): 1},
            LAG: {(): self._sources.lag},
            LOG_DROPPED: {(): logs.dropped()},
            CPU: {(): used.ru_utime + used.ru_stime},
            MEMORY: {(): _resident_memory()},
            STARTED: {(): self._started},
            MAX_FILES: {(): resource.getrlimit(resource.RLIMIT_NOFILE)[0]},
        }


class ParentMetrics(Collector):
    """Renders what the parent of several workers counts."""

    def __init__(
        self,
        accounts: Callable[[], list[dict[str, Any]]],
        published: Counter[str],
        announced: Counter[str],
        rejected: Counter[str],
    ) -> None:
        """`accounts` describes each worker; `published` counts results of POST /publish by outcome,
        `announced` ids of POST /announce, and `rejected` rejected requests on the admin port by reason."""
        self._accounts = accounts
        self._published = published
        self._announced = announced
        self._rejected = rejected
        self._started = time.time()

    def render(self) -> bytes:
        """All metrics as text, for `merge`."""
        return exposition.generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        accounts = self._accounts()
        samples: dict[Family, Samples] = {
            WORKERS_UP: {(str(each["worker"]),): float(each["accepts"]) for each in accounts},
            WORKER_RESTARTS: {(str(each["worker"]),): each["restarts"] for each in accounts},
            PUBLISHED: {(outcome,): self._published[outcome] for outcome in OUTCOMES},
            ANNOUNCED: {(outcome,): self._announced[outcome] for outcome in ANNOUNCE_OUTCOMES},
            REJECTED: {
                **{(kind.code,): 0 for kind in HTTP_REJECTIONS},
                (HOST_NOT_ALLOWED,): 0,
                **{(code,): count for code, count in self._rejected.items()},
            },
            LOG_DROPPED: {(): logs.dropped()},
            CPU: {(): used.ru_utime + used.ru_stime},
            MEMORY: {(): _resident_memory()},
            STARTED: {(): self._started},
        }
        return (to_metric(family, samples[family]) for family in PARENT_FAMILIES)


OUTCOMES: Final = (
    "received",
    "retained",
    "no_receivers",
    "not_published",
    "unconfirmed",
    "invalid",
    "denied",
)
"""What may become of a result of POST /publish."""


def to_metric(family: Family, samples: Samples) -> Metric:
    """A metric with these samples, for a collector to yield."""
    if family.kind is InfoMetricFamily:
        info = InfoMetricFamily(family.name.removesuffix("_info"), family.help)
        for values in samples:  # its value is always 1
            info.add_metric((), dict(zip(family.labels, values, strict=True)))
        return info
    if family.kind is HistogramMetricFamily:
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for values, value in samples.items():
            buckets = [(_bound(bound), count) for bound, count in value.cumulative()]
            histogram.add_metric(values, buckets, value.sum)
        return histogram
    metric: Metric = family.kind(family.name, family.help, labels=family.labels)
    for values, value in samples.items():
        metric.add_metric(values, value)  # type: ignore[attr-defined]  # of a counter or a gauge
    return metric


def _refused_tokens(context: SessionContext) -> Samples:
    if context.verifier is None:
        return {}
    return {(reason,): context.refused_tokens[reason] for reason in REASONS}


def _bound(seconds: float) -> str:
    return "+Inf" if seconds == float("inf") else repr(seconds)


def _resident_memory() -> int:
    """Bytes; on systems without /proc, the highest value so far."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - once a scrape, and a file in memory
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Merged(Collector):
    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for worker, text in self._texts.items():
            for metric in text_string_to_metric_families(text.decode()):
                family = families.setdefault(metric.name, metric)
                samples = [each._replace(labels={"worker": worker, **each.labels}) for each in metric.samples]
                family.samples = samples if family is metric else family.samples + samples
        return families.values()


def merge(texts: Mapping[str, bytes]) -> bytes:
    """The metrics of several workers as one text: each sample gets the label `worker`, with the text's key.

    They are not added up: a query can do that by `sum without (worker) (…)`, and a slow worker stays visible.
    """
    return exposition.generate_latest(_Merged(texts))
