"""The command: attack a node that it starts, or one of your own on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

import click

from gateway.drill.fleet import NodeProcess, ValkeyProcess

from .attacks import ATTACKS, Attack, Fell
from .target import Target

LIMITS = ("--handshake-timeout", "2", "--keep-alive", "3", "--max-handshakes", "300")
"""Small, so that a small attack reaches them."""

FEW_DESCRIPTORS = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))"
"""Python that the node runs first."""


@contextlib.contextmanager
def own_node(*options: str) -> Iterator[Target]:
    """A node with small limits, and the Valkey that it uses."""
    with (
        ValkeyProcess() as valkey,
        NodeProcess(valkey.url, *LIMITS, *options, preface=FEW_DESCRIPTORS) as node,
    ):
        yield Target(
            node.host, node.port, node.admin_port, node.process.pid, valkey.url, logs=lambda: list(node.logs)
        )


async def outcome(attack: Attack, target: Target) -> tuple[bool, str]:
    """Whether the node held, and what was measured."""
    try:
        return True, await attack.run(target)
    except Fell as error:
        return False, str(error)
    except (OSError, EOFError, TimeoutError) as error:
        return False, f"{type(error).__name__}: {error}"


@click.command()
@click.option(
    "--port", type=int, help="Public port of a node of yours on 127.0.0.1. By default one is started."
)
@click.option("--admin-port", type=int, help="Its admin port.")
@click.option("--pid", type=int, help="Its process id, to measure its memory and CPU.")
@click.option("--redis", "redis_url", help="URL of its Redis, to publish to another browser meanwhile.")
@click.option("--only", help="Run only the attacks whose name contains this.")
def main(
    port: int | None, admin_port: int | None, pid: int | None, redis_url: str | None, only: str | None
) -> None:
    """Do to a node on this machine what one anonymous client can do, and say whether it held.

    The exit code is 0 if it held against each attack. The attacks are sized for the limits of the node that
    is started here, which are smaller than the defaults. A node with the defaults must hold as well.
    """
    with contextlib.ExitStack() as running:
        if port is None:
            target = running.enter_context(own_node())
        else:
            target = Target("127.0.0.1", port, admin_port or port + 1, pid, redis_url)
        fell = 0
        for attack in ATTACKS:
            if only and only not in attack.name:
                continue
            held, measured = asyncio.run(outcome(attack, target))
            fell += not held
            click.echo(f"{'held' if held else 'FELL':5} {attack.name}: {measured}\n      {attack.what}")
    sys.exit(fell > 0)


if __name__ == "__main__":
    main()
