"""Real processes on ports of this machine's loopback, for drills, tests and benchmarks.

    process     a child process; free ports; waiting
    valkey      one server
    sentinel    a master, replicas and three Sentinels
    cluster     a Cluster, its failover, and moving its slots
    node        a gateway node
    nodes       several of them on one Redis
    haproxy     HAProxy with the shipped configuration
    nginx       nginx with a given configuration

Each is a context manager that leaves no process and no file behind. They know nothing of drills. Starting and
waiting blocks; code on an event loop calls them in a thread.
"""

from __future__ import annotations

from .cluster import ClusterNodeProcess, ValkeyCluster
from .haproxy import HAProxyProcess, haproxy_available
from .nginx import NginxProcess
from .node import NodeProcess, logged_at
from .nodes import NodeGroup
from .process import START_SECONDS, Process, free_port, spawn, wait_until
from .sentinel import SentinelGroup, SentinelProcess
from .valkey import ValkeyProcess

__all__ = [
    "START_SECONDS",
    "Process",
    "free_port",
    "spawn",
    "wait_until",
    "ValkeyProcess",
    "SentinelProcess",
    "SentinelGroup",
    "ClusterNodeProcess",
    "ValkeyCluster",
    "NodeProcess",
    "NodeGroup",
    "logged_at",
    "HAProxyProcess",
    "haproxy_available",
    "NginxProcess",
]
