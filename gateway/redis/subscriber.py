"""One link to Redis: subscriptions, retained results and liveness over RESP3. Disposable.

RESP3 lets a subscribed connection answer ordinary commands, so that SUBSCRIBE and the reading of the
retained results travel in one write, and Redis's own order says what was published before what.

A link never repairs itself. On any doubt (a reply nobody asked for, a command refused, silence) it
aborts, `closed` tells why, and the broker builds the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import hiredis

from .connection import (
    DISK_FULL,
    NOT_ENOUGH,
    Connection,
    PendingReply,
    ReplyError,
    UnexpectedReply,
    pack,
    resolve,
)
from .events import SubscriberEvents

SUBSCRIBE_BATCH = 500
"""Channels in one command: 64 KB with ids of 128 characters, under 1 ms of Redis's time."""

MAX_UNANSWERED = 8
"""Batches on their way: 4,000 replies, far below the 32 MB at which Redis drops a subscriber."""

MAX_READ = 2 << 20
"""Bytes of retained results in one batch's reply, for the same reason; what is over is asked for again."""

LATER = 0
"""What `READ_SCRIPT` says of a result that had no room in the reply."""

READ_SCRIPT = """local left, results = tonumber(ARGV[2]), {}
for i, key in ipairs(KEYS) do
  local result = redis.pcall('GET', key)
  if type(result) == 'table' and result.err and not string.find(result.err, 'WRONGTYPE', 1, true) then
    return redis.error_reply('ERR retained results cannot be read: ' .. result.err)
  end
  if type(result) ~= 'string' then result = false end
  if result then
    result = string.sub(result, 1, ARGV[1] + 1)
    left = left - #result
    if left < 0 then result = 0 end
  end
  results[i] = result
end
return results"""
"""Reads retained results as MGET would, but never more than can be sent: KEYS are the channels, ARGV[1] is
the longest result in bytes (of a longer one a byte more comes back, which shows it), ARGV[2] is MAX_READ."""

LIVENESS_TICK = 0.5
PING_AFTER = 1.5
DEAD_AFTER = 4.0
"""Seconds. Silence of 1.5 s is broken by a PING, silence of 4 s ends the link: noticed within 5 s."""


class UnsubscribeBatch:
    """UNSUBSCRIBE: a push for each channel and nothing else."""

    __slots__ = ("confirmed", "names")

    def __init__(self, names: list[bytes]) -> None:
        self.names = names
        self.confirmed = 0


class SubscribeBatch(UnsubscribeBatch):
    """SUBSCRIBE and READ of the same channels (or READ alone): a push for each, then one reply."""

    __slots__ = ("error", "gone", "subscribe")

    def __init__(self, names: list[bytes], *, subscribe: bool) -> None:
        super().__init__(names)
        self.subscribe = subscribe
        self.confirmed = 0 if subscribe else len(names)
        self.error: str | None = None
        self.gone = False  # meanwhile Redis has taken it away by itself, as only a Cluster does


class ServiceSubscription(UnsubscribeBatch):
    """SUBSCRIBE of a channel that holds no results: a push, or else an error as reply."""

    __slots__ = ("answer", "heard")

    def __init__(
        self, name: bytes, heard: Callable[[bytes], object], answer: asyncio.Future[ReplyError | None]
    ) -> None:
        super().__init__([name])
        self.heard = heard
        self.answer = answer


class PubSubCommands(NamedTuple):
    """What the kinds of pub/sub call things."""

    subscribe: str
    unsubscribe: str
    publish: str
    numsub: str
    """PUBSUB's word for how many have subscribed."""
    info_field: bytes
    """In CLIENT INFO, before the number of the connection's channels."""


