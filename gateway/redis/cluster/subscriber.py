"""One link to a node of a Cluster: sharded subscriptions, a channel a command.

The channels of one command must be in one slot, and hardly two of them are. So each channel has its own
SSUBSCRIBE and its own read of the retained result, many of them in one write.

The node may take a channel away when its slot moves: it says `sunsubscribe`, which also answers
SUNSUBSCRIBE. What ends a question is therefore always the reply to the second of its two commands.

A question that cannot be answered yet is put off: it stays open, and is asked again a little later, unless
another question about the channel takes its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import hiredis

from ..connection import UnexpectedReply, pack
from ..events import SubscriberEvents
from ..subscriber import (
    PubSubCommands,
    SubscribeBatch,
    SubscriberConnection,
    UnsubscribeBatch,
    is_channel_denied,
)
from .slots import Redirection, parse_redirection

MAX_IN_FLIGHT: Final = 1_000
"""Channels on their way: some 100 KB of replies, unless there are retained results among them."""

MAX_RETAINED: Final = 16 << 20
"""Bytes that the retained results on their way can have together: half of the 32 MB at which Redis drops a
subscriber."""

UNSERVED_RETRY: Final = 0.1
"""Seconds until a question is asked again whose slot nobody serves at the moment."""

MIGRATING_RETRY: Final = 0.2
"""The same for a retained result that was looked for where its slot is on its way to."""

DEFERRED_PER_SECOND: Final = 10_000
"""Questions that are asked again, at most: a master whose Cluster is down has enough to do."""

_NOT_SERVED: Final = ("MOVED", "CLUSTERDOWN", "TRYAGAIN")


class ShardedSubscriberEvents(SubscriberEvents, Protocol):
    """What else the owner of sharded subscriptions hears. An empty host stands for the node that says so."""

    def moved(self, name: bytes, host: str, port: int) -> None:
        """What was asked of `name` has to be asked there."""

    def migrating(self, name: bytes, host: str, port: int, read: Callable[[Any], object]) -> None:
        """`name` is subscribed, but its retained result, if there is one, is there by now.

        `read` gets what is said there, if anything is.
        """


class DeferredRequest(NamedTuple):
    """A question that is asked again when the timer ends."""

    subscribe: bool
    timer: asyncio.TimerHandle


class ShardedSubscriberConnection(SubscriberConnection):
    """As `SubscriberConnection`; `events` hears `lost`, too, when a slot moves away."""

    commands = PubSubCommands("SSUBSCRIBE", "SUNSUBSCRIBE", "SPUBLISH", "SHARDNUMSUB", b" ssub=")
    _message = b"smessage"
    _subscribed, _unsubscribed = b"ssubscribe", b"sunsubscribe"

    def __init__(self, events: ShardedSubscriberEvents, max_result_size: int) -> None:
        super().__init__(events, max_result_size)
        self._shard_events = events
        self._window = max(1, min(MAX_IN_FLIGHT, MAX_RETAINED // max_result_size))
        self._put_off: dict[bytes, DeferredRequest] = {}

    def subscribe(self, name: bytes) -> None:
        self._forget(name)
        super().subscribe(name)

    def read(self, name: bytes) -> None:
        self._forget(name)
        super().read(name)

    def unsubscribe(self, name: bytes) -> None:
        self._forget(name)
        super().unsubscribe(name)

    @property
    def idle(self) -> bool:
        return super().idle and not self._put_off

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._put_off):
            self._forget(name)
        super().connection_lost(exc)

    def read_migrating(self, name: bytes, read: Callable[[Any], object]) -> None:
        """Read the retained result of `name`, whose slot is on its way here; `read` gets Redis's answer.

        Raises LinkLost.
        """
        self.send(lambda _reply: None, "ASKING")
        self.send(read, *self._get(name))

    def _take(self, names: Any) -> list[bytes]:
        return [names.popleft()]

    def _get(self, name: bytes) -> tuple[str, bytes, int, int]:
        return ("GETRANGE", name, 0, self._max_result_size)

    def _commands(self, batch: UnsubscribeBatch) -> list[bytes]:
        (name,) = batch.names
        if not isinstance(batch, SubscribeBatch):
            return [pack("SUNSUBSCRIBE", name), pack("PING")]
        read = pack(*self._get(name))
        return [pack("SSUBSCRIBE", name), read] if batch.subscribe else [read]

    def _left(self, name: bytes) -> None:
        """Whether it answers our question or the slot has just moved: the channel is gone."""
        batch = self._unanswered[0] if self._unanswered else None
        if name in self._service_channels:
            del self._service_channels[name]
        elif not isinstance(batch, UnsubscribeBatch) or batch.names != [name]:
            put_off = self._forget(name)
            self._events.lost(name, answer=put_off is not None and put_off.subscribe)
        elif not isinstance(batch, SubscribeBatch):
            batch.confirmed = 1
        elif batch.confirmed:  # else it is an earlier subscription that is gone, not the one asked for
            batch.gone = True

    def _batch_replied(self, batch: UnsubscribeBatch, reply: Any) -> None:
        if isinstance(batch, SubscribeBatch):
            self._join_replied(batch, reply)
        elif isinstance(reply, hiredis.ReplyError) and str(reply).startswith(_NOT_SERVED):
            batch.confirmed = 1  # MOVED: the node has taken the channel away by itself
        elif not batch.confirmed:
            raise UnexpectedReply("a reply amid confirmations")
        else:
            self._answered()
            self._events.unsubscribed(batch.names[0])

    def _join_replied(self, batch: SubscribeBatch, reply: Any) -> None:
        if batch.confirmed == 0:  # SSUBSCRIBE was refused; the read's reply is still to come
            if not isinstance(reply, hiredis.ReplyError):
                raise UnexpectedReply("a reply to SSUBSCRIBE")
            batch.error = str(reply)
            batch.confirmed = 1
        else:
            self._answered()
            self._settle_one(batch, reply)

    def _settle_one(self, batch: SubscribeBatch, reply: Any) -> None:
        (name,) = batch.names
        error = batch.error or (str(reply) if isinstance(reply, hiredis.ReplyError) else "")
        if batch.gone:
            self._events.lost(name, answer=batch.subscribe)
        elif not error or error.startswith("WRONGTYPE"):  # what is no string is no result
            self._has_read(name, None if error else reply, subscribe=batch.subscribe)
        elif (redirected := parse_redirection(error)) is not None:
            self._redirected(batch, redirected)
        elif error.startswith(("CLUSTERDOWN", "TRYAGAIN")):
            self._ask_later(batch, UNSERVED_RETRY)
        elif is_channel_denied(error):
            if batch.error is None:  # it is subscribed, and only its retained result is forbidden
                self._to_leave.append(name)
            self._events.denied(name, error)
        else:
            self.abort(f"Redis answered: {error}")

    def _redirected(self, batch: SubscribeBatch, redirected: Redirection) -> None:
        (name,) = batch.names
        kind, host, port = redirected
        if kind == "ASK":
            put_off = self._ask_later(batch, MIGRATING_RETRY)
            read_there = partial(self._read_there, name, put_off)
            self._shard_events.migrating(name, host, port, read_there)
        elif batch.subscribe:
            self._shard_events.moved(name, host, port)
        else:  # the node no longer serves what it has told us, so the subscription is gone as well
            self._events.lost(name)

    def _has_read(self, name: bytes, retained: bytes | None, *, subscribe: bool) -> None:
        """It is subscribed; but who has left meanwhile and has come back waits for another answer."""
        if subscribe or self._events.is_confirmed(name):
            self._events.subscribed(name, retained or None)

    # What is put off

    def _ask_later(self, batch: SubscribeBatch, seconds: float) -> DeferredRequest:
        (name,) = batch.names
        self._forget(name)
        ask = self.subscribe if batch.subscribe else self.read
        seconds += len(self._put_off) / DEFERRED_PER_SECOND
        put_off = DeferredRequest(batch.subscribe, self._loop.call_later(seconds, ask, name))
        self._put_off[name] = put_off
        return put_off

    def _forget(self, name: bytes) -> DeferredRequest | None:
        put_off = self._put_off.pop(name, None)
        if put_off is not None:
            put_off.timer.cancel()
        return put_off

    def _read_there(self, name: bytes, put_off: DeferredRequest, reply: Any) -> None:
        """What came of reading where the slot is on its way to, if that is not asked anew by now."""
        found = isinstance(reply, bytes)
        if self._put_off.get(name) is put_off and (found or str(reply).startswith("WRONGTYPE")):
            self._forget(name)
            self._has_read(name, reply if found else None, subscribe=put_off.subscribe)
