"""Accept connections in the parent for workers that cannot."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from ..server.handoff import NEW_CONNECTION, UNAVAILABLE, reject_waiting
from .worker_slots import WorkerSlot

ACCEPTS_PER_TURN: Final = 64
"""Connections accepted for a worker before others get the loop."""

ROOM_RETRY: Final = 0.005
"""Seconds between two attempts when all inboxes are full: a worker takes 64 connections at a time."""

DESCRIPTOR_RETRY: Final = 0.1
"""Seconds without accepting when the process has no descriptor left, or the system no memory."""

OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

MAX_QUEUED_SECONDS: Final = 1.0
"""Seconds that queued connections wait for a replacement; if it takes longer, they are answered with 503."""


class StandbyAcceptor:
    """Accepts for slots without a working worker, and gives the connections to other workers."""

    def __init__(self, slots: Sequence[WorkerSlot]) -> None:
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._covered: set[WorkerSlot] = set()
        self._rejecting: set[WorkerSlot] = set()
        self._turn = 0
        self._held: socket.socket | None = None  # while all inboxes are full
        self._retry: asyncio.TimerHandle | None = None

    def adjust(self) -> None:
        """Accept for each slot whose worker cannot, as long as another worker can; and for no other slot."""
        able = any(slot.accepts for slot in self._slots)
        for slot in self._slots:
            wanted = able and not slot.accepts
            if wanted and slot not in self._covered:
                self._covered.add(slot)
                for listener in slot.listeners:
                    self._loop.add_reader(listener, self._accept, listener)
            elif not wanted and slot in self._covered:
                self._uncover(slot)

    def reject_queued(self, slot: WorkerSlot, seconds: float) -> None:
        """Answer this slot's queued connections with 503 if it stays empty longer than MAX_QUEUED_SECONDS."""
        if seconds > MAX_QUEUED_SECONDS:
            self._rejecting.add(slot)
            self._loop.add_reader(slot.inbox.receiver, reject_waiting, slot.inbox)

    def keep_queued(self, slot: WorkerSlot) -> None:
        """Leave this slot's queued connections to the worker that comes."""
        if slot in self._rejecting:
            self._rejecting.discard(slot)
            self._loop.remove_reader(slot.inbox.receiver)

    def close(self) -> None:
        """Accept for no slot any more."""
        for slot in list(self._covered):
            self._uncover(slot)
        for slot in list(self._rejecting):
            self.keep_queued(slot)
        if self._retry is not None:
            self._retry.cancel()
        if self._held is not None:
            _reject(self._held)
            self._held = None

    def _uncover(self, slot: WorkerSlot) -> None:
        self._covered.discard(slot)
        for listener in slot.listeners:
            self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if self._held is not None:  # the next ones wait in the kernel's queue
                self._loop.remove_reader(listener)
                return
            try:
                connection, _ = listener.accept()
            except OSError as error:  # none is left, or the client has gone meanwhile
                if error.errno in OUT_OF_DESCRIPTORS:
                    self._pause()
                return
            self._give(connection)

    def _pause(self) -> None:
        """Accept nothing for a moment: the listeners would be reported readable in each turn of the loop."""
        for listener in (listener for slot in self._covered for listener in slot.listeners):
            self._loop.remove_reader(listener)
        if self._retry is None or self._retry.when() < self._loop.time():
            self._retry = self._loop.call_later(DESCRIPTOR_RETRY, self._give_held)

    def _give(self, connection: socket.socket) -> None:
        """Give `connection` to a worker that accepts; while all their inboxes are full, it waits."""
        able = [slot for slot in self._slots if slot.accepts]
        self._turn += 1
        for number in range(len(able)):
            slot = able[(self._turn + number) % len(able)]
            if slot.inbox.put(NEW_CONNECTION, b"", connection.fileno()):
                connection.close()
                return
        if able:
            self._held = connection
            self._retry = self._loop.call_later(ROOM_RETRY, self._give_held)
        else:
            _reject(connection)

    def _give_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._give(held)
        if self._held is None:
            for listener in (listener for slot in self._covered for listener in slot.listeners):
                self._loop.add_reader(listener, self._accept, listener)


def _reject(connection: socket.socket) -> None:
    """Answer 503, so that the client connects again."""
    with connection, suppress(OSError):
        connection.setblocking(False)
        connection.send(UNAVAILABLE.response)
