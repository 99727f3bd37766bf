"""Real processes on ports of 127.0.0.1, for drills and for the tests: each is a block that leaves nothing.

    process     a child process; free ports; waiting
    valkey      one server
    sentinel    a master, replicas and three sentinels
    cluster     a Cluster, its failover and the moving of its slots
    node        a gateway node
    balancer    HAProxy with the shipped configuration

They know nothing of drills. Starting and waiting blocks; code on an event loop calls it in a thread.
"""

from __future__ import annotations

from .balancer import Balancer, address, available, configuration
from .cluster import ClusterNodeProcess, ValkeyCluster
from .node import NodeProcess, logged_at
from .process import START_SECONDS, Process, free_port, wait_until
from .sentinel import SentinelGroup, SentinelProcess
from .valkey import ValkeyProcess

__all__ = [
    "START_SECONDS",
    "Process",
    "free_port",
    "wait_until",
    "ValkeyProcess",
    "SentinelProcess",
    "SentinelGroup",
    "ClusterNodeProcess",
    "ValkeyCluster",
    "NodeProcess",
    "logged_at",
    "address",
    "available",
    "configuration",
    "Balancer",
]
