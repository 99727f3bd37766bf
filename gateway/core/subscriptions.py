"""The table: who waits for which channel, and what Redis has confirmed. Pure.

Each channel has at most one open request at Redis, so every reply belongs to exactly one request:

               join                     confirmed
    (absent) -------> ASKED ---------------------------> CONFIRMED
        ^               |                                    |
        |               | confirmed, no member is left   | the last member leaves
        |               v                                    v
        +---------- LEAVING <--------------------------------+
         unsubscribed   |
                        +-> ASKED, if a member has joined in between

While there is no connection for a channel, it is WANTED. The next connection subscribes to all its channels.
While Redis denies a channel to this node, it is DENIED: no request is open, and the connection asks again
from time to time (`retry`) until nobody wants it any more.
When Redis ends a confirmed subscription by itself (`lost`), the channel is ASKED for again.

A member first waits, then listens. It waits until Redis has confirmed the subscription and the retained
result has been read. Live results that arrive in between are held for it. A channel with waiting members
therefore always has an open SUBSCRIBE or read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from enum import Enum, auto
from typing import Final, Generic, NamedTuple, TypeVar

MAX_HELD_PAYLOADS = 64
"""Live payloads that a channel holds for waiting members; the newest are kept.

Members wait for one round trip to Redis, so more than one payload is rare.
"""


class Action(Enum):
    """The request to send to Redis for a channel. A SUBSCRIBE also reads the retained result.

    NO_ROOM: nothing to send, because the channel takes no more members.
    """

    NOTHING = auto()
    SUBSCRIBE = auto()
    READ = auto()
    UNSUBSCRIBE = auto()
    NO_ROOM = auto()


class ChannelState(Enum):
    """The state of a channel: see the top of this module."""

    WANTED = auto()
    ASKED = auto()
    CONFIRMED = auto()
    LEAVING = auto()
    DENIED = auto()


# Python 3.11 needs 200 ns to look up an enum's member, and 10 ns for a global.
NOTHING, SUBSCRIBE, READ, UNSUBSCRIBE, NO_ROOM = Action
WANTED, ASKED, CONFIRMED, LEAVING, DENIED = ChannelState

FEW: Final = 8
"""Members in a tuple, which needs 8 bytes for each. More are in a dict: one joins or leaves in the same time,
however many there are."""

M = TypeVar("M")

Members = tuple[M, ...] | dict[M, None]
"""In the order in which they have joined."""

Slots = Collection[int]
"""The slots of a Cluster that one connection serves."""

SlotOf = Callable[[bytes], int]
"""Returns the slot of a channel."""


class Channel(Generic[M]):
    """One channel's row. `waiting` members are not confirmed yet, `listening` ones are."""

    __slots__ = ("held", "listening", "state", "waiting")

    def __init__(self, state: ChannelState) -> None:
        self.state = state
        self.waiting: Members[M] = ()
        self.listening: Members[M] = ()
        self.held: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        """Its members."""
        return len(self.waiting) + len(self.listening)

    @property
    def empty(self) -> bool:
        return not (self.waiting or self.listening)

    @property
    def members(self) -> tuple[M, ...]:
        return (*self.waiting, *self.listening)


