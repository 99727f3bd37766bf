"""A Cluster's slots: which a channel is in, and what a node of the Cluster says of who serves them. Pure."""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..url import Address

SLOT_COUNT: Final = 16_384

MAX_NAME_TRIES: Final = 16 * SLOT_COUNT
"""Names looked at for one in a certain slot: with one slot of all, 1 of 9 million searches is in vain."""


def key_slot(name: bytes) -> int:
    """The slot of a key or a shard channel (Redis Cluster specification, Hash tags).

    If the name has braces with something between the first `{` and the next `}`, only that counts. The CRC16
    that the specification names is the one of XMODEM, which Python has as `crc_hqx`.
    """
    if b"{" in name:  # in a prefix, if at all: no webSocketId has one
        _, _, rest = name.partition(b"{")
        tag, closed, _ = rest.partition(b"}")
        if closed and tag:
            name = tag
    return crc_hqx(name, 0) % SLOT_COUNT


_REDIRECTION: Final = re.compile(r"(MOVED|ASK) [0-9]+ (.*):([0-9]+)")

Ranges = tuple[tuple[int, int, Address], ...]
"""First slot, last slot, master; in order."""


class Redirection(NamedTuple):
    """What a node answers that does not serve the slot."""

    kind: str
    """MOVED; or ASK, while the slot is on its way."""
    host: str
    """Empty for the host of the node that answers."""
    port: int


def parse_redirection(error: str) -> Redirection | None:
    """What this error of Redis says, if it is a redirection."""
    found = _REDIRECTION.match(error)
    # A question mark stands for a name that was not told.
    return found and Redirection(found[1], found[2].removeprefix("?"), int(found[3]))


class ClusterView(NamedTuple):
    """Who serves what, in the words of one node."""

    epoch: int
    """The later, the higher: every failover and nearly every move of slots raises it."""
    ranges: Ranges


def parse_view(information: bytes, ranges: Sequence[Any], asked: Address) -> ClusterView:
    """What a node said: its replies to CLUSTER INFO and CLUSTER SLOTS. `asked` is its address.

    A node that does not know by which name it is reached leaves the host out.
    """
    fields = dict(line.partition(b":")[::2] for line in information.split(b"\r\n"))
    found = []
    for first, last, (host, port, *_), *_replicas in ranges:
        found.append((first, last, Address(host.decode() if host and host != b"?" else asked.host, port)))
    return ClusterView(int(fields[b"cluster_current_epoch"]), tuple(sorted(found)))


class SlotMap(NamedTuple):
    """Who serves each slot; None for nobody."""

    owners: tuple[Address | None, ...]

    @property
    def masters(self) -> list[Address]:
        """Who serves any slot."""
        return [address for address in dict.fromkeys(self.owners) if address is not None]

    def slots(self, owner: Address | None) -> list[int]:
        """Which `owner` serves; None for those that nobody does."""
        return [number for number, address in enumerate(self.owners) if address == owner]

    def with_owners(self, claims: Mapping[int, Address]) -> SlotMap:
        """This map with other owners for some slots."""
        owners = list(self.owners)
        for number, owner in claims.items():
            owners[number] = owner
        return SlotMap(tuple(owners))


UNKNOWN_MAP: Final = SlotMap((None,) * SLOT_COUNT)
"""What is known before anybody has been asked."""


def slot_map(ranges: Ranges) -> SlotMap:
    """The map that a node's view makes."""
    owners: list[Address | None] = [None] * SLOT_COUNT
    for first, last, owner in ranges:
        owners[first : last + 1] = [owner] * (last + 1 - first)
    return SlotMap(tuple(owners))


def moved_slots(before: SlotMap, after: SlotMap) -> frozenset[int]:
    """The slots that somebody else serves."""
    pairs = zip(before.owners, after.owners, strict=True)
    return frozenset(number for number, (old, new) in enumerate(pairs) if old != new)


def name_in_slots_of(stem: bytes, known: SlotMap, owner: Address) -> bytes | None:
    """A name that begins with `stem` and is in a slot of `owner`; None if there is none.

    With a share of a thousandth of the slots it takes a thousand tries, half a microsecond each. A stem with
    a hash tag has all its names in one slot.
    """
    if owner not in known.owners:
        return None
    names = (b"%b%d" % (stem, number) for number in range(MAX_NAME_TRIES))
    return next((name for name in names if known.owners[key_slot(name)] == owner), None)
