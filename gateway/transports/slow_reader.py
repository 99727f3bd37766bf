"""Counts what waits for a client that does not read as fast as the node writes.

A session's transport is replaced by a `SlowTransport` while the kernel takes no more bytes, and so costs
nothing more in the time before and after.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol, cast

from ..core.admission import SlowReader
from ..core.session import SessionContext

WRITE_COST: Final = 1_024
"""Bytes that each write costs besides its data while it waits. Measured with uvloop: 840, however few bytes
are written. Without them, a client that sends pings and reads nothing could leave 60,000 pongs, which count
as 128 KB and need 55 MB."""


class LimitedReader(SlowReader, Protocol):
    """A slow reader with a limit of its own."""

    def too_slow(self) -> None:
        """More than `--write-buffer` waits."""


class SlowTransport:
    """A transport with bytes that the kernel does not take, because the client has not read what came
    before."""

    __slots__ = ("_backlog", "_limit", "_reader", "_writes", "transport")

    def __init__(self, context: SessionContext, transport: asyncio.Transport, reader: LimitedReader) -> None:
        self._backlog = context.ledger.backlog
        self._limit = context.config.write_buffer
        self._reader = reader
        self._writes = 0
        self.transport = transport

    def write(self, data: bytes) -> None:
        self.transport.write(data)
        self._writes += 1
        self.count(len(data) + WRITE_COST)

    def count(self, size: int) -> None:
        """So many bytes have come to those that wait."""
        self._backlog.add(self._reader, size)
        if self.get_write_buffer_size() > self._limit:
            self._reader.too_slow()

    def get_write_buffer_size(self) -> int:
        """Bytes of memory that wait, at least as many as there are. No write waits without a byte."""
        size = self.transport.get_write_buffer_size()
        return size + WRITE_COST * min(self._writes, size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


def slow(context: SessionContext, transport: asyncio.Transport, reader: LimitedReader) -> asyncio.Transport:
    """Count what waits for `reader`, from now on until `prompt`. Use the result instead of `transport`.

    For `asyncio.Protocol.pause_writing`, with a limit of 0: it is called when the kernel takes no more bytes.
    """
    found: object = transport
    if isinstance(found, SlowTransport):  # it is counted already
        return transport
    counted = SlowTransport(context, transport, reader)
    counted.count(transport.get_write_buffer_size())
    return cast("asyncio.Transport", counted)


def prompt(context: SessionContext, transport: asyncio.Transport, reader: SlowReader) -> asyncio.Transport:
    """The client has read everything, or is gone. Returns the transport that was given to `slow`."""
    context.ledger.backlog.discard(reader)
    found: object = transport
    return found.transport if isinstance(found, SlowTransport) else transport
