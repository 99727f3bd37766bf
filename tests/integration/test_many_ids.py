"""200,000 ids on one connection that is cut: they are back soon, and Redis serves others meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.drill.fleet import ValkeyProcess
from gateway.node import Node
from gateway.redis import history

from .conftest import Measured
from .in_process import node_in_process
from .load import until
from .test_race import Waiting

IDS = 200_000
BACK = 3.0  # seconds until all are subscribed again
BLOCKED = 0.1  # seconds for which Redis keeps others waiting, at most
CUTS = 3  # tries to stay below that on a machine that others use too

# In a process of its own: this one's loop is busy. A line makes it tell the longest answer and begin anew.
PING = """
import select, socket, sys, time
redis = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
redis.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
longest = 0.0
while True:
    start = time.monotonic()
    redis.sendall(b"PING\\r\\n")
    redis.recv(64)
    longest = max(longest, time.monotonic() - start)
    if select.select([sys.stdin], [], [], 0.002)[0]:
        if not sys.stdin.readline():
            break
        print(longest, flush=True)
        longest = 0.0
"""


class Pinging:
    """Somebody else who uses Redis, every 2 ms."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextlib.contextmanager
    def of(cls, valkey: ValkeyProcess) -> Iterator[Pinging]:
        command = [sys.executable, "-c", PING, str(valkey.port)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as process:
            yield cls(process)
            assert process.stdin is not None
            process.stdin.close()

    def longest(self) -> float:
        """Seconds that an answer took at most since the last call, or the begin."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        return float(self._process.stdout.readline())


@contextlib.asynccontextmanager
async def many_ids(measured: Measured) -> AsyncIterator[tuple[ValkeyProcess, Node, Pinging]]:
    """A gateway with so many on its one connection to a Redis with default limits, which others use too."""
    with await asyncio.to_thread(ValkeyProcess) as valkey:
        async with node_in_process(valkey.url) as gateway:
            members = [Waiting(f"{number:0128}") for number in range(IDS)]
            start = time.monotonic()
            for member in members:
                gateway._hub.register(member.name.encode(), member)
            await until(lambda: members[-1].told, "all are registered", 60)
            measured(f"{IDS:,} ids registered", time.monotonic() - start)
            with Pinging.of(valkey) as others:
                await asyncio.to_thread(others.longest)  # it has begun
                yield valkey, gateway, others


def cut(valkey: ValkeyProcess, others: Pinging) -> float:
    """End the connection; returns how many seconds Redis needs to forget so many channels, deaf to all.

    That is some 1 to 2 us for each, and nothing that a client does about it afterwards changes it.
    """
    others.longest()
    with valkey.client() as client:
        client.client_kill_filter(_type="pubsub")
        client.slowlog_reset()
    return others.longest()


def cpu(valkey: ValkeyProcess) -> float:
    """Seconds of CPU that this process and Redis have had."""
    redis = valkey.info("cpu")
    return time.process_time() + float(redis["used_cpu_user"]) + float(redis["used_cpu_sys"])


def slowest_command(valkey: ValkeyProcess) -> float:
    """Seconds, by Redis's own clock: somebody else's PING waits for a busy machine, too."""
    return max((entry[2] for entry in valkey.ask("SLOWLOG", "GET", 128)), default=0) / 1e6


LAST = f"websocket:{IDS - 1:0128}".encode()


async def test_they_are_back_soon_and_redis_serves_others_meanwhile(measured: Measured) -> None:
    async with many_ids(measured) as (valkey, gateway, others):
        for number in range(1, CUTS + 1):
            start, used = time.monotonic(), cpu(valkey)
            forgetting = await asyncio.to_thread(cut, valkey, others)
            await until(lambda: gateway._broker.outages == number, "the cut is noticed")  # noqa: B023 - at once
            await until(lambda: gateway._hub.is_confirmed(LAST), "all are back", 60)
            took, used = time.monotonic() - start, cpu(valkey) - used
            blocked = min(await asyncio.to_thread(others.longest), slowest_command(valkey))
            if blocked <= BLOCKED:
                break
        measured(f"{IDS:,} ids back after a cut", took)
        measured("the gateway's CPU for that, and Redis's", used)
        measured("of that, Redis forgot the connection, and answered nobody", forgetting)
        measured("after that, Redis was busy with one thing for at most", blocked)
        # On a machine that others use too: with nothing done side by side it would take so long.
        assert min(took, used) <= BACK
        assert took <= 5 * BACK
        assert blocked <= BLOCKED
        assert len(gateway._hub.confirmed()) == IDS
        assert gateway._broker.outages == number, "nothing but our cuts"


async def test_control_in_one_command_they_do_not_come_back(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The confirmations alone are more than Redis's buffer for a subscriber may hold."""
    async with many_ids(measured) as (valkey, gateway, others):
        monkeypatch.setattr(history, "SUBSCRIBE_BATCH", IDS)
        monkeypatch.setattr(history, "SMALLEST", 0)  # nor do batches shrink after a loss
        await asyncio.to_thread(cut, valkey, others)
        await until(lambda: gateway._broker.outages >= 3, "cut off again and again", 60)
        measured("control: the longest PING of somebody else", await asyncio.to_thread(others.longest))
        assert not gateway._hub.is_confirmed(LAST)
