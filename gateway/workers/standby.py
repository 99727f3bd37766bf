"""Accept connections in the parent for workers that cannot."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from ..server.handoff import NEW_CONNECTION, UNAVAILABLE, reject_waiting
from .slots import WorkerSlot

ACCEPTS_PER_TURN: Final = 64
"""Connections accepted for a worker before others get the loop."""


ROOM_RETRY: Final = 0.005
"""Seconds until room is looked for again: an inbox is emptied 64 at a time."""


MAX_QUEUED_SECONDS: Final = 1.0
"""Seconds that the connections in an inbox wait for a replacement; else they are told to come anew."""


class StandbyAcceptor:
    """Stands in at posts whose workers cannot take what comes for them."""

    def __init__(self, posts: Sequence[WorkerSlot]) -> None:
        self._posts = posts
        self._loop = asyncio.get_running_loop()
        self._covered: set[WorkerSlot] = set()
        self._emptied: set[WorkerSlot] = set()
        self._turn = 0
        self._kept: socket.socket | None = None  # for which nobody has room just now
        self._retry: asyncio.TimerHandle | None = None
        self.given = 0
        """Connections accepted for a worker that could not, and given to another."""

    def adjust(self) -> None:
        """Accept new connections where the worker cannot and another can, and only there."""
        able = any(post.accepts for post in self._posts)
        for post in self._posts:
            wanted = able and not post.accepts
            if wanted and post not in self._covered:
                self._covered.add(post)
                for listener in post.listeners:
                    self._loop.add_reader(listener, self._accept, listener)
            elif not wanted and post in self._covered:
                self._uncover(post)

    def empty(self, post: WorkerSlot, seconds: float) -> None:
        """There will be no worker at `post` for so long."""
        if seconds > MAX_QUEUED_SECONDS:
            self._emptied.add(post)
            self._loop.add_reader(post.inbox.receiver, reject_waiting, post.inbox)

    def leave_to_worker(self, post: WorkerSlot) -> None:
        """What is in the inbox of `post` waits for the worker that comes."""
        if post in self._emptied:
            self._emptied.discard(post)
            self._loop.remove_reader(post.inbox.receiver)

    def close(self) -> None:
        """Stand in nowhere any more."""
        for post in list(self._covered):
            self._uncover(post)
        for post in list(self._emptied):
            self.leave_to_worker(post)
        if self._retry is not None and self._kept is not None:
            self._retry.cancel()
            _reject(self._kept)
            self._kept = None

    def _uncover(self, post: WorkerSlot) -> None:
        self._covered.discard(post)
        for listener in post.listeners:
            self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if self._kept is not None:  # those behind it wait in the kernel's queue
                self._loop.remove_reader(listener)
                return
            try:
                connection, _ = listener.accept()
            except OSError:  # none is left, or it has gone meanwhile
                return
            self._give(connection)

    def _give(self, connection: socket.socket) -> None:
        """To somebody who can take it; while all who could have no room, it waits."""
        able = [post for post in self._posts if post.accepts]
        self._turn += 1
        for number in range(len(able)):
            post = able[(self._turn + number) % len(able)]
            if post.inbox.put(NEW_CONNECTION, b"", connection.fileno()):
                self.given += 1
                connection.close()
                return
        if able:
            self._kept = connection
            self._retry = self._loop.call_later(ROOM_RETRY, self._go_on)
        else:
            _reject(connection)

    def _go_on(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            self._give(kept)
        if self._kept is None:
            for listener in (listener for post in self._covered for listener in post.listeners):
                self._loop.add_reader(listener, self._accept, listener)


def _reject(connection: socket.socket) -> None:
    """Have the client connect anew."""
    with connection, suppress(OSError):
        connection.setblocking(False)
        connection.send(UNAVAILABLE.response)
