"""One connection to Redis: subscriptions, retained results and liveness over RESP3. Disposable.

RESP3 lets a subscribed connection answer ordinary commands, so that SUBSCRIBE and the reading of the
retained results travel in one write, and Redis's own order says what was published before what.

A link never repairs itself. On any doubt (a reply nobody asked for, a command refused, silence) it
aborts, `closed` tells why, and the broker builds the next one.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import hiredis

BATCH = 500
"""Channels in one command: 64 KB with ids of 128 characters, under 1 ms of Redis's time."""

MAX_UNANSWERED = 8
"""Batches on their way: 4,000 replies, far below the 32 MB at which Redis drops a subscriber."""

MAX_READ = 2 << 20
"""Bytes of retained results in one batch's reply, for the same reason; what is over is asked for again."""

LATER = 0
"""What `READ` says of a result that had no room in the reply."""

READ = """local left, results = tonumber(ARGV[2]), {}
for i, key in ipairs(KEYS) do
  local result = redis.pcall('GET', key)
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

TICK = 0.5
PING_AFTER = 1.5
DEAD_AFTER = 4.0
"""Seconds. Silence of 1.5 s is broken by a PING, silence of 4 s ends the link: noticed within 5 s."""

TCP_USER_TIMEOUT = 5_000
"""Milliseconds that sent bytes may stay unacknowledged; the kernel's own view of a dead peer."""

MAX_BUFFER = 1 << 20
"""Bytes that the parser keeps between reads, so that it need not allocate for each of them."""

NOT_ENOUGH = object()


class BrokerEvents(Protocol):
    """What whoever owns the subscriptions hears. None of it may raise or wait."""

    def connected(self) -> Sequence[bytes]:
        """A new connection, nothing subscribed; returns the channels to subscribe on it."""

    def disconnected(self) -> None:
        """The connection is gone, and every subscription with it."""

    def subscribed(self, name: bytes, retained: bytes | None) -> None:
        """`subscribe` or `read` is done: live from now on, and this is the retained result."""

    def unsubscribed(self, name: bytes) -> None:
        """`unsubscribe` is done."""

    def received(self, name: bytes, payload: bytes) -> None:
        """Somebody published."""

    def degraded(self, concerns: Callable[[bytes], bool]) -> Iterator[None]:
        """There has been no connection for so long that whoever waits should know.

        That is for the channels which `concerns`, as far as they are not subscribed at the moment. It goes
        on each time that it is asked for the next share of them, and may be left off amid its work.
        """

    def refused(self, name: bytes, reason: str) -> None:
        """Redis's access rules do not let this node have the channel or its retained result."""


class LinkLost(Exception):
    """Why a link ended."""


class _Question:
    """A command on its way that has one reply."""

    __slots__ = ("reply",)

    def __init__(self, reply: Callable[[Any], object]) -> None:
        self.reply = reply


class _Leave:
    """UNSUBSCRIBE: a push for each channel and nothing else."""

    __slots__ = ("confirmed", "names")

    def __init__(self, names: list[bytes]) -> None:
        self.names = names
        self.confirmed = 0


class _Join(_Leave):
    """SUBSCRIBE and READ of the same channels (or READ alone): a push for each, then one reply."""

    __slots__ = ("error", "subscribe")

    def __init__(self, names: list[bytes], *, subscribe: bool) -> None:
        super().__init__(names)
        self.subscribe = subscribe
        self.confirmed = 0 if subscribe else len(names)
        self.error: str | None = None


