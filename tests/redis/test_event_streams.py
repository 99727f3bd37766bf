"""Which streams there are, and which one has the events of an id."""

from __future__ import annotations

from collections import Counter

from gateway.redis.cluster.slots import key_slot
from gateway.redis.event_streams import event_streams, stream_of


def test_one_stream_has_all() -> None:
    assert event_streams("websocket:") == ("websocket::events",)
    assert stream_of(b"anything", event_streams("websocket:")) == "websocket::events"


def test_ids_are_spread_evenly_and_each_keeps_its_stream() -> None:
    streams = event_streams("x:", 3)
    assert streams == ("x::events:0", "x::events:1", "x::events:2")
    found = Counter(stream_of(b"%d" % number, streams) for number in range(3_000))
    assert set(found) == set(streams)
    assert min(found.values()) > 850
    assert stream_of(b"1", streams) == stream_of(b"1", streams)


def test_streams_are_in_different_slots() -> None:
    streams = event_streams("websocket:", 64)
    assert len({key_slot(name.encode()) for name in streams}) == 64
