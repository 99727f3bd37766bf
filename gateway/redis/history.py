"""What the connections to one server have shown so far. Each of them is disposable; this outlives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from . import denials
from .reminder import REMIND_EVERY

SUBSCRIBE_BATCH: Final = 500
"""Channels in one command: 64 KB with ids of 128 characters, under 1 ms of Redis's time."""

MAX_PENDING_BATCHES: Final = 8
"""Batches without a reply: 4,000 channels, far below the 32 MB at which Redis drops a subscriber."""

MAX_READ: Final = 2 << 20
"""Bytes of retained results in one batch's reply, for the same reason; the rest is read again."""

SMALLEST: Final = 7
"""Times that batches are halved, at most: three channels in one command, one command at a time."""

GROW_AFTER: Final = 60.0
"""Seconds that a connection must last for batches of twice the size on the next one."""

log = structlog.get_logger()


class ServerHistory:
    """How much to ask of a server at once, and what was said about its denials.

    Redis closes a subscriber whose replies exceed `client-output-buffer-limit pubsub`, and tells nobody the
    limit. With batches of one size such a connection would be made and lost for ever.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._halvings = 0
        self._denial_logged_at: float | None = None
        self.lost_within_batch = False
        """Whether Redis closed the latest connection while it owed a batch's reply."""

    @property
    def batch(self) -> int:
        """Channels in one command."""
        return max(1, SUBSCRIBE_BATCH >> self._halvings)

    def window(self, largest: int = MAX_PENDING_BATCHES) -> int:
        """Commands without a reply, of `largest` at most."""
        return max(1, largest >> self._halvings)

    def max_read(self, max_result_size: int) -> int:
        """Bytes of retained results in one reply: at least one result, which has a byte more if too large."""
        return max(MAX_READ >> self._halvings, max_result_size + 1)

    def connection_ended(self, seconds: float, *, within_batch: bool) -> None:
        """A connection has lasted for `seconds`. `within_batch`: Redis closed it and owed a batch's reply."""
        self.lost_within_batch = within_batch
        self._halvings = max(0, self._halvings - int(seconds / GROW_AFTER))
        if within_batch:
            self._halvings = min(SMALLEST, self._halvings + 1)

    def denied(self, name: bytes, error: str) -> None:
        """Redis denies the channel `name`, or its retained result: say so, once in a while."""
        now = self._clock()
        if self._denial_logged_at is None or now - self._denial_logged_at >= REMIND_EVERY:
            self._denial_logged_at = now
            log.error("channel denied by redis", reason=error, hint=denials.hint(error, name))
