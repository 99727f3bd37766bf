"""What waits for a client that does not read, in bytes of memory."""

from __future__ import annotations

from typing import cast

from gateway.transports import slow_reader
from gateway.transports.slow_reader import WRITE_COST, SlowTransport

from ..fakes import Transport, node


class Reader:
    """A slow reader."""

    def __init__(self) -> None:
        self.told = 0
        self.dropped = False
        self.transport: SlowTransport

    @property
    def unread(self) -> int:
        return self.transport.get_write_buffer_size()

    def too_slow(self) -> None:
        self.told += 1

    def drop(self) -> None:
        self.dropped = True


def slow(**settings: int) -> tuple[Reader, Transport]:
    reader, transport = Reader(), Transport(stuck=True)
    transport.set_write_buffer_limits(high=1 << 30)
    reader.transport = SlowTransport(node(None, None, **settings), transport, reader)
    return reader, transport


def test_small_writes_count_what_they_cost() -> None:
    reader, _ = slow(write_buffer=10 * (WRITE_COST + 2))
    for _ in range(10):
        reader.transport.write(b"\x8a\x00")
    assert (reader.unread, reader.told) == (10 * (WRITE_COST + 2), 0)
    reader.transport.write(b"\x8a\x00")
    assert reader.told == 1, "22 bytes, but 3 KB"


def test_what_was_read_costs_nothing_any_more() -> None:
    reader, transport = slow()
    reader.transport.write(b"abc")
    transport.drain()
    assert reader.unread == 0
    reader.transport.write(b"")
    assert reader.unread == 0


def test_all_small_writes_together_are_limited() -> None:
    reader, _ = slow(max_unread=10 * WRITE_COST)
    for _ in range(9):
        reader.transport.write(b"\x8a\x00")
    assert not reader.dropped
    reader.transport.write(b"\x8a\x00")
    assert reader.dropped


def test_a_transport_is_replaced_only_while_bytes_wait() -> None:
    context, transport, reader = node(), Transport(stuck=True), Reader()
    transport.write(b"abc")
    counted = slow_reader.slow(context, transport, reader)
    reader.transport = cast("SlowTransport", counted)
    assert type(reader.transport) is SlowTransport
    assert slow_reader.slow(context, counted, reader) is counted, "it is counted already"
    assert len(context.ledger.backlog) == 1
    assert not counted.is_closing(), "it does what the transport does"
    assert slow_reader.prompt(context, counted, reader) is transport
    assert slow_reader.prompt(context, transport, reader) is transport, "it was never slow"
    assert len(context.ledger.backlog) == 0
