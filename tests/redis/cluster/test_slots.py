"""Which slot a name is in, as Redis computes it, and what a node's view makes of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.redis.cluster import slots
from gateway.redis.cluster.slots import (
    SLOT_COUNT,
    UNKNOWN_MAP,
    ClusterView,
    key_slot,
    moved_slots,
    name_in_slots_of,
    parse_view,
    slot_map,
)
from gateway.redis.url import Address

from ...wire import strategies  # noqa: F401 - sets hypothesis up

A, B, C = Address("a", 7_001), Address("b", 7_002), Address("c", 7_003)
INFO = b"cluster_state:ok\r\ncluster_current_epoch:7\r\ncluster_my_epoch:3\r\n"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"123456789", 12_739),
        (b"", 0),
        (b"foo", 12_182),
        (b"websocket:12345678", 11_692),
        (b"{user1000}.following", 3_443),
        (b"user1000", 3_443),
        (b"{}", 15_257),
        (b"{}foo", 9_500),
        (b"foo{}{bar}", 8_363),
        (b"foo{{bar}}zap", 4_015),
        (b"foo{bar}{zap}", 5_061),
        (b"foo{bar", 15_278),
        (b"foo}bar{", 11_073),
        (b"}{a}", 15_495),
        (b"a{b}c}", 3_300),
        (b"{a", 10_276),
    ],
)
def test_slots_are_those_of_cluster_keyslot(name: bytes, number: int) -> None:
    """As Redis 7.0.15 answers CLUSTER KEYSLOT."""
    assert key_slot(name) == number


@given(st.binary(), st.binary(min_size=1).filter(lambda tag: b"}" not in tag), st.binary())
def test_only_the_first_tag_counts(before: bytes, tag: bytes, after: bytes) -> None:
    before = before.replace(b"{", b"")
    assert key_slot(b"%b{%b}%b" % (before, tag, after)) == key_slot(b"{%b}" % tag)


# Views


def test_a_view_has_masters_in_order_and_the_epoch_of_the_cluster() -> None:
    ranges = [
        [101, SLOT_COUNT - 1, [b"b", 7_002, b"id", []], [b"c", 7_003, b"id", []]],
        [0, 100, [b"a", 7_001, b"id"]],
    ]
    assert parse_view(INFO, ranges, A) == ClusterView(7, ((0, 100, A), (101, SLOT_COUNT - 1, B)))


@pytest.mark.parametrize("host", [None, b"", b"?"])
def test_a_node_without_a_name_is_the_asked_one(host: bytes | None) -> None:
    found = parse_view(INFO, [[0, SLOT_COUNT - 1, [host, 7_009, b"id", [b"ip", b"10.0.0.1"]]]], A)
    assert found.ranges == ((0, SLOT_COUNT - 1, Address("a", 7_009)),)


def test_a_cluster_without_slots_has_an_empty_view() -> None:
    assert parse_view(INFO, [], A) == ClusterView(7, ())
    assert slot_map(()) == UNKNOWN_MAP


@pytest.mark.parametrize(
    "ranges",
    [
        [[0, SLOT_COUNT, [b"b", 7_002]]],
        [[-1, 5, [b"b", 7_002]]],
        [[9, 5, [b"b", 7_002]]],
        [[0, 1 << 40, [b"b", 7_002]]],
        [[0, b"5", [b"b", 7_002]]],
        [[0, 5, [b"b/?x=y@c", 7_002]]],
        [[0, 5, [b"b", 65_536]]],
        [[0, 5, [b"b", b"7002"]]],
        [[0, 5, [["b"], 7_002]]],
    ],
    ids=str,
)
def test_a_view_that_no_node_has(ranges: list[Any]) -> None:
    with pytest.raises(ValueError, match="named"):
        parse_view(INFO, ranges, A)


# Maps


def test_a_gap_in_the_ranges_has_no_owner() -> None:
    known = slot_map(((0, 9, A), (11, 11, B), (20, 29, A)))
    assert known.owners[9:13] == (A, None, B, None)
    assert known.owners[29:31] == (A, None)
    assert len(known.owners) == SLOT_COUNT
    assert known.masters == [A, B]
    assert known.slots(A) == [*range(10), *range(20, 30)]
    assert known.slots(C) == []
    assert UNKNOWN_MAP.masters == []


def test_claims_change_single_slots() -> None:
    known = slot_map(((0, SLOT_COUNT - 1, A),))
    after = known.with_owners({5: B, SLOT_COUNT - 1: C})
    assert (after.slots(B), after.slots(C)) == ([5], [SLOT_COUNT - 1])
    assert known.masters == [A]
    assert moved_slots(known, after) == {5, SLOT_COUNT - 1}
    assert moved_slots(known, known.with_owners({})) == frozenset()
    assert moved_slots(UNKNOWN_MAP, known) == set(range(SLOT_COUNT))


@given(st.lists(st.tuples(st.integers(0, SLOT_COUNT - 1), st.sampled_from([A, B, C])), max_size=20))
def test_a_map_from_ranges_is_the_map_from_claims(claims: list[tuple[int, Address]]) -> None:
    owners = dict(claims)
    ranges = tuple(sorted((number, number, owner) for number, owner in owners.items()))
    assert slot_map(ranges) == UNKNOWN_MAP.with_owners(owners)


def test_a_name_is_found_for_every_owner_of_a_slot() -> None:
    known = slot_map(((0, SLOT_COUNT - 2, A), (SLOT_COUNT - 1, SLOT_COUNT - 1, B)))
    for owner in (A, B):
        name = name_in_slots_of(b"websocket::probe:", known, owner)
        assert name is not None
        assert name.startswith(b"websocket::probe:")
        assert known.owners[key_slot(name)] == owner
    assert name_in_slots_of(b"websocket::probe:", known, C) is None
    assert slots.name_in_slots_of(b"x", UNKNOWN_MAP, A) is None


def test_no_name_with_a_hash_tag_is_in_another_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search without an end would end the node."""
    monkeypatch.setattr(slots, "MAX_NAME_TRIES", 1_000)
    number = key_slot(b"{login}")
    known = slot_map(((0, number - 1, A), (number, number, B), (number + 1, SLOT_COUNT - 1, A)))
    assert name_in_slots_of(b"ws:{login}:", known, A) is None
    assert name_in_slots_of(b"ws:{login}:", known, B) == b"ws:{login}:0"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("MOVED 3999 127.0.0.1:6381", ("MOVED", "127.0.0.1", 6381)),
        ("ASK 3999 ::1:6381", ("ASK", "::1", 6381)),
        ("MOVED 3999 ?:6381", ("MOVED", "", 6381)),
        ("ASK 3999 :6381", ("ASK", "", 6381)),
        ("CLUSTERDOWN Hash slot not served", None),
        ("MOVED somewhere", None),
    ],
)
def test_redirections(error: str, said: tuple[str, str, int] | None) -> None:
    assert slots.parse_redirection(error) == said


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([], ""),
        ([7], "7"),
        ([0, 1, 2, 9, 11, 12], "0-2, 9, 11-12"),
        (range(0, 40, 2), "0, 2, 4, 6, 8, 10, 12, 14, 16, 18 and 10 more slots"),
    ],
)
def test_slots_in_a_few_words(numbers: Sequence[int], expected: str) -> None:
    assert slots.shown_ranges(numbers) == expected
