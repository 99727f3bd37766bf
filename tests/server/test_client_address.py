"""The client's address, behind proxies that are trusted or not."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.server.client_address import client_address, is_trusted, source_address

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        # Nobody is believed who is not trusted
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        # One proxy
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # the first is the client's invention
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),  # several headers are one list
        ("10.0.0.1", [], "10.0.0.1"),
        # A chain of them, read from its end
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1", "10.0.0.3, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.9.9.9, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3,10.0.0.2"], "10.0.0.3"),  # a client inside the trusted network
        # With ports, brackets, blanks
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["  198.51.100.1\t"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8:1:2:3:4:5:6]:4711"], "2001:db8:1:2::/64"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::/64"),
        # IPv6 counts by /64; IPv4 in it is IPv4
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", [], "203.0.113.9"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("fd00::1", ["198.51.100.1"], "198.51.100.1"),
        ("fe80::1%eth0", [], "fe80::/64"),
        ("64:ff9b::1.1.1.1", [], "1.1.1.1"),  # from a translator, which has all of IPv4 in one /64
        ("10.0.0.1", ["64:ff9b::1.1.1.1"], "1.1.1.1"),
        ("64:ff9b::10.0.0.1", ["198.51.100.1"], "64:ff9b::/64"),  # that would be a trusted proxy
        # A hop that is no address ends the walk: what stands before it cannot be trusted either
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, , 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1,"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["_hidden", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["256.1.1.1"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1" + " " * 100], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1:" + "1" * 100], "10.0.0.1"),
        # Not every hop that a client in a trusted network has invented is looked at
        ("10.0.0.1", ["198.51.100.1," + ",".join(f"10.0.1.{i}" for i in range(31))], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1," + ",".join(f"10.0.1.{i}" for i in range(32))], "10.0.1.0"),
        ("10.0.0.1", ["198.51.100.1"] + [f"10.0.1.{i % 250}" for i in range(2_000)], "10.0.1.218"),
        ("10.0.0.1", ["010.1.1.1"], "10.0.0.1"),  # octal to some, decimal to others
        ("10.0.0.1", ["[198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["[]"], "10.0.0.1"),
        # No address at all
        ("unix", ["198.51.100.1"], "unix"),
        ("", [], ""),
    ],
)
def test_the_clients_address(peer: str, forwarded: list[str], address: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == address


def test_without_trusted_proxies_only_the_peer_counts() -> None:
    assert client_address("10.0.0.1", ["198.51.100.1"], []) == "10.0.0.1"


addresses = st.ip_addresses().map(str)


garbage = st.text(max_size=20) | st.text("0123456789abcdef.:[], %/\udc80", max_size=30)


@given(addresses | garbage, st.lists(st.lists(addresses | garbage, max_size=4).map(",".join), max_size=3))
def test_no_header_is_too_strange(peer: str, forwarded: list[str]) -> None:
    for trusted in ([], PROXIES, [ip_network("0.0.0.0/0"), ip_network("::/0")]):
        assert isinstance(client_address(peer, forwarded, trusted), str)
    assert client_address(peer, forwarded, []) == client_address(peer, [], [])


@given(st.lists(st.sampled_from(["10.0.0.1", "10.1.2.3", "198.51.100.1", "203.0.113.9"]), min_size=1))
def test_the_address_is_the_last_that_no_trusted_proxy_has(hops: list[str]) -> None:
    *forwarded, peer = hops
    strangers = [hop for hop in hops if not hop.startswith("10.")]
    expected = strangers[-1] if strangers else hops[0]
    assert client_address(peer, [", ".join(forwarded)] if forwarded else [], PROXIES) == expected


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_all_of_a_64_counts_as_one(first: IPv4Address | IPv6Address, low: int) -> None:
    assume(int(first) >> 64)  # an IPv4 address in IPv6 counts as what it is
    neighbour = IPv6Address(int(first) >> 64 << 64 | low)
    assert client_address(str(first), [], []) == client_address(str(neighbour), [], [])


def test_whom_to_trust() -> None:
    assert is_trusted("10.1.2.3", PROXIES)
    assert is_trusted("::ffff:10.1.2.3", PROXIES)
    assert not is_trusted("11.1.2.3", PROXIES)
    assert not is_trusted("unix", PROXIES)
    assert not is_trusted("10.1.2.3", [])


def test_a_trusted_proxys_connections_are_nobodys() -> None:
    trusted = (ip_network("10.0.0.0/8"),)
    assert source_address("10.1.2.3", trusted) == ""
    assert source_address("192.0.2.1", trusted) == source_address("192.0.2.1", ()) == "192.0.2.1"
    assert source_address("2001:db8::1", ()) == source_address("2001:db8::2", ()) == "2001:db8::/64"
    assert source_address("", ()) == ""
