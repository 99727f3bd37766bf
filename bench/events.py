"""`python -m bench.events`: what events cost a node, and Redis, for each registration, delivery and close.

Two nodes on one Valkey, one with `--events redis`, one without, in turn with the same load. The figures are CPU
time of the processes, so that a busy machine changes them little.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import click
import redis.asyncio

from gateway.drill.connection import ClientConnection
from gateway.drill.fleet import NodeProcess, ValkeyProcess

AT_ONCE = 200
PHASES = ("registration", "delivery", "close")


class Browser(ClientConnection):
    """Registers, and counts what it hears."""

    def __init__(self, name: str) -> None:
        super().__init__({"webSocketId": name})
        self.name = name
        self.registered = asyncio.Event()
        self.result = asyncio.Event()

    def on_message(self, message: dict[str, Any]) -> None:
        (self.result if "authResult" in message else self.registered).set()


def cpu(pid: int) -> float:
    """Microseconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


async def measure(node: NodeProcess, valkey: ValkeyProcess, sessions: int) -> dict[str, tuple[float, float]]:
    """Microseconds of the node and of Valkey for one session, by phase."""
    loop = asyncio.get_running_loop()
    browsers = [Browser(f"{number:0128}") for number in range(sessions)]

    async def register() -> None:
        for start in range(0, sessions, AT_ONCE):
            part = browsers[start : start + AT_ONCE]
            for browser in part:
                await loop.create_connection(lambda b=browser: b, "127.0.0.1", node.port)  # type: ignore[misc]
            for browser in part:
                await browser.registered.wait()

    async def deliver() -> None:
        async with redis.asyncio.Redis(port=valkey.port) as client:
            for start in range(0, sessions, AT_ONCE):
                async with client.pipeline(transaction=False) as pipeline:
                    for browser in browsers[start : start + AT_ONCE]:
                        pipeline.publish(f"websocket:{browser.name}", "CONFIRMED")
                    await pipeline.execute()
        for browser in browsers:
            await browser.result.wait()

    async def close() -> None:
        for browser in browsers:
            browser.leave()
        while await asyncio.to_thread(node.sessions):
            await asyncio.sleep(0.05)

    phases: tuple[Callable[[], Awaitable[None]], ...] = (register, deliver, close)
    found = {}
    for phase, work in zip(PHASES, phases, strict=True):
        before = cpu(node.process.pid), cpu(valkey.process.pid)
        await work()
        await asyncio.sleep(0.3)  # the last events are written
        after = cpu(node.process.pid), cpu(valkey.process.pid)
        found[phase] = ((after[0] - before[0]) / sessions, (after[1] - before[1]) / sessions)
    return found


@click.command()
@click.option("--sessions", default=4_000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(sessions: int, rounds: int) -> None:
    """Print the median of some rounds, in microseconds for one session: without events, and with them."""
    with ExitStack() as running:
        valkey = running.enter_context(ValkeyProcess())
        options = ("--max-sessions-per-ip", "0")
        off = running.enter_context(NodeProcess(valkey.url, *options))
        on = running.enter_context(NodeProcess(valkey.url, *options, "--events", "redis"))
        found = [
            tuple(asyncio.run(measure(node, valkey, sessions)) for node in (off, on)) for _ in range(rounds)
        ]
    for phase in PHASES:
        for number, process in enumerate(("node", "Valkey")):
            without, with_events = (median(each[side][phase][number] for each in found) for side in (0, 1))
            print(f"{phase:14} {process:7} off {without:6.1f}  on {with_events:6.1f}")


if __name__ == "__main__":
    main()
