"""`python -m bench.workers`: how many registrations a second a node takes with one process, and with several.

Unlike `python -m bench` it measures time and not CPU, with every process on whatever core the kernel chooses:
the driver and Valkey need their share of the same machine, and the table says how much that was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import click

from bench.driver import Browser, Driver, browsers
from bench.errors import BenchError
from bench.report import plain
from bench.servers import cpu, memory, raise_descriptor_limit
from gateway.drill.fleet import NodeProcess, ValkeyProcess

WARM_UP = 400


class Run(NamedTuple):
    """One run: registrations a second, the cores that each process used, and MB of memory of the node."""

    rate: float
    node: float
    valkey: float
    driver: float
    memory: float


@click.command()
@click.option("--workers", "counts", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--sessions", default=8000, show_default=True, help="Sessions that register.")
@click.option("--in-flight", default=128, show_default=True, help="Registrations under way at once.")
@click.option("--rounds", default=3, show_default=True, help="How often each is measured, in turns.")
def main(counts: Sequence[int], sessions: int, in_flight: int, rounds: int) -> None:
    """Measure registrations a second with each number of workers."""
    runs_by_count: dict[int, list[Run]] = {count: [] for count in counts}
    try:
        raise_descriptor_limit(sessions)
        for _ in range(rounds):
            for count in counts:
                runs_by_count[count].append(_measure(count, sessions, in_flight))
    except (BenchError, OSError) as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
    rows = [
        ["workers", "registrations/s", "CPU for each, µs", "cores: node", "Valkey", "driver", "memory, MB"],
        *([str(count), *_cells(runs)] for count, runs in runs_by_count.items()),
    ]
    click.echo(plain(rows))


def _cells(runs: Sequence[Run]) -> list[str]:
    rates = [run.rate for run in runs]
    rate = f"{median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"
    cost = f"{median(run.node / run.rate for run in runs) * 1e6:.0f}"
    cores = [f"{median(getattr(run, name) for run in runs):.2f}" for name in ("node", "valkey", "driver")]
    return [rate, cost, *cores, f"{median(run.memory for run in runs):.0f}"]


def _measure(workers: int, sessions: int, in_flight: int) -> Run:
    limits = ("--max-sessions-per-ip", "0", "--max-sessions", str(4 * sessions))
    with ValkeyProcess() as valkey, NodeProcess(valkey.url, "--workers", str(workers), *limits) as node:
        processes = [node.process.pid, *_workers(node)]
        driver = Driver(node.port, ("127.0.0.1", valkey.port), in_flight, Browser.path)
        try:
            driver.register(browsers(WARM_UP))
            before = [_cpu(processes), _cpu([valkey.process.pid]), time.process_time()]
            start = time.monotonic()
            driver.register(browsers(sessions))
            seconds = time.monotonic() - start
            after = [_cpu(processes), _cpu([valkey.process.pid]), time.process_time()]
            node_share, valkey_share, own = (
                (there - here) / seconds for here, there in zip(before, after, strict=True)
            )
            memory_used = sum(map(memory, processes)) / 2**20
            return Run(sessions / seconds, node_share, valkey_share, own, memory_used)
        finally:
            driver.close()


def _workers(node: NodeProcess) -> list[int]:
    body = node.readyz()
    assert body is not None
    return [worker["pid"] for worker in body.get("workers", ())]


def _cpu(processes: Sequence[int]) -> float:
    """Seconds of CPU time of these processes so far."""
    return sum(map(cpu, processes)) / 1e9


if __name__ == "__main__":
    main()
