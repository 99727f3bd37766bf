"""The streams that have the events: their names, and which one has the events of an id. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from .cluster.slots import key_slot


def event_streams(channel_prefix: str, number: int = 1) -> Sequence[str]:
    """The keys of all streams. No webSocketId has a colon, so none is a channel of a browser."""
    name = f"{channel_prefix}:events"
    return (name,) if number == 1 else tuple(f"{name}:{each}" for each in range(number))


def stream_of(web_socket_id: bytes, streams: Sequence[str]) -> str:
    """The stream that has the events of an id."""
    return streams[0] if len(streams) == 1 else streams[key_slot(web_socket_id) % len(streams)]