class ChannelsBySlot(Generic[M]):
    """The dict that the table needs, in parts: a slot's channels are found without a look at all others.

    It needs no more memory than one dict, and a microsecond more for each access.
    """

    __slots__ = ("_parts", "_slot_of")

    def __init__(self, slot_of: SlotOf) -> None:
        self._slot_of = slot_of
        self._parts: dict[int, dict[bytes, Channel[M]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    def __iter__(self) -> Iterator[bytes]:
        return (name for part in self._parts.values() for name in part)

    def __getitem__(self, name: bytes) -> Channel[M]:
        return self._parts[self._slot_of(name)][name]

    def __setitem__(self, name: bytes, channel: Channel[M]) -> None:
        self._parts.setdefault(self._slot_of(name), {})[name] = channel

    def __delitem__(self, name: bytes) -> None:
        number = self._slot_of(name)
        part = self._parts[number]
        del part[name]
        if not part:
            del self._parts[number]

    def get(self, name: bytes) -> Channel[M] | None:
        part = self._parts.get(self._slot_of(name))
        return None if part is None else part.get(name)

    def values(self) -> Iterator[Channel[M]]:
        return (channel for part in self._parts.values() for channel in part.values())

    def within(self, slots: Slots) -> Iterator[bytes]:
        """The channels in these slots."""
        return (name for number in slots for name in self._parts.get(number, ()))


class Confirmation(NamedTuple, Generic[M]):
    """The consequences of a reply from Redis.

    `newcomers` are confirmed, and then get `payloads`, oldest first. `veterans` were confirmed before an
    outage, and get `retained`, unless it is empty or they have had it.
    """

    action: Action
    newcomers: tuple[M, ...] = ()
    payloads: tuple[bytes, ...] = ()
    veterans: tuple[M, ...] = ()
    retained: bytes | None = None


class Subscriptions(Generic[M]):
    """The table of one node. Methods that change it return the request to send to Redis."""

    __slots__ = ("_channels", "_max_members")

    def __init__(self, slot_of: SlotOf | None = None, max_members: int = 0) -> None:
        """`slot_of` returns a channel's slot: needed where each connection serves some slots of a Cluster.

        `max_members` limits those of one channel. 0 means no limit.
        """
        self._max_members = max_members
        self._channels: dict[bytes, Channel[M]] | ChannelsBySlot[M] = (
            ChannelsBySlot(slot_of) if slot_of else {}
        )

    def __len__(self) -> int:
        """Channels with members, and those that Redis has not unsubscribed yet."""
        return len(self._channels)

    def names(self, slots: Slots | None = None) -> list[bytes]:
        """The channels in these slots, or all."""
        if slots is None:
            return list(self._channels)
        assert isinstance(self._channels, ChannelsBySlot)
        return list(self._channels.within(slots))

    def confirmed_channels(self, slots: Slots | None = None) -> list[bytes]:
        """The channels that Redis has confirmed, in these slots or all."""
        return [name for name in self.names(slots) if self._channels[name].state is CONFIRMED]

    def count_confirmed(self, slots: Slots | None = None) -> int:
        """The number of `confirmed_channels`, in a third of the time."""
        if slots is None:
            return sum(channel.state is CONFIRMED for channel in self._channels.values())
        return sum(self._channels[name].state is CONFIRMED for name in self.names(slots))

    def awaited(self, name: bytes) -> bool:
        """Whether a member waits for `name` to be confirmed. Results for it are held."""
        channel = self._channels.get(name)
        return channel is not None and bool(channel.waiting)

    def is_confirmed(self, name: bytes) -> bool:
        """Whether Redis has confirmed `name`."""
        channel = self._channels.get(name)
        return channel is not None and channel.state is CONFIRMED

    def members(self, name: bytes) -> tuple[M, ...]:
        """All members of `name`."""
        channel = self._channels.get(name)
        return () if channel is None else channel.members

    def unconfirmed(self, name: bytes) -> tuple[M, ...]:
        """The members of `name`, if results for it cannot be received at this moment."""
        channel = self._channels.get(name)
        if channel is None or channel.state is CONFIRMED:
            return ()
        return channel.members

    def join(self, name: bytes, member: M, *, connected: bool) -> Action:
        """`member` wants `name`. It waits until `confirmed`. With NO_ROOM, nothing has changed.

        `connected`: there is a connection for `name`.
        """
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel(ASKED if connected else WANTED)
            action = SUBSCRIBE if connected else NOTHING
        elif self._max_members and len(channel) >= self._max_members:
            return NO_ROOM
        elif channel.state is CONFIRMED and not channel.waiting:
            action = READ
        else:  # the reply to the open request answers this member too
            action = NOTHING
        channel.waiting = _with(channel.waiting, (member,))
        return action

    def leave(self, name: bytes, member: M) -> Action:
        """`member` wants `name` no longer. It does no harm if it never did."""
        channel = self._channels.get(name)
        if channel is None:
            return NOTHING
        channel.waiting = _without(channel.waiting, member)
        channel.listening = _without(channel.listening, member)
        return self._release(name, channel) if channel.empty else NOTHING

    def _release(self, name: bytes, channel: Channel[M]) -> Action:
        """No member is left. An open request is waited for, so that there is never a second one."""
        channel.held = ()
        if channel.state is CONFIRMED:
            channel.state = LEAVING
            return UNSUBSCRIBE
        if channel.state is WANTED:
            del self._channels[name]
        elif channel.state is DENIED:
            del self._channels[name]
            return UNSUBSCRIBE  # so that the connection does not ask again; Redis is told nothing
        return NOTHING

    def listening(self, name: bytes, payload: bytes) -> tuple[M, ...]:
        """The members that get `payload` now. It is held for those that wait."""
        channel = self._channels.get(name)
        if channel is None:
            return ()
        if channel.waiting:
            channel.held = (*channel.held, payload)[-MAX_HELD_PAYLOADS:]
        return tuple(channel.listening)  # which is no copy of a tuple

    def confirmed(self, name: bytes, retained: bytes | None) -> Confirmation[M]:
        """Redis has subscribed `name`, if it was asked to, and `retained` was read after that: a result, or
        empty if a backend has announced the id and no result was retained yet."""
        channel = self._channels.get(name)
        if channel is None or channel.state is LEAVING:  # the last member has left before the reply to a read
            return Confirmation(NOTHING)
        after_gap = channel.state is ASKED
        channel.state = CONFIRMED
        if channel.empty:
            return Confirmation(self._release(name, channel))
        newcomers, veterans = tuple(channel.waiting), tuple(channel.listening) if after_gap else ()
        payloads = channel.held
        # Redis answered the read after it had pushed the held payloads. So a retained result that is not
        # among them was published before them, and one that is among them must not be repeated. An empty
        # value announces the id, and is no result.
        if retained and retained not in payloads:
            payloads = (retained, *payloads)
        channel.listening = _with(channel.listening, newcomers)
        channel.waiting = channel.held = ()
        return Confirmation(NOTHING, newcomers, payloads, veterans, retained)

    def unsubscribed(self, name: bytes) -> Action:
        """Redis has unsubscribed `name`."""
        channel = self._channels.get(name)
        if channel is None:
            return NOTHING
        if channel.empty:
            del self._channels[name]
            return NOTHING
        channel.state = ASKED
        channel.held = ()  # from the old subscription: the next read may return a newer result
        return SUBSCRIBE

    def denied(self, name: bytes) -> tuple[M, ...]:
        """Redis denies this node the channel `name`, or a read of its retained result.

        Returns the members that wait for it to be allowed. Without any, there is nothing to ask again.
        """
        channel = self._channels.get(name)
        if channel is None or channel.state is LEAVING:
            return ()
        if channel.state is CONFIRMED:  # a read was denied; live results arrive as before
            return tuple(channel.waiting)
        if channel.empty:
            del self._channels[name]
            return ()
        channel.state = DENIED
        channel.held = ()
        return (*channel.waiting, *channel.listening)

    def retry(self, name: bytes) -> bool:
        """Whether a denied `name` is still wanted: then the same request is open again."""
        channel = self._channels.get(name)
        if channel is None:
            return False
        if channel.state is DENIED:
            channel.state = ASKED
            return True
        return channel.state is CONFIRMED and bool(channel.waiting)

    def lost(self, name: bytes, *, answer: bool = False) -> Action:
        """Redis has ended the subscription to `name` by itself: its slot may have moved.

        `answer`: this is the reply to a SUBSCRIBE.
        """
        channel = self._channels.get(name)
        if channel is None or channel.state is not (ASKED if answer else CONFIRMED):
            return NOTHING
        channel.state = ASKED
        channel.held = ()  # as in `unsubscribed`
        return SUBSCRIBE

    def connected(self, slots: Slots | None = None) -> list[bytes]:
        """There is a connection to Redis, for these slots or all. Returns the channels to subscribe."""
        names = self.names(slots)
        for name in names:
            self._channels[name].state = ASKED
        return names

    def disconnected(self, slots: Slots | None = None) -> None:
        """The connection is gone, and with it every subscription and every open request.

        The held payloads are dropped: they were published before any confirmation, so only retention promised
        them, and the retained result will be read again.
        """
        for name in self.names(slots):
            channel = self._channels[name]
            if channel.empty:
                del self._channels[name]
            else:
                channel.state = WANTED
                channel.held = ()


def _with(members: Members[M], newcomers: tuple[M, ...]) -> Members[M]:
    if not members and len(newcomers) <= FEW:  # nearly always
        return newcomers
    if isinstance(members, dict):
        members.update(dict.fromkeys(newcomers))
        return members
    joined = (*members, *newcomers)
    return joined if len(joined) <= FEW else dict.fromkeys(joined)


def _without(members: Members[M], member: M) -> Members[M]:
    if members == (member,):  # nearly always
        return ()
    if isinstance(members, dict):
        members.pop(member, None)
        return members
    return tuple(other for other in members if other is not member) if member in members else members
