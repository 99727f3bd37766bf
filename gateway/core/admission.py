"""Limits of what a node holds for its clients: sessions, connections, handshakes, unread bytes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Final, Protocol

CONNECTIONS_PER_SESSION: Final = 3
"""Connections of one browser at most: a session that polls has one to listen and one to send, and browsers
keep an idle one for the next request."""

RELIEF: Final = 0.75
"""The part of the bound on unread bytes that is left when the worst readers have been dropped."""


class Verdict(Enum):
    """The answer of `Admission.admit` and `Connections.open`."""

    ADMITTED = "admitted"
    NODE_FULL = "node full"
    ADDRESS_FULL = "address full"


# Python 3.11 needs 200 ns to look up an enum's member, and 10 ns for a global.
ADMITTED, NODE_FULL, ADDRESS_FULL = Verdict


class Admission:
    """Counts sessions, in total and by client address. 0 for `per_address` means no limit per address."""

    __slots__ = ("_by_address", "_per_address", "_total", "sessions")

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._by_address: dict[str, int] = {}
        self.sessions = 0

    def admit(self, address: str) -> Verdict:
        """Count a session of `address`, if the limits allow it. `release` ends that."""
        if self.sessions >= self._total:
            return NODE_FULL
        held = self._by_address.get(address, 0)
        if self._per_address and held >= self._per_address:
            return ADDRESS_FULL
        self._by_address[address] = held + 1
        self.sessions += 1
        return ADMITTED

    def release(self, address: str) -> None:
        held = self._by_address[address] - 1
        if held:
            self._by_address[address] = held
        else:
            del self._by_address[address]
        self.sessions -= 1

    def held_by(self, address: str) -> int:
        """The sessions of `address`."""
        return self._by_address.get(address, 0)


class FairPool:
    """Places, of which one address may hold no more than are free.

    So one greedy address gets half of them, two get a third each, and whoever comes next still finds a place.
    While few places are taken, nobody is limited: many people may share an address. (The rule is that of
    shared buffers in switches: Choudhury and Hahne, "Dynamic queue length thresholds", 1998.)
    """

    __slots__ = ("_by_address", "_fair", "size", "taken")

    def __init__(self, size: int, *, fair: bool = True) -> None:
        """With `fair` off, addresses are not counted."""
        self.size = size
        self._fair = fair
        self._by_address: dict[str, int] = {}
        self.taken = 0

    def take(self, address: str) -> Verdict:
        """Take a place for `address`, if there is one. An empty address has no limit of its own."""
        verdict = self.hold(address)
        if verdict is not ADMITTED:
            self.give_back(address)
        return verdict

    def hold(self, address: str, already: int = 0, most: int = 0) -> Verdict:
        """Take a place for `address`, even if there is none; the answer says whether there was.

        The address holds `already` other things, and may hold `most` in all; 0 is no limit.
        """
        free = self.size - self.taken
        self.taken += 1
        held = 0
        if address and self._fair:
            held = self._by_address.get(address, 0)
            self._by_address[address] = held + 1
        if free <= 0:
            return NODE_FULL
        # One place is anybody's, however small the pool is.
        if held and (held + already >= free or (most and held + already >= most)):
            return ADDRESS_FULL
        return ADMITTED

    def give_back(self, address: str) -> None:
        """A place that `address` has taken is free again."""
        self.taken -= 1
        if address:
            self.forget(address)

    def forget(self, address: str) -> None:
        """The place stays taken, but for nobody in particular."""
        held = self._by_address.get(address, 0)
        if held > 1:
            self._by_address[address] = held - 1
        elif held:
            del self._by_address[address]


class Connections:
    """Counts the connections of a port, whatever happens on them, in total and by the address of the peer.

    A connection that becomes a session is counted by its session's address from then on (see `Admission`), so
    a waiting browser has no second entry here.
    """

    __slots__ = ("_admission", "_most", "_pool", "closing", "sessions", "source")

    def __init__(
        self, total: int, per_address: int, admission: Admission, source: Callable[[str], str]
    ) -> None:
        """`per_address` limits sessions; 0 means that no address has limits. `source` is the address by which
        a peer is counted: empty for a proxy, which connects for many clients."""
        self._most = CONNECTIONS_PER_SESSION * per_address
        self._pool = FairPool(total, fair=per_address > 0)
        self._admission = admission
        self.source = lru_cache(4_096)(source)
        """The address by which a connection from a peer is counted. Empty for a proxy."""
        self.sessions = 0
        """Connections that are sessions."""
        self.closing = 0
        """Connections that are being closed, and whose clients have not read all bytes yet."""

    @property
    def limit(self) -> int:
        """Connections that may be served at the same time."""
        return self._pool.size

    @property
    def total(self) -> int:
        """Connections at present."""
        return self._pool.taken

    def open(self, source: str) -> Verdict:
        """Count a new connection from `source`, until `close`. The answer says whether it may be served: a
        connection that may not is one too, until it is closed."""
        return self._pool.hold(source, self._admission.held_by(source), self._most)

    def become_session(self, peer: str) -> None:
        """A connection from `peer` is a session now: `close_session` ends that."""
        self._pool.forget(self.source(peer))
        self.sessions += 1

    def close(self, source: str) -> None:
        """A connection from `source`, no session, is gone."""
        self._pool.give_back(source)

    def close_session(self) -> None:
        """The connection of a session is gone."""
        self._pool.give_back("")
        self.sessions -= 1

    def begin_closing(self, source: str) -> None:
        """The kernel still sends on a connection from `source` that was counted off."""
        self._pool.hold(source)
        self.closing += 1

    def end_closing(self, source: str) -> None:
        """That connection is gone."""
        self._pool.give_back(source)
        self.closing -= 1


MAX_INCOMING: Final = 32 << 20
"""Bytes of all heads and messages of clients that have begun to arrive and are not complete. Nearly all come
in one packet."""


class SlowReader(Protocol):
    """Somebody for whom bytes wait, since the client has not read what was sent before."""

    @property
    def unread(self) -> int:
        """Bytes that wait."""

    def drop(self) -> None:
        """End the connection. It must not call the hub before it returns, because the hub may be writing."""


class Backlog:
    """The slow readers of a node, and the bound on the bytes that wait for all of them together.

    Each of them has a bound of its own (`--write-buffer`). But clients that all stay just below it could use
    up the memory of the node. When the sum passes `limit`, those with most bytes are dropped, until a quarter
    of it is free: so a recount is needed only after as many bytes again.
    """

    __slots__ = ("_estimate", "_limit", "_readers", "discard", "dropped")

    def __init__(self, limit: int) -> None:
        """`limit` is in bytes."""
        self._limit = limit
        self._readers: set[SlowReader] = set()
        self.discard: Callable[[SlowReader], None] = self._readers.discard
        """A reader has read everything, or is gone. Every session that ends is one, so this is no method."""
        self._estimate = 0  # never below the true sum
        self.dropped = 0
        """Slow readers that were dropped so far."""

    def __len__(self) -> int:
        return len(self._readers)

    @property
    def unread(self) -> int:
        """Bytes that wait for all slow readers."""
        return sum(reader.unread for reader in self._readers)

    def add(self, reader: SlowReader, size: int) -> None:
        """So many more bytes wait for `reader`."""
        self._readers.add(reader)
        self._estimate += size
        if self._estimate > self._limit:
            self._recount()

    def _recount(self) -> None:
        waiting = {reader: reader.unread for reader in self._readers}
        self._estimate = sum(waiting.values())
        if self._estimate <= self._limit:
            return
        for reader in sorted(waiting, key=waiting.__getitem__, reverse=True):
            if self._estimate <= RELIEF * self._limit:
                break
            self._estimate -= waiting[reader]
            self._readers.discard(reader)
            self.dropped += 1
            reader.drop()


class Sender(Protocol):
    """A client that has sent the beginning of something."""

    @property
    def incomplete(self) -> int:
        """Bytes of it that are kept. 0 once it is complete."""

    def drop_incomplete(self) -> None:
        """End the connection: too much has begun, and this is among the largest."""


class Incoming:
    """The bound on what has begun to arrive from all clients of a node: heads of requests, messages.

    Each of them is small. But clients that all leave theirs incomplete could use up the memory of the node.
    When the sum passes `limit`, the largest are dropped, as in `Backlog`. A client need not report that it
    has completed what it had begun: the next recount finds out.
    """

    __slots__ = ("_estimate", "_limit", "_senders", "discard", "dropped")

    def __init__(self, limit: int = MAX_INCOMING) -> None:
        """`limit` is in bytes."""
        self._limit = limit
        self._senders: set[Sender] = set()
        self.discard: Callable[[Sender], None] = self._senders.discard
        """Nothing of a sender is kept any more. As in `Backlog`, this is no method."""
        self._estimate = 0  # never below the true sum
        self.dropped = 0
        """Clients that were dropped so far."""

    def add(self, sender: Sender, size: int) -> None:
        """So many more bytes have come from `sender`, and something is incomplete."""
        self._senders.add(sender)
        self._estimate += size
        if self._estimate > self._limit:
            self._recount()

    def _recount(self) -> None:
        kept = {sender: size for sender in self._senders if (size := sender.incomplete)}
        self._senders.intersection_update(kept)
        self._estimate = sum(kept.values())
        if self._estimate <= self._limit:
            return
        for sender in sorted(kept, key=kept.__getitem__, reverse=True):
            if self._estimate <= RELIEF * self._limit:
                break
            self._estimate -= kept[sender]
            self._senders.discard(sender)
            self.dropped += 1
            sender.drop_incomplete()
