"""Listening sockets for several, and who stands in for whom."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from gateway.server.handoff import BEGUN_REQUEST, NEW_CONNECTION, UNAVAILABLE
from gateway.workers.liveness import SILENT_AFTER
from gateway.workers.slots import WorkerSlot
from gateway.workers.standby import MAX_QUEUED_SECONDS, StandbyAcceptor


async def test_nobody_is_relieved_without_need(posts: list[WorkerSlot]) -> None:
    relief = StandbyAcceptor(posts)
    relief.adjust()
    arriving = clients(posts[0], 20)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert relief.given == 0
    accepted = 0
    for post in posts:
        for _ in range(20):
            try:
                post.listeners[0].accept()[0].close()
            except BlockingIOError:
                break
            accepted += 1
    assert accepted == 20
    for client in arriving:
        client.close()


@pytest.mark.parametrize("why", ["gone", "starting", "leaving", "quiet"])
async def test_the_other_gets_what_comes_for_one_that_cannot(posts: list[WorkerSlot], why: str) -> None:
    first = posts[0]
    assert first.life is not None
    if why == "gone":
        first.life = None
    elif why == "starting":
        first.life.listening = False
    elif why == "leaving":
        first.life.leaving = True
    else:
        for _ in range(SILENT_AFTER + 1):
            first.pulse.look()
    # Those that the kernel gives to the second wait there for it; one is enough to see, many make it sure.
    relief = StandbyAcceptor(posts)
    relief.adjust()
    arriving = clients(first, 40)
    own = 0
    async with asyncio.timeout(SECONDS):
        while relief.given + own < 40:
            try:
                posts[1].listeners[0].accept()[0].close()
                own += 1
            except BlockingIOError:
                await asyncio.sleep(0.001)
    assert 0 < relief.given < 40
    taken = 0
    while (parcel := posts[1].inbox.take()) is not None:
        assert parcel[:2] == (NEW_CONNECTION, b"")
        parcel[2].close()
        taken += 1
    assert taken == relief.given
    assert first.inbox.take() is None
    relief.close()
    for client in arriving:
        client.close()


async def test_while_the_other_has_no_room_they_wait_and_nobody_is_refused(posts: list[WorkerSlot]) -> None:
    first, second = posts
    first.life = None
    second.inbox.sender.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDBUF, 1
    )  # the kernel's least: a few parcels
    relief = StandbyAcceptor(posts)
    relief.adjust()
    arriving = clients(first, 60)
    own = taken = 0
    async with asyncio.timeout(SECONDS):
        while own + taken < 60:
            await asyncio.sleep(0.001)
            try:
                second.listeners[0].accept()[0].close()
                own += 1
            except BlockingIOError:
                pass
            if (parcel := second.inbox.take()) is not None:
                parcel[2].close()
                taken += 1
    assert taken == relief.given > 10
    relief.close()
    for client in arriving:
        client.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b"", "closed by the test, and told nothing"
        client.close()


async def test_who_waits_for_room_is_told_when_nobody_stands_in_any_more(posts: list[WorkerSlot]) -> None:
    first, second = posts
    first.life = None
    while second.inbox.put(NEW_CONNECTION, b"", second.listeners[0].fileno()):
        pass
    relief = StandbyAcceptor(posts)
    relief.adjust()
    arriving = clients(first, 10)
    async with asyncio.timeout(SECONDS):
        while relief._kept is None:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)
    relief.close()
    told = 0
    for client in arriving:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            told += client.recv(1_000) == UNAVAILABLE.response
        client.close()
    assert told == 1
    while (parcel := second.inbox.take()) is not None:
        parcel[2].close()


async def test_where_nobody_can_they_wait(posts: list[WorkerSlot]) -> None:
    for post in posts:
        post.life = None
    relief = StandbyAcceptor(posts)
    relief.adjust()
    (client,) = clients(posts[0], 1)
    await asyncio.sleep(0.01)
    assert relief.given == 0
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    client.close()


async def test_an_inbox_is_emptied_when_nobody_comes_for_long(posts: list[WorkerSlot]) -> None:
    relief = StandbyAcceptor(posts)
    here, there = socket.socketpair()
    there.setblocking(False)
    with here, there:
        assert posts[0].inbox.put(BEGUN_REQUEST, b"POST", here.fileno())
        here.close()
        relief.empty(posts[0], MAX_QUEUED_SECONDS / 2)
        await asyncio.sleep(0.01)
        with pytest.raises(BlockingIOError):
            there.recv(1)
        relief.empty(posts[0], MAX_QUEUED_SECONDS * 2)
        async with asyncio.timeout(SECONDS):
            assert await asyncio.get_running_loop().sock_recv(there, 65_536) == UNAVAILABLE.response
        relief.leave_to_worker(posts[0])
        relief.leave_to_worker(posts[0])


SECONDS = 5.0


def clients(post: WorkerSlot, count: int) -> list[socket.socket]:
    return [socket.create_connection(post.listeners[0].getsockname()) for _ in range(count)]
