"""The workers' places in a node: what is theirs whoever holds it, and who is there at present.

A post has a listening socket on each public address (SO_REUSEPORT, by which the kernel spreads connections
evenly) and an inbox. The parent holds both, so that what waits in them outlives a worker: the replacement
takes it, or `Relief` gives it to the others.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from ..server.handoff import FRESH, UNAVAILABLE, Inbox, turn_away
from .control import Control
from .liveness import Backoff, Pulse

AT_ONCE: Final = 64
"""Connections accepted for a worker before others get the loop."""

RETRY_AFTER: Final = 0.005
"""Seconds until room is looked for again: an inbox is emptied 64 at a time."""

WORTH_WAITING: Final = 1.0
"""Seconds that the connections in an inbox wait for a replacement; else they are told to come anew."""


class Life:
    """A worker that runs."""

    def __init__(self, pid: int, control: Control) -> None:
        self.pid = pid
        self.control = control
        self.born = time.monotonic()
        self.listening = False
        self.leaving = False
        """It has been told to stop, and the node goes on."""


class Post:
    """A worker's place."""

    def __init__(self, number: int, listeners: Sequence[socket.socket]) -> None:
        """`number` is from 1."""
        self.number = number
        self.listeners = listeners
        self.inbox = Inbox.new()
        self.life: Life | None = None
        self.pulse = Pulse()
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


def listen(host: str, port: int, count: int, backlog: int) -> list[list[socket.socket]]:
    """Sockets that listen on `host` and `port`, one on each of the host's addresses for each of `count`.

    For port 0 the kernel picks one. Raises OSError.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    groups: list[list[socket.socket]] = [[] for _ in range(count)]
    try:
        for family, _, _, _, (address, _, *scope) in dict.fromkeys(infos):
            # Alone it would fail where somebody else listens; sharing, it would share with a second gateway.
            _bound(family, (address, port, *scope), share=False).close()
            for group in groups:
                listener = _bound(family, (address, port, *scope), share=True)
                group.append(listener)
                port = listener.getsockname()[1]
                listener.listen(backlog)
    except BaseException:
        for listener in (listener for group in groups for listener in group):
            listener.close()
        raise
    return groups


def _bound(family: int, address: tuple[Any, ...], *, share: bool) -> socket.socket:
    bound = socket.socket(family)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # as asyncio does: IPv4 has sockets of its own
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


class Relief:
    """Stands in at posts whose workers cannot take what comes for them."""

    def __init__(self, posts: Sequence[Post]) -> None:
        self._posts = posts
        self._loop = asyncio.get_running_loop()
        self._covered: set[Post] = set()
        self._emptied: set[Post] = set()
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

    def empty(self, post: Post, seconds: float) -> None:
        """There will be no worker at `post` for so long."""
        if seconds > WORTH_WAITING:
            self._emptied.add(post)
            self._loop.add_reader(post.inbox.receiver, turn_away, post.inbox)

    def leave_to_worker(self, post: Post) -> None:
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
            _refuse(self._kept)
            self._kept = None

    def _uncover(self, post: Post) -> None:
        self._covered.discard(post)
        for listener in post.listeners:
            self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(AT_ONCE):
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
            if post.inbox.put(FRESH, b"", connection.fileno()):
                self.given += 1
                connection.close()
                return
        if able:
            self._kept = connection
            self._retry = self._loop.call_later(RETRY_AFTER, self._go_on)
        else:
            _refuse(connection)

    def _go_on(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            self._give(kept)
        if self._kept is None:
            for listener in (listener for post in self._covered for listener in post.listeners):
                self._loop.add_reader(listener, self._accept, listener)


def _refuse(connection: socket.socket) -> None:
    """Have the client connect anew."""
    with connection, suppress(OSError):
        connection.setblocking(False)
        connection.send(UNAVAILABLE.response)
