"""One of the processes that serve a node's port, from the fork to its exit. `supervisor` is its parent."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from ..config import Config
from ..node import Node, StopOrder, WorkerShare, build, until_stopped
from ..node.signals import UNUSED_SIGNALS
from ..telemetry import logs
from .control import Control, Message
from .liveness import HEARTBEAT_INTERVAL

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
"""prctl(2): the signal when the parent dies; the name that `ps -o comm` and `top` show, of 15 characters."""

EXIT_ORPHANED: Final = 1
"""The exit code of a worker whose parent is gone."""

PARENTS_SIGNALS: Final = (signal.SIGINT, signal.SIGHUP, *UNUSED_SIGNALS)
"""Signals that a terminal or a service manager may send to every process; the parent tells its workers."""

MAX_DESCRIPTORS: Final = 1 << 20

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs from its parent."""

    config: Config
    name: str
    """The node's."""
    share: WorkerShare
    control: socket.socket
    """Its end of the control connection to its parent."""
    parent: int
    """The parent's process id."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None

    def descriptors(self) -> set[int]:
        """The inherited file descriptors that it needs, besides the standard ones."""
        inboxes = {end.fileno() for inbox in self.share.inboxes for end in inbox}
        return {self.control.fileno(), *(listener.fileno() for listener in self.share.listeners), *inboxes}


def run_worker(spec: WorkerSpec) -> int:
    """Run a worker in a process that was just forked with all signals blocked; returns its exit code."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for number in PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A SIGTERM waits until there is a handler, which asks the parent.
    signal.pthread_sigmask(signal.SIG_SETMASK, (signal.SIGTERM,))
    if sys.platform == "linux":
        _prctl(PR_SET_NAME, f"gateway w{spec.share.number}".encode())
        _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != spec.parent:  # the parent died before prctl
        return EXIT_ORPHANED
    _close_all_but(spec.descriptors())
    logs.protect_crash_reports()
    config = spec.config
    logs.configure(config.log_level, config.log_format, spec.name, spec.share.number)
    try:
        # The runner is not closed: that waits for threads, which may look up a name at a silent server.
        return asyncio.Runner(loop_factory=spec.loop_factory).run(serve(spec))
    except Exception:
        log.exception("worker failed")
        return 1
    finally:
        logs.close()


async def serve(spec: WorkerSpec) -> int:
    """Serve until the parent says stop or ends; returns the exit code."""
    node = await build(spec.config, share=spec.share)
    return await Worker(node, spec.control).serve()


def _prctl(option: int, value: int | bytes) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _close_all_but(kept: set[int]) -> None:
    """Close what else the parent has open: connections of its admin port would outlive the parent."""
    below = 3
    for descriptor in sorted(kept):
        os.closerange(below, descriptor)
        below = descriptor + 1
    os.closerange(below, MAX_DESCRIPTORS)


class Worker:
    """A node that does what its parent orders."""

    def __init__(self, node: Node, connection: socket.socket) -> None:
        """`connection` leads to the parent."""
        self._node = node
        self._connection = connection
        self._orders: asyncio.Queue[StopOrder] = asyncio.Queue()
        self._orphaned = asyncio.Event()
        self._control = Control(self._on_message, self._orphaned.set)
        self._answering: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        """Serve until the parent says stop or ends; returns the exit code."""
        await self._control.open(self._connection)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._control.send, {"leave": True})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        heartbeats = asyncio.create_task(self._send_heartbeats())
        try:
            await self._node.start()
            self._control.send({"listening": True})
            return await self._until_stopped()
        finally:
            await self._node.stop()
            self._control.send({"stopped": True})
            heartbeats.cancel()
            with suppress(asyncio.CancelledError):
                await heartbeats

    async def _until_stopped(self) -> int:
        serving = asyncio.create_task(until_stopped(self._node, self._orders))
        orphaned = asyncio.create_task(self._orphaned.wait())
        await asyncio.wait((serving, orphaned), return_when=asyncio.FIRST_COMPLETED)
        orphaned.cancel()
        if serving.done():
            return serving.result()
        serving.cancel()
        log.critical("parent process ended")
        return EXIT_ORPHANED

    async def _send_heartbeats(self) -> None:
        while True:
            self._control.send({"heartbeat": True})
            await asyncio.sleep(HEARTBEAT_INTERVAL)

    def _on_message(self, message: Message) -> None:
        match message:
            case {"ask": "state"}:
                self._control.answer(message, self._node.state())
            case {"ask": "metrics"}:
                self._control.answer(message, self._node.metrics().decode())
            case {"ask": "dashboard"}:
                self._answer_later(message, self._node.dashboard.snapshot())
            case {"ask": "session", "about": web_socket_id}:
                self._answer_later(message, self._node.dashboard.look_up(web_socket_id))
            case {"reload": _}:
                self._node.reload()
            case {"stop": [delay, seconds]}:
                self._orders.put_nowait(StopOrder(delay, seconds))

    def _answer_later(self, question: Message, result: Coroutine[Any, Any, object]) -> None:
        async def answer() -> None:
            self._control.answer(question, await result)

        task = asyncio.create_task(answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
