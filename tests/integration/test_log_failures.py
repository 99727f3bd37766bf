"""A log that cannot be written: nothing of a node depends on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import IO, Any

import aiohttp
import pytest
import redis.asyncio

from gateway.drill.fleet import NodeProcess, ValkeyProcess, spawn, wait_until
from gateway.drill.fleet.node import PACKAGE_PARENT

from .in_process import readiness
from .load import SECONDS, until
from .raw import Raw

WORKERS = pytest.mark.parametrize("workers", ["1", "2"], ids=["one process", "two workers"])

SMALL_QUEUE = "import gateway.telemetry.log_writer as w; w.MAX_QUEUED = 2_000\n"


class LoggingNode(NodeProcess):
    """A node whose output goes where the test says."""

    def __init__(
        self, redis_url: str, *options: str, stderr: IO[bytes] | int, preface: str = "", shell: str = ""
    ) -> None:
        """`shell` runs the command "$@", for what only a shell does."""
        self._stderr = stderr
        self._shell = shell
        super().__init__(redis_url, *options, preface=preface)

    def start(self, *, wait_ready: bool = True) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        prefix = ["/bin/sh", "-c", self._shell, "sh"] if self._shell else []
        self.process = spawn(
            [*prefix, *self._command()],
            stdout=self._stderr,
            stderr=self._stderr,
            environment=environment,
            folder=PACKAGE_PARENT,
        )
        self._await_start(lambda: (self.readyz() or {}).get("ready"), "the node", str)


@contextlib.contextmanager
def pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Its two ends, which the test may close."""
    ends = os.pipe()
    with open(ends[0], "rb", buffering=0) as reader, open(ends[1], "wb", buffering=0) as writer:  # noqa: PTH123
        yield reader, writer


@contextlib.contextmanager
def full_disk() -> Iterator[IO[bytes]]:
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        yield full


def fill(writer: IO[bytes]) -> None:
    """Write to a pipe until no byte fits, as a neighbour would that writes to the same pipe."""
    with open(f"/proc/self/fd/{writer.fileno()}", "wb", buffering=0, opener=_without_waiting) as own:
        for size in (4096, 1):
            while own.write(b"#" * size):
                pass


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


async def provoke(backend: redis.asyncio.Redis, name: str, kinds: int = 1) -> None:
    """Have the node log a line: what is published is no result."""
    for number in range(kinds):
        payload = ["x", json.dumps({"authResult": 1}), "{", "x" * 70_000][number % 4]
        await backend.publish(f"websocket:{name}", payload)


async def dropped(node: NodeProcess) -> int:
    """Lines, as /readyz and /metrics say with one voice."""
    _, body = await readiness(node.admin_port)
    count: int = body["log_lines_dropped"]
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{node.admin_port}/metrics") as answer,
    ):
        lines = (await answer.text()).splitlines()
    samples = [line for line in lines if line.startswith("gateway_log_lines_dropped_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in samples) >= count
    return count


async def serves_to_the_end(
    node: NodeProcess, backend: redis.asyncio.Redis, name: str, *, drops: bool = True
) -> None:
    """Lines that cannot be written cost no session, and the node stops as it should."""
    async with Raw.registered(node.port, name) as browser:
        for _ in range(3):
            await provoke(backend, name)
        end = time.monotonic() + SECONDS
        while drops and not await dropped(node):
            assert time.monotonic() < end, "lines that cannot be written are counted"
            await provoke(backend, name)
        assert await backend.publish(f"websocket:{name}", "CONFIRMED")
        assert (await browser.message())["authResult"] == "CONFIRMED"
        node.signal(signal.SIGTERM)
        assert await browser.closed() == (1012, "service restart")
    assert await asyncio.to_thread(node.process.wait, SECONDS) == 0


@WORKERS
async def test_the_reader_of_the_log_is_gone(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, workers: str
) -> None:
    with pipe() as (reader, writer), LoggingNode(valkey.url, "--workers", workers, stderr=writer) as node:
        writer.close()
        reader.close()
        await serves_to_the_end(node, backend, f"reader-gone-{workers}")


@WORKERS
async def test_the_disk_is_full(valkey: ValkeyProcess, backend: redis.asyncio.Redis, workers: str) -> None:
    with (
        full_disk() as full,
        LoggingNode(valkey.url, "--workers", workers, stderr=full) as node,
    ):
        await serves_to_the_end(node, backend, f"disk-full-{workers}")


@WORKERS
async def test_stdout_and_stderr_are_closed_from_the_start(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, workers: str
) -> None:
    """No socket gets their numbers, which lines of the log would then be written to."""
    closed = 'exec "$@" <&- >&- 2>&-'
    with LoggingNode(valkey.url, "--workers", workers, stderr=subprocess.DEVNULL, shell=closed) as node:
        for descriptor in range(3):
            assert os.readlink(f"/proc/{node.process.pid}/fd/{descriptor}") == os.devnull  # noqa: PTH115
        await serves_to_the_end(node, backend, f"closed-{workers}")


@WORKERS
async def test_nobody_reads_the_log_for_a_while(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, workers: str
) -> None:
    """The node goes on, and says how many lines are missing once somebody reads again."""
    name = f"unread-{workers}"
    with (
        pipe() as (reader, writer),
        LoggingNode(
            valkey.url, "--workers", workers, "--log-format", "json", stderr=writer, preface=SMALL_QUEUE
        ) as node,
    ):
        async with Raw.registered(node.port, name) as browser:
            await asyncio.to_thread(fill, writer)
            end = time.monotonic() + SECONDS
            while not await dropped(node):
                assert time.monotonic() < end
                await provoke(backend, name, kinds=4)
                await asyncio.sleep(0.05)  # a burst of one kind is one line a second
            assert await backend.publish(f"websocket:{name}", "CONFIRMED")
            assert (await browser.message())["authResult"] == "CONFIRMED"
            read = bytearray()

            def reported() -> list[dict[str, Any]]:
                while select.select([reader], [], [], 0)[0]:
                    read.extend(os.read(reader.fileno(), 65_536))
                lines = read.replace(b"#", b"").rpartition(b"\n")[0].splitlines()
                parsed = [json.loads(line) for line in lines]
                return [line for line in parsed if line["event"] == "log lines dropped"]

            await until(reported, "the node says so")
            assert reported()[0]["count"] > 0
            node.signal(signal.SIGTERM)
            assert await browser.closed() == (1012, "service restart")
        wait_until(lambda: (reported(), not node.running)[1], "the node has ended")
        assert node.process.returncode == 0


async def test_a_crash_is_not_held_up_by_its_own_report(valkey: ValkeyProcess) -> None:
    report = "import faulthandler; faulthandler.enable()\n"
    with pipe() as (_, writer), LoggingNode(valkey.url, stderr=writer, preface=report) as node:
        await asyncio.to_thread(fill, writer)
        node.signal(signal.SIGSEGV)
        assert await asyncio.to_thread(node.process.wait, SECONDS) == -signal.SIGSEGV


@WORKERS
async def test_nobody_reads_the_log_when_the_node_stops(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, workers: str
) -> None:
    name = f"unread-end-{workers}"
    with pipe() as (_, writer), LoggingNode(valkey.url, "--workers", workers, stderr=writer) as node:
        await asyncio.to_thread(fill, writer)
        await serves_to_the_end(node, backend, name, drops=False)
