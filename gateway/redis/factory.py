"""What a Redis URL asks for: the one place that knows the kinds of topology."""

from __future__ import annotations

from collections.abc import Callable

from .broker import Broker
from .cluster.broker import ClusterBroker
from .cluster.router import ClusterRouter
from .cluster.slots import key_slot
from .events import SubscriberEvents
from .pool import PUBLISHER_NAME
from .router import Router, ServerRouter
from .server_broker import ServerBroker
from .subscriber import SubscriberConnection
from .topology import topology_of
from .url import RedisKind, RedisURL


def new_broker(
    url: RedisURL,
    events: SubscriberEvents,
    name: str,
    clock: Callable[[], float],
    max_result_size: int,
    probe_channel: bytes,
    *,
    announced: bool = False,
) -> Broker:
    """The broker for a node. `name` is what CLIENT LIST shows; `clock` is monotonic, in seconds.

    `max_result_size` is in bytes. Probes go to `probe_channel`, in a Cluster to channels whose names begin
    with it and a colon. `announced`: `events` must be told whether an id was announced, which in a Cluster
    takes one more command.
    """
    if url.kind is RedisKind.CLUSTER:
        return ClusterBroker(
            url, events, name, clock, max_result_size, probe_channel + b":", announced=announced
        )
    return ServerBroker(
        topology_of(url),
        events,
        name,
        clock,
        lambda history: SubscriberConnection(events, max_result_size, history),
        lambda: probe_channel,
    )


def new_router(url: RedisURL, name: str = PUBLISHER_NAME) -> Router:
    """The router for whoever publishes or writes; `name` is what CLIENT LIST shows."""
    return ClusterRouter(url, name) if url.kind is RedisKind.CLUSTER else ServerRouter(url, name)


def slot_function(url: RedisURL) -> Callable[[bytes], int] | None:
    """Tells the slot of a channel; None where one server has all channels."""
    return key_slot if url.kind is RedisKind.CLUSTER else None
