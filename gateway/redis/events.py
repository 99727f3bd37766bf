"""What the owner of the subscriptions (the hub) is told by connections to Redis. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

Slots = Collection[int]
"""Some slots of a Cluster."""


class SubscriberEvents(Protocol):
    """The owner of the subscriptions, as connections to Redis see it. No method may raise or wait.

    `slots` limits a call to the channels in these slots of a Cluster. Without it, the call is about every
    channel.
    """

    def connected(self, slots: Slots | None = None) -> Sequence[bytes]:
        """A new connection has no subscriptions yet. Returns the channels to subscribe on it."""

    def disconnected(self, slots: Slots | None = None) -> None:
        """The connection is lost, and every subscription with it."""

    def confirmed(self, slots: Slots | None = None) -> Sequence[bytes]:
        """The channels whose subscription Redis has confirmed."""

    def count_confirmed(self, slots: Slots | None = None) -> int:
        """The number of those channels."""

    def is_confirmed(self, name: bytes) -> bool:
        """Whether Redis has confirmed this channel."""

    def subscribed(self, name: bytes, retained: bytes | None) -> None:
        """`subscribe` or `read` has succeeded: the channel is live, and `retained` is its retained value.

        That is a result; empty, if the id was announced and has no result yet; or None, if there is no value.
        """

    def unsubscribed(self, name: bytes) -> None:
        """`unsubscribe` has succeeded."""

    def received(self, name: bytes, payload: bytes) -> None:
        """A payload was published to the channel."""

    def degraded(self, slots: Slots | None = None) -> Iterator[None]:
        """The outage lasts: tell everybody who waits for results.

        Each step of the iterator tells some of them. The caller may stop between two steps.
        """

    def denied(self, name: bytes) -> bool:
        """Redis denies this node the channel, or a read of its retained result. Nothing is subscribed by it.

        Returns whether the channel is still wanted: then `retry` follows. A denial is an outage and no answer
        to a browser.
        """

    def retry(self, name: bytes) -> bool:
        """A denied channel can be asked for again. Returns whether it is wanted: then the request is open."""

    def lost(self, name: bytes, *, answer: bool = False) -> None:
        """Redis has dropped the subscription, which nobody had asked for.

        With `answer` the drop is also the answer to an open `subscribe`.
        """
