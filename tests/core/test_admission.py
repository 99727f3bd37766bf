"""gateway.core.admission: admission, the client's address, origins, deadlines."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.core.admission import Admission, Deadlines, Verdict, client_address, is_trusted, origin_allowed

from ..wire import strategies  # noqa: F401 - sets hypothesis up

# Admission


def test_admits_up_to_the_nodes_limit() -> None:
    admission = Admission(total=2, per_address=0)
    assert [admission.admit(address) for address in "aaa"] == [
        Verdict.ADMITTED,
        Verdict.ADMITTED,
        Verdict.NODE_FULL,
    ]
    admission.release("a")
    assert admission.admit("b") is Verdict.ADMITTED


def test_admits_up_to_an_addresss_limit() -> None:
    admission = Admission(total=10, per_address=1)
    assert admission.admit("a") is Verdict.ADMITTED
    assert admission.admit("a") is Verdict.ADDRESS_FULL
    assert admission.admit("b") is Verdict.ADMITTED
    admission.release("a")
    assert admission.admit("a") is Verdict.ADMITTED


def test_a_full_node_says_so_first() -> None:
    """Another node has room for the client, so it must not hear that it is its own fault."""
    admission = Admission(total=1, per_address=1)
    admission.admit("a")
    assert admission.admit("a") is Verdict.NODE_FULL


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=60),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_counts_what_is_in_and_keeps_nothing_of_what_is_out(
    steps: list[tuple[bool, str]], total: int, per_address: int
) -> None:
    admission = Admission(total, per_address)
    inside: list[str] = []
    for entering, address in steps:
        if entering:
            full = len(inside) >= total or (per_address and inside.count(address) >= per_address)
            verdict = admission.admit(address)
            assert (verdict is not Verdict.ADMITTED) == bool(full)
            inside += [address] if verdict is Verdict.ADMITTED else []
        elif address in inside:
            admission.release(address)
            inside.remove(address)
        assert admission.sessions == len(inside)
    for address in inside:
        admission.release(address)
    assert admission.sessions == 0
    assert not admission._by_address


# client_address

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
        # A hop that is no address ends the walk: what stands before it cannot be trusted either
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, , 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1,"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["_hidden", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["256.1.1.1"], "10.0.0.1"),
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


# origin_allowed

SAME = ("same-origin",)
BANK = ("https://bank.example",)


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "allowed", "verdict"),
    [
        # Programs send none
        (None, "gw", None, BANK, True),
        # Exact
        ("https://bank.example", "gw", None, BANK, True),
        ("HTTPS://Bank.Example", "gw", None, BANK, True),
        ("http://bank.example", "gw", None, BANK, False),
        ("https://bank.example:8443", "gw", None, BANK, False),
        ("https://bank.example.evil.example", "gw", None, BANK, False),
        ("https://evilbank.example", "gw", None, BANK, False),
        ("https://www.bank.example", "gw", None, BANK, False),
        ("https://bank.example/", "gw", None, BANK, False),
        ("https://bank.example", "bank.example", None, ("https://other.example",), False),
        ("https://b.example", "gw", None, ("https://a.example", "https://b.example"), True),
        # Anybody, asked for
        ("https://evil.example", "gw", None, ("*",), True),
        ("null", "gw", None, ("*",), True),
        # A sandboxed frame, a file, garbage
        ("null", "gw", None, BANK + SAME, False),
        ("null", "null", None, SAME, False),
        ("", "", None, SAME, False),
        ("file://", "", None, SAME, False),
        ("*", "gw", None, BANK, False),
        ("same-origin", "gw", None, SAME, False),
        ("https://", "", None, SAME, False),
        ("https://[::1", "[::1", None, SAME, False),
        ("https://gw:port", "gw:port", None, SAME, False),
        ("https://gw:99999", "gw:99999", None, SAME, False),
        ("gw", "gw", None, SAME, False),
        ("ftp://gw", "gw", None, SAME, False),
        # Same origin
        ("https://gw.example", "gw.example", None, SAME, True),
        ("http://gw.example", "gw.example", None, SAME, True),
        ("https://GW.example", "gw.EXAMPLE", None, SAME, True),
        ("https://gw.example", "gw.example:443", None, SAME, True),
        ("http://gw.example", "gw.example:80", None, SAME, True),
        ("http://gw.example:8080", "gw.example:8080", None, SAME, True),
        ("http://localhost:8080", "localhost:8080", None, SAME, True),
        ("http://[::1]:8080", "[::1]:8080", None, SAME, True),
        ("https://gw.example", "gw.example:8443", None, SAME, False),
        ("https://gw.example:8443", "gw.example", None, SAME, False),
        ("http://gw.example", "gw.example:443", None, SAME, False),
        ("https://evil.example", "gw.example", None, SAME, False),
        ("https://gw.example.evil.example", "gw.example", None, SAME, False),
        ("https://gw.example", "", None, SAME, False),
        # Same origin, and a trusted proxy has told the scheme
        ("https://gw.example", "gw.example", "https", SAME, True),
        ("http://gw.example", "gw.example", "https", SAME, False),
        ("https://gw.example", "gw.example", "http", SAME, False),
        ("https://gw.example", "gw.example", "HTTPS", SAME, True),
        ("https://gw.example", "gw.example", "wss", SAME, True),  # Traefik names a WebSocket's scheme so
        ("http://gw.example", "gw.example", "ws", SAME, True),
        ("http://gw.example", "gw.example", "wss", SAME, False),
    ],
)
def test_origins(
    origin: str | None, host: str, scheme: str | None, allowed: tuple[str, ...], verdict: bool
) -> None:
    assert origin_allowed(origin, host, scheme, allowed) is verdict


url_like = st.text("htps:/[]@.%é\udc80a0:#?\t", max_size=20)


@given(
    st.text(max_size=30) | url_like.map("https://".__add__) | url_like,
    st.text(max_size=20) | url_like,
    st.none() | st.text(max_size=6),
)
def test_no_origin_is_too_strange(origin: str, host: str, scheme: str | None) -> None:
    assert origin_allowed(origin, host, scheme, BANK) is (origin.lower() in BANK)
    assert origin_allowed(origin, host, scheme, SAME) in (True, False)
    assert origin_allowed(origin, host, scheme, ("*",)) is True


# Deadlines


class Item:
    def __init__(self) -> None:
        self.due = 0


def test_is_never_early_and_at_most_a_tick_late() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    item = Item()
    deadlines.set(item, 10.0)
    assert list(deadlines.expired(10.0)) == []
    assert list(deadlines.expired(10.0 + Deadlines.TICK)) == [item]
    assert list(deadlines.expired(99.0)) == []


def test_a_later_deadline_takes_the_earlier_ones_place() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    item = Item()
    deadlines.set(item, 10.0)
    deadlines.set(item, 20.0)
    assert list(deadlines.expired(19.9)) == []
    deadlines.set(item, 15.0)
    assert list(deadlines.expired(15.25)) == [item]


def test_one_that_has_been_served_may_be_due_again_at_once() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    item = Item()
    for _ in range(3):
        deadlines.set(item, 10.0)
        deadlines.set(item, 10.1)  # the same tick
        assert list(deadlines.expired(10.25)) == [item]
    assert list(deadlines) == []
    deadlines.set(item, 10.0)
    deadlines.discard(item)
    deadlines.set(item, 10.0)
    assert list(deadlines) == [item]


def test_the_soonest_comes_first() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    items = [Item() for _ in range(5)]
    for delay, item in zip((3, 1, 4, 2, 5), items, strict=True):
        deadlines.set(item, delay)
    in_order = [items[i] for i in (1, 3, 0, 2, 4)]
    assert list(deadlines) == in_order
    assert list(deadlines.expired(9.0)) == in_order


def test_others_may_move_and_go_while_the_expired_are_served() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    items = [Item() for _ in range(6)]
    for item in items:
        deadlines.set(item, 1.0)
    served = []
    for item in deadlines.expired(2.0):
        served.append(item)
        if len(served) == 1:
            others = [other for other in items if other is not item]
            deadlines.discard(others[0])
            deadlines.set(others[1], 5.0)
            deadlines.set(item, 2.0)  # as a heartbeat does
    assert len(served) == 4
    assert set(deadlines) == {served[0], others[1]}


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "discard", "pass"]), st.integers(0, 4), st.floats(0, 3)),
        max_size=60,
    )
)
def test_deadlines_keep_to_a_plain_list_of_them(steps: list[tuple[str, int, float]]) -> None:
    deadlines: Deadlines[Item] = Deadlines()
    items = [Item() for _ in range(5)]
    planned: dict[int, float] = {}
    now = 100.0
    for step, i, amount in steps:
        if step == "set":
            deadlines.set(items[i], now + amount)
            planned[i] = now + amount
        elif step == "discard":
            deadlines.discard(items[i])
            planned.pop(i, None)
        else:
            now += amount
            for item in deadlines.expired(now):
                when = planned.pop(items.index(item))
                assert when <= now
            assert all(when > now - Deadlines.TICK for when in planned.values())
        assert {items.index(item) for item in deadlines} == set(planned)
    for item in items:
        deadlines.discard(item)
    assert not deadlines._wheel