class Link(asyncio.Protocol):
    """The protocol at our end of the connection. `start` first, then subscribe and the like."""

    def __init__(self, events: BrokerEvents, max_result_size: int) -> None:
        """`max_result_size` is in bytes; of a longer retained result `events` gets one byte more."""
        self._events = events
        self._max_result_size = max_result_size
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = hiredis.Reader(notEnoughData=NOT_ENOUGH)
        self._parser.setmaxbuf(MAX_BUFFER)
        self._unanswered: deque[_Question | _Leave] = deque()
        self._batches = 0  # how many of the unanswered count against MAX_UNANSWERED
        self._to_subscribe: deque[bytes] = deque()
        self._to_read: deque[bytes] = deque()
        self._to_leave: deque[bytes] = deque()
        self._to_retry: deque[_Join] = deque()  # one by one, after a refused batch
        self._flushing = False
        self._eval = "EVAL"
        self._heard = 0.0
        self._ticked = 0.0
        self._ticking: asyncio.TimerHandle | None = None
        self._why: str | None = None
        self.closed: asyncio.Future[LinkLost] = self._loop.create_future()

    # What the broker says

    async def hello(self, username: str, password: str | None, database: int, name: str) -> None:
        """Introduce the node and choose RESP3 and the database. Raises LinkLost if Redis will not."""
        command: list[str | int] = ["HELLO", 3]
        if password is not None:
            command += ["AUTH", username, password]
        server = await self._ask(*command, "SETNAME", name)
        version = server.get(b"version", b"") if isinstance(server, dict) else b""
        # Redis 7 and Valkey can be told that the script only reads, so that the right to read is enough.
        self._eval = "EVAL_RO" if version[:1] >= b"7" or version[1:2].isdigit() else "EVAL"
        if database:
            await self._ask("SELECT", database)
        await self._ask("PING")  # a user who may not would look connected, and lose the link in silence

    def start(self) -> None:
        """Begin to watch over the connection and subscribe whatever `events.connected` names."""
        if self._transport is None:  # Redis hung up as soon as it had answered; `closed` says so
            return
        self._heard = self._ticked = self._loop.time()
        self._ticking = self._loop.call_later(TICK, self._tick)
        self._to_subscribe.extend(self._events.connected())
        self._flush_soon()

    def subscribe(self, name: bytes) -> None:
        self._to_subscribe.append(name)
        self._flush_soon()

    def read(self, name: bytes) -> None:
        self._to_read.append(name)
        self._flush_soon()

    def unsubscribe(self, name: bytes) -> None:
        self._to_leave.append(name)
        self._flush_soon()

    def abort(self, why: str) -> None:
        """End the link now; `closed` is set once the transport is gone."""
        if self._why is None:
            self._why = why
        if self._transport is not None:
            self._transport.abort()

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
        while self._batches < MAX_UNANSWERED and (batch := self._next_batch()):
            self._batches += 1
            self._unanswered.append(batch)
            if not isinstance(batch, _Join):
                chunks.append(_pack("UNSUBSCRIBE", *batch.names))
                continue
            if batch.subscribe:
                chunks.append(_pack("SUBSCRIBE", *batch.names))
            chunks.append(
                _pack(self._eval, READ, len(batch.names), *batch.names, self._max_result_size, MAX_READ)
            )
        if chunks:
            self._transport.write(b"".join(chunks))

    def _next_batch(self) -> _Leave | None:
        if self._to_retry:
            return self._to_retry.popleft()
        if self._to_subscribe:
            return _Join(_take(self._to_subscribe), subscribe=True)
        if self._to_read:
            return _Join(_take(self._to_read), subscribe=False)
        if self._to_leave:
            return _Leave(_take(self._to_leave))
        return None

    async def _ask(self, *command: str | int) -> Any:
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._send(answer.set_result, *command)
        await asyncio.wait((answer, self.closed), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise self.closed.result()
        reply = answer.result()
        if isinstance(reply, hiredis.ReplyError):
            raise LinkLost(f"Redis answered {command[0]} with: {reply}")
        return reply

    def _send(self, reply: Callable[[Any], object], *command: str | int) -> None:
        if self._transport is None:
            raise LinkLost("the connection is gone")
        self._unanswered.append(_Question(reply))
        self._transport.write(_pack(*command))

    # What comes in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is none of asyncio's
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        gets, received, push = self._parser.gets, self._events.received, hiredis.PushNotification
        try:
            self._parser.feed(data)
            while (reply := gets()) is not NOT_ENOUGH:
                if type(reply) is not push:
                    self._replied(reply)
                elif reply[0] == b"message":
                    received(reply[1], reply[2])
                else:
                    self._pushed(reply)
        except (hiredis.ProtocolError, _Desynchronised) as error:
            self.abort(f"Redis sent what nobody asked for: {error}")
        if self._to_retry or self._to_subscribe or self._to_read or self._to_leave:
            self._flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        self._transport = None
        if not self.closed.done():
            why = self._why or (str(exc) if exc else "Redis closed the connection")
            self.closed.set_result(LinkLost(why))

    def _pushed(self, push: list[Any]) -> None:
        kind = push[0]
        if kind == b"subscribe":
            self._confirmed(_Join, push[1])
        elif kind == b"unsubscribe":
            leave = self._confirmed(_Leave, push[1])
            if leave.confirmed == len(leave.names):
                self._answered()
            self._events.unsubscribed(push[1])

    def _confirmed(self, kind: type[_Leave], name: bytes) -> _Leave:
        """Redis confirms channels in the order of the command; anything else is not our conversation."""
        batch = self._unanswered[0] if self._unanswered else None
        if (
            not isinstance(batch, _Leave)
            or type(batch) is not kind
            or batch.confirmed == len(batch.names)
            or batch.names[batch.confirmed] != name
        ):
            raise _Desynchronised(f"a confirmation of {len(name)} bytes")
        batch.confirmed += 1
        return batch

    def _replied(self, reply: Any) -> None:
        question = self._unanswered[0] if self._unanswered else None
        if isinstance(question, _Question):
            self._unanswered.popleft()
            question.reply(reply)
        elif isinstance(question, _Join):
            self._batch_replied(question, reply)
        else:
            raise _Desynchronised(f"a reply of type {type(reply).__name__}")

    def _batch_replied(self, batch: _Join, reply: Any) -> None:
        refusal = str(reply) if isinstance(reply, hiredis.ReplyError) else None
        if refusal is not None and not _concerns_ids(refusal):
            # LOADING, MASTERDOWN and the like: not now. Or the node's own user may not run the command,
            # which is no browser's fault.
            self.abort(f"Redis answered: {refusal}")
        elif batch.confirmed == 0:  # SUBSCRIBE was refused, as a whole; READ's reply is still to come
            if refusal is None:
                raise _Desynchronised("a reply to SUBSCRIBE")
            batch.error = refusal
            batch.confirmed = len(batch.names)
        elif batch.confirmed < len(batch.names):
            raise _Desynchronised("a reply amid confirmations")
        else:
            self._answered()
            self._settle(batch, reply, batch.error or refusal)

    def _settle(self, batch: _Join, values: list[Any], error: str | None) -> None:
        if error is None:
            for name, retained in zip(batch.names, values, strict=True):
                if retained == LATER:
                    self._to_read.append(name)
                else:
                    self._events.subscribed(name, retained)
        elif len(batch.names) > 1:  # one forbidden id must not make the others deaf
            self._to_retry.extend(_Join([name], subscribe=batch.subscribe) for name in batch.names)
        else:
            (name,) = batch.names
            if batch.error is None:  # it is subscribed, and only its retained result is forbidden
                self._to_leave.append(name)
            self._events.refused(name, error)

    def _answered(self) -> None:
        self._unanswered.popleft()
        self._batches -= 1

    # Liveness: a message that came through this connection, not one that was written to it

    def _tick(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        now = self._loop.time()
        if now - self._ticked > 2 * TICK:
            # This process was stopped or its loop was blocked; what came meanwhile is not read yet.
            self._heard = max(self._heard, now - PING_AFTER)
        self._ticked = now
        if now - self._heard >= DEAD_AFTER:
            self.abort(f"Redis said nothing for {now - self._heard:.1f} s")
            return
        if now - self._heard >= PING_AFTER:
            self._send(self._ponged, "PING")
        self._ticking = self._loop.call_later(TICK, self._tick)

    def _ponged(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self.abort(f"Redis answered PING with: {reply}")


def _concerns_ids(refusal: str) -> bool:
    """Whether Redis's access rules forbid a channel or a key, rather than the command as such."""
    return refusal.startswith("NOPERM") and "to run the" not in refusal


class _Desynchronised(Exception):
    """A reply that fits no question: what this connection says can no longer be trusted."""


def _pack(*command: str | int | bytes) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows 1-tuples only
    return packed


def _take(names: deque[bytes]) -> list[bytes]:
    return [names.popleft() for _ in range(min(BATCH, len(names)))]
