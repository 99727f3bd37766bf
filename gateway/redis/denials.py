"""The channels that Redis denies this node on one connection, and when the node asks for them again.

A denial is an outage of these channels and no answer to a browser: the node's access rules lack something, or
the server is not the one that serves the channel. Both can be mended while browsers wait. So the channels are
asked for again, first soon and then every few seconds, and a channel that is denied for good costs the others
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ..backoff import Backoff

FIRST_RETRY: Final = 0.25
MAX_RETRY: Final = 2.0
"""Seconds between two rounds: browsers wait 10 s for their registration, so several rounds fall into that."""

HOPELESS_AFTER: Final = 20
"""Denials in a row after which a batch is no longer split: most probably every channel is denied. Splitting a
batch of 500 down to one channel takes 10 denials."""

DENIALS: Final = (
    "NOPERM",
    "MOVED",
    "ASK",
    "CROSSSLOT",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "ERR retained results cannot be read",
)
"""How the errors begin that are about a channel or this node's rights, and not about the server."""

COMMAND_RIGHT: Final = "to run the '"


def is_denial(error: str) -> bool:
    """Whether an error of Redis is about the channels of a request: the connection is worth keeping."""
    return error.startswith(DENIALS)


def hint(error: str, name: bytes) -> str:
    """What to change, so that the channel `name` is no longer denied with this error."""
    stem = name.rpartition(b":")[0].decode(errors="replace")
    names = f"{stem}:*" if stem else "CHANNEL-PREFIX*"
    if error.startswith(("MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN", "TRYAGAIN")):
        return "this server is part of a Cluster: begin --redis (GATEWAY_REDIS) with redis+cluster://"
    if COMMAND_RIGHT in error:
        command = error.partition(COMMAND_RIGHT)[2].partition("'")[0]
        return f"give the node's Redis user +{command}"
    if "key" in error:
        return f"give the node's Redis user %R~{names}, or ~{names} on Redis 6.2"
    if "channel" in error:
        return f"give the node's Redis user &{names}"
    return "docs/redis-access.md has the rules that the node's Redis user needs"


class DeniedChannels:
    """Keeps the denied channels of a connection, and says which of them to ask for again.

    They are asked for in rounds. A round ends early after HOPELESS_AFTER denials in a row, and the next one
    goes on where it ended, so that a round costs little while Redis denies everything.
    """

    def __init__(self, round_begins: Callable[[], object]) -> None:
        """`round_begins` is called when there are channels to `take`."""
        self._round_begins = round_begins
        self.channels: dict[bytes, bool] = {}
        """The denied channels, and whether to SUBSCRIBE or only to read the retained result. Every
        registration looks here: to be read only."""
        self._left = 0  # channels of this round that are not taken yet
        self._in_a_row = 0
        self._backoff = Backoff(FIRST_RETRY, MAX_RETRY, jitter=0.5)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def due(self) -> bool:
        """Whether there are channels to `take`."""
        return self._left > 0

    @property
    def hopeless(self) -> bool:
        """Whether Redis has denied so much in a row that the next channel will hardly be allowed."""
        return self._in_a_row >= HOPELESS_AFTER

    def add(self, name: bytes, *, subscribe: bool) -> None:
        """`name` is denied: it is asked for again in the next round. `subscribe` is False for a mere read."""
        self.channels[name] = subscribe
        self._schedule()

    def discard(self, name: bytes) -> bool:
        """Forget `name`. Returns whether it was waiting for another SUBSCRIBE."""
        subscribe = self.channels.pop(name, False)
        self._left = min(self._left, len(self.channels))
        return subscribe

    def take(self, count: int, retry: Callable[[bytes], bool]) -> tuple[list[bytes], bool]:
        """Up to `count` channels to ask for again, and whether to subscribe them; none if the round is over.

        Channels for which `retry` returns False are no longer wanted.
        """
        names: list[bytes] = []
        kind = True
        while self._left and len(names) < count and self.channels:
            name = next(iter(self.channels))
            if names and self.channels[name] is not kind:
                break
            kind = self.channels.pop(name)
            self._left -= 1
            if retry(name):
                names.append(name)
        if not self.channels:
            self._left = 0
        return names, kind

    def refused(self) -> None:
        """Redis has denied a request, of one channel or of several."""
        self._in_a_row += 1
        if self.hopeless:
            self._left = 0
            self._schedule()

    def allowed(self) -> None:
        """Redis has answered a request."""
        self._in_a_row = 0
        if not self.channels:
            self._backoff.reset()

    def close(self) -> None:
        """The connection has ended: the next one asks for every channel."""
        if self._timer is not None:
            self._timer.cancel()
        self.channels.clear()
        self._left = 0

    def _schedule(self) -> None:
        if self._timer is None and self.channels:
            self._timer = asyncio.get_running_loop().call_later(self._backoff.next(), self._begin_round)

    def _begin_round(self) -> None:
        self._timer = None
        self._in_a_row = 0
        self._left = len(self.channels)
        if self._left:
            self._round_begins()
