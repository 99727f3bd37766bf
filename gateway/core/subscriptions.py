"""The table: who waits for which channel, and what Redis has confirmed. Pure.

Each channel has at most one question open at Redis, so an answer can belong to nothing else:

               join                     confirmed
    (absent) -------> ASKED ---------------------------> CONFIRMED
        ^               |                                    |
        |               | confirmed, nobody waits any more   | the last member leaves
        |               v                                    v
        +---------- LEAVING <--------------------------------+
         unsubscribed   |
                        +-> ASKED, if somebody has joined meanwhile

While there is no connection to where a channel belongs it is WANTED; the next connection asks for all that
belong there. When Redis takes a confirmed channel away by itself (`lost`) it is ASKED for anew.

A member first waits, then listens. It waits until Redis has confirmed the subscription and the
retained result has been read; what arrives live meanwhile is held for it. A channel with waiting
members therefore always has a SUBSCRIBE or a read on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from enum import Enum, auto
from typing import Generic, NamedTuple, TypeVar

MAX_HELD_PAYLOADS = 64
"""How many live payloads a channel holds for members that wait for their answer, the newest.

They wait a round trip to Redis, so even a few are unheard of. The answer of a client that registers
in a storm of results for its own id is followed by the latest of them.
"""


class Action(Enum):
    """What to say to Redis about a channel. A SUBSCRIBE always reads the retained result too."""

    NOTHING = auto()
    SUBSCRIBE = auto()
    READ = auto()
    UNSUBSCRIBE = auto()


class ChannelState(Enum):
    """What Redis has been asked and has said; see the top of this module."""

    WANTED = auto()
    ASKED = auto()
    CONFIRMED = auto()
    LEAVING = auto()


# Python 3.11 takes 200 ns to look an enum's member up, and 10 ns for a global.
NOTHING, SUBSCRIBE, READ, UNSUBSCRIBE = Action
WANTED, ASKED, CONFIRMED, LEAVING = ChannelState

M = TypeVar("M")

Slots = Collection[int]
"""The slots of a Cluster that a connection is for."""

SlotOf = Callable[[bytes], int]
"""Tells in which slot a channel is."""


class Channel(Generic[M]):
    """One channel's row: `waiting` members have no answer yet, `listening` ones have."""

    __slots__ = ("held", "listening", "state", "waiting")

    def __init__(self, state: ChannelState) -> None:
        self.state = state
        self.waiting: tuple[M, ...] = ()
        self.listening: tuple[M, ...] = ()
        self.held: tuple[bytes, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.waiting or self.listening)


