"""Admission, the client's address, origins, deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.admission import Admission, Verdict

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


# origin_allowed


# Deadlines
