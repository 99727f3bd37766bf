"""Worker slots: what stays when a worker is replaced, and the process that fills the slot at present.

A slot has a listening socket on each public address (SO_REUSEPORT, by which the kernel spreads connections
evenly) and an inbox. The parent holds both, so that the connections that wait in them outlive a worker: the
replacement takes them, or `StandbyAcceptor` gives them to the other workers.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

from ..backoff import Backoff
from ..server.handoff import Inbox
from .control import Control
from .liveness import FIRST_RESTART_DELAY, MAX_RESTART_DELAY, STABLE_SECONDS, Heartbeat


class WorkerProcess:
    """A worker that runs."""

    def __init__(self, pid: int, control: Control) -> None:
        self.pid = pid
        self.control = control
        self.started_at = time.monotonic()
        self.listening = False
        self.leaving = False
        """This worker has been told to stop, and the node goes on."""
        self.stopped = False
        """Its sessions are closed and only its process has to end. It sends no more heartbeats."""

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started_at


class WorkerSlot:
    """A worker's place in the node."""

    def __init__(self, number: int, listeners: Sequence[socket.socket]) -> None:
        """`number` is from 1."""
        self.number = number
        self.listeners = listeners
        self.inbox = Inbox.new()
        self.process: WorkerProcess | None = None
        self.heartbeat = Heartbeat()
        self.restarts = 0
        self._backoff = Backoff(FIRST_RESTART_DELAY, MAX_RESTART_DELAY, jitter=0)

    @property
    def accepts(self) -> bool:
        """Whether the worker accepts the connections that come for this slot."""
        process = self.process
        return process is not None and process.listening and not process.leaving and not self.heartbeat.silent

    def restart_delay(self, age: float) -> float:
        """Seconds until the slot gets another worker, after one that lived for `age` seconds."""
        if age >= STABLE_SECONDS:
            self._backoff.reset()
        return self._backoff.next()

    def account(self) -> dict[str, Any]:
        """What the parent knows of the worker."""
        return {
            "worker": self.number,
            "pid": self.process.pid if self.process else None,
            "restarts": self.restarts,
            "responsive": not self.heartbeat.given_up,
            "accepts": self.accepts,
        }
