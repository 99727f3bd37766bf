"""Carries out the decisions of the table: asks the broker, tells the members, delivers results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar

import structlog

from ..messages import InvalidResult, Result, parse_result
from ..telemetry import logs
from ..telemetry.latency import Latency
from .subscriptions import (
    NO_ROOM,
    NOTHING,
    READ,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Action,
    SlotOf,
    Slots,
    Subscriptions,
)

NOTICE_BATCH: Final = 200
"""Channels and members that `Hub.degraded` handles at once: 200 messages take about 2 ms of the event
loop."""

log = structlog.get_logger()


class Member(Protocol):
    """A session, as the hub sees it: it waits for results. No method may raise or wait."""

    def confirm(self, web_socket_id: bytes) -> None:
        """The registration is confirmed: nothing published from now on is missed."""

    def refuse_unknown(self, web_socket_id: bytes) -> bool:
        """Nobody has announced the id. Refuse the registration, unless the member may have the id all the
        same. Returns whether it was refused: then the member has left."""

    def deliver(self, web_socket_id: bytes, result: Result, retained: bool) -> None:
        """A result for the id, live or `retained`. The member may have had it before."""

    def degraded(self) -> None:
        """Results for the member cannot be received at present. This may be called again meanwhile."""

    def restored(self) -> None:
        """Results are received, and the retained one is delivered. This may be called without `degraded`."""


class ChannelSubscriber(Protocol):
    """The part of a broker that the hub needs."""

    def reaches(self, name: bytes) -> bool: ...
    def subscribe(self, name: bytes) -> None: ...
    def read(self, name: bytes) -> None: ...
    def unsubscribe(self, name: bytes) -> None: ...

    def degraded(self, name: bytes) -> bool:
        """Whether the members of `name` have been told of an outage that lasts."""


B = TypeVar("B", bound=ChannelSubscriber)


class Hub(Generic[B]):
    """Which members wait for which id, and what happens to a result. Implements `SubscriberEvents`."""

    def __init__(
        self,
        channel_prefix: str,
        max_result_size: int,
        new_broker: Callable[[Hub[B]], B],
        *,
        max_members: int = 0,
        slot_of: SlotOf | None = None,
        latency: Latency | None = None,
        announced: bool = False,
    ) -> None:
        """`max_result_size` is in bytes. `max_members` limits those of one id; 0 means no limit.

        `new_broker` makes the broker, which gets the hub as its `SubscriberEvents`. Each of the two needs the
        other. The broker must not call the hub before it runs.

        `slot_of` returns a channel's slot: needed where each connection serves some slots of a Cluster.
        `latency` measures live results. With `announced`, members whose id no backend has announced are told
        so instead of being confirmed.
        """
        self._prefix = channel_prefix.encode()
        self._skip = len(self._prefix)
        self._max_size = max_result_size
        self._table: Subscriptions[Member] = Subscriptions(slot_of, max_members)
        self.invalid: Counter[str] = Counter()
        """Published payloads that were not forwarded, by kind."""
        self._announced = announced
        self._latency = latency or Latency(lambda _call: None, float, float)
        self.delivered = 0
        """Results handed to members so far."""
        self.unclaimed = 0
        """Results that arrived when no member waited for them any more."""
        self.registrations_confirmed = 0
        """Registrations that Redis has confirmed so far."""
        self.broker = new_broker(self)

    def _request(self, action: Action, name: bytes) -> None:
        if action is SUBSCRIBE:
            self.broker.subscribe(name)
        elif action is UNSUBSCRIBE:
            self.broker.unsubscribe(name)
        elif action is READ:
            self.broker.read(name)

    @property
    def channels(self) -> int:
        """Channels that this node is or wants to be subscribed to."""
        return len(self._table)

    def count_confirmed(self, slots: Slots | None = None) -> int:
        """How many of them Redis has confirmed. It looks at each: 4 ms for 100,000."""
        return self._table.count_confirmed(slots)

    # From members

    def register(self, web_socket_id: bytes, member: Member) -> bytes | None:
        """`member` waits for `web_socket_id`. Returns the channel, which `leave` needs. None if as many
        members wait for the id as may: then this one does not.

        Later, never during this call, `member.confirm` is called, however long Redis is out of reach or
        denies this node the channel.
        """
        name = self._prefix + web_socket_id
        action = self._table.join(name, member, connected=self.broker.reaches(name))
        if action is NO_ROOM:
            return None
        self._request(action, name)
        return name

    def leave(self, name: bytes, member: Member) -> None:
        """`member` waits no longer. It does no harm if it never did."""
        self._request(self._table.leave(name, member), name)

    def is_degraded(self, name: bytes) -> bool:
        """Whether results for the channel `name` cannot be received, and its members have been told."""
        return self.broker.degraded(name)

    def channel(self, web_socket_id: bytes) -> bytes:
        """The channel of an id."""
        return self._prefix + web_socket_id

    def members(self, web_socket_id: bytes) -> Sequence[Member]:
        """The members that wait for an id."""
        return self._table.members(self.channel(web_socket_id))

    def web_socket_id(self, name: bytes) -> bytes:
        """The id whose channel `name` is."""
        return name[self._skip :]

    # From the broker

    def connected(self, slots: Slots | None = None) -> Sequence[bytes]:
        return self._table.connected(slots)

    def disconnected(self, slots: Slots | None = None) -> None:
        self._table.disconnected(slots)

    def confirmed(self, slots: Slots | None = None) -> Sequence[bytes]:
        return self._table.confirmed_channels(slots)

    def is_confirmed(self, name: bytes) -> bool:
        return self._table.is_confirmed(name)

    def subscribed(self, name: bytes, retained: bytes | None) -> None:
        confirmed = self._table.confirmed(name, retained)
        if confirmed.action is not NOTHING:
            self._request(confirmed.action, name)
        if not (confirmed.newcomers or confirmed.veterans):
            return
        web_socket_id = self.web_socket_id(name)
        newcomers = confirmed.newcomers
        if self._announced and retained is None and not confirmed.payloads:
            # Only newcomers are judged: a value that Redis has lost must end nobody's login.
            newcomers = tuple(member for member in newcomers if not member.refuse_unknown(web_socket_id))
        self.registrations_confirmed += len(newcomers)
        for member in newcomers:
            member.confirm(web_socket_id)
        for payload in confirmed.payloads:
            # A payload that has also come live is another object.
            self._fan_out(name, payload, newcomers, retained=payload is confirmed.retained)
        if confirmed.retained:
            self._fan_out(name, confirmed.retained, confirmed.veterans, retained=True)
        for member in (*newcomers, *confirmed.veterans):
            member.restored()

    def degraded(self, slots: Slots | None = None) -> Iterator[None]:
        done = 0
        for name in self._table.names(slots):
            # Looked up now, not before the loop: a channel may have been confirmed or left in between.
            members = self._table.unconfirmed(name)
            for member in members:
                member.degraded()
            done += 1 + len(members)
            if done >= NOTICE_BATCH:
                done = 0
                yield

    def unsubscribed(self, name: bytes) -> None:
        self._request(self._table.unsubscribed(name), name)

    def lost(self, name: bytes, *, answer: bool = False) -> None:
        self._request(self._table.lost(name, answer=answer), name)

    def received(self, name: bytes, payload: bytes) -> None:
        if len(payload) > self._max_size:  # before it is held for waiting members
            self._invalid(name, payload, "too big")
            return
        members = self._table.listening(name, payload)
        if members:
            self._fan_out(name, payload, members, live=True)
        elif not self._table.awaited(name):
            self.unclaimed += 1

    def denied(self, name: bytes) -> bool:
        members = self._table.denied(name)
        for member in members:
            member.degraded()
        return bool(members)

    def retry(self, name: bytes) -> bool:
        return self._table.retry(name)

    def _fan_out(
        self,
        name: bytes,
        payload: bytes,
        members: Sequence[Member],
        *,
        live: bool = False,
        retained: bool = False,
    ) -> None:
        if not members:
            return
        web_socket_id = name[self._skip :]
        try:
            result = parse_result(payload, web_socket_id, self._max_size)
        except InvalidResult as error:
            self._invalid(name, payload, error.kind)
            return
        if logs.debugging:
            self._log(web_socket_id, result, len(members), live=live)
        if live:  # as `Latency` asks for
            latency = self._latency
            if not latency.running:
                latency.begin()
            latency.under_way += 1
            if result.origin is not None:
                latency.origins.append(result.origin)
        for member in members:
            member.deliver(web_socket_id, result, retained)
        self.delivered += len(members)

    def _log(self, web_socket_id: bytes, result: Result, sessions: int, *, live: bool) -> None:
        facts = {} if result.message_id is None else {"message_id": result.message_id}
        name = logs.short_id(web_socket_id.decode())
        log.debug("result", id=name, result=result.auth_result, sessions=sessions, live=live, **facts)

    def _invalid(self, name: bytes, payload: bytes, kind: str) -> None:
        self.invalid[kind] += 1
        log.warning(
            "invalid result",
            kind=kind,
            size=len(payload),
            id=logs.short_id(self.web_socket_id(name).decode(errors="replace")),
            expected="a word such as CONFIRMED, or an object with authResult",
        )
