"""A drill's results, as text for people and as JSON for programs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .ledger import LatencySummary


class DrillOptions(NamedTuple):
    """The size of a drill."""

    clients: int = 2_000
    rate: float = 200.0
    """Results a second."""
    nodes: int = 3
    seconds: float = 20.0
    """How long results are published, the fault included. A fault that takes longer prolongs it."""
    retain: int = 60
    """Seconds that Redis retains a result; 0 for not at all."""
    workers: int = 1
    """Processes of each node."""


class Measure(NamedTuple):
    """A measured value, and its limit if it has one."""

    what: str
    value: float | None
    """None: it did not happen during the drill."""
    limit: float | None = None
    unit: str = "s"

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return ""
        return "pass" if self.value is not None and self.value <= self.limit else "MISSED"


class NodeOutage(NamedTuple):
    """How long a node was without Redis, as the node reports it, and how long the node was down."""

    node: str
    outage_seconds: float = 0.0
    """Seconds without Redis, or without a part of a Cluster; the sum over all processes of the node."""
    outages: int = 0
    """Number of outages."""
    repaired: int = 0
    """Subscriptions that its reconciler found to be wrong. Must stay 0, whatever breaks."""
    down_for: float = 0.0
    """Seconds from the end of its process until clients were sent to it again."""


class Disconnects(NamedTuple):
    """How often and how long clients were disconnected."""

    longest: float
    """Seconds: the longest time from the end of a client's connection to its next registration."""
    reconnects: int
    """Registrations after a lost connection."""
    busiest_second: int
    """The most reconnects within one second."""
    slowest_registration: float
    """Seconds: the longest time from a new client's first attempt to its confirmed registration."""
    close_codes: dict[int, int]
    """Connections that a client did not end, by close code; 1006: without a close frame."""


class DrillEvent(NamedTuple):
    """What was done or observed, and when."""

    at: float
    """Seconds since the load began."""
    text: str


@dataclass(frozen=True)
class DrillReport:
    """All results of a drill."""

    drill: str
    summary: str
    options: DrillOptions
    redis: str
    """Name and version of the server."""
    balanced: bool
    """Whether clients connected through HAProxy."""
    events: Sequence[DrillEvent]
    published: int
    delivered: int
    lost: int
    duplicates: int
    strays: int
    """Results that reached the wrong client."""
    unaccepted: int
    """Results that Redis had not accepted when the drill ended; nothing was promised for them."""
    latency: LatencySummary
    measures: Sequence[Measure]
    nodes: Sequence[NodeOutage]
    clients: Disconnects

    @property
    def broken(self) -> bool:
        """Whether the promise was broken: a retained result was not delivered."""
        return self.lost > 0 and self.options.retain > 0

    @property
    def verdict(self) -> str:
        if self.lost:
            return f"LOST {self.lost:,}"
        return "MISSED" if any(measure.verdict == "MISSED" for measure in self.measures) else "pass"


def as_json(report: DrillReport) -> dict[str, Any]:
    """The report for a program: times in seconds, null for what did not happen."""
    return {
        "drill": report.drill,
        "summary": report.summary,
        **report.options._asdict(),
        "redis": report.redis,
        "haproxy": report.balanced,
        "events": [{"at": round(event.at, 3), "text": event.text} for event in report.events],
        "published": report.published,
        "delivered": report.delivered,
        "lost": report.lost,
        "duplicate": report.duplicates,
        "stray": report.strays,
        "unaccepted": report.unaccepted,
        "latency": {name: round(value, 4) for name, value in report.latency._asdict().items()},
        "measures": [
            {
                "what": measure.what,
                "value": None if measure.value is None else round(measure.value, 4),
                "unit": measure.unit,
                "limit": measure.limit,
                "verdict": measure.verdict or None,
            }
            for measure in report.measures
        ],
        "outages": [node._replace(down_for=round(node.down_for, 4))._asdict() for node in report.nodes],
        "disconnects": {
            **report.clients._asdict(),
            "longest": round(report.clients.longest, 4),
            "slowest_registration": round(report.clients.slowest_registration, 4),
            "close_codes": {str(code): number for code, number in report.clients.close_codes.items()},
        },
        "verdict": report.verdict,
        "kept": not report.broken,
    }


