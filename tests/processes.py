"""Real processes for tests: those of the drills' fleet."""

from __future__ import annotations

from gateway.drill.fleet import (
    START_SECONDS,
    Balancer,
    Cluster,
    Node,
    Process,
    Sentinel,
    SentinelSet,
    Valkey,
    free_port,
    wait_until,
)
from gateway.drill.fleet.process import spawn

__all__ = [
    "START_SECONDS",
    "Balancer",
    "Cluster",
    "Node",
    "Process",
    "Sentinel",
    "SentinelSet",
    "Valkey",
    "free_port",
    "spawn",
    "wait_until",
]
