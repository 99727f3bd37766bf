"""Packets between a node and Redis vanish, in one direction or both; no reset ever tells of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from gateway.drill.fleet import NodeProcess, logged_at

from .conftest import Measured, complaints
from .load import SECONDS, Backend, LoadClient, all_undisturbed, until, without_their_result
from .namespaces import Namespaces, NotAllowed, RemoteNode, RemoteValkey, run

pytestmark = [
    pytest.mark.needs("ip", "iptables"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make namespaces"),
]

BROWSERS = 50
NOTICED = 5.0  # seconds: what the gateway promises
SLACK = 4.0  # seconds for a busy machine; drills hold the promise to the letter

# Neither our own deadline nor the kernel's, which would come a little later.
NO_DEADLINES = (
    "import gateway.redis.subscriber, gateway.redis.connection; "
    "gateway.redis.subscriber.DEAD_AFTER = 1e9; gateway.redis.connection.TCP_USER_TIMEOUT = 0"
)


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    try:
        joined = Namespaces.joined()
    except NotAllowed as error:  # in a container that may not, say
        pytest.skip(str(error))
    with joined as both:
        yield both


@asynccontextmanager
async def load_clients(
    namespaces: Namespaces, node: NodeProcess, stem: str
) -> AsyncIterator[list[LoadClient]]:
    """Browsers that are registered at `node`."""
    loop = asyncio.get_running_loop()
    browsers = [LoadClient(f"{stem}-{number}") for number in range(BROWSERS)]
    for browser, connection in zip(browsers, namespaces.connect(node.port, BROWSERS), strict=True):
        await loop.create_connection(lambda browser=browser: browser, sock=connection)  # type: ignore[misc]
    await asyncio.wait_for(asyncio.gather(*(browser.registered.wait() for browser in browsers)), SECONDS)
    try:
        yield browsers
    finally:
        for browser in browsers:
            browser.abort()


@pytest.mark.parametrize(
    "chains", [("INPUT", "OUTPUT"), ("INPUT",), ("OUTPUT",)], ids=["both ways", "to Redis", "from Redis"]
)
async def test_a_black_hole_is_noticed_and_nothing_retained_is_lost(
    namespaces: Namespaces, chains: tuple[str, ...], measured: Measured
) -> None:
    with (
        RemoteValkey(namespaces) as valkey,
        RemoteNode(namespaces, valkey.remote_url) as node,
        RemoteNode(namespaces, valkey.remote_url, preface=NO_DEADLINES) as control,
    ):
        async with (
            Backend.on(valkey.url) as backend,
            load_clients(namespaces, node, "hole") as browsers,
            load_clients(namespaces, control, "control"),
        ):
            with namespaces.dropping(*chains):
                start = time.time()
                await backend.publish_all([browser.name for browser in browsers], 10_000)
                assert {accepted.receivers for accepted in backend.accepted} == {1}, "Redis notices nothing"
                await until(lambda: node.logged("redis connection lost"), "it is noticed", NOTICED + SLACK)
                noticed = logged_at(node.logged("redis connection lost")[0]) - start
                measured(f"black hole {' and '.join(chains)}: noticed", noticed)
                assert noticed <= NOTICED + SLACK
                await asyncio.sleep(start + NOTICED + SLACK - time.time())
                assert not control.logged("redis connection lost"), (
                    "control: without the deadlines it waits for ever"
                )
            healed = time.time()
            await until(lambda: not without_their_result(browsers), "every result arrives")
            measured(
                f"black hole {' and '.join(chains)}: all results there, once it was gone",
                time.time() - healed,
            )
            assert all_undisturbed(browsers)
        assert not complaints(node.logs)


@contextmanager
def names(namespaces: Namespaces, hosts: str, resolver: str = "") -> Iterator[None]:
    """What the nodes' namespace has as /etc/hosts and /etc/resolv.conf; see ip-netns(8)."""
    folder = Path("/etc/netns") / namespaces.nodes
    folder.mkdir(parents=True)
    try:
        (folder / "hosts").write_text(hosts)
        (folder / "resolv.conf").write_text(resolver)
        yield
    finally:
        shutil.rmtree(folder)


def test_a_name_has_two_addresses_and_the_first_swallows_packets(namespaces: Namespaces) -> None:
    # Nearer to the nodes' 10.0.0.2 than Redis is, so it comes first (RFC 6724, section 6, rule 9).
    run(f"ip -n {namespaces.redis} address add 10.0.0.3/24 dev wire")
    run(f"ip netns exec {namespaces.redis} iptables -A INPUT -d 10.0.0.3 -j DROP")
    hosts = f"10.0.0.3 redis.test\n{namespaces.redis_host} redis.test\n"
    with (
        names(namespaces, hosts),
        RemoteValkey(namespaces) as valkey,
        RemoteNode(namespaces, f"redis://redis.test:{valkey.port}") as node,
    ):
        (connected,) = node.logged("redis connected")
        assert connected["redis"] == f"redis://redis.test:{valkey.port}"
        assert not node.logged("redis unreachable")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_name_server_is_silent_while_a_node_ends(namespaces: Namespaces, workers: int) -> None:
    with names(namespaces, "127.0.0.1 localhost\n", f"nameserver {namespaces.redis_host}\n"):
        run(f"ip netns exec {namespaces.redis} iptables -A INPUT -p udp -j DROP")
        node = RemoteNode(namespaces, "redis://redis.test", "--workers", str(workers), wait_ready=False)
        with node:
            time.sleep(1.5)  # the look-up is under way
            began = time.monotonic()
            node.process.send_signal(signal.SIGTERM)
            assert node.process.wait(30) == 0
            assert time.monotonic() - began < 5, "the C library tries for 20 s"
