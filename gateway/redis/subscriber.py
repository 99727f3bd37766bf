"""A connection to Redis that subscribes: subscriptions, retained results and liveness over RESP3. Disposable.

With RESP3 a subscribed connection answers ordinary commands too. So SUBSCRIBE and the read of the retained
results go out in one write, and the order of Redis's replies tells what was published before what.

A connection never repairs itself. On any doubt (an unexpected reply, a rejected command, silence) it aborts,
`closed` tells the reason, and the broker makes the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import hiredis

from .connection import DISK_FULL, NOT_ENOUGH, Command, Connection, PendingReply, ReplyError, pack, resolve
from .denials import DeniedChannels, is_denial
from .events import SubscriberEvents
from .history import ServerHistory
from .reply_limits import UnexpectedReply

NO_ROOM = 0
"""The reply of `READ_SCRIPT` for a result that had no room in it."""

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
"""Reads retained results as MGET would, but limits the size of the reply. KEYS are the channels. ARGV[1] is
the greatest size of a result in bytes; of a larger one it returns one byte more, which shows it. ARGV[2] is
`ServerHistory.max_read`."""

LIVENESS_TICK = 0.5
PING_AFTER = 1.5
DEAD_AFTER = 4.0
"""Seconds. Silence of 1.5 s is broken by a PING, silence of 4 s ends the connection: noticed within 5 s."""


class UnsubscribeBatch:
    """UNSUBSCRIBE of some channels. The reply is a push for each of them and nothing else."""

    __slots__ = ("confirmed", "names")

    def __init__(self, names: list[bytes]) -> None:
        self.names = names
        self.confirmed = 0


class SubscribeBatch(UnsubscribeBatch):
    """SUBSCRIBE of some channels and the read of their retained results, or the read alone.

    The reply is a push for each channel, then one reply to the read.
    """

    __slots__ = ("error", "exists", "gone", "subscribe")

    def __init__(self, names: list[bytes], *, subscribe: bool) -> None:
        super().__init__(names)
        self.subscribe = subscribe
        self.confirmed = 0 if subscribe else len(names)
        self.error: str | None = None
        self.exists: Any = None  # the reply of EXISTS, which only a Cluster is asked
        self.gone = False  # Redis has dropped the subscription meanwhile, as only a Cluster does


class ServiceSubscription(UnsubscribeBatch):
    """SUBSCRIBE of a service channel. The reply is a push, or else an error, whose text `error` gets."""

    __slots__ = ("error", "on_message")

    def __init__(
        self, name: bytes, on_message: Callable[[bytes], object], error: asyncio.Future[str | None]
    ) -> None:
        super().__init__([name])
        self.on_message = on_message
        self.error = error


class PubSubCommands(NamedTuple):
    """The command names of one kind of pub/sub."""

    subscribe: str
    unsubscribe: str
    publish: str
    numsub: str
    """The subcommand of PUBSUB that counts subscribers."""
    info_field: bytes
    """In the reply to CLIENT INFO, what stands before the number of channels."""


class SubscriberConnection(Connection):
    """The protocol at the gateway's end of the connection. After `Server.connect`, call `start` first."""

    commands = PubSubCommands("SUBSCRIBE", "UNSUBSCRIBE", "PUBLISH", "NUMSUB", b" sub=")
    _message_kind = b"message"
    _subscribe_kind, _unsubscribe_kind = b"subscribe", b"unsubscribe"

    def __init__(
        self, events: SubscriberEvents, max_result_size: int, history: ServerHistory | None = None
    ) -> None:
        """`max_result_size` is in bytes; of a larger retained result `events` gets one byte more.

        `history` has what earlier connections to this server have shown.
        """
        super().__init__()
        self._events = events
        self._max_result_size = max_result_size
        self._history = history or ServerHistory(self._loop.time)
        self._window, self._batch = self._history.window(), self._history.batch
        self._denied = DeniedChannels(self._flush_soon)
        self._revoked: dict[bytes, str] = {}  # subscribed, and given up because the read was denied with this
        self._refused_services: dict[bytes, str] = {}
        self._evaluate = "EVAL_RO"
        self._in_flight = 0  # batches without a reply
        self._to_subscribe: deque[bytes] = deque()
        self._to_read: deque[bytes] = deque()
        self._to_unsubscribe: deque[bytes] = deque()
        self._to_retry: deque[SubscribeBatch] = deque()  # the halves of a denied batch
        self._flush_scheduled = False
        self._started_at = self._received_at = self._ticked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._service_channels: dict[bytes, Callable[[bytes], object]] = {}

    # The login

    def _trials(self) -> list[Command]:
        # The script without keys: it shows that the server knows the command, and that its user may use it.
        # With EVAL_RO the right to read is enough, but Redis 6.2 and some compatible servers do not know it.
        return [self._read_command([])]

    async def _tried(self, replies: list[Any]) -> None:
        (denied,) = replies
        if isinstance(denied, hiredis.ReplyError):
            self._evaluate = "EVAL"
            (reply,) = await self.pipeline([self._read_command([])])
            if isinstance(reply, hiredis.ReplyError) and "unknown command" in str(denied):
                raise ReplyError("EVAL", reply)
            if isinstance(reply, hiredis.ReplyError):
                raise ReplyError("EVAL_RO", denied)

    # Called by the broker

    def start(self) -> None:
        """Begin to watch the liveness, and subscribe the channels that `events.connected` names."""
        if self._transport is None:  # Redis hung up as soon as it had answered; `closed` has the reason
            return
        self._started_at = self._received_at = self._ticked_at = self._loop.time()
        self._timer = self._loop.call_later(LIVENESS_TICK, self._tick)
        self._to_subscribe.extend(self._events.connected())
        self._flush_soon()

    def subscribe(self, name: bytes) -> None:
        """SUBSCRIBE and read the retained result; `events.subscribed` or `denied` follows."""
        if self._denied.channels:
            self._denied.discard(name)
        self._to_subscribe.append(name)
        self._flush_soon()

    def read(self, name: bytes) -> None:
        """Read the retained result of a subscribed channel; `events.subscribed` or `denied` follows."""
        if self._denied.channels:
            self._denied.discard(name)
        self._to_read.append(name)
        self._flush_soon()

    def unsubscribe(self, name: bytes) -> None:
        """`events.unsubscribed` follows, unless the channel is denied: then there is nothing to undo."""
        if self._denied.channels and self._denied.discard(name):
            return
        self._to_unsubscribe.append(name)
        self._flush_soon()

    async def subscribe_service(self, name: bytes, on_message: Callable[[bytes], object]) -> None:
        """Subscribe a channel of the nodes themselves; `on_message` gets what is published there.

        It lasts as long as the connection, or until Redis drops the subscription. Raises ReplyError and
        ConnectionLost.
        """
        transport = self._writable()
        answer: asyncio.Future[str | None] = self._loop.create_future()
        self._pending.append(ServiceSubscription(name, on_message, answer))
        transport.write(pack(self.commands.subscribe, name))
        if (error := await self._wait_for(answer)) is not None:
            raise ReplyError(self.commands.subscribe, error)

    @property
    def service_channels(self) -> Collection[bytes]:
        """The channels that `subscribe_service` has subscribed."""
        return self._service_channels.keys()

    def refuses_service(self, name: bytes | None) -> str:
        """Why Redis has refused a service channel the last time; empty if it has not."""
        return self._refused_services.get(name, "") if name is not None else ""

    def denies(self, name: bytes) -> bool:
        """Whether Redis denies this node the channel at present."""
        return name in self._denied.channels

    @property
    def denied_channels(self) -> int:
        """How many channels Redis denies this node at present."""
        return len(self._denied.channels)

    @property
    def silent_for(self) -> float:
        """Seconds since anything has arrived. Redis answers a PING after PING_AFTER at the latest."""
        return self._loop.time() - self._received_at

    @property
    def idle(self) -> bool:
        """Whether Redis has answered every command about subscriptions."""
        return not (self._in_flight or self._unsent)

    @property
    def _unsent(self) -> bool:
        """Whether commands wait to be written."""
        return bool(
            self._to_retry or self._to_subscribe or self._to_read or self._to_unsubscribe or self._denied.due
        )

    # Output: all requests of one turn of the loop, in as few commands as possible

    def _flush_soon(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._transport is None or self._transport.is_closing():
            return
        chunks: list[bytes] = []
        while self._in_flight < self._window and (batch := self._next_batch()):
            self._in_flight += 1
            self._pending.append(batch)
            chunks += self._packed(batch)
        if chunks:
            self._transport.write(b"".join(chunks))

    def _next_batch(self) -> UnsubscribeBatch | None:
        if self._to_retry:
            return self._to_retry.popleft()
        if self._to_subscribe:
            return SubscribeBatch(self._take(self._to_subscribe), subscribe=True)
        if self._to_read:
            return SubscribeBatch(self._take(self._to_read), subscribe=False)
        if self._to_unsubscribe:
            return UnsubscribeBatch(self._take(self._to_unsubscribe))
        if self._denied.due:
            names, subscribe = self._denied.take(self._batch, self._events.retry)
            return SubscribeBatch(names, subscribe=subscribe) if names else None
        return None

    def _take(self, names: deque[bytes]) -> list[bytes]:
        return [names.popleft() for _ in range(min(self._batch, len(names)))]

    def _packed(self, batch: UnsubscribeBatch) -> list[bytes]:
        if not isinstance(batch, SubscribeBatch):
            return [pack("UNSUBSCRIBE", *batch.names)]
        read = pack(*self._read_command(batch.names))
        return [pack("SUBSCRIBE", *batch.names), read] if batch.subscribe else [read]

    def _read_command(self, names: Sequence[bytes]) -> Command:
        max_read = self._history.max_read(self._max_result_size)
        return (self._evaluate, READ_SCRIPT, len(names), *names, self._max_result_size, max_read)

    async def is_empty(self, name: bytes) -> bool:
        """Whether a channel has a retained value that is empty. Raises ReplyError and ConnectionLost."""
        (value,) = await self.execute(self._evaluate, READ_SCRIPT, 1, name, 0, 1)
        return bool(value == b"")

    # Input

    def data_received(self, data: bytes) -> None:
        self._received_at = self._loop.time()
        gets, has_data, limits = self._gets, self._has_data, self._limits
        received, push = self._events.received, hiredis.PushNotification
        message, service_channels = self._message_kind, self._service_channels
        answered = False
        reply: Any = None
        try:
            limits.check(data)
            self._feed(data)
            while (reply := gets()) is not NOT_ENOUGH:
                answered = True
                if type(reply) is not push:
                    self._reply_received(reply)
                elif reply[0] != message:
                    self._push_received(reply)
                elif reply[1] not in service_channels:  # this computes the hash, which the table reuses
                    received(reply[1], reply[2])
                else:
                    service_channels[reply[1]](reply[2])
                reply = None
                if not has_data():
                    if limits.unusual:
                        limits.complete()
                    break
            else:
                limits.incomplete(data, answered=answered)
        except Exception as error:
            if self._is_message(reply):  # the fault is not Redis's: the loop reports it with a traceback
                raise
            self._distrust(error)
        if self._unsent:
            self._flush_soon()

    def _is_message(self, reply: Any) -> bool:
        """Whether `reply` is a published message in the form that it should have."""
        return (
            type(reply) is hiredis.PushNotification
            and reply[:1] == [self._message_kind]
            and [type(part) for part in reply[1:]] == [bytes, bytes]
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            within_batch = self._in_flight > 0 and self._reason is None  # Redis closed it, not this node
            self._history.connection_ended(self._loop.time() - self._started_at, within_batch=within_batch)
        self._denied.close()
        super().connection_lost(exc)

    def _push_received(self, push: list[Any]) -> None:
        kind = push[0]
        batch = self._pending[0] if self._pending else None
        if kind == self._subscribe_kind and type(batch) is ServiceSubscription and batch.names[0] == push[1]:
            self._pending.popleft()
            self._refused_services.pop(push[1], None)
            self._service_channels[push[1]] = batch.on_message
            resolve(batch.error, None)
        elif kind == self._subscribe_kind:
            self._confirm(SubscribeBatch, push[1])
        elif kind == self._unsubscribe_kind:
            self._unsubscribe_received(push[1])

    def _unsubscribe_received(self, name: bytes) -> None:
        batch = self._confirm(UnsubscribeBatch, name)
        if batch.confirmed == len(batch.names):
            self._batch_done()
        self._unsubscribed(name)

    def _unsubscribed(self, name: bytes) -> None:
        error = self._revoked.pop(name, None)
        if error is None:
            self._events.unsubscribed(name)
        else:
            self._deny(name, error, subscribe=True)

    def _confirm(self, kind: type[UnsubscribeBatch], name: bytes) -> UnsubscribeBatch:
        """Count a channel as confirmed. Redis confirms channels in the order of the command."""
        batch = self._pending[0] if self._pending else None
        if (
            not isinstance(batch, UnsubscribeBatch)
            or type(batch) is not kind
            or batch.confirmed == len(batch.names)
            or batch.names[batch.confirmed] != name
        ):
            raise UnexpectedReply(f"a confirmation of {len(name)} bytes")
        batch.confirmed += 1
        return batch

    def _reply_received(self, reply: Any) -> None:
        batch = self._pending[0] if self._pending else None
        if isinstance(batch, PendingReply):
            super()._reply_received(reply)
        elif isinstance(batch, ServiceSubscription):
            if not isinstance(reply, hiredis.ReplyError):
                raise UnexpectedReply("a reply to SUBSCRIBE")
            self._pending.popleft()
            self._refused_services[batch.names[0]] = str(reply)
            resolve(batch.error, str(reply))
        elif isinstance(batch, UnsubscribeBatch):
            self._batch_replied(batch, reply)
        else:
            raise UnexpectedReply(f"a reply of type {type(reply).__name__}")

    def _batch_replied(self, batch: UnsubscribeBatch, reply: Any) -> None:
        if not isinstance(batch, SubscribeBatch):
            raise UnexpectedReply("a reply to UNSUBSCRIBE")
        error = str(reply) if isinstance(reply, hiredis.ReplyError) else None
        if error is not None and not is_denial(error):  # LOADING, MASTERDOWN and the like
            self.abort(f"Redis answered: {error}")
        elif batch.confirmed == 0:  # SUBSCRIBE was denied as a whole; the reply to the read follows
            if error is None:
                raise UnexpectedReply("a reply to SUBSCRIBE")
            batch.error = error
            batch.confirmed = len(batch.names)
        elif batch.confirmed < len(batch.names):
            raise UnexpectedReply("a reply between confirmations")
        else:
            self._batch_done()
            self._finish_subscribe(batch, reply, batch.error or error)

    def _finish_subscribe(self, batch: SubscribeBatch, values: list[Any], error: str | None) -> None:
        if error is not None:
            self._batch_denied(batch, error)
            return
        if type(values) is not list or len(values) != len(batch.names):
            raise UnexpectedReply("a reply to the read of retained results")
        for name, retained in zip(batch.names, values, strict=True):
            if retained == NO_ROOM:
                (self._to_subscribe if batch.subscribe else self._to_read).append(name)
            elif batch.subscribe or self._events.is_confirmed(name):
                # Else the channel was given up and is wanted again: a SUBSCRIBE is on its way.
                self._events.subscribed(name, retained)
        self._denied.allowed()

    # Denials: an outage of these channels only, until Redis allows them

    def _batch_denied(self, batch: SubscribeBatch, error: str) -> None:
        """Redis denies a batch as a whole: halve it until the denied channels are alone."""
        self._denied.refused()
        middle = len(batch.names) // 2
        if middle and not self._denied.hopeless:
            halves = (batch.names[:middle], batch.names[middle:])
            self._to_retry.extendleft(
                SubscribeBatch(half, subscribe=batch.subscribe) for half in reversed(halves)
            )
            return
        for name in batch.names:
            self._channel_denied(batch, name, error)

    def _channel_denied(self, batch: SubscribeBatch, name: bytes, error: str) -> None:
        if batch.subscribe and batch.error is None:  # it is subscribed; only its retained result is denied
            self._revoked[name] = error
            self._to_unsubscribe.append(name)
        else:
            self._deny(name, error, subscribe=batch.subscribe)

    def _deny(self, name: bytes, error: str, *, subscribe: bool) -> None:
        self._history.denied(name, error)
        if self._events.denied(name):
            self._denied.add(name, subscribe=subscribe)

    def _batch_done(self) -> None:
        self._pending.popleft()
        self._in_flight -= 1

    # Liveness: data that arrived on this connection counts, not data that was written to it

    def _tick(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        now = self._loop.time()
        if now - self._ticked_at > 2 * LIVENESS_TICK:
            # The process was stopped or its loop was blocked: what arrived meanwhile is not read yet.
            self._received_at = max(self._received_at, now - PING_AFTER)
        self._ticked_at = now
        if now - self._received_at >= DEAD_AFTER:
            self.abort(f"Redis was silent for {now - self._received_at:.1f} s")
            return
        if now - self._received_at >= PING_AFTER:
            self.send(self._pong_received, "PING")
        self._timer = self._loop.call_later(LIVENESS_TICK, self._tick)

    def _pong_received(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError) and not str(reply).startswith(DISK_FULL):
            self.abort(f"Redis answered PING with: {reply}")
