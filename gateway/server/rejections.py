"""Counts and logs the requests that a port rejects."""

from __future__ import annotations

from collections import Counter

import structlog

from ..wire.handshake import Rejection

log = structlog.get_logger()


class Rejections:
    """The rejected requests of a port, by the code of their rejection."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts

    def add(self, rejection: Rejection, **facts: str) -> Rejection:
        """Count `rejection`, log it with these facts, and return it."""
        self.counts[rejection.code] += 1
        log.warning("request rejected", kind=rejection.code, status=rejection.status, **facts)
        return rejection
