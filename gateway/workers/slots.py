"""The workers' places in a node: what is theirs whoever holds it, and who is there at present.

A post has a listening socket on each public address (SO_REUSEPORT, by which the kernel spreads connections
evenly) and an inbox. The parent holds both, so that what waits in them outlives a worker: the replacement
takes it, or `Relief` gives it to the others.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

from ..server.handoff import Inbox
from .control import Control
from .liveness import Backoff, Heartbeat


class WorkerProcess:
    """A worker that runs."""

    def __init__(self, pid: int, control: Control) -> None:
        self.pid = pid
        self.control = control
        self.born = time.monotonic()
        self.listening = False
        self.leaving = False
        """It has been told to stop, and the node goes on."""


class WorkerSlot:
    """A worker's place."""

    def __init__(self, number: int, listeners: Sequence[socket.socket]) -> None:
        """`number` is from 1."""
        self.number = number
        self.listeners = listeners
        self.inbox = Inbox.new()
        self.life: WorkerProcess | None = None
        self.pulse = Heartbeat()
        self.backoff = Backoff()
        self.restarts = 0

    @property
    def accepts(self) -> bool:
        """Whether new connections are in good hands here."""
        life = self.life
        return life is not None and life.listening and not life.leaving and not self.pulse.quiet

    def account(self) -> dict[str, Any]:
        """What the parent knows of the worker."""
        return {
            "worker": self.number,
            "pid": self.life.pid if self.life else None,
            "restarts": self.restarts,
            "turns": not self.pulse.hung,
            "serves": self.accepts,
        }
