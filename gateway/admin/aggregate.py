"""The state of a node with several workers, from the states of its workers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

State = Mapping[str, Any]
"""As `health.node_state` makes one for /readyz."""

_SUMS: Final = ("sessions", "handshakes", "unread_bytes", "channels", "delivered", "log_lines_dropped")
_SUMS_BY_NAME: Final = ("connections", "invalid", "rejected", "closed")

NO_WORKER: Final = "no worker serves"


def aggregate(states: Sequence[State | None], name: str, *, draining: bool) -> dict[str, Any]:
    """The state of node `name`, in the same form, from its workers' states; None for a worker without answer.

    One ready worker makes the node ready: it takes the other workers' new connections meanwhile. The node is
    strictly ready while each of its ready workers is, because the kernel sends new browsers to all of them.
    Counts are sums since each worker's start. Redis is connected if it is for all workers; `outage_seconds`,
    `probe_seconds` and `missing_slots` are those of the worker where they are longest.
    """
    present = [state for state in states if state is not None]
    reasons = _reasons(present, draining=draining)
    strict_reasons = reasons or _strict_reasons(present)
    return {
        "ready": not reasons,
        "reasons": reasons,
        "strict": {"ready": not strict_reasons, "reasons": strict_reasons},
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


def _strict_reasons(present: Sequence[State]) -> list[str]:
    return sorted({reason for state in present if state["ready"] for reason in state["strict"]["reasons"]})


def _sum(counts: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _redis(states: Sequence[State]) -> dict[str, Any]:
    probes = [state["probe_seconds"] for state in states]
    return {
        "connected": bool(states) and all(state["connected"] for state in states),
        "outages": sum(state["outages"] for state in states),
        "outage_seconds": max((state["outage_seconds"] for state in states), default=0.0),
        "probe_seconds": max(probes) if probes and None not in probes else None,
        "repaired": sum(state["repaired"] for state in states),
        "missing_slots": max((state["missing_slots"] for state in states), default=0),
        "denied_channels": sum(state["denied_channels"] for state in states),
    }
