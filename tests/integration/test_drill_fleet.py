"""The processes that drills and tests harm, and that they leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.drill.fleet import (
    ClusterNodeProcess,
    NodeProcess,
    SentinelGroup,
    ValkeyCluster,
    ValkeyProcess,
    free_port,
    logged_at,
    wait_until,
)
from gateway.drill.fleet.process import PORTS
from gateway.errors import EmbeddedError


def test_no_port_is_given_twice() -> None:
    ports = [free_port() for _ in range(100)]
    assert len(set(ports)) == 100
    assert set(ports) <= set(PORTS)


def test_another_process_gives_no_port_that_this_one_has() -> None:
    port = free_port()
    code = (
        "from gateway.drill.fleet import process; import sys; port = int(sys.argv[1]); "
        "print(process._is_free(port), process._reserve(port))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(port)], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "True False\n"


def test_a_killed_server_comes_back_with_what_is_on_its_disk() -> None:
    with ValkeyProcess("--appendonly", "yes", "--appendfsync", "always") as valkey, valkey.client() as client:
        client.set("kept", "x")
        valkey.kill()
        assert not valkey.running
        valkey.start()
        assert client.get("kept") == b"x"
        with valkey.frozen(), pytest.raises(redis.TimeoutError):
            valkey.ask("PING")
        assert valkey.ask("PING")


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(
        EmbeddedError, match=r"Valkey did not start: it ended with 1; it said:\n(?s:.*)nonsense"
    ):
        ValkeyProcess("--nonsense", "yes")


def test_a_node_that_does_not_start_says_why() -> None:
    with pytest.raises(EmbeddedError, match=r"the node did not start: it ended with 2"):
        NodeProcess("redis://127.0.0.1:1", "--backlog", "0", wait_ready=False)


def test_a_killed_node_comes_back_on_its_ports(valkey: ValkeyProcess) -> None:
    with NodeProcess(valkey.url) as node:
        before = node.ws_url, node.admin_port
        node.kill()
        assert node.readyz() is None
        node.start()
        assert (node.ws_url, node.admin_port) == before
        body = node.readyz()
        assert body is not None
        assert body["ready"] is True
        first, second = map(logged_at, node.logged("listening"))
        assert first < second


def test_a_cure_can_be_taken_out_of_a_node(valkey: ValkeyProcess) -> None:
    preface = "from gateway import node; node.Node.start = None"
    with pytest.raises(EmbeddedError, match="'NoneType' object is not callable"):
        NodeProcess(valkey.url, preface=preface)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's own")
def test_children_die_with_their_parent(tmp_path: Path) -> None:
    program = (
        "from gateway.drill.fleet import ValkeyProcess, NodeProcess; "
        "v = ValkeyProcess(); n = NodeProcess(v.url); "
        "print(v.process.pid, n.process.pid, flush=True); v.freeze(); input()"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # a killed parent cannot remove its servers' folders
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None
        pids = list(map(int, parent.stdout.readline().split()))
        assert len(pids) == 2
        parent.kill()
        wait_until(lambda: not any(map(alive, pids)), "its children are gone, the frozen one too")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # one that its new parent has not asked for yet


def test_sentinels_make_the_replica_the_master() -> None:
    with SentinelGroup() as sentinels:
        first = sentinels.master
        with first.client() as client:
            client.set("kept", "x")
            client.wait(1, 1000)
        # The machine with the master and a sentinel is gone.
        first.kill()
        sentinels.sentinels[0].kill()
        second = sentinels.await_other_master(first)
        assert second.ask("GET", "kept") == "x"
        others = sentinels.sentinels[1:]
        wait_until(lambda: all(it.master_port() == second.port for it in others), "the Sentinels agree")
        assert sentinels.master is second


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster() as running:
        yield running


def keys_of(cluster: ValkeyCluster, node: ClusterNodeProcess) -> int:
    return int(node.ask("DBSIZE"))


def test_a_cluster_covers_all_slots_and_has_replicas(cluster: ValkeyCluster) -> None:
    assert sum(len(part) for node in cluster.masters for part in cluster.slots(node)) == 16_384
    assert [node.info("replication")["connected_slaves"] for node in cluster.masters] == ["1"] * 3


@pytest.mark.adds_to("cluster")
def test_slots_move_both_ways_with_their_keys(cluster: ValkeyCluster) -> None:
    source = cluster.owner(0)
    with cluster.client() as client:
        keys = [f"websocket:{number}" for number in range(2_000)]
        for key in keys:
            client.set(key, "x", ex=60)
        added = cluster.add_node()
        cluster.move_slots(source, added, range(20))
        assert cluster.slots(added) == (range(20),)
        moved = int(added.ask("DBSIZE"))
        cluster.migrate_slots(source, added, 20, 999)
        assert cluster.slots(added) == (range(1_000),)
        assert 0 < moved < int(added.ask("DBSIZE"))
        assert all(client.get(key) == b"x" for key in keys)


def test_a_replica_takes_over_from_a_killed_master(cluster: ValkeyCluster) -> None:
    master = cluster.owner(16_383)
    master.kill()
    successor = cluster.await_failover(master, 16_383)
    assert successor is not master
    master.start()
    cluster.await_health()
    assert master.info("replication")["role"] == "slave"
    assert cluster.owner(16_383) is successor
