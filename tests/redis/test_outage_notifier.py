"""When the notifier notifies, how, and that it ends. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from gateway.redis.outage_notifier import NOTIFY_AFTER, OutageNotifier

from ..fakes import VirtualLoop, turns, virtual


class Hall:
    """Waiting sessions in so many shares; to tell a share takes so many seconds."""

    def __init__(self, shares: int = 3, seconds: float = 0.0) -> None:
        self.told = 0
        self._shares = shares
        self._seconds = seconds

    def tell(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for _ in range(self._shares):
            self.told += 1
            loop.stall(self._seconds)
            yield


@virtual
async def test_it_is_given_once_the_line_has_been_down_for_some_seconds() -> None:
    hall = Hall()
    notifier = OutageNotifier(hall.tell)
    notifier.begin()
    await asyncio.sleep(NOTIFY_AFTER - 0.01)
    assert (notifier.notified, hall.told) == (False, 0)
    await asyncio.sleep(0.02)
    assert (notifier.notified, hall.told) == (True, 3)
    await asyncio.sleep(60)
    assert hall.told == 3
    notifier.end()
    assert not notifier.notified


@virtual
async def test_notified_is_set_before_anybody_is_told() -> None:
    """`notified` is set before the first is told: whoever comes later may miss the iteration."""
    hall = Hall(shares=100)
    notifier = OutageNotifier(hall.tell)
    notifier.begin()
    while not hall.told:
        assert not notifier.notified
        await asyncio.sleep(0.01 if asyncio.get_running_loop().time() < 1_002.9 else 0.1)
    assert notifier.notified
    notifier.end()


@virtual
async def test_others_have_the_loop_between_two_shares() -> None:
    hall = Hall(shares=100)
    notifier = OutageNotifier(hall.tell)
    notifier.begin()
    seen: set[int] = set()
    asyncio.get_running_loop().call_later(NOTIFY_AFTER, seen.add, -1)
    await asyncio.sleep(NOTIFY_AFTER)
    while hall.told < 100:
        seen.add(hall.told)
        await asyncio.sleep(0)
    assert len(seen) >= 99
    notifier.end()


@virtual
async def test_a_line_that_is_up_in_time_is_no_news_and_the_next_time_begins_anew() -> None:
    hall = Hall()
    notifier = OutageNotifier(hall.tell)
    for _ in range(3):
        notifier.begin()
        await asyncio.sleep(NOTIFY_AFTER - 0.1)
        notifier.end()
    await asyncio.sleep(60)
    assert hall.told == 0
    notifier.begin()
    await asyncio.sleep(NOTIFY_AFTER + 0.1)
    assert hall.told == 3
    notifier.end()


@virtual
async def test_a_line_that_is_still_down_is_still_the_same_news() -> None:
    hall = Hall()
    notifier = OutageNotifier(hall.tell)
    for _ in range(10):
        notifier.begin()
        await asyncio.sleep(NOTIFY_AFTER / 2)
    assert hall.told == 3
    notifier.end()


@virtual
async def test_it_can_end_between_two_shares() -> None:
    hall = Hall(shares=1_000, seconds=0.01)
    notifier = OutageNotifier(hall.tell)
    notifier.begin()
    asyncio.get_running_loop().call_later(NOTIFY_AFTER + 1, notifier.end)
    await asyncio.sleep(60)
    assert 0 < hall.told < 200
    assert not notifier.notified


@virtual
async def test_ending_what_has_not_begun_does_no_harm() -> None:
    notifier = OutageNotifier(Hall().tell)
    for _ in range(2):
        notifier.end()
    await turns()
    assert not notifier.notified