def conditions(options: DrillOptions) -> str:
    """The size of a drill, in one line."""
    retained = f"retained for {options.retain} s" if options.retain else "not retained"
    by_workers = "" if options.workers == 1 else f" of {options.workers} workers"
    nodes = count(options.nodes, "node") + by_workers
    return (
        f"{nodes}, {count(options.clients, 'client')}, {options.rate:,.10g} results/s "
        f"for {options.seconds:g} s, {retained}"
    )


def text(report: DrillReport) -> str:
    """The report for people."""
    lines = [
        "",
        *_results(report),
        "",
        *_measured(report.measures),
        *_outages(report),
        "",
        _conclusion(report),
    ]
    return "\n".join(lines)


def _results(report: DrillReport) -> list[str]:
    figures = {
        "published": report.published,
        "delivered": report.delivered,
        "lost": report.lost,
        "duplicate": report.duplicates,
    }
    lines = ["   ".join(f"{name} {value:,}" for name, value in figures.items())]
    if report.unaccepted:
        lines.append(f"{report.unaccepted:,} more were not accepted by Redis before the end")
    if report.strays:
        lines.append(f"{report.strays:,} REACHED THE WRONG CLIENT")
    lines.append(f"latency {report.latency} from the first attempt to publish")
    return lines


def _measured(measures: Sequence[Measure]) -> list[str]:
    if not measures:
        return []
    width = max(len(measure.what) for measure in measures)
    values = [_value(measure) for measure in measures]
    lines = []
    for measure, value in zip(measures, values, strict=True):
        limit = "" if measure.limit is None else f"limit {measure.limit:g} {measure.unit}".rstrip()
        lines.append(
            f"{measure.what:{width}}  {value:>{max(map(len, values))}}  {limit:10} {measure.verdict}".rstrip()
        )
    return [*lines, ""]


def _outages(report: DrillReport) -> list[str]:
    lines = ["outages"]
    lines += [f"  {node.node:8} {_outage(node)}" for node in report.nodes]
    clients = report.clients
    lines.append(f"  clients  disconnected for at most {seconds(clients.longest)}")
    if clients.reconnects:
        codes = ", ".join(f"{number:,} with {code}" for code, number in sorted(clients.close_codes.items()))
        lines.append(f"           connections closed: {codes}")
        lines.append(
            f"           reconnects: {clients.reconnects:,}, {clients.busiest_second:,} in the busiest second"
        )
    lines.append(f"           slowest first registration: {seconds(clients.slowest_registration)}")
    return lines


def _outage(node: NodeOutage) -> str:
    often = f" in {count(node.outages, 'outage')}" if node.outages else ""
    words = [f"{seconds(node.outage_seconds)} without Redis{often}"]
    if node.down_for:
        words.append(f"{seconds(node.down_for)} down")
    if node.repaired:
        words.append(f"{count(node.repaired, 'subscription')} REPAIRED")
    return ", ".join(words)


def _conclusion(report: DrillReport) -> str:
    missed = sum(measure.verdict == "MISSED" for measure in report.measures)
    tail = f"; {count(missed, 'limit')} missed" if missed else ""
    if not report.lost:
        return f"{report.drill}: no result was lost{tail}"
    if report.broken:
        return f"{report.drill}: LOST {count(report.lost, 'retained result')}{tail}"
    return f"{report.drill}: {count(report.lost, 'result')} lost, none of them retained{tail}"


def table(reports: Sequence[DrillReport]) -> str:
    """Several drills, one line each."""
    rows = [("drill", "published", "delivered", "lost", "duplicate", "latency p99", "latency max", "verdict")]
    rows += [
        (
            report.drill,
            f"{report.published:,}",
            f"{report.delivered:,}",
            f"{report.lost:,}",
            f"{report.duplicates:,}",
            seconds(report.latency.p99),
            seconds(report.latency.max),
            report.verdict,
        )
        for report in reports
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([f"{row[0]:{widths[0]}}", *cells, row[-1]]))
    return "\n".join(lines)


def seconds(value: float) -> str:
    """As `0.012 s`."""
    return f"{value:.3f} s"


def count(number: int, what: str) -> str:
    """As `1 outage` or `2,000 clients`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _value(measure: Measure) -> str:
    if measure.value is None:
        return "never"
    if measure.unit == "s":
        return seconds(measure.value)
    return f"{measure.value:,.10g} {measure.unit}".rstrip()
