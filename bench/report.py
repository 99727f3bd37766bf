"""Ratios, limits and verdicts, as a table to read, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from bench.figures import Figures

Rounds = Mapping[str, Sequence[Figures]]  # by the server's name; the same number of rounds for each


@dataclass(frozen=True)
class Row:
    """One figure: its member of `Figures`, what it says, and the limit to hold, if any.

    A limit `of_floor` bounds the ratio to the floor in the same round; any other bounds the figure itself.
    """

    member: str
    title: str
    limit: float | None = None
    of_floor: bool = False


ROWS = (
    Row("registration", "CPU per registration, µs", 3.5, of_floor=True),
    Row("delivery", "CPU per delivery, µs", 1.4, of_floor=True),
    Row("disconnect", "CPU per disconnect, µs", 2.0, of_floor=True),
    Row("memory", "memory per session, KB", 3.0),
    Row("p50", "latency at 500/s, p50, ms"),
    Row("p99", "latency at 500/s, p99, ms", 2.0),
    Row("longest", "latency at 500/s, max, ms"),
    Row("delivery_alone", "CPU per delivery at 500/s, µs"),
    Row("idle", "CPU per idle second, µs"),
    Row("ids_per_subscribe", "ids in one SUBSCRIBE"),
)


def table(rounds: Rounds, *, markdown: bool) -> str:
    """Every figure of every server, the ratios to the floor, the limits, and the verdict on the gateway."""
    head = ["figure"]
    others = [name for name in rounds if name != "floor"]
    head += (["floor"] if "floor" in rounds else []) + others
    for name in others if "floor" in rounds else []:
        head.append(f"{name} / floor" if len(others) > 1 else "ratio")
    head += ["to hold", "verdict"] if "gateway" in rounds else []
    lines = [head] + [_cells(row, rounds, others) for row in ROWS]
    return _markdown(lines) if markdown else plain(lines)


def _cells(row: Row, rounds: Rounds, others: Sequence[str]) -> list[str]:
    cells = [row.title]
    names = (["floor"] if "floor" in rounds else []) + list(others)
    cells += [_spread(_values(row, rounds[name])) for name in names]
    if "floor" in rounds:
        cells += [_spread(ratios(row, rounds, name)) for name in others]
    if "gateway" in rounds:
        cells += [_limit(row), verdict(row, rounds)]
    return cells


def ratios(row: Row, rounds: Rounds, name: str) -> list[float]:
    """The server's figure over the floor's, round by round: the two ran one right after the other."""
    pairs = zip(_values(row, rounds[name]), _values(row, rounds["floor"]), strict=True)
    return [value / floor if floor else float("inf") for value, floor in pairs]


def verdict(row: Row, rounds: Rounds) -> str:
    """`holds` or `MISSED`, for the gateway's median; empty without a limit, or without the floor it needs."""
    if row.limit is None or (row.of_floor and "floor" not in rounds):
        return ""
    values = ratios(row, rounds, "gateway") if row.of_floor else _values(row, rounds["gateway"])
    return "holds" if median(values) <= row.limit else "MISSED"


def document(rounds: Rounds, setting: Mapping[str, object]) -> dict[str, object]:
    """All that was measured, for a program: the setting, and every round's figures by server."""
    return {
        "setting": dict(setting),
        "rounds": {name: [asdict(figures) for figures in taken] for name, taken in rounds.items()},
        "verdicts": {row.member: verdict(row, rounds) for row in ROWS if row.limit and "gateway" in rounds},
    }


def _values(row: Row, taken: Sequence[Figures]) -> list[float]:
    return [getattr(figures, row.member) for figures in taken]


def _limit(row: Row) -> str:
    if row.limit is None:
        return ""
    return f"ratio ≤ {row.limit:g}" if row.of_floor else f"≤ {row.limit:g}"


def _spread(values: Sequence[float]) -> str:
    middle = median(values)
    if middle == float("inf"):
        return "-"
    if len(values) == 1:
        return _number(middle)
    return f"{_number(middle)} ({_number(min(values))}-{_number(max(values))})"


def _number(value: float) -> str:
    """Three significant digits, as far as the decimals go."""
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
