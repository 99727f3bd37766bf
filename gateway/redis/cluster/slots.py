"""The slots of a Cluster: the slot of a channel, and what a node of the Cluster says about slots. Pure."""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..url import Address, told_address

SLOT_COUNT: Final = 16_384

MAX_NAME_TRIES: Final = 16 * SLOT_COUNT
"""Names tried to find one in a given slot. For a single slot, 1 of 9 million searches fails."""


MAX_SHOWN_RANGES: Final = 10
"""Ranges of slots in one line; the others are counted."""


def key_slot(name: bytes) -> int:
    """The slot of a key or a shard channel (Redis Cluster specification, Hash tags).

    If the name has braces with something between the first `{` and the next `}`, only that counts. The CRC16
    of the specification is the one of XMODEM, which Python has as `crc_hqx`.
    """
    if b"{" in name:  # only in a prefix: no webSocketId has one
        _, _, rest = name.partition(b"{")
        tag, closed, _ = rest.partition(b"}")
        if closed and tag:
            name = tag
    return crc_hqx(name, 0) % SLOT_COUNT


_REDIRECTION: Final = re.compile(r"(MOVED|ASK) [0-9]+ ([A-Za-z0-9._:?-]*):([0-9]{1,5})")

Ranges = tuple[tuple[int, int, Address], ...]
"""First slot, last slot, master; in order."""


class Redirection(NamedTuple):
    """What a node answers that does not serve the slot."""

    kind: str
    """MOVED; or ASK, while the slot migrates."""
    host: str
    """Empty for the host of the node that answers."""
    port: int


def parse_redirection(error: str) -> Redirection | None:
    """The redirection in an error of Redis, if it is one."""
    found = _REDIRECTION.match(error)
    # A question mark stands for a host name that the node does not know.
    return found and Redirection(found[1], found[2].removeprefix("?"), int(found[3]))


class ClusterView(NamedTuple):
    """Who serves which slots, according to one node."""

    epoch: int
    """The configuration epoch: every failover and nearly every move of slots raises it."""
    ranges: Ranges


def parse_view(information: bytes, ranges: Sequence[Any], asked: Address) -> ClusterView:
    """A node's replies to CLUSTER INFO and CLUSTER SLOTS. `asked` is the node's address.

    A node that does not know its own name leaves the host out. Raises ValueError for replies that no node
    gives.
    """
    fields = dict(line.partition(b":")[::2] for line in information.split(b"\r\n"))
    found = []
    for first, last, (host, port, *_), *_replicas in ranges:
        if type(first) is not int or type(last) is not int or not 0 <= first <= last < SLOT_COUNT:
            raise ValueError("slots were named that do not exist")
        named = host if host and host != b"?" else asked.host.encode()
        found.append((first, last, told_address(named, port)))
    return ClusterView(int(fields[b"cluster_current_epoch"]), tuple(sorted(found)))


class SlotMap(NamedTuple):
    """The master of each slot; None where no node serves it."""

    owners: tuple[Address | None, ...]

    @property
    def masters(self) -> list[Address]:
        """The nodes that serve slots."""
        return [address for address in dict.fromkeys(self.owners) if address is not None]

    def slots(self, owner: Address | None) -> list[int]:
        """The slots that `owner` serves; with None, those that no node serves."""
        return [number for number, address in enumerate(self.owners) if address == owner]

    def with_owners(self, changes: Mapping[int, Address]) -> SlotMap:
        """This map with other owners for some slots."""
        owners = list(self.owners)
        for number, owner in changes.items():
            owners[number] = owner
        return SlotMap(tuple(owners))


UNKNOWN_MAP: Final = SlotMap((None,) * SLOT_COUNT)
"""The map before any node has answered."""


def slot_map(ranges: Ranges) -> SlotMap:
    """The map that a node's view makes."""
    owners: list[Address | None] = [None] * SLOT_COUNT
    for first, last, owner in ranges:
        owners[first : last + 1] = [owner] * (last + 1 - first)
    return SlotMap(tuple(owners))


def moved_slots(before: SlotMap, after: SlotMap) -> frozenset[int]:
    """The slots whose owner differs."""
    pairs = zip(before.owners, after.owners, strict=True)
    return frozenset(number for number, (old, new) in enumerate(pairs) if old != new)


def name_in_slots_of(stem: bytes, known: SlotMap, owner: Address) -> bytes | None:
    """A name that begins with `stem` and is in a slot of `owner`; None if there is none.

    An owner of a thousandth of the slots takes a thousand tries, half a microsecond each. A stem with a hash
    tag has all its names in one slot.
    """
    if owner not in known.owners:
        return None
    names = (b"%b%d" % (stem, number) for number in range(MAX_NAME_TRIES))
    return next((name for name in names if known.owners[key_slot(name)] == owner), None)


def shown_ranges(numbers: Sequence[int]) -> str:
    """Ascending slots in a few words, as "0-5460, 10923 and 16 more slots"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = ranges[:MAX_SHOWN_RANGES]
    rest = sum(last - first + 1 for first, last in ranges[MAX_SHOWN_RANGES:])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in shown)
    return f"{text} and {rest} more slots" if rest else text
