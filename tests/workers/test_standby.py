"""Listening sockets for several, and who stands in for whom."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

import pytest

from gateway.server.handoff import BEGUN_REQUEST, NEW_CONNECTION, UNAVAILABLE
from gateway.workers.liveness import SILENT_AFTER
from gateway.workers.standby import DESCRIPTOR_RETRY, MAX_QUEUED_SECONDS, StandbyAcceptor
from gateway.workers.worker_slots import WorkerSlot


async def test_nobody_stands_in_without_need(slots: list[WorkerSlot]) -> None:
    standby = StandbyAcceptor(slots)
    standby.adjust()
    arriving = clients(slots[0], 20)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    accepted = 0
    for slot in slots:
        assert slot.inbox.take() is None
        for _ in range(20):
            try:
                slot.listeners[0].accept()[0].close()
            except BlockingIOError:
                break
            accepted += 1
    assert accepted == 20
    for client in arriving:
        client.close()


@pytest.mark.parametrize("why", ["gone", "starting", "leaving", "silent"])
async def test_the_other_gets_what_comes_for_one_that_cannot(slots: list[WorkerSlot], why: str) -> None:
    first = slots[0]
    assert first.process is not None
    if why == "gone":
        first.process = None
    elif why == "starting":
        first.process.listening = False
    elif why == "leaving":
        first.process.leaving = True
    else:
        for _ in range(SILENT_AFTER + 1):
            first.heartbeat.check(None)
    # Those that the kernel gives to the second wait there for it; one is enough to see, many make it sure.
    standby = StandbyAcceptor(slots)
    standby.adjust()
    arriving = clients(first, 40)
    own = given = 0
    async with asyncio.timeout(SECONDS):
        while given + own < 40:
            with contextlib.suppress(BlockingIOError):
                slots[1].listeners[0].accept()[0].close()
                own += 1
            if (parcel := slots[1].inbox.take()) is not None:
                assert parcel[:2] == (NEW_CONNECTION, b"")
                parcel[2].close()
                given += 1
            await asyncio.sleep(0.001)
    assert 0 < given < 40
    assert first.inbox.take() is None
    standby.close()
    for client in arriving:
        client.close()


async def test_while_the_other_has_no_room_they_wait_and_nobody_is_refused(slots: list[WorkerSlot]) -> None:
    first, second = slots
    first.process = None
    second.inbox.sender.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDBUF, 1
    )  # the kernel's least: a few parcels
    standby = StandbyAcceptor(slots)
    standby.adjust()
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
    assert taken > 10
    standby.close()
    for client in arriving:
        client.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b"", "closed by the test, and told nothing"
        client.close()


async def test_who_waits_for_room_is_told_when_nobody_stands_in_any_more(slots: list[WorkerSlot]) -> None:
    first, second = slots
    first.process = None
    while second.inbox.put(NEW_CONNECTION, b"", second.listeners[0].fileno()):
        pass
    standby = StandbyAcceptor(slots)
    standby.adjust()
    arriving = clients(first, 10)
    async with asyncio.timeout(SECONDS):
        while standby._held is None:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)
    standby.close()
    told = 0
    for client in arriving:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            told += client.recv(1_000) == UNAVAILABLE.response
        client.close()
    assert told == 1
    while (parcel := second.inbox.take()) is not None:
        parcel[2].close()


async def test_where_nobody_can_they_wait(slots: list[WorkerSlot]) -> None:
    for slot in slots:
        slot.process = None
    standby = StandbyAcceptor(slots)
    standby.adjust()
    (client,) = clients(slots[0], 1)
    await asyncio.sleep(0.01)
    assert not any(slot.inbox.take() for slot in slots)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    client.close()


async def test_an_inbox_is_emptied_when_nobody_comes_for_long(slots: list[WorkerSlot]) -> None:
    standby = StandbyAcceptor(slots)
    here, there = socket.socketpair()
    there.setblocking(False)
    with here, there:
        assert slots[0].inbox.put(BEGUN_REQUEST, b"POST", here.fileno())
        here.close()
        standby.reject_queued(slots[0], MAX_QUEUED_SECONDS / 2)
        await asyncio.sleep(0.01)
        with pytest.raises(BlockingIOError):
            there.recv(1)
        standby.reject_queued(slots[0], MAX_QUEUED_SECONDS * 2)
        async with asyncio.timeout(SECONDS):
            assert await asyncio.get_running_loop().sock_recv(there, 65_536) == UNAVAILABLE.response
        standby.keep_queued(slots[0])
        standby.keep_queued(slots[0])


class Exhausted:
    """A listener of a process that has no descriptor left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.failed = 0

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        self.failed += 1
        raise OSError(errno.EMFILE, "Too many open files")


async def test_without_descriptors_it_waits_and_does_not_spin(
    slots: list[WorkerSlot], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = slots
    first.process = None
    listener = first.listeners[0]
    exhausted = Exhausted(listener)
    with monkeypatch.context() as patched:
        patched.setattr(first, "listeners", [exhausted])
        standby = StandbyAcceptor(slots)
        standby.adjust()
        arriving = clients_of(listener, second.listeners[0])
        await asyncio.sleep(2.5 * DESCRIPTOR_RETRY)
        assert 1 <= exhausted.failed <= 4, "a turn of the loop for each would be thousands"
        patched.setattr(exhausted, "accept", listener.accept)
        async with asyncio.timeout(SECONDS):
            while (parcel := second.inbox.take()) is None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.001)
        parcel[2].close()
        standby.close()
    for client in arriving:
        client.close()


def clients_of(listener: socket.socket, sibling: socket.socket) -> list[socket.socket]:
    """Clients, of which the kernel gives at least one to `listener`, and none is left at its sibling."""
    made = []
    for _ in range(40):
        made.append(socket.create_connection(listener.getsockname()))
        with contextlib.suppress(BlockingIOError):
            sibling.accept()[0].close()
    return made


SECONDS = 5.0


def clients(slot: WorkerSlot, count: int) -> list[socket.socket]:
    return [socket.create_connection(slot.listeners[0].getsockname()) for _ in range(count)]