class SubscriberConnection(Connection):
    """The protocol at our end of the connection. `hello` and `start` first, then subscribe and the like."""

    commands = PubSubCommands("SUBSCRIBE", "UNSUBSCRIBE", "PUBLISH", "NUMSUB", b" sub=")
    _message = b"message"
    _subscribed, _unsubscribed = b"subscribe", b"unsubscribe"

    def __init__(self, events: SubscriberEvents, max_result_size: int) -> None:
        """`max_result_size` is in bytes; of a longer retained result `events` gets one byte more."""
        super().__init__()
        self._events = events
        self._max_result_size = max_result_size
        self._window = MAX_UNANSWERED
        self._in_flight = 0  # how many of the unanswered count against the window
        self._to_subscribe: deque[bytes] = deque()
        self._to_read: deque[bytes] = deque()
        self._to_leave: deque[bytes] = deque()
        self._to_retry: deque[UnsubscribeBatch] = deque()  # one by one, after a refused batch
        self._flushing = False
        self._heard = 0.0
        self._ticked = 0.0
        self._ticking: asyncio.TimerHandle | None = None
        self._service_channels: dict[bytes, Callable[[bytes], object]] = {}

    # What the broker says

    def start(self) -> None:
        """Begin to watch over the connection and subscribe whatever `events.connected` names."""
        if self._transport is None:  # Redis hung up as soon as it had answered; `closed` says so
            return
        self._heard = self._ticked = self._loop.time()
        self._ticking = self._loop.call_later(LIVENESS_TICK, self._tick)
        self._to_subscribe.extend(self._events.connected())
        self._flush_soon()

    def subscribe(self, name: bytes) -> None:
        """SUBSCRIBE and read the retained result; `events.subscribed` or `denied` follows."""
        self._to_subscribe.append(name)
        self._flush_soon()

    def read(self, name: bytes) -> None:
        """Read the retained result of a subscribed channel; `events.subscribed` or `denied` follows."""
        self._to_read.append(name)
        self._flush_soon()

    def unsubscribe(self, name: bytes) -> None:
        """`events.unsubscribed` follows."""
        self._to_leave.append(name)
        self._flush_soon()

    async def subscribe_service(self, name: bytes, heard: Callable[[bytes], object]) -> None:
        """Subscribe `name`, which no browser waits for, and call `heard` with what is published there.

        It lasts as long as the link, or until Redis takes the channel away. Raises Refusal and LinkLost.
        """
        transport = self._writable()
        answer: asyncio.Future[ReplyError | None] = self._loop.create_future()
        self._unanswered.append(ServiceSubscription(name, heard, answer))
        transport.write(pack(self.commands.subscribe, name))
        await asyncio.wait((answer, self.closed), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise self.closed.result()
        if (refusal := answer.result()) is not None:
            raise refusal

    @property
    def service_channels(self) -> Collection[bytes]:
        """The channels that `subscribe_service` has subscribed."""
        return self._service_channels.keys()

    @property
    def idle(self) -> bool:
        """Whether all that was asked of the subscriptions has been answered."""
        return not (self._in_flight or self._waiting)

    @property
    def _waiting(self) -> bool:
        """Whether there is something to ask that has not been written yet."""
        return bool(self._to_retry or self._to_subscribe or self._to_read or self._to_leave)

    # What goes out: everything that was asked in one turn of the loop in as few commands as possible

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None or self._transport.is_closing():
            return
        chunks: list[bytes] = []
        while self._in_flight < self._window and (batch := self._next_batch()):
            self._in_flight += 1
            self._unanswered.append(batch)
            chunks += self._commands(batch)
        if chunks:
            self._transport.write(b"".join(chunks))

    def _next_batch(self) -> UnsubscribeBatch | None:
        if self._to_retry:
            return self._to_retry.popleft()
        if self._to_subscribe:
            return SubscribeBatch(self._take(self._to_subscribe), subscribe=True)
        if self._to_read:
            return SubscribeBatch(self._take(self._to_read), subscribe=False)
        if self._to_leave:
            return UnsubscribeBatch(self._take(self._to_leave))
        return None

    def _take(self, names: deque[bytes]) -> list[bytes]:
        return [names.popleft() for _ in range(min(SUBSCRIBE_BATCH, len(names)))]

    def _commands(self, batch: UnsubscribeBatch) -> list[bytes]:
        if not isinstance(batch, SubscribeBatch):
            return [pack("UNSUBSCRIBE", *batch.names)]
        # Redis 7 and Valkey can be told that the script only reads, so that the right to read is enough.
        evaluate = "EVAL_RO" if self.version[:1] >= b"7" or self.version[1:2].isdigit() else "EVAL"
        read = pack(evaluate, READ_SCRIPT, len(batch.names), *batch.names, self._max_result_size, MAX_READ)
        return [pack("SUBSCRIBE", *batch.names), read] if batch.subscribe else [read]

    # What comes in

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        gets, received, push = self._parser.gets, self._events.received, hiredis.PushNotification
        message, watched = self._message, self._service_channels
        try:
            self._parser.feed(data)
            while (reply := gets()) is not NOT_ENOUGH:
                if type(reply) is not push:
                    self._replied(reply)
                elif reply[0] != message:
                    self._pushed(reply)
                elif reply[1] not in watched:  # its hash is kept, for the table
                    received(reply[1], reply[2])
                else:
                    watched[reply[1]](reply[2])
        except (hiredis.ProtocolError, UnexpectedReply) as error:
            self.abort(f"Redis sent what nobody asked for: {error}")
        if self._waiting:
            self._flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        super().connection_lost(exc)

    def _pushed(self, push: list[Any]) -> None:
        kind = push[0]
        batch = self._unanswered[0] if self._unanswered else None
        if kind == self._subscribed and type(batch) is ServiceSubscription and batch.names[0] == push[1]:
            self._unanswered.popleft()
            self._service_channels[push[1]] = batch.heard
            resolve(batch.answer, None)
        elif kind == self._subscribed:
            self._confirmed(SubscribeBatch, push[1])
        elif kind == self._unsubscribed:
            self._left(push[1])

    def _left(self, name: bytes) -> None:
        """Redis says that `name` is subscribed no longer."""
        leave = self._confirmed(UnsubscribeBatch, name)
        if leave.confirmed == len(leave.names):
            self._answered()
        self._events.unsubscribed(name)

    def _confirmed(self, kind: type[UnsubscribeBatch], name: bytes) -> UnsubscribeBatch:
        """Redis confirms channels in the order of the command; anything else is not our conversation."""
        batch = self._unanswered[0] if self._unanswered else None
        if (
            not isinstance(batch, UnsubscribeBatch)
            or type(batch) is not kind
            or batch.confirmed == len(batch.names)
            or batch.names[batch.confirmed] != name
        ):
            raise UnexpectedReply(f"a confirmation of {len(name)} bytes")
        batch.confirmed += 1
        return batch

    def _replied(self, reply: Any) -> None:
        batch = self._unanswered[0] if self._unanswered else None
        if isinstance(batch, PendingReply):
            super()._replied(reply)
        elif isinstance(batch, ServiceSubscription):
            if not isinstance(reply, hiredis.ReplyError):
                raise UnexpectedReply("a reply to SUBSCRIBE")
            self._unanswered.popleft()
            resolve(batch.answer, ReplyError(self.commands.subscribe, reply))
        elif isinstance(batch, UnsubscribeBatch):
            self._batch_replied(batch, reply)
        else:
            raise UnexpectedReply(f"a reply of type {type(reply).__name__}")

    def _batch_replied(self, batch: UnsubscribeBatch, reply: Any) -> None:
        if not isinstance(batch, SubscribeBatch):
            raise UnexpectedReply("a reply to UNSUBSCRIBE")
        refusal = str(reply) if isinstance(reply, hiredis.ReplyError) else None
        if refusal is not None and not is_channel_denied(refusal):
            # LOADING, MASTERDOWN and the like: not now. Or the node's own user may not run the command,
            # which is no browser's fault.
            self.abort(f"Redis answered: {refusal}")
        elif batch.confirmed == 0:  # SUBSCRIBE was refused, as a whole; READ's reply is still to come
            if refusal is None:
                raise UnexpectedReply("a reply to SUBSCRIBE")
            batch.error = refusal
            batch.confirmed = len(batch.names)
        elif batch.confirmed < len(batch.names):
            raise UnexpectedReply("a reply amid confirmations")
        else:
            self._answered()
            self._settle(batch, reply, batch.error or refusal)

    def _settle(self, batch: SubscribeBatch, values: list[Any], error: str | None) -> None:
        if error is None:
            for name, retained in zip(batch.names, values, strict=True):
                if retained == LATER:
                    (self._to_subscribe if batch.subscribe else self._to_read).append(name)
                elif batch.subscribe or self._events.is_confirmed(name):
                    # Else who waits for it has come back since the read: a SUBSCRIBE answers that.
                    self._events.subscribed(name, retained)
        elif len(batch.names) > 1:  # one forbidden id must not make the others deaf
            self._to_retry.extend(SubscribeBatch([name], subscribe=batch.subscribe) for name in batch.names)
        else:
            (name,) = batch.names
            if batch.error is None:  # it is subscribed, and only its retained result is forbidden
                self._to_leave.append(name)
            self._events.denied(name, error)

    def _answered(self) -> None:
        self._unanswered.popleft()
        self._in_flight -= 1

    # Liveness: a message that came through this connection, not one that was written to it

    def _tick(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        now = self._loop.time()
        if now - self._ticked > 2 * LIVENESS_TICK:
            # This process was stopped or its loop was blocked; what came meanwhile is not read yet.
            self._heard = max(self._heard, now - PING_AFTER)
        self._ticked = now
        if now - self._heard >= DEAD_AFTER:
            self.abort(f"Redis said nothing for {now - self._heard:.1f} s")
            return
        if now - self._heard >= PING_AFTER:
            self.send(self._ponged, "PING")
        self._ticking = self._loop.call_later(LIVENESS_TICK, self._tick)

    def _ponged(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError) and not str(reply).startswith(DISK_FULL):
            self.abort(f"Redis answered PING with: {reply}")


def is_channel_denied(refusal: str) -> bool:
    """Whether Redis's access rules forbid a channel or a key, rather than the command as such."""
    return refusal.startswith("NOPERM") and "to run the" not in refusal
