"""Whom to admit, and whose deadline comes next. Pure: addresses and the time are arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Generic, Protocol, TypeVar
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Verdict(Enum):
    """What `Admission.admit` says."""

    ADMITTED = "admitted"
    NODE_FULL = "node full"
    ADDRESS_FULL = "address full"


class Admission:
    """Counts sessions, on the node and by client address; 0 for `per_address` sets no limit there."""

    __slots__ = ("_by_address", "_per_address", "_total", "sessions")

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._by_address: dict[str, int] = {}
        self.sessions = 0

    def admit(self, address: str) -> Verdict:
        """Count a session of `address` in, if the limits allow; `release` counts it out again."""
        if self.sessions >= self._total:
            return Verdict.NODE_FULL
        held = self._by_address.get(address, 0)
        if self._per_address and held >= self._per_address:
            return Verdict.ADDRESS_FULL
        self._by_address[address] = held + 1
        self.sessions += 1
        return Verdict.ADMITTED

    def release(self, address: str) -> None:
        held = self._by_address[address] - 1
        if held:
            self._by_address[address] = held
        else:
            del self._by_address[address]
        self.sessions -= 1


def client_address(peer: str, forwarded: Iterable[str], trusted: Sequence[Network]) -> str:
    """The address that limits are counted by, for a connection from `peer`.

    `forwarded` holds the request's X-Forwarded-For headers in order. Each proxy appended the address
    that it saw, so the list is read from its end, and only as far as the proxies that said so are
    trusted: what stands before that is the client's own invention. IPv6 counts by /64, the smallest
    network that a provider hands to one customer. A hop that is no address ends the walk.
    """
    if not trusted and ":" not in peer:  # the kernel's own spelling of an IPv4 address, or no address
        return peer
    current = _address(peer)
    if current is None:
        return peer
    for hop in reversed([hop for header in forwarded for hop in header.split(",")]):
        if not any(current in network for network in trusted):
            break
        previous = _address(hop.strip())
        if previous is None:
            break
        current = previous
    if current.version == 6:
        return str(IPv6Network((int(current) >> 64 << 64, 64)))
    return str(current)


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Whether `peer` is a proxy whose headers are believed."""
    if not trusted:
        return False
    address = _address(peer)
    return address is not None and any(address in network for network in trusted)


@lru_cache(1024)  # a few proxies bring everybody
def _address(text: str) -> Address | None:
    """Also with a port, as some proxies write it; an IPv4 address mapped into IPv6 as what it is."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.version == 6 and address.ipv4_mapped) or address


_DEFAULT_PORTS = {"http": 80, "https": 443}

_PAGE_SCHEMES = {"ws": "http", "wss": "https"}
"""Traefik names a WebSocket's own scheme in X-Forwarded-Proto; the page that opened it has the other."""


@lru_cache(1024)  # a few pages on a few hosts bring everybody
def origin_allowed(origin: str | None, host: str, scheme: str | None, allowed: tuple[str, ...]) -> bool:
    """Whether a page from `origin` may connect (RFC 6454; browsers send it, programs do not).

    `allowed` holds exact origins, `*`, or `same-origin`: the origin's host and port are the ones in
    the request's Host header, and its scheme is `scheme` where a trusted proxy has told it.
    """
    if origin is None or "*" in allowed or ("://" in origin and origin.lower() in allowed):
        return True
    return "same-origin" in allowed and _same_origin(origin, host, scheme and scheme.lower())


def _same_origin(origin: str, host: str, scheme: str | None) -> bool:
    page_scheme = origin.partition("://")[0].lower()
    try:
        page, here = urlsplit(origin), urlsplit(f"{page_scheme}://{host}")
        page_port, here_port = page.port, here.port
    except ValueError:  # a port that is no number, a bracket too few
        return False
    default = _DEFAULT_PORTS.get(page_scheme)
    return (
        default is not None
        and (not scheme or _PAGE_SCHEMES.get(scheme, scheme) == page_scheme)
        and page.hostname is not None
        and (page.hostname, page_port or default) == (here.hostname, here_port or default)
    )


class Timed(Protocol):
    """What a deadline can be kept for; `due` belongs to the queue, and is 0 while the item does not wait."""

    due: int


T = TypeVar("T", bound=Timed)


class Deadlines(Generic[T]):
    """Who is due when, in seconds of any clock, to a quarter of a second and never early.

    A wheel of sets: one timer for everybody instead of one each, and moving a deadline costs the
    same whether ten or a hundred thousand wait.
    """

    TICK = 0.25

    __slots__ = ("_wheel",)

    def __init__(self) -> None:
        self._wheel: dict[int, set[T]] = {}

    def set(self, item: T, when: float) -> None:
        """Make `item` due at `when`, and no longer at the time it was due before."""
        due = int(when / self.TICK) + 1
        if item.due == due:
            return
        if item.due:
            self.discard(item)
        item.due = due
        self._wheel.setdefault(due, set()).add(item)

    def discard(self, item: T) -> None:
        """Forget `item`; no harm if it is not waiting."""
        bucket = self._wheel.get(item.due)
        if bucket is not None:
            bucket.discard(item)
            if not bucket:
                del self._wheel[item.due]
        item.due = 0

    def expired(self, now: float) -> Iterator[T]:
        """Take out, one by one, those that are due; what happens meanwhile may move or forget others."""
        last = int(now / self.TICK)
        for tick in sorted(tick for tick in self._wheel if tick <= last):
            bucket = self._wheel.get(tick)
            while bucket:
                item = bucket.pop()
                item.due = 0
                yield item
            self._wheel.pop(tick, None)

    def __iter__(self) -> Iterator[T]:
        """All that wait, soonest first; a snapshot."""
        return iter([item for tick in sorted(self._wheel) for item in self._wheel[tick]])
