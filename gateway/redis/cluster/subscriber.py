"""A connection to one node of a Cluster: sharded subscriptions, one channel a command.

The channels of one command must be in one slot, and two of them hardly ever are. So each channel has its own
SSUBSCRIBE and its own read of the retained result, many of them in one write. GETRANGE does not tell an empty
value, which announces an id, from none: where that matters, EXISTS is sent before it.

When its slot moves, the node drops a channel and pushes `sunsubscribe`, which is also the reply to
SUNSUBSCRIBE. So a request is always finished by the reply to its last command, the read or a PING.

A request that cannot be answered yet is deferred: it stays open and is sent again a little later, unless
another request about the channel replaces it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import hiredis

from ..connection import Command, pack
from ..denials import is_denial
from ..events import SubscriberEvents
from ..history import ServerHistory
from ..reply_limits import UnexpectedReply
from ..subscriber import PubSubCommands, SubscribeBatch, SubscriberConnection, UnsubscribeBatch
from .slots import Redirection, parse_redirection

MAX_IN_FLIGHT: Final = 1_000
"""Channels without a reply: some 100 KB of replies, unless there are retained results among them."""

MAX_RETAINED: Final = 16 << 20
"""Bytes of all retained results on their way: half of the 32 MB at which Redis drops a subscriber."""

UNSERVED_RETRY: Final = 0.1
"""Seconds until a request is sent again whose slot no node serves at the moment."""

MIGRATING_RETRY: Final = 0.2
"""Seconds until a retained result is read again whose slot is migrating."""

DEFERRED_PER_SECOND: Final = 10_000
"""Deferred requests sent again, at most: a master whose Cluster is down has enough to do."""

_NOT_SERVED: Final = ("MOVED", "CLUSTERDOWN", "TRYAGAIN")


class ShardedSubscriberEvents(SubscriberEvents, Protocol):
    """`SubscriberEvents`, and the redirections of a Cluster. An empty host means the node that answers."""

    def moved(self, name: bytes, host: str, port: int) -> None:
        """Another node serves the channel: send the request there."""

    def migrating(self, name: bytes, host: str, port: int, on_read: Callable[[Any], object]) -> None:
        """The channel is subscribed, but the retained result, if there is one, is at another node by now.

        `on_read` gets the reply of that node, if there is one.
        """


class DeferredRequest(NamedTuple):
    """A request that is sent again when the timer ends."""

    subscribe: bool
    timer: asyncio.TimerHandle


class ShardedSubscriberConnection(SubscriberConnection):
    """A `SubscriberConnection` that also calls `events.lost` when a slot moves away."""

    commands = PubSubCommands("SSUBSCRIBE", "SUNSUBSCRIBE", "SPUBLISH", "SHARDNUMSUB", b" ssub=")
    _message_kind = b"smessage"
    _subscribe_kind, _unsubscribe_kind = b"ssubscribe", b"sunsubscribe"

    def __init__(
        self,
        events: ShardedSubscriberEvents,
        max_result_size: int,
        history: ServerHistory | None = None,
        *,
        announced: bool = False,
    ) -> None:
        """As a `SubscriberConnection`. Only with `announced` are `events` told of an empty value."""
        super().__init__(events, max_result_size, history)
        self._shard_events = events
        self._announced = announced
        self._window = self._history.window(max(1, min(MAX_IN_FLIGHT, MAX_RETAINED // max_result_size)))
        self._batch = 1
        self._deferred: dict[bytes, DeferredRequest] = {}

    def _trials(self) -> list[Command]:
        return []  # results are read by GETRANGE, which every server knows

    async def _tried(self, replies: list[Any]) -> None:
        pass

    def subscribe(self, name: bytes) -> None:
        self._cancel_deferred(name)
        super().subscribe(name)

    def read(self, name: bytes) -> None:
        self._cancel_deferred(name)
        super().read(name)

    def unsubscribe(self, name: bytes) -> None:
        self._cancel_deferred(name)
        super().unsubscribe(name)

    @property
    def idle(self) -> bool:
        return super().idle and not self._deferred

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._deferred):
            self._cancel_deferred(name)
        super().connection_lost(exc)

    def read_migrating(self, name: bytes, on_read: Callable[[Any], object]) -> None:
        """Read the retained value of a channel whose slot migrates to this node.

        `on_read` gets the value as `events.subscribed` does, or an error. Raises ConnectionLost.
        """
        replies: list[Any] = []

        def replied(reply: Any) -> None:
            replies.append(reply)
            if len(replies) == len(reads):
                error = _first_error(replies)
                on_read(error if error is not None else _value(replies[-1], replies[0]))

        reads = self._reads(name)
        for command in reads:
            self.send(lambda _reply: None, "ASKING")
            self.send(replied, *command)

    def _reads(self, name: bytes) -> list[Command]:
        """The commands that read a retained value. The value is the reply to the last one."""
        getrange: Command = ("GETRANGE", name, 0, self._max_result_size)
        return [("EXISTS", name), getrange] if self._announced else [getrange]

    async def is_empty(self, name: bytes) -> bool:
        """As in `SubscriberConnection`, for a channel that has a value."""
        return not await self.execute("GETRANGE", name, 0, 0)

    def _packed(self, batch: UnsubscribeBatch) -> list[bytes]:
        (name,) = batch.names
        if not isinstance(batch, SubscribeBatch):
            return [pack("SUNSUBSCRIBE", name), pack("PING")]
        reads = [pack(*command) for command in self._reads(name)]
        return [pack("SSUBSCRIBE", name), *reads] if batch.subscribe else reads

    def _unsubscribe_received(self, name: bytes) -> None:
        """The channel is gone: Redis answers a request, or its slot has just moved."""
        batch = self._pending[0] if self._pending else None
        if name in self._service_channels:
            del self._service_channels[name]
        elif not isinstance(batch, UnsubscribeBatch) or batch.names != [name]:
            deferred = self._cancel_deferred(name)
            self._events.lost(name, answer=deferred is not None and deferred.subscribe)
        elif not isinstance(batch, SubscribeBatch):
            batch.confirmed = 1
        elif batch.confirmed:  # else an earlier subscription is gone, not the requested one
            batch.gone = True

    def _batch_replied(self, batch: UnsubscribeBatch, reply: Any) -> None:
        if isinstance(batch, SubscribeBatch):
            self._subscribe_replied(batch, reply)
        elif isinstance(reply, hiredis.ReplyError) and str(reply).startswith(_NOT_SERVED):
            batch.confirmed = 1  # MOVED: the node has dropped the channel by itself
        elif not batch.confirmed:
            raise UnexpectedReply("a reply between confirmations")
        else:
            self._batch_done()
            self._unsubscribed(batch.names[0])

    def _subscribe_replied(self, batch: SubscribeBatch, reply: Any) -> None:
        if batch.confirmed == 0:  # SSUBSCRIBE failed; the reply to the read follows
            if not isinstance(reply, hiredis.ReplyError):
                raise UnexpectedReply("a reply to SSUBSCRIBE")
            batch.error = str(reply)
            batch.confirmed = 1
        elif self._announced and batch.exists is None:
            batch.exists = reply
        else:
            self._batch_done()
            self._finish_channel(batch, reply)

    def _finish_channel(self, batch: SubscribeBatch, reply: Any) -> None:
        (name,) = batch.names
        error = batch.error or str(_first_error((batch.exists, reply)) or "")
        if batch.gone:
            self._events.lost(name, answer=batch.subscribe)
        elif not error or error.startswith("WRONGTYPE"):  # a key that is no string holds no result
            value = None if error else _value(reply, batch.exists)
            self._retained_read(name, value, subscribe=batch.subscribe)
        elif (redirection := parse_redirection(error)) is not None:
            self._redirected(batch, redirection)
        elif error.startswith(("CLUSTERDOWN", "TRYAGAIN")):
            self._defer(batch, UNSERVED_RETRY)
        elif is_denial(error):
            self._batch_denied(batch, error)
        else:
            self.abort(f"Redis answered: {error}")

    def _redirected(self, batch: SubscribeBatch, redirection: Redirection) -> None:
        (name,) = batch.names
        kind, host, port = redirection
        if kind == "ASK":
            deferred = self._defer(batch, MIGRATING_RETRY)
            on_read = partial(self._read_at_target, name, deferred)
            self._shard_events.migrating(name, host, port, on_read)
        elif batch.subscribe:
            self._shard_events.moved(name, host, port)
        else:  # the node serves the slot no longer, so the subscription is gone as well
            self._events.lost(name)

    def _retained_read(self, name: bytes, retained: bytes | None, *, subscribe: bool) -> None:
        """The channel is subscribed, unless it was given up and is wanted again: a SUBSCRIBE follows then."""
        if subscribe or self._events.is_confirmed(name):
            self._events.subscribed(name, retained)
        self._denied.allowed()

    # Deferred requests

    def _defer(self, batch: SubscribeBatch, seconds: float) -> DeferredRequest:
        (name,) = batch.names
        self._cancel_deferred(name)
        send = self.subscribe if batch.subscribe else self.read
        seconds += len(self._deferred) / DEFERRED_PER_SECOND
        deferred = DeferredRequest(batch.subscribe, self._loop.call_later(seconds, send, name))
        self._deferred[name] = deferred
        return deferred

    def _cancel_deferred(self, name: bytes) -> DeferredRequest | None:
        deferred = self._deferred.pop(name, None)
        if deferred is not None:
            deferred.timer.cancel()
        return deferred

    def _read_at_target(self, name: bytes, deferred: DeferredRequest, reply: Any) -> None:
        """The value at the node that the slot migrates to; ignored if the request was replaced meanwhile."""
        read = reply is None or isinstance(reply, bytes)
        if self._deferred.get(name) is deferred and (read or str(reply).startswith("WRONGTYPE")):
            self._cancel_deferred(name)
            self._retained_read(name, reply if read else None, subscribe=deferred.subscribe)


def _first_error(replies: Sequence[Any]) -> hiredis.ReplyError | None:
    return next((reply for reply in replies if isinstance(reply, hiredis.ReplyError)), None)


def _value(text: Any, exists: Any) -> Any:
    """A retained value by the replies to GETRANGE and to EXISTS, if that was sent; None if there is none."""
    return text if text or exists else None
