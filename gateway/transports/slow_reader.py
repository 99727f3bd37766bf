"""Counts what waits for a client that does not read as fast as the node writes.

A session's transport is replaced by a `SlowTransport` while the kernel takes no more bytes, and so costs
nothing more in the time before and after.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

from ..core.admission import SlowReader
from ..core.session import SessionContext


class LimitedReader(SlowReader, Protocol):
    """A slow reader with a limit of its own."""

    def too_slow(self) -> None:
        """More than `--write-buffer` waits."""


class SlowTransport:
    """A transport with bytes that the kernel does not take, because the client has not read what came
    before."""

    __slots__ = ("_backlog", "_limit", "_reader", "transport")

    def __init__(self, context: SessionContext, transport: asyncio.Transport, reader: LimitedReader) -> None:
        self._backlog = context.ledger.backlog
        self._limit = context.config.write_buffer
        self._reader = reader
        self.transport = transport

    def write(self, data: bytes) -> None:
        self.transport.write(data)
        self.count(len(data))

    def count(self, size: int) -> None:
        """So many bytes have come to those that wait."""
        self._backlog.add(self._reader, size)
        if self.transport.get_write_buffer_size() > self._limit:
            self._reader.too_slow()

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
