"""When a node is ready, and what its connections are doing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.nodes.sources import Readiness, Sources


def readiness(*, reached: bool = True, deaf: str = "", draining: bool = False) -> Readiness:
    return Readiness(cast("Any", SimpleNamespace(ever_connected=reached, deaf=deaf)), draining)


@pytest.mark.parametrize(
    ("ready", "reasons", "strict"),
    [
        (readiness(), [], []),
        (readiness(reached=False), ["Redis has not been reached yet"], []),
        (readiness(deaf="Redis is not connected"), [], ["Redis is not connected"]),
        (readiness(draining=True, deaf="Redis is silent"), ["draining"], ["Redis is silent"]),
    ],
)
def test_strictly_ready_is_ready_and_hears_redis(
    ready: Readiness, reasons: list[str], strict: list[str]
) -> None:
    assert ready.reasons() == reasons
    assert ready.strict_reasons() == [*reasons, *strict]


def test_each_connection_has_one_state() -> None:
    counted = SimpleNamespace(sessions=5, closing=1, total=12)
    acceptor = SimpleNamespace(handshakes=2, idle=3, ledger=SimpleNamespace(connections=counted))
    unused: Any = None
    sources = Sources(
        "node", 10, unused, unused, cast("Any", acceptor), unused, readiness(), unused, unused, [], unused
    )
    states = sources.connections()
    assert states == {"handshake": 2, "idle": 3, "session": 5, "closing": 1, "request": 1}
    assert sum(states.values()) == counted.total
