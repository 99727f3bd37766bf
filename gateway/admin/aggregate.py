"""What several workers' accounts of themselves say of the node that they are together. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

State = Mapping[str, Any]
"""As `views.AdminViews.state` makes one, for /readyz."""

_SUMS: Final = ("sessions", "handshakes", "channels", "delivered")
_SUMS_BY_NAME: Final = ("invalid", "refused", "ended")

NO_WORKER: Final = "no worker serves"


def aggregate(states: Sequence[State | None], name: str, *, draining: bool) -> dict[str, Any]:
    """The account of node `name`, in the form of a single one's, from its workers', None for who gave none.

    One worker that is ready makes it ready: the others' new connections go there meanwhile. Counts are sums,
    of those since each worker's start. Redis is connected if it is for all; `outage_seconds` and
    `probe_seconds` are those of the worker that fares worst.
    """
    present = [state for state in states if state is not None]
    reasons = _reasons(present, draining=draining)
    return {
        "ready": not reasons,
        "reasons": reasons,
        "node": name,
        **{key: sum(state[key] for state in present) for key in _SUMS},
        **{key: dict(_sum(state[key] for state in present)) for key in _SUMS_BY_NAME},
        "redis": _redis([state["redis"] for state in present]),
    }


def _reasons(present: Sequence[State], *, draining: bool) -> list[str]:
    if draining:
        return ["draining"]
    if not present:
        return [NO_WORKER]
    if any(state["ready"] for state in present):
        return []
    return sorted({reason for state in present for reason in state["reasons"]})


def _sum(counts: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _redis(lines: Sequence[State]) -> dict[str, Any]:
    probes = [line["probe_seconds"] for line in lines]
    return {
        "connected": bool(lines) and all(line["connected"] for line in lines),
        "outages": sum(line["outages"] for line in lines),
        "outage_seconds": max((line["outage_seconds"] for line in lines), default=0.0),
        "probe_seconds": max(probes) if probes and None not in probes else None,
        "repaired": sum(line["repaired"] for line in lines),
    }
