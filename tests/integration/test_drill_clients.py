"""Browsers that register, come back, come and go, against real nodes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.drill.backend import Backend
from gateway.drill.clients import Clients, NodeAddress
from gateway.drill.ledger import Ledger

from ..processes import NodeProcess, ValkeyProcess
from .load import until

OPTIONS = ("--max-sessions-per-ip", "0")


@pytest.fixture(scope="module")
def nodes(valkey: ValkeyProcess) -> Iterator[list[NodeProcess]]:
    with NodeProcess(valkey.url, *OPTIONS) as one, NodeProcess(valkey.url, *OPTIONS) as other:
        yield [one, other]


def place(node: NodeProcess) -> NodeAddress:
    return NodeAddress(node.host, node.port)


@contextlib.asynccontextmanager
async def crowd(stem: str, *places: NodeAddress) -> AsyncIterator[tuple[Clients, Ledger]]:
    ledger = Ledger()
    gathered = Clients(places, ledger, stem)
    try:
        yield gathered, ledger
    finally:
        await gathered.close()


async def publish(backend: Backend, everybody: Clients, ledger: Ledger) -> None:
    """One result to whose turn it is."""
    client = everybody.take()
    assert client is not None
    result = ledger.attempt(client.name, 0.0)
    everybody.send(client, result)
    await backend.publish(client.name, result.message_id, retain=60)
    ledger.acknowledge(result, 0.0)
    everybody.settle(client)


async def test_everybody_gets_a_result_in_turn(valkey: ValkeyProcess, nodes: list[NodeProcess]) -> None:
    async with crowd("turn", *map(place, nodes)) as (everybody, ledger), Backend(valkey.url) as backend:
        await everybody.gather(10, 10)
        assert everybody.registered == 10
        for _ in range(2):
            await asyncio.gather(*(publish(backend, everybody, ledger) for _ in range(10)))
            await until(lambda: not ledger.unsettled, "all have theirs")
        names = [result.web_socket_id for result in ledger.results.values()]
        assert sorted(names[:10]) == sorted(names[10:]) == sorted(everybody.clients), "each has two"
        assert {result.part for result in ledger.results.values()} == {0, 1}, "through both nodes"
        assert (ledger.duplicates, ledger.strays) == (0, 0)


async def test_a_client_has_one_result_under_way_at_a_time(
    valkey: ValkeyProcess, nodes: list[NodeProcess]
) -> None:
    async with crowd("one", place(nodes[0])) as (everybody, ledger):
        await everybody.gather(1, 10)
        client = everybody.take()
        assert client is not None
        assert everybody.take() is None
        result = ledger.attempt(client.name, 0.0)
        everybody.send(client, result)
        everybody.settle(client)
        assert everybody.take() is None
        ledger.acknowledge(result, 0.0)
        everybody.delivered(client, result.message_id, 0)
        assert everybody.take() is client


async def test_they_come_back_elsewhere_and_are_not_told_the_same_again(
    valkey: ValkeyProcess, nodes: list[NodeProcess]
) -> None:
    with await asyncio.to_thread(NodeProcess, valkey.url, *OPTIONS) as doomed:
        async with (
            crowd("back", place(doomed), place(nodes[0])) as (everybody, ledger),
            Backend(valkey.url) as backend,
        ):
            await everybody.gather(20, 10)
            await asyncio.gather(*(publish(backend, everybody, ledger) for _ in range(20)))
            await until(lambda: not ledger.unsettled, "all have theirs")
            doomed.kill()
            await until(lambda: len(everybody.returned) == 10, "half of them are back")
            assert everybody.registered == 20
            assert everybody.closes == {1006: 10}
            assert 0 < everybody.longest_gap(0.0) < 10
            await asyncio.gather(*(publish(backend, everybody, ledger) for _ in range(20)))
            await until(lambda: not ledger.unsettled, "all have another")
            assert {result.part for result in list(ledger.results.values())[20:]} == {1}
            assert ledger.duplicates == 0, "the first was retained, and they said that they had had it"


async def test_some_leave_and_others_come(valkey: ValkeyProcess, nodes: list[NodeProcess]) -> None:
    async with crowd("swap", place(nodes[0])) as (everybody, _):
        await everybody.gather(5, 10)
        before = set(everybody.clients)
        for _ in range(5):
            everybody.swap()
        assert len(everybody.clients) == 5
        await until(lambda: everybody.registered == 5, "the new ones have registered")
        assert before != set(everybody.clients)
        assert not everybody.closes, "who leaves does not count as lost"
        assert 0 < everybody.slowest_welcome < 10


async def test_one_that_does_not_read_is_closed_and_comes_back(
    valkey: ValkeyProcess, nodes: list[NodeProcess]
) -> None:
    async with crowd("slow", place(nodes[0])) as (everybody, ledger), Backend(valkey.url) as backend:
        slow = everybody.newcomer(narrow=True)
        await until(lambda: slow.registered, "it has registered")
        slow.pause()
        numbers = iter(range(1_000))

        async def held() -> bool:
            (count,) = await backend.publish_once([slow.name], f"filler-{next(numbers)}", "x" * 60_000)
            return count == 1

        while await held():
            pass
        assert next(numbers) < 100, (
            "with segments as a network has them little fits into the kernel's buffers"
        )
        slow.resume()
        await until(lambda: everybody.returned, "it is back")
        assert ledger.strays == 0, "what only fills is nobody's result"