class ChannelsBySlot(Generic[M]):
    """As much of a dict as the table needs, in parts: a slot's channels are found without looking at all.

    It takes no more memory than one dict, and a microsecond more for each look.
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
        self.pop(name)

    def get(self, name: bytes) -> Channel[M] | None:
        part = self._parts.get(self._slot_of(name))
        return None if part is None else part.get(name)

    def pop(self, name: bytes, default: Channel[M] | None = None) -> Channel[M] | None:
        number = self._slot_of(name)
        part = self._parts.get(number)
        if part is None:
            return default
        channel = part.pop(name, default)
        if not part:
            del self._parts[number]
        return channel

    def values(self) -> Iterator[Channel[M]]:
        return (channel for part in self._parts.values() for channel in part.values())

    def within(self, slots: Slots) -> Iterator[bytes]:
        """The channels in these slots."""
        return (name for number in slots for name in self._parts.get(number, ()))


class Confirmation(NamedTuple, Generic[M]):
    """What follows from an answer of Redis.

    `newcomers` are told that they are registered and then get `payloads`, oldest first. `veterans`
    have lived through a gap in the subscription and get `retained`, unless they have had it.
    """

    ask: Action
    newcomers: tuple[M, ...] = ()
    payloads: tuple[bytes, ...] = ()
    veterans: tuple[M, ...] = ()
    retained: bytes | None = None


class Subscriptions(Generic[M]):
    """The table of one node. Every method returns what has to be said to Redis because of it."""

    __slots__ = ("_channels",)

    def __init__(self, slot_of: SlotOf | None = None) -> None:
        """`slot_of` tells the slot of a channel where each connection is for some slots of a Cluster."""
        self._channels: dict[bytes, Channel[M]] | ChannelsBySlot[M] = (
            ChannelsBySlot(slot_of) if slot_of else {}
        )

    def __len__(self) -> int:
        """Channels with members, or that Redis still believes to be subscribed."""
        return len(self._channels)

    def names(self, slots: Slots | None = None) -> list[bytes]:
        """The channels in these slots, or all."""
        if slots is None:
            return list(self._channels)
        assert isinstance(self._channels, ChannelsBySlot)
        return list(self._channels.within(slots))

    def confirmed_channels(self, slots: Slots | None = None) -> list[bytes]:
        """What Redis has said to be subscribed, in these slots or all."""
        return [name for name in self.names(slots) if self._channels[name].state is CONFIRMED]

    def count_confirmed(self, slots: Slots | None = None) -> int:
        """How many these are; a third of the time that it takes to list them."""
        if slots is None:
            return sum(channel.state is CONFIRMED for channel in self._channels.values())
        return sum(self._channels[name].state is CONFIRMED for name in self.names(slots))

    def awaited(self, name: bytes) -> bool:
        """Whether somebody waits for the answer about `name`; what comes meanwhile is held for him."""
        channel = self._channels.get(name)
        return channel is not None and bool(channel.waiting)

    def is_confirmed(self, name: bytes) -> bool:
        """Whether Redis has said that `name` is subscribed."""
        channel = self._channels.get(name)
        return channel is not None and channel.state is CONFIRMED

    def members(self, name: bytes) -> tuple[M, ...]:
        """All members of `name`."""
        channel = self._channels.get(name)
        return () if channel is None else channel.waiting + channel.listening

    def unconfirmed(self, name: bytes) -> tuple[M, ...]:
        """The members of `name` for whom nothing can be heard at this moment."""
        channel = self._channels.get(name)
        if channel is None or channel.state is CONFIRMED:
            return ()
        return channel.waiting + channel.listening

    def join(self, name: bytes, member: M, *, connected: bool) -> Action:
        """`member` wants `name`. It waits until `confirmed`, whatever has to happen before.

        `connected`: there is a connection to ask about `name`.
        """
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel(ASKED if connected else WANTED)
            ask = SUBSCRIBE if connected else NOTHING
        elif channel.state is CONFIRMED and not channel.waiting:
            ask = READ
        else:  # the question that is open already will be its answer too
            ask = NOTHING
        channel.waiting += (member,)
        return ask

    def leave(self, name: bytes, member: M) -> Action:
        """`member` wants `name` no longer; no harm if it never did."""
        channel = self._channels.get(name)
        if channel is None:
            return NOTHING
        channel.waiting = _without(channel.waiting, member)
        channel.listening = _without(channel.listening, member)
        return self._release(name, channel) if channel.empty else NOTHING

    def _release(self, name: bytes, channel: Channel[M]) -> Action:
        """Nobody is left. A question on its way is waited for, so that there is never a second one."""
        channel.held = ()
        if channel.state is CONFIRMED:
            channel.state = LEAVING
            return UNSUBSCRIBE
        if channel.state is WANTED:
            del self._channels[name]
        return NOTHING

    def listening(self, name: bytes, payload: bytes) -> tuple[M, ...]:
        """The members that get `payload` now. It is held for those that still wait."""
        channel = self._channels.get(name)
        if channel is None:
            return ()
        if channel.waiting:
            channel.held = (*channel.held, payload)[-MAX_HELD_PAYLOADS:]
        return channel.listening

    def confirmed(self, name: bytes, retained: bytes | None) -> Confirmation[M]:
        """Redis has subscribed `name` (if it was asked to) and `retained` was read after that."""
        channel = self._channels.get(name)
        if channel is None or channel.state is LEAVING:  # a read overtaken by the last leave
            return Confirmation(NOTHING)
        after_gap = channel.state is ASKED
        channel.state = CONFIRMED
        if channel.empty:
            return Confirmation(self._release(name, channel))
        newcomers, veterans = channel.waiting, channel.listening if after_gap else ()
        payloads = channel.held
        # Redis answered the read after it had pushed what is held. So a retained result that is not
        # among the held ones was published before them, and one that is among them is not repeated.
        if retained is not None and retained not in payloads:
            payloads = (retained, *payloads)
        channel.listening += newcomers
        channel.waiting = channel.held = ()
        return Confirmation(NOTHING, newcomers, payloads, veterans, retained)

    def unsubscribed(self, name: bytes) -> Action:
        """Redis has forgotten `name`."""
        channel = self._channels.get(name)
        if channel is None:
            return NOTHING
        if channel.empty:
            del self._channels[name]
            return NOTHING
        channel.state = ASKED
        channel.held = ()  # came through the subscription before; what is read next may be newer
        return SUBSCRIBE

    def refused(self, name: bytes) -> tuple[M, ...]:
        """Redis does not let this node subscribe or read `name`; its members are out of the table."""
        channel = self._channels.pop(name, None)
        return () if channel is None else channel.waiting + channel.listening

    def lost(self, name: bytes, *, answer: bool = False) -> Action:
        """Redis has `name` subscribed no longer, though nobody has asked for that; it may have moved.

        `answer`: that is what has come of a SUBSCRIBE.
        """
        channel = self._channels.get(name)
        if channel is None or channel.state is not (ASKED if answer else CONFIRMED):
            return NOTHING
        channel.state = ASKED
        channel.held = ()  # as in `unsubscribed`
        return SUBSCRIBE

    def connected(self, slots: Slots | None = None) -> list[bytes]:
        """A new connection to Redis, for these slots or all: the channels to subscribe on it."""
        names = self.names(slots)
        for name in names:
            self._channels[name].state = ASKED
        return names

    def disconnected(self, slots: Slots | None = None) -> None:
        """The connection is gone, and with it every subscription and every open question.

        What was held goes too: it was published before any answer, so only retention promised it, and
        the retained result will be read again, by then perhaps a newer one.
        """
        for name in self.names(slots):
            channel = self._channels[name]
            if channel.empty:
                del self._channels[name]
            else:
                channel.state = WANTED
                channel.held = ()


def _without(members: tuple[M, ...], member: M) -> tuple[M, ...]:
    if members == (member,):  # nearly always
        return ()
    return tuple(other for other in members if other is not member) if member in members else members
