"""Clients that register, reconnect, leave and arrive, with real nodes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.drill.backend import Backend
from gateway.drill.clients import Clients, NodeAddress
from gateway.drill.fleet import NodeProcess, ValkeyProcess
from gateway.drill.ledger import Ledger

from .load import until

OPTIONS = ("--max-sessions-per-ip", "0")


@pytest.fixture(scope="module")
def nodes(valkey: ValkeyProcess) -> Iterator[list[NodeProcess]]:
    with NodeProcess(valkey.url, *OPTIONS) as one, NodeProcess(valkey.url, *OPTIONS) as other:
        yield [one, other]


def address(node: NodeProcess) -> NodeAddress:
    return NodeAddress(node.host, node.port)


@contextlib.asynccontextmanager
async def connected(stem: str, *addresses: NodeAddress) -> AsyncIterator[tuple[Clients, Ledger]]:
    ledger = Ledger()
    clients = Clients(addresses, ledger, stem)
    try:
        yield clients, ledger
    finally:
        await clients.close()


async def publish(backend: Backend, clients: Clients, ledger: Ledger) -> None:
    """Publish one result to the next client."""
    client = clients.next_idle()
    assert client is not None
    result = ledger.attempt(client.name, 0.0)
    clients.assign(client, result)
    await backend.publish(client.name, result.message_id, retain=60)
    ledger.accept(result, 0.0)
    clients.settle(client)


async def test_each_gets_a_result_in_turn(valkey: ValkeyProcess, nodes: list[NodeProcess]) -> None:
    async with connected("turn", *map(address, nodes)) as (clients, ledger), Backend(valkey.url) as backend:
        await clients.connect_all(10, 10)
        assert clients.registered == 10
        for _ in range(2):
            await asyncio.gather(*(publish(backend, clients, ledger) for _ in range(10)))
            await until(lambda: not ledger.in_flight, "all have a result")
        names = [result.web_socket_id for result in ledger.results.values()]
        assert sorted(names[:10]) == sorted(names[10:]) == sorted(clients.by_name), "each has two"
        assert {result.via for result in ledger.results.values()} == {0, 1}, "through both nodes"
        assert (ledger.duplicates, ledger.strays) == (0, 0)


async def test_a_client_has_one_result_in_flight_at_a_time(
    valkey: ValkeyProcess, nodes: list[NodeProcess]
) -> None:
    async with connected("one", address(nodes[0])) as (clients, ledger):
        await clients.connect_all(1, 10)
        client = clients.next_idle()
        assert client is not None
        assert clients.next_idle() is None
        result = ledger.attempt(client.name, 0.0)
        clients.assign(client, result)
        clients.settle(client)
        assert clients.next_idle() is None
        ledger.accept(result, 0.0)
        clients.delivered(client, result.message_id, 0)
        assert clients.next_idle() is client


async def test_they_reconnect_elsewhere_and_get_no_result_twice(
    valkey: ValkeyProcess, nodes: list[NodeProcess]
) -> None:
    with await asyncio.to_thread(NodeProcess, valkey.url, *OPTIONS) as doomed:
        async with (
            connected("back", address(doomed), address(nodes[0])) as (clients, ledger),
            Backend(valkey.url) as backend,
        ):
            await clients.connect_all(20, 10)
            await asyncio.gather(*(publish(backend, clients, ledger) for _ in range(20)))
            await until(lambda: not ledger.in_flight, "all have a result")
            doomed.kill()
            await until(lambda: len(clients.reconnects) == 10, "half of them have reconnected")
            assert clients.registered == 20
            assert clients.close_codes == {1006: 10}
            assert 0 < clients.longest_disconnect(0.0) < 10
            await asyncio.gather(*(publish(backend, clients, ledger) for _ in range(20)))
            await until(lambda: not ledger.in_flight, "all have a second result")
            assert {result.via for result in list(ledger.results.values())[20:]} == {1}
            assert ledger.duplicates == 0, (
                "the first is retained, and each client sent its messageId as lastMessageId"
            )


async def test_some_leave_and_others_arrive(valkey: ValkeyProcess, nodes: list[NodeProcess]) -> None:
    async with connected("swap", address(nodes[0])) as (clients, _):
        await clients.connect_all(5, 10)
        before = set(clients.by_name)
        for _ in range(5):
            clients.replace_one()
        assert len(clients.by_name) == 5
        await until(lambda: clients.registered == 5, "the new ones have registered")
        assert before != set(clients.by_name)
        assert not clients.close_codes, "a client that leaves is not counted"
        assert 0 < clients.slowest_registration < 10


async def test_one_that_does_not_read_is_closed_and_reconnects(
    valkey: ValkeyProcess, nodes: list[NodeProcess]
) -> None:
    async with connected("slow", address(nodes[0])) as (clients, ledger), Backend(valkey.url) as backend:
        slow = clients.add(narrow=True)
        await until(lambda: slow.registered, "it has registered")
        slow.pause()
        numbers = iter(range(1_000))

        async def held() -> bool:
            (count,) = await backend.publish_once([slow.name], f"filler-{next(numbers)}", "x" * 60_000)
            return count == 1

        while await held():
            pass
        assert next(numbers) < 100, "with the segments of a network little fits into the kernel's buffers"
        slow.resume()
        await until(lambda: clients.reconnects, "it has reconnected")
        assert ledger.strays == 0, "fillers are not in the ledger"
