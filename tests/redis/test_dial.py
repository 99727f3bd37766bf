"""Names with several addresses, and look-ups that do not end."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from gateway.redis import dial as dialling
from gateway.redis.dial import dial

SECONDS = 10.0
"""Far more than anything here takes, and less than a connection that waits for lost packets."""


@contextmanager
def swallowing() -> Iterator[int]:
    """A port where packets vanish: the queue of its listener is full, and Linux drops what comes then."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        try:
            yield port
        finally:
            for filler in fillers:
                filler.close()


@contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def leads_to(monkeypatch: pytest.MonkeyPatch, *ports: int) -> list[tuple[str, int]]:
    """Let each name lead to these ports of this machine; returns the look-ups so far."""
    asked: list[tuple[str, int]] = []
    really = socket.getaddrinfo

    def addresses(host: str, port: int, **options: Any) -> Any:
        if options.get("flags"):
            return really(host, port, **options)
        asked.append((host, port))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    return asked


async def port_of(host: str, port: int = 6379) -> int:
    with closing(await asyncio.wait_for(dial(host, port), SECONDS)) as connected:
        return int(connected.getpeername()[1])


async def test_an_address_needs_no_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = leads_to(monkeypatch)
    with listening() as port:
        assert await port_of("127.0.0.1", port) == port
    assert asked == []


async def test_an_address_that_swallows_packets_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with swallowing() as hole, listening() as port:
        asked = leads_to(monkeypatch, hole, port)
        assert await port_of("redis") == port
        assert asked == [("redis", 6379)]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_address_that_refuses_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as closed:
        pass
    with listening() as port:
        leads_to(monkeypatch, closed, port)
        assert await port_of("redis") == port
    leads_to(monkeypatch, closed, closed)
    with pytest.raises(ConnectionRefusedError):
        await port_of("redis")


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("127.0.0.1", 0, "port 0 does not exist"),
        ("127.0.0.1", 65_536, "port 65536 does not exist"),
        ("a" * 70, 6379, "cannot be looked up"),
        ("a\0b", 6379, "cannot be looked up"),
        ("no-such-host.invalid", 6379, "no-such-host.invalid cannot be looked up"),
    ],
)
async def test_an_address_that_cannot_be_is_an_os_error(
    host: str, port: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = socket.getaddrinfo

    def nobody(name: str, *arguments: Any, **options: Any) -> Any:
        if name.endswith(".invalid"):  # no packet to a name server in a test
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return really(name, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(OSError, match=why):
        await dial(host, port)


async def test_a_silent_name_server_keeps_one_thread_for_all_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, asked = threading.Event(), []
    really = socket.getaddrinfo

    def hang(host: str, port: int, **options: Any) -> Any:
        if options.get("flags"):
            return really(host, port, **options)
        asked.append(host)
        answers.wait(SECONDS)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await dial("redis", 6379)
    assert asked == ["redis"]
    waiting = asyncio.create_task(dial("redis", 6379))
    await asyncio.sleep(0)
    answers.set()
    with pytest.raises(OSError, match="redis cannot be looked up"):
        await waiting
    assert dialling._look_ups == {}


async def test_a_look_up_without_a_thread_does_not_stand_in_the_way_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with listening() as port:
        leads_to(monkeypatch, port)
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", start)
            with pytest.raises(OSError, match="redis cannot be looked up: can't start new thread"):
                await dial("redis", 6379)
        assert await port_of("redis") == port


HANGING = """
import asyncio, socket, sys, time
really = socket.getaddrinfo
def hang(host, port, **options):
    silent = host == "redis" and not options.get("flags")
    return time.sleep(60) if silent else really(host, port, **options)
socket.getaddrinfo = hang
from gateway.redis.server import Server
from gateway.redis.connection import Connection
async def main():
    connecting = asyncio.create_task(Server("redis://redis").connect(Connection, "test"))
    await asyncio.sleep(0.1)
    connecting.cancel()
asyncio.run(main(), debug=False)
print("ended")
"""


@pytest.mark.real
def test_a_silent_name_server_does_not_hold_a_process_that_ends() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("ended\n", "", 0)


FORKED = """
import asyncio, os, socket, time
really, parent = socket.getaddrinfo, os.getpid()
def hang(host, port, **options):
    if host != "redis" or options.get("flags"):
        return really(host, port, **options)
    if os.getpid() == parent:
        time.sleep(60)
    raise OSError("no such name")
socket.getaddrinfo = hang
from gateway.redis.dial import dial
async def main():
    try:
        async with asyncio.timeout(1):
            await dial("redis", 6379)
    except OSError as error:
        print(type(error).__name__, error, flush=True)
asyncio.run(main())
if os.fork():
    os.wait()
else:
    asyncio.run(main())
os._exit(0)
"""


@pytest.mark.real
def test_a_forked_process_does_not_wait_for_a_look_up_of_its_parent() -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == (
        "TimeoutError \nOSError redis cannot be looked up: no such name\n",
        "",
    )
