"""Admission, the client's address, origins, deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.admission import Admission, Backlog, Connections, FairPool, Incoming, Verdict

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


# FairPool


def test_a_greedy_address_gets_half() -> None:
    pool = FairPool(100)
    verdicts = [pool.take("greedy") for _ in range(100)]
    assert verdicts == [Verdict.ADMITTED] * 50 + [Verdict.ADDRESS_FULL] * 50
    assert [pool.take(f"other {number}") for number in range(50)] == [Verdict.ADMITTED] * 50
    assert pool.take("last") is Verdict.NODE_FULL
    pool.give_back("greedy")
    assert pool.take("last") is Verdict.ADMITTED


def test_two_greedy_addresses_leave_a_third() -> None:
    pool = FairPool(90)
    for _ in range(90):
        pool.take("one")
        pool.take("two")
    assert (pool._by_address, pool.taken) == ({"one": 30, "two": 30}, 60)


def test_one_place_is_anybodys() -> None:
    pool = FairPool(2)
    assert pool.take("one") is Verdict.ADMITTED
    assert pool.take("one") is Verdict.ADDRESS_FULL
    assert pool.take("two") is Verdict.ADMITTED


def test_nobody_in_particular_and_pools_without_shares_have_no_limit_but_the_size() -> None:
    for pool, address in ((FairPool(10), ""), (FairPool(10, fair=False), "one")):
        assert [pool.take(address) for _ in range(10)] == [Verdict.ADMITTED] * 10
        assert pool.take(address) is Verdict.NODE_FULL
        for _ in range(10):
            pool.give_back(address)
        assert (pool.taken, pool._by_address) == (0, {})


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", "a", "b", "c"])), max_size=80), st.integers(1, 12)
)
def test_a_pool_counts_what_is_taken_and_keeps_nothing_else(steps: list[tuple[bool, str]], size: int) -> None:
    pool = FairPool(size)
    inside: list[str] = []
    for entering, address in steps:
        if entering:
            verdict = pool.take(address)
            assert verdict is Verdict.NODE_FULL or len(inside) < size
            assert verdict is Verdict.ADMITTED or address in inside or len(inside) == size
            inside += [address] if verdict is Verdict.ADMITTED else []
        elif address in inside:
            pool.give_back(address)
            inside.remove(address)
        assert pool.taken == len(inside) <= size
    for address in inside:
        pool.give_back(address)
    assert (pool.taken, pool._by_address) == (0, {})


# Connections


def test_an_addresss_sessions_are_a_part_of_its_connections() -> None:
    admission = Admission(total=100, per_address=2)
    connections = Connections(100, 2, admission, str)
    for _ in range(2):
        assert connections.open("a") is Verdict.ADMITTED
        connections.become_session("a")
        admission.admit("a")
    others = [connections.open("a") for _ in range(5)]
    assert others == [Verdict.ADMITTED] * 4 + [Verdict.ADDRESS_FULL], "three for each session at most"
    assert (connections.total, connections.sessions, connections.limit) == (7, 2, 100)
    for _ in range(2):
        connections.close_session()
        admission.release("a")
    assert connections.open("a") is Verdict.ADMITTED
    for _ in range(6):
        connections.close("a")
    assert (connections.total, connections._pool._by_address) == (0, {})


def test_a_proxys_connections_are_limited_in_total_only() -> None:
    connections = Connections(10, 1, Admission(10, 1), lambda peer: "" if peer == "proxy" else peer)
    assert connections.source("proxy") == ""
    assert [connections.open("") for _ in range(10)] == [Verdict.ADMITTED] * 10
    assert connections.open("") is Verdict.NODE_FULL
    connections.become_session("proxy")
    connections.close_session()
    assert connections.total == 10


def test_a_connection_that_the_kernel_still_sends_on_is_one() -> None:
    connections = Connections(10, 1, Admission(10, 1), str)
    connections.begin_closing("a")
    assert (connections.total, connections.closing) == (1, 1)
    connections.end_closing("a")
    assert (connections.total, connections.closing, connections._pool._by_address) == (0, 0, {})


# Backlog


class Reader:
    """For whom `unread` bytes wait."""

    def __init__(self, unread: int = 0) -> None:
        self.unread = unread
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True


def test_the_worst_readers_are_dropped_until_a_quarter_is_free() -> None:
    backlog = Backlog(1_000)
    readers = [Reader(size) for size in (100, 400, 200, 250)]
    for reader in readers:
        backlog.add(reader, reader.unread)
    assert backlog.unread == 950
    readers[0].unread += 100
    backlog.add(readers[0], 100)
    assert [reader.dropped for reader in readers] == [False, True, False, False]
    assert (backlog.unread, backlog.dropped, len(backlog)) == (650, 1, 3)


def test_what_was_read_meanwhile_does_not_count() -> None:
    backlog = Backlog(1_000)
    reader = Reader(600)
    for _ in range(20):
        backlog.add(reader, 600)
    assert not reader.dropped
    gone = Reader(900)
    backlog.add(gone, 900)
    assert (gone.dropped, reader.dropped) == (True, False)
    backlog.discard(gone)
    backlog.discard(reader)
    assert (backlog.unread, len(backlog)) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 600)), max_size=60))
def test_the_sum_never_stays_above_the_limit(steps: list[tuple[int, int]]) -> None:
    backlog = Backlog(1_000)
    readers = [Reader() for _ in range(6)]
    for number, size in steps:
        reader = readers[number]
        reader.dropped, reader.unread = False, reader.unread + size if not reader.dropped else size
        backlog.add(reader, size)
        assert backlog.unread <= 1_000
        if backlog.dropped:
            assert all(reader.dropped or reader.unread <= 1_000 for reader in readers)


# client_address


# origin_allowed


# Deadlines


# Incoming


class HalfSender:
    """A client that has sent `incomplete` bytes of something."""

    def __init__(self, incomplete: int) -> None:
        self.incomplete = incomplete
        self.dropped = False

    def drop_incomplete(self) -> None:
        self.dropped = True


def test_the_largest_beginnings_are_dropped_when_all_together_are_too_large() -> None:
    incoming = Incoming(1_000)
    senders = [HalfSender(size) for size in (100, 500, 200, 400)]
    for sender in senders:
        incoming.add(sender, sender.incomplete)
    assert [sender.dropped for sender in senders] == [False, True, False, False]
    assert incoming.dropped == 1


def test_what_was_completed_or_discarded_counts_no_more() -> None:
    incoming = Incoming(1_000)
    complete, gone, left = HalfSender(500), HalfSender(400), HalfSender(100)
    for sender in (complete, gone, left):
        incoming.add(sender, sender.incomplete)
    complete.incomplete = 0
    incoming.discard(gone)
    incoming.add(left, 100)
    assert incoming.dropped == 0
    newcomer = HalfSender(1_100)
    incoming.add(newcomer, 1_100)
    assert (newcomer.dropped, left.dropped) == (True, False)


def test_a_beginning_that_is_larger_than_all_may_be_is_dropped() -> None:
    incoming, sender = Incoming(1_000), HalfSender(2_000)
    incoming.add(sender, 2_000)
    assert sender.dropped
