"""A worker in the test's own process, whose parent the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.config import build
from gateway.node import WorkerShare
from gateway.server.handoff import Inbox
from gateway.server.listeners import listen
from gateway.workers import worker as module
from gateway.workers.control import Control, Message
from gateway.workers.worker import EXIT_ORPHANED, WorkerSpec, serve

SECONDS = 5.0


class Parent:
    """The other end of the line."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.control = Control(self._hear, lambda: None)

    def _hear(self, message: Message) -> None:
        if "heartbeat" not in message:
            self.heard.put_nowait(message)

    async def next(self) -> Message:
        async with asyncio.timeout(SECONDS):
            return await self.heard.get()


@pytest.fixture(autouse=True)
def collector_as_before() -> Iterator[None]:
    """A worker tunes the garbage collector of its process, which here is that of all tests."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@contextlib.asynccontextmanager
async def at_work() -> AsyncIterator[tuple[Parent, asyncio.Task[int], int]]:
    """A worker that listens; its task, and its port. Nobody is where its Redis should be."""
    ours, theirs = socket.socketpair()
    (listeners,) = listen("port", ("127.0.0.1",), 0, 10)
    inboxes = [Inbox.new(), Inbox.new()]
    port: int = listeners[0].getsockname()[1]
    config = build({"host": "127.0.0.1", "redis": "redis://127.0.0.1:1", "close_timeout": "0.1"})
    parent = Parent()
    await parent.control.open(ours)
    spec = WorkerSpec(config, "n", WorkerShare(1, listeners, inboxes), theirs, os.getppid(), None)
    serving = asyncio.create_task(serve(spec))
    try:
        assert await parent.next() == {"listening": True}
        yield parent, serving, port
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        parent.control.close()
        for inbox in inboxes:
            inbox.close()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def test_it_serves_until_it_is_told_to_stop() -> None:
    async with at_work() as (parent, serving, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /websocket HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readuntil(b"Welcome to SockJS!\n")
        state = await parent.control.ask("state", SECONDS)
        assert (state["ready"], state["sessions"]) == (False, 0)
        parent.control.send({"stop": [0, 0]})
        async with asyncio.timeout(SECONDS):
            assert await serving == 0
        writer.close()


async def test_a_second_order_ends_it_at_once() -> None:
    async with at_work() as (parent, serving, _):
        parent.control.send({"stop": [60, 60]})
        async with asyncio.timeout(SECONDS):
            while "draining" not in (await parent.control.ask("state", SECONDS))["reasons"]:
                pass
        parent.control.send({"stop": [60, 60]})
        async with asyncio.timeout(SECONDS):
            assert await serving == 0


async def test_it_ends_with_its_parent() -> None:
    async with at_work() as (parent, serving, _):
        parent.control.close()
        async with asyncio.timeout(SECONDS):
            assert await serving == EXIT_ORPHANED


async def test_sigterm_is_a_wish_that_the_parent_decides_on() -> None:
    async with at_work() as (parent, serving, _):
        os.kill(os.getpid(), signal.SIGTERM)
        assert await parent.next() == {"leave": True}
        assert not serving.done()


@pytest.mark.real
def test_what_it_does_not_need_is_closed() -> None:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        module._close_all_but({theirs.fileno()})
        theirs.send(bytes([len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc") else 5]))  # noqa: PTH112, PTH208
        os._exit(0)
    theirs.close()
    os.waitpid(pid, 0)
    assert ours.recv(10) == b"\x05", "three standard ones, this, and the folder's own"
    ours.close()
