"""`python -m bench.events`: what events cost a node, and Redis, for each registration, delivery and close.

Two nodes on one Valkey, one with `--events redis`, one without, in turn with the same load. The figures are
CPU time of the processes, so that a busy machine changes them little.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import redis.asyncio

from gateway.drill.connection import ClientConnection
from gateway.drill.fleet import NodeProcess, ValkeyProcess, wait_until

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


class Load:
    """The same things done to a node, phase by phase."""

    def __init__(self, node: NodeProcess, valkey: ValkeyProcess, sessions: int) -> None:
        self._node = node
        self._valkey = valkey
        self._browsers = [Browser(f"{number:0128}") for number in range(sessions)]
        self._parts = [self._browsers[at : at + AT_ONCE] for at in range(0, sessions, AT_ONCE)]

    async def measure(self) -> dict[str, tuple[float, float]]:
        """Microseconds of the node and of Valkey for one session, by phase."""
        found = {}
        for phase, work in zip(PHASES, (self._register, self._deliver, self._close), strict=True):
            before = self._cpu()
            await work()
            await asyncio.sleep(0.3)  # the last events are written
            node, valkey = (after - earlier for after, earlier in zip(self._cpu(), before, strict=True))
            found[phase] = node / len(self._browsers), valkey / len(self._browsers)
        return found

    def _cpu(self) -> tuple[float, float]:
        return cpu(self._node.process.pid), cpu(self._valkey.process.pid)

    async def _register(self) -> None:
        loop = asyncio.get_running_loop()
        for part in self._parts:
            for browser in part:
                await loop.create_connection(partial(as_protocol, browser), "127.0.0.1", self._node.port)
            for browser in part:
                await browser.registered.wait()

    async def _deliver(self) -> None:
        async with redis.asyncio.Redis(port=self._valkey.port) as client:
            for part in self._parts:
                pipeline = client.pipeline(transaction=False)
                for browser in part:
                    pipeline.publish(f"websocket:{browser.name}", "CONFIRMED")
                await pipeline.execute()
        for browser in self._browsers:
            await browser.result.wait()

    async def _close(self) -> None:
        for browser in self._browsers:
            browser.leave()
        await asyncio.to_thread(wait_until, lambda: not self._node.sessions(), "all have left")


def as_protocol(browser: Browser) -> Browser:
    return browser


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
            tuple(asyncio.run(Load(node, valkey, sessions).measure()) for node in (off, on))
            for _ in range(rounds)
        ]
    for phase in PHASES:
        for number, process in enumerate(("node", "Valkey")):
            without, with_events = (median(each[side][phase][number] for each in found) for side in (0, 1))
            print(f"{phase:14} {process:7} off {without:6.1f}  on {with_events:6.1f}")


if __name__ == "__main__":
    main()
