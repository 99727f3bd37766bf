"""What a node keeps when browsers have gone: nothing. And what one that does not read may cost: little."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import redis.asyncio

from gateway.drill.fleet import NodeProcess, ValkeyProcess

from .in_process import until_status
from .load import load_clients, until
from .raw import Raw

CYCLES = 2_000
AT_A_TIME = 250


def open_files(node: NodeProcess) -> int:
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


def memory(node: NodeProcess) -> int:
    """Resident memory of the process in bytes."""
    pages = Path(f"/proc/{node.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def probing(node: NodeProcess) -> bool:
    body = node.readyz()
    return body is not None and body["redis"]["probe_seconds"] is not None


async def test_nothing_is_left_of_browsers_that_have_gone() -> None:
    with (
        await asyncio.to_thread(ValkeyProcess) as valkey,
        await asyncio.to_thread(NodeProcess, valkey.url) as node,
    ):
        async with redis.asyncio.Redis(port=valkey.port) as client:
            await until(lambda: probing(node), "the node's probe has its connection")
            before = open_files(node)
            for start in range(0, CYCLES, AT_A_TIME):
                names = [f"cycle-{number}" for number in range(start, start + AT_A_TIME)]
                async with load_clients([node.port], names) as browsers:
                    for browser in browsers[::3]:  # some go without a word
                        browser.abort()
            body = await until_status(node.admin_port, "all are gone", sessions=0, channels=0, handshakes=0)
            assert body["redis"]["outages"] == 0
            left: list[Any] = await client.pubsub_channels()
            own = {name.rpartition(b":")[0] for name in left}
            assert (len(left), own) == (2, {b"websocket::probe", b"websocket:"}), "the node's own"
            assert await client.pubsub_numpat() == 0
            # That of the question above may have been open still, or the probe's is just being renewed.
            await until(lambda: open_files(node) <= before, "nothing more is open than before")
        await asyncio.to_thread(node.stop)


async def test_a_browser_that_does_not_read_is_closed_and_costs_little(
    node_process: NodeProcess, backend: redis.asyncio.Redis
) -> None:
    payload = json.dumps({"authResult": "A", "data": "x" * 60_000})
    async with (
        Raw.registered(node_process.port, "greedy", receive_buffer=4096) as greedy,
        Raw.registered(node_process.port, "other") as other,
    ):
        before = memory(node_process)
        sent = 0
        while await backend.publish("websocket:greedy", payload):
            sent += 1
            assert sent < 500, "30 MB, and the node still holds on to it"
        assert memory(node_process) - before < 4_000_000
        assert await backend.publish("websocket:other", "CONFIRMED") == 1
        assert (await other.message())["authResult"] == "CONFIRMED"
        # Once it reads again, within the close timeout, it learns why.
        while (next_frame := await greedy.frame())[0] != 8:
            assert next_frame[0] == 1
        assert (int.from_bytes(next_frame[1][:2], "big"), next_frame[1][2:]) == (1008, b"slow consumer")
        assert await greedy.rest() == b""
    await until_status(node_process.admin_port, "all are gone", sessions=0, channels=0)


async def test_a_browser_that_never_reads_is_aborted(
    node_process: NodeProcess, backend: redis.asyncio.Redis
) -> None:
    payload = json.dumps({"authResult": "A", "data": "x" * 60_000})
    async with Raw.registered(node_process.port, "deaf", receive_buffer=4096):
        while await backend.publish("websocket:deaf", payload):
            pass
        await until_status(node_process.admin_port, "it is aborted", sessions=0, channels=0)
