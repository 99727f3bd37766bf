"""Deadlines: never early, at most a tick late, and the same as a plain list of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.timer_wheel import TimerWheel


class Item:
    def __init__(self) -> None:
        self.due = 0


def test_is_never_early_and_at_most_a_tick_late() -> None:
    deadlines: TimerWheel[Item] = TimerWheel()
    item = Item()
    deadlines.set(item, 10.0)
    assert list(deadlines.expired(10.0)) == []
    assert list(deadlines.expired(10.0 + TimerWheel.TICK)) == [item]
    assert list(deadlines.expired(99.0)) == []


def test_a_later_deadline_takes_the_earlier_ones_place() -> None:
    deadlines: TimerWheel[Item] = TimerWheel()
    item = Item()
    deadlines.set(item, 10.0)
    deadlines.set(item, 20.0)
    assert list(deadlines.expired(19.9)) == []
    deadlines.set(item, 15.0)
    assert list(deadlines.expired(15.25)) == [item]


def test_one_that_has_been_served_may_be_due_again_at_once() -> None:
    deadlines: TimerWheel[Item] = TimerWheel()
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
    deadlines: TimerWheel[Item] = TimerWheel()
    items = [Item() for _ in range(5)]
    for delay, item in zip((3, 1, 4, 2, 5), items, strict=True):
        deadlines.set(item, delay)
    in_order = [items[i] for i in (1, 3, 0, 2, 4)]
    assert list(deadlines) == in_order
    assert list(deadlines.expired(9.0)) == in_order


def test_others_may_move_and_go_while_the_expired_are_served() -> None:
    deadlines: TimerWheel[Item] = TimerWheel()
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
    deadlines: TimerWheel[Item] = TimerWheel()
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
            assert all(when > now - TimerWheel.TICK for when in planned.values())
        assert {items.index(item) for item in deadlines} == set(planned)
    for item in items:
        deadlines.discard(item)
    assert not deadlines._wheel
