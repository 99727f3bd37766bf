"""Which denied channels are asked for again, and when. Time is virtual."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.redis.denials import FIRST_RETRY, HOPELESS_AFTER, MAX_RETRY, DeniedChannels, hint, is_denial

from ..fakes import virtual

A, B, C = b"a", b"b", b"c"


class Scene:
    """Denied channels, and when their rounds began."""

    def __init__(self, *names: bytes) -> None:
        self.rounds: list[float] = []
        self.denied = DeniedChannels(lambda: self.rounds.append(asyncio.get_running_loop().time()))
        for name in names:
            self.denied.add(name, subscribe=True)

    def take(self, count: int = 500, unwanted: Any = ()) -> tuple[list[bytes], bool]:
        return self.denied.take(count, lambda name: name not in unwanted)


@virtual
async def test_a_round_begins_soon_and_has_every_channel() -> None:
    scene = Scene(A, B, C)
    assert (len(scene.denied.channels), scene.denied.due) == (3, False)
    await asyncio.sleep(FIRST_RETRY)
    assert scene.denied.due
    assert [scene.take(2), scene.take(2), scene.take(2)] == [([A, B], True), ([C], True), ([], True)]
    assert not scene.denied.due


@virtual
async def test_rounds_come_less_often_while_nothing_is_allowed() -> None:
    scene = Scene(A)
    for _ in range(100):
        await asyncio.sleep(0.1)
        if scene.denied.due:
            scene.take()
            scene.denied.refused()
            scene.denied.add(A, subscribe=True)
    pauses = [later - earlier for earlier, later in zip(scene.rounds, scene.rounds[1:], strict=False)]
    assert pauses[0] < 1
    assert MAX_RETRY / 2 <= pauses[-1] <= MAX_RETRY + 0.1
    scene.take()
    scene.denied.discard(A)
    scene.denied.allowed()
    scene.denied.add(A, subscribe=True)
    before = len(scene.rounds)
    await asyncio.sleep(FIRST_RETRY + MAX_RETRY)
    assert len(scene.rounds) > before, "the first pause again"


@virtual
async def test_subscriptions_and_reads_are_not_mixed() -> None:
    scene = Scene(A)
    scene.denied.add(B, subscribe=False)
    scene.denied.add(C, subscribe=False)
    await asyncio.sleep(FIRST_RETRY)
    assert [scene.take(), scene.take()] == [([A], True), ([B, C], False)]


@virtual
async def test_what_is_no_longer_wanted_is_skipped() -> None:
    scene = Scene(A, B, C)
    assert scene.denied.discard(C)
    assert not scene.denied.discard(C)
    assert C not in scene.denied.channels
    await asyncio.sleep(FIRST_RETRY)
    assert scene.take(1, unwanted={A}) == ([B], True)
    assert not scene.denied.due


@virtual
async def test_a_round_ends_early_while_everything_is_denied_and_the_next_goes_on_there() -> None:
    scene = Scene(A, B)
    await asyncio.sleep(FIRST_RETRY)
    assert scene.take(1) == ([A], True)
    for _ in range(HOPELESS_AFTER):
        assert not scene.denied.hopeless
        scene.denied.refused()
    assert not scene.denied.due
    scene.denied.add(A, subscribe=True)
    await asyncio.sleep(2 * MAX_RETRY)
    assert not scene.denied.hopeless, "or a single denied channel would keep all others away"
    assert scene.take(1) == ([B], True)


@virtual
async def test_nothing_is_left_of_an_empty_round() -> None:
    scene = Scene(A)
    scene.denied.discard(A)
    await asyncio.sleep(2 * MAX_RETRY)
    assert scene.rounds == []
    Scene().denied.close()


@virtual
async def test_after_the_end_no_round_begins() -> None:
    scene = Scene(A)
    scene.denied.close()
    await asyncio.sleep(10)
    assert scene.rounds == []
    assert not scene.denied.channels


@pytest.mark.parametrize(
    ("error", "name", "expected"),
    [
        ("NOPERM No permissions to access a channel", b"websocket:1", "&websocket:*"),
        ("NOPERM No permissions to access a channel", b"no-colon", "&CHANNEL-PREFIX*"),
        ("NOPERM No permissions to access a key", b"bank:ws:1", "%R~bank:ws:*"),
        ("NOPERM User a has no permissions to run the 'eval_ro' command", b"w:1", "+eval_ro"),
        ("ERR retained results cannot be read: ERR ACL failure in script", b"w:1", "docs/redis-access.md"),
        ("MOVED 1 10.0.0.1:6379", b"w:1", "redis+cluster://"),
    ],
)
def test_the_hint_names_what_is_missing(error: str, name: bytes, expected: str) -> None:
    assert is_denial(error)
    assert expected in hint(error, name)


@pytest.mark.parametrize("error", ["LOADING Redis is loading", "MASTERDOWN Link with MASTER", "ERR x"])
def test_what_is_about_the_server_is_no_denial(error: str) -> None:
    assert not is_denial(error)
