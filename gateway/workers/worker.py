"""One of the processes that serve a node's port, from the fork to its exit. Its parent is `supervisor`."""

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
from ..node import Node, StopOrder, WorkerShare, until_stopped
from ..telemetry import logs
from .control import Control, Message
from .liveness import HEARTBEAT_INTERVAL

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
"""prctl(2): the signal when the parent dies; the name that `ps -o comm` and `top` show, of 15 characters."""

EXIT_ORPHANED: Final = 1
"""The exit code of a worker whose parent is gone."""

MAX_DESCRIPTORS: Final = 1 << 20

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is born with."""

    config: Config
    name: str
    """The node's."""
    share: WorkerShare
    control: socket.socket
    """Its end of the line to its parent."""
    parent: int
    """The parent's process id."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None

    def descriptors(self) -> set[int]:
        """All that it needs of what it inherits, besides the standard ones."""
        inboxes = {end.fileno() for inbox in self.share.inboxes for end in inbox}
        return {self.control.fileno(), *(listener.fileno() for listener in self.share.listeners), *inboxes}


def run_worker(birth: WorkerSpec) -> int:
    """Be a worker, in a process that has just been forked with all signals blocked; returns its exit code."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all in the terminal; the parent tells us
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sys.platform == "linux":
        _prctl(PR_SET_NAME, f"gateway w{birth.share.number}".encode())
        _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != birth.parent:  # it died before the choice was made
        return EXIT_ORPHANED
    _close_all_but(birth.descriptors())
    config = birth.config
    logs.configure(config.log_level, config.log_format, birth.name, birth.share.number)
    try:
        with asyncio.Runner(loop_factory=birth.loop_factory) as runner:
            return runner.run(_serve(birth))
    except Exception:
        log.exception("worker failed")
        return 1
    finally:
        logs.flush(at_once=True)


async def _serve(birth: WorkerSpec) -> int:
    return await Worker(birth).serve()


def _prctl(option: int, value: int | bytes) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _close_all_but(kept: set[int]) -> None:
    """Close what the parent has open: a connection of its admin port, say, would outlive the parent's end."""
    below = 3
    for descriptor in sorted(kept):
        os.closerange(below, descriptor)
        below = descriptor + 1
    os.closerange(below, MAX_DESCRIPTORS)


class Worker:
    """A gateway at its parent's command."""

    def __init__(self, birth: WorkerSpec) -> None:
        self._birth = birth
        self._orders: asyncio.Queue[StopOrder] = asyncio.Queue()
        self._orphaned = asyncio.Event()
        self._control = Control(self._heard, self._orphaned.set)
        self._gateway = Node(birth.config, share=birth.share)
        self._answering: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        """Serve until the parent says stop, or is gone; returns the exit code."""
        await self._control.open(self._birth.control)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._control.say, {"leave": True})
        beating = asyncio.create_task(self._beat())
        try:
            await self._gateway.start()
            self._control.say({"listening": True})
            return await self._serve()
        finally:
            await self._gateway.stop()
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating

    async def _serve(self) -> int:
        serving = asyncio.create_task(until_stopped(self._gateway, self._orders))
        orphaned = asyncio.create_task(self._orphaned.wait())
        await asyncio.wait((serving, orphaned), return_when=asyncio.FIRST_COMPLETED)
        orphaned.cancel()
        if serving.done():
            return serving.result()
        serving.cancel()
        log.critical("the parent is gone")
        return EXIT_ORPHANED

    async def _beat(self) -> None:
        while True:
            self._control.say({"beat": True})
            await asyncio.sleep(HEARTBEAT_INTERVAL)

    def _heard(self, message: Message) -> None:
        match message:
            case {"ask": "state"}:
                self._control.answer(message, self._gateway.state())
            case {"ask": "metrics"}:
                self._control.answer(message, self._gateway.metrics().decode())
            case {"ask": "live"}:
                self._answer_soon(message, self._gateway.live.snapshot())
            case {"ask": "session", "about": web_socket_id}:
                self._answer_soon(message, self._gateway.live.look_up(web_socket_id))
            case {"stop": [delay, seconds]}:
                self._orders.put_nowait(StopOrder(delay, seconds))

    def _answer_soon(self, question: Message, finding: Coroutine[Any, Any, object]) -> None:
        """Answer with what `finding` returns, some time later."""

        async def answer() -> None:
            self._control.answer(question, await finding)

        task = asyncio.create_task(answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
