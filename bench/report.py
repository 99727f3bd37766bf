"""Ratios, limits and verdicts, as a text table, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import NamedTuple

from bench.figures import Figures

Rounds = Mapping[str, Sequence[Figures]]  # by the server's name; the same number of rounds for each


@dataclass(frozen=True)
class Row:
    """One figure: its member of `Figures`, its title, and its limit, if it has one.

    A `relative` limit is for the ratio within a round; any other is for the figure itself.
    """

    member: str
    title: str
    limit: float | None = None
    relative: bool = False


ROWS = (
    Row("registration", "CPU per registration, µs", 3.5, relative=True),
    Row("delivery", "CPU per delivery, µs", 1.4, relative=True),
    Row("disconnect", "CPU per disconnect, µs", 2.0, relative=True),
    Row("memory", "memory per session, KB", 3.0),
    Row("p50", "latency at 500/s, p50, ms"),
    Row("p99", "latency at 500/s, p99, ms", 2.0),
    Row("longest", "latency at 500/s, max, ms"),
    Row("delivery_alone", "CPU per delivery at 500/s, µs"),
    Row("idle", "CPU per idle second, µs"),
    Row("ids_per_subscribe", "ids in one SUBSCRIBE"),
)

STOMP_ROWS = (
    Row("registration", "CPU per start, to the answered registration, µs", 1.5, relative=True),
    Row("subscription", "CPU per SUBSCRIBE to the result, µs"),
    Row("delivery", "CPU per delivery, µs"),
    Row("disconnect", "CPU per disconnect, µs"),
    Row("memory", "memory per session, KB", 4.0),
    Row("p50", "latency at 500/s, p50, ms"),
    Row("p99", "latency at 500/s, p99, ms"),
    Row("delivery_alone", "CPU per delivery at 500/s, µs"),
    Row("idle", "CPU per idle second, µs"),
    Row("ids_per_subscribe", "ids in one SUBSCRIBE"),
)


class Comparison(NamedTuple):
    """Servers compared with one of them: ratios are to `base`, limits and verdicts are for `subject`."""

    base: str
    subject: str
    others: tuple[str, ...]
    rows: tuple[Row, ...]
    titles: Mapping[str, str]
    """Column titles that differ from the name of the server."""

    def title(self, name: str) -> str:
        return self.titles.get(name, name)


WITH_FLOOR = Comparison("floor", "gateway", ("peer",), ROWS, {})
WITH_JSON = Comparison(
    "gateway",
    "stomp",
    ("stomp-at-once",),
    STOMP_ROWS,
    {"gateway": "JSON", "stomp": "STOMP", "stomp-at-once": "all at once"},
)


def table(rounds: Rounds, comparison: Comparison, *, markdown: bool) -> str:
    """Every figure of every server, the ratios to the base, the limits, and the verdict on the subject.

    Servers that were not measured are left out.
    """
    base, subject, title = comparison.base, comparison.subject, comparison.title
    others = [name for name in (subject, *comparison.others) if name in rounds]
    head = ["figure"]
    head += [title(name) for name in (base, *others) if name in rounds]
    for name in others if base in rounds else []:
        head.append(f"{title(name)} / {title(base)}" if len(others) > 1 else "ratio")
    head += ["limit", "verdict"] if subject in rounds else []
    lines = [head] + [_cells(row, rounds, comparison, others) for row in comparison.rows]
    return _markdown(lines) if markdown else plain(lines)


def _cells(row: Row, rounds: Rounds, comparison: Comparison, others: Sequence[str]) -> list[str]:
    base = comparison.base
    cells = [row.title]
    cells += [_spread(_values(row, rounds[name])) for name in (base, *others) if name in rounds]
    if base in rounds:
        cells += [_spread(ratios(row, rounds, name, base)) for name in others]
    if comparison.subject in rounds:
        cells += [_limit(row), verdict(row, rounds, comparison)]
    return cells


def ratios(row: Row, rounds: Rounds, name: str, base: str) -> list[float]:
    """The figure of the server divided by that of the base, for each round."""
    pairs = zip(_values(row, rounds[name]), _values(row, rounds[base]), strict=True)
    return [value / divisor if divisor else float("inf") for value, divisor in pairs]


def verdict(row: Row, rounds: Rounds, comparison: Comparison) -> str:
    """`pass` or `MISSED`, for the subject's median; empty without a limit, or without the base it needs."""
    base, subject = comparison.base, comparison.subject
    if row.limit is None or (row.relative and base not in rounds):
        return ""
    values = ratios(row, rounds, subject, base) if row.relative else _values(row, rounds[subject])
    return "pass" if median(values) <= row.limit else "MISSED"


def document(rounds: Rounds, setting: Mapping[str, object]) -> dict[str, object]:
    """Everything measured, for a program: the setting, the figures of every round, the verdicts."""
    return {
        "setting": dict(setting),
        "rounds": {name: [asdict(figures) for figures in taken] for name, taken in rounds.items()},
        "verdicts": {
            comparison.subject: {
                row.member: verdict(row, rounds, comparison) for row in comparison.rows if row.limit
            }
            for comparison in (WITH_FLOOR, WITH_JSON)
            if comparison.subject in rounds
        },
    }


def _values(row: Row, taken: Sequence[Figures]) -> list[float]:
    return [getattr(figures, row.member) for figures in taken]


def _limit(row: Row) -> str:
    if row.limit is None:
        return ""
    return f"ratio ≤ {row.limit:g}" if row.relative else f"≤ {row.limit:g}"


def _spread(values: Sequence[float]) -> str:
    middle = median(values)
    if middle == float("inf"):
        return "-"
    if len(values) == 1:
        return _number(middle)
    return f"{_number(middle)} ({_number(min(values))}-{_number(max(values))})"


def _number(value: float) -> str:
    """Three significant digits, with two decimals at most."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plain(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [*lines[:1], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    texts = ["| " + " | ".join(line) + " |" for line in lines]
    texts.insert(1, "|" + " --- |" * len(lines[0]))
    return "\n".join(texts)
