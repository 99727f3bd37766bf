"""What a drill has found, in words for people and in JSON for machines. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .ledger import Late


class DrillOptions(NamedTuple):
    """The size of an exercise."""

    clients: int = 2_000
    rate: float = 200.0
    """Results a second."""
    nodes: int = 3
    seconds: float = 20.0
    """For how long results are published, the fault included; a fault that takes longer prolongs it."""
    retain: int = 60
    """Seconds."""
    workers: int = 1
    """Processes of each node."""


class Measure(NamedTuple):
    """Something that a drill measures, and what it should be at most, if that was laid down."""

    what: str
    value: float | None
    """None: it did not happen as long as the drill went on."""
    limit: float | None = None
    unit: str = "s"

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return ""
        return "pass" if self.value is not None and self.value <= self.limit else "MISSED"


class NodeOutage(NamedTuple):
    """How long a node was without Redis, by its own account, and how long it was not there."""

    node: str
    blind: float = 0.0
    """Seconds without Redis, or, of a Cluster, without a part of it; in all of its lives together."""
    outages: int = 0
    """How often."""
    repaired: int = 0
    """Subscriptions that its audits found to be wrong: must not happen, whatever breaks."""
    down: float = 0.0
    """Seconds from its end until it was there again."""


class Absence(NamedTuple):
    """How clients fared with their connections."""

    longest: float
    """The longest that one was without a registration, after it had had one, in seconds."""
    returns: int
    """Registrations after a loss."""
    busiest_second: int
    """The most of those within one second."""
    slowest_welcome: float
    """The longest that a new client had to wait for its first answer, in seconds."""
    closes: dict[int, int]
    """Connections that ended otherwise than by their client, by close code; 1006 is without one."""


class Happening(NamedTuple):
    """What was done or seen, and when, in seconds from the beginning of the load."""

    at: float
    text: str


@dataclass(frozen=True)
class DrillReport:
    """All that a drill has found."""

    drill: str
    summary: str
    options: DrillOptions
    redis: str
    """The server's version."""
    balanced: bool
    """Whether the clients came through HAProxy."""
    events: Sequence[Happening]
    published: int
    delivered: int
    lost: int
    duplicates: int
    strays: int
    """Results that reached a client for whom they were not."""
    unaccepted: int
    """Results that Redis had not accepted when the drill ended."""
    late: Late
    measures: Sequence[Measure]
    nodes: Sequence[NodeOutage]
    clients: Absence

    @property
    def broken(self) -> bool:
        """Whether the promise was broken: a result that was retained has not arrived."""
        return self.lost > 0 and self.options.retain > 0

    @property
    def verdict(self) -> str:
        if self.lost:
            return f"LOST {self.lost:,}"
        return "MISSED" if any(measure.verdict == "MISSED" for measure in self.measures) else "pass"


def as_json(report: DrillReport) -> dict[str, Any]:
    """The report's content for a machine: times in seconds, null for what did not happen."""
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
        "late": {name: round(value, 4) for name, value in report.late._asdict().items()},
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
        "blind": [node._asdict() for node in report.nodes],
        "disconnected": {
            **report.clients._asdict(),
            "longest": round(report.clients.longest, 4),
            "slowest_welcome": round(report.clients.slowest_welcome, 4),
            "closes": {str(code): count for code, count in report.clients.closes.items()},
        },
        "verdict": report.verdict,
        "kept": not report.broken,
    }


def conditions(options: DrillOptions) -> str:
    """The size of an exercise in a line."""
    retained = f"retained for {options.retain} s" if options.retain else "not retained"
    by_workers = "" if options.workers == 1 else f" of {options.workers} workers"
    nodes = count(options.nodes, "node") + by_workers
    return (
        f"{nodes}, {count(options.clients, 'client')}, {options.rate:,.10g} results/s "
        f"for {options.seconds:g} s, {retained}"
    )


def text(report: DrillReport) -> str:
    """The report for people."""
    lines = ["", *_results(report), "", *_measured(report.measures), *_blind(report), "", _conclusion(report)]
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
        lines.append(f"{report.strays:,} REACHED A CLIENT FOR WHOM THEY WERE NOT")
    lines.append(f"late {report.late} after the first attempt to publish")
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


def _blind(report: DrillReport) -> list[str]:
    lines = ["blind"]
    lines += [f"  {node.node:8} {_blindness(node)}" for node in report.nodes]
    clients = report.clients
    lines.append(f"  clients  {seconds(clients.longest)} without a node at most")
    if clients.returns:
        codes = ", ".join(f"{amount:,} with {code}" for code, amount in sorted(clients.closes.items()))
        lines.append(f"           connections ended: {codes}")
        lines.append(
            f"           came back: {clients.returns:,}, {clients.busiest_second:,} in the busiest second"
        )
    lines.append(f"           a new one waited {seconds(clients.slowest_welcome)} for its answer at most")
    return lines


def _blindness(node: NodeOutage) -> str:
    words = [
        f"{seconds(node.blind)} without Redis" + (f" in {count(node.outages, 'gap')}" if node.outages else "")
    ]
    if node.down:
        words.append(f"{seconds(node.down)} down")
    if node.repaired:
        words.append(f"{count(node.repaired, 'subscription')} MENDED")
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
    """Several drills, a line each."""
    rows = [("drill", "published", "delivered", "lost", "duplicate", "late p99", "late max", "verdict")]
    rows += [
        (
            report.drill,
            f"{report.published:,}",
            f"{report.delivered:,}",
            f"{report.lost:,}",
            f"{report.duplicates:,}",
            seconds(report.late.p99),
            seconds(report.late.max),
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
    """As `1 gap` or `2,000 clients`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _value(measure: Measure) -> str:
    if measure.value is None:
        return "never"
    if measure.unit == "s":
        return seconds(measure.value)
    return f"{measure.value:,.10g} {measure.unit}".rstrip()
