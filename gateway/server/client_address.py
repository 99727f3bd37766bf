"""The client's address behind trusted proxies. Sessions are limited by it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

MAX_HOPS: Final = 32
"""Proxies that are followed, from the last one back. A client can write thousands of addresses into a header,
and if it sits in a trusted network itself, each of them would be parsed, at 10 µs."""

MAX_HOP: Final = 64
"""Characters of an address with its port and brackets. A longer one is none, and is not kept in a cache."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


TRANSLATED: Final = IPv6Network("64:ff9b::/96")
"""In this network, translators between IPv4 and IPv6 put all the addresses of IPv4 (RFC 6052 section 2.1)."""


def client_address(peer: str, forwarded: Iterable[str], trusted: Sequence[Network]) -> str:
    """The client's address, for a connection from `peer`.

    `forwarded` holds the request's X-Forwarded-For headers in order. Each proxy appends the address that it
    sees. So the list is read from its end, and only while the proxies are trusted: a client can invent
    everything before that. An IPv6 address is its /64, the smallest network that a provider gives to one
    customer. A value that is no address ends the search, and so do MAX_HOPS of them.
    """
    if not trusted and ":" not in peer:  # an IPv4 address as the kernel writes it, or no address
        return peer
    current = _address(peer)
    if current is None:
        return peer
    for hop in reversed(",".join(forwarded).rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
        if not any(current in network for network in trusted):
            break
        text = hop.strip()
        previous = _address(text) if len(text) <= MAX_HOP else None
        if previous is None:
            break
        current = previous
    if current.version == 6:
        return str(IPv6Network((int(current) >> 64 << 64, 64)))
    return str(current)


def source_address(peer: str, trusted: Sequence[Network]) -> str:
    """The address by which connections from `peer` are limited. Empty for a trusted proxy: it connects for
    many clients, whose addresses only their requests tell."""
    return "" if is_trusted(peer, trusted) else client_address(peer, (), trusted)


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Whether `peer` is a proxy whose headers are trusted."""
    if not trusted:
        return False
    address = _address(peer)
    return address is not None and any(address in network for network in trusted)


@lru_cache(1024)  # a few proxies open all connections
def _address(text: str) -> Address | None:
    """Some proxies add a port. An IPv4 address that is written as IPv6 becomes IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.version == 6 and _ipv4_in(address)) or address


def _ipv4_in(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that is written as this one. The whole of IPv4 would otherwise be one /64."""
    if address in TRANSLATED:
        ipv4 = IPv4Address(int(address) & 0xFFFFFFFF)
        return ipv4 if ipv4.is_global else None  # section 3.1: there are no others, and yours may be trusted
    return address.ipv4_mapped
