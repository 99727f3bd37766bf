"""The canary through a real HAProxy with TLS: green, and red by the right name when any part is down."""

from __future__ import annotations

import asyncio
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.canary.check import Check, Outcome, run
from gateway.canary.stages import TIMED, Stage
from gateway.drill.fleet import (
    HAProxyProcess,
    NodeProcess,
    SentinelGroup,
    ValkeyCluster,
    ValkeyProcess,
    free_port,
    wait_until,
)

from .. import running_nodes
from ..certificates import haproxy_with_tls
from ..cli.printing import Printing
from ..publishing.test_api import rights
from ..running_nodes import BalancedNodes


class Stack(NamedTuple):
    """A node behind HAProxy with TLS."""

    nodes: BalancedNodes
    balancer: HAProxyProcess
    certificate: Path

    @property
    def url(self) -> str:
        return f"wss://localhost:{self.balancer.port}/ws"

    async def check(self, **changes: object) -> Outcome:
        options = {
            "ca_file": str(self.certificate),
            "redis": self.nodes.valkey.url,
            "timeout": 5.0,
            **changes,
        }
        return await run(Check(self.url, **options))  # type: ignore[arg-type]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with (
        running_nodes.started(["--allowed-origins", "https://localhost,same-origin"]) as nodes,
        haproxy_with_tls(nodes, tmp_path) as balancer,
    ):
        yield Stack(nodes, balancer, tmp_path / "certificate.pem")


def said(outcome: Outcome, stage: Stage) -> str:
    assert outcome.failure is not None, "it is green"
    assert outcome.failure.stage is stage, str(outcome.failure)
    return str(outcome.failure)


def is_green(outcome: Outcome) -> None:
    assert outcome.failure is None, str(outcome.failure)
    assert tuple(outcome.seconds) == TIMED


@pytest.mark.needs("haproxy")
async def test_green_and_red_by_the_right_name(stack: Stack) -> None:
    is_green(await stack.check())
    assert "HTTP 403" in said(await stack.check(origin="https://evil.example"), Stage.UPGRADE)
    assert "is not valid: self-signed certificate" in said(await stack.check(ca_file=None), Stage.TLS)
    assert "no node holds the id" in said(
        await stack.check(channel_prefix="x:", timeout=10.0), Stage.DELIVERY
    )
    nowhere = f"redis://127.0.0.1:{free_port()}"
    assert nowhere in said(await stack.check(redis=nowhere), Stage.ANNOUNCE)

    valkey = stack.nodes.valkey
    valkey.kill()
    assert f"Redis at {valkey.url}: " in said(await stack.check(), Stage.ANNOUNCE)
    await asyncio.to_thread(valkey.start)
    await asyncio.to_thread(
        wait_until, lambda: stack.nodes.nodes[0].logged("redis connected")[1:], "it is back"
    )
    is_green(await stack.check())

    stack.nodes.nodes[0].kill()
    await asyncio.to_thread(wait_until, lambda: stack.balancer.serves_nodes(0), "HAProxy notices")
    assert "the proxy has no node that is ready" in said(await stack.check(), Stage.UPGRADE)

    stack.balancer.kill()
    assert "connection refused" in said(await stack.check(), Stage.TCP)


@pytest.mark.needs("haproxy")
async def test_a_balancer_that_hangs_holds_no_check_up(stack: Stack) -> None:
    """Not even its end: TLS would wait for half a minute for the other side to say goodbye."""
    with stack.nodes.valkey.frozen():
        started = time.monotonic()
        checking = asyncio.create_task(stack.check(timeout=3.0))
        await asyncio.to_thread(wait_until, lambda: sum(stack.nodes.sessions()) == 1, "it is connected")
        with stack.balancer.frozen():
            said(await checking, Stage.ANNOUNCE)
            assert time.monotonic() - started < 10


@pytest.mark.needs("haproxy")
def test_the_command_for_prometheus(stack: Stack) -> None:
    port = free_port()
    arguments = ("--ca-file", str(stack.certificate), "--redis", stack.nodes.valkey.url)
    with Printing("canary", stack.url, *arguments, "--every", "1", "--listen", f"127.0.0.1:{port}") as canary:
        assert "  OK - " in canary.wait_for(" ms | connect=")

        def checks() -> float:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
            assert "gateway_canary_up 1.0" in lines
            return float(
                next(line for line in lines if line.startswith("gateway_canary_checks_total")).split()[1]
            )

        first = checks()
        wait_until(lambda: checks() > first, "it checks again")
        canary.signal(signal.SIGTERM)
        assert canary.ended() == 0
        assert len(canary.out) == 1, "nothing has changed"
        assert canary.err == []


async def test_with_the_rights_of_a_backend_and_no_more(valkey: ValkeyProcess) -> None:
    with NodeProcess(valkey.url) as node:
        valkey.ask("ACL", "SETUSER", "backend", *rights("publish"))
        is_green(await run(Check(node.ws_url, valkey.url.replace("//", "//backend:x@"))))
        valkey.ask("ACL", "SETUSER", "backend", "-publish")
        outcome = await run(Check(node.ws_url, valkey.url.replace("//", "//backend:x@")))
        assert "the rights of a publisher" in said(outcome, Stage.PUBLISH)
        valkey.ask("ACL", "SETUSER", "backend", "-set")
        outcome = await run(Check(node.ws_url, valkey.url.replace("//", "//backend:x@")))
        assert "the rights of a publisher" in said(outcome, Stage.ANNOUNCE)
        valkey.ask("ACL", "DELUSER", "backend")


async def test_where_only_announced_ids_register(valkey: ValkeyProcess) -> None:
    with NodeProcess(valkey.url, "--registration", "announced") as node:
        is_green(await run(Check(node.ws_url, valkey.url)))
        assert "(unknown_id); are --redis and --channel-prefix those of the nodes?" in said(
            await run(Check(node.ws_url, valkey.url, channel_prefix="x:")), Stage.REGISTRATION
        )


async def test_what_it_leaves_behind_expires(valkey: ValkeyProcess) -> None:
    with NodeProcess(valkey.url, "--channel-prefix", "left:") as node, valkey.client() as client:
        is_green(await run(Check(node.ws_url, valkey.url, channel_prefix="left:")))
        (key,) = client.keys("left:canary-*")
        assert 0 < int(str(client.ttl(key))) <= 30
        client.delete(key)
        wait_until(lambda: node.sessions() == 0, "its session has ended")


async def test_behind_sentinels_and_in_a_cluster() -> None:
    with SentinelGroup() as sentinels, NodeProcess(sentinels.url) as node:
        is_green(await run(Check(node.ws_url, sentinels.url)))
    with ValkeyCluster(replicas=0) as cluster, NodeProcess(cluster.url) as node:
        is_green(await run(Check(node.ws_url, cluster.url)))
