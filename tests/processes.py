"""Real processes for tests: those of the drills' fleet."""

from __future__ import annotations

from gateway.drill.fleet import (
    START_SECONDS,
    NodeProcess,
    Process,
    SentinelGroup,
    SentinelProcess,
    ValkeyCluster,
    ValkeyProcess,
    free_port,
    wait_until,
)
from gateway.drill.fleet.process import spawn

__all__ = [
    "START_SECONDS",
    "ValkeyCluster",
    "NodeProcess",
    "Process",
    "SentinelProcess",
    "SentinelGroup",
    "ValkeyProcess",
    "free_port",
    "spawn",
    "wait_until",
]
