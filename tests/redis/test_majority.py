"""One question to several servers, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from gateway.redis.majority import Patience, gather_majority

from ..fakes import turns, virtual

NEVER = 1_000.0
PATIENCE = Patience(first=5.0, others=0.5, rest=0.1)


async def answer(after: float, what: int | Exception) -> int:
    await asyncio.sleep(after)
    if isinstance(what, Exception):
        raise what
    return what


def now() -> float:
    return asyncio.get_running_loop().time()


def outcomes(answers: list[int | Exception]) -> list[int | str]:
    return [answer if isinstance(answer, int) else type(answer).__name__ for answer in answers]


async def ask(*questions: tuple[float, int | Exception]) -> tuple[list[int | str], float]:
    """What came of it, and how long it took, with the patience of `PATIENCE`."""
    began = now()
    answers = await gather_majority([answer(after, what) for after, what in questions], PATIENCE)
    return outcomes(answers), round(now() - began, 3)


@virtual
async def test_all_answers_come_in_the_order_of_the_questions() -> None:
    assert await ask((0.03, 1), (0.01, 2), (0.02, 3)) == ([1, 2, 3], 0.03)


@virtual
async def test_without_servers_there_is_no_answer_at_once() -> None:
    assert await ask() == ([], 0)


@virtual
async def test_one_that_is_dead_does_not_hold_up_the_most() -> None:
    assert await ask((0.01, 1), (NEVER, 2), (0.02, 3)) == ([1, "TimeoutError", 3], 0.12)


@virtual
async def test_within_the_grace_a_slow_one_counts() -> None:
    assert await ask((0.01, 1), (0.11, 2), (0.02, 3)) == ([1, 2, 3], 0.11)


@virtual
async def test_half_of_them_are_not_most() -> None:
    assert await ask((0.01, 1), (NEVER, 2)) == ([1, "TimeoutError"], 0.52)


@virtual
async def test_where_the_first_answer_took_long_the_others_may_too() -> None:
    assert await ask((2.0, 1), (4.4, 2)) == ([1, 2], 4.4)
    assert await ask((2.0, 1), (NEVER, 2)) == ([1, "TimeoutError"], 4.5)


@virtual
async def test_failures_are_outcomes_but_count_for_nothing() -> None:
    failed = (0.01, OSError("refused"))
    assert await ask(failed, failed, (0.5, 3)) == (["OSError", "OSError", 3], 0.5)
    assert await ask(failed, failed, (NEVER, 3)) == (["OSError", "OSError", "TimeoutError"], 5.0)
    assert await ask(failed, failed) == (["OSError", "OSError"], 0.01)


@virtual
async def test_grace_does_not_outlast_the_time_there_is() -> None:
    assert await ask((4.95, 1), (4.95, 2), (NEVER, 3)) == ([1, 2, "TimeoutError"], 5.0)


@virtual
async def test_a_slower_answer_does_not_begin_the_grace_anew() -> None:
    assert await ask((0.01, 1), (0.02, 2), (0.09, 3), (0.1, 4), (NEVER, 5)) == (
        [1, 2, 3, 4, "TimeoutError"],
        0.19,
    )


@virtual
async def test_nothing_is_left_running() -> None:
    await ask((0.01, 1), (NEVER, 2), (0.02, 3))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    asking = asyncio.create_task(ask((NEVER, 1), (NEVER, 2)))
    await turns()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual
async def test_what_is_no_failure_of_a_server_is_raised() -> None:
    async def broken() -> int:
        raise KeyboardInterruptLike

    with pytest.raises(KeyboardInterruptLike):
        await gather_majority([broken()], PATIENCE)


class KeyboardInterruptLike(BaseException):
    """What asyncio hands on; KeyboardInterrupt itself would end its loop."""
