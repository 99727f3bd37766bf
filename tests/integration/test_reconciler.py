"""The table is held against what Redis has really subscribed, and the difference mended."""

from __future__ import annotations

import asyncio
import random

import pytest

from gateway.drill.fleet import ValkeyProcess
from gateway.node import Node
from gateway.redis import reconciler
from gateway.redis.server_broker import ServerBroker
from gateway.redis.subscriber import SubscriberConnection

from .conftest import Line
from .in_process import node_in_process, port_of
from .load import SECONDS, Backend, all_undisturbed, load_clients, result_of, until, without_their_result
from .test_race import Waiting

CHURN_SECONDS = 1.5


def broker_of(gateway: Node) -> ServerBroker:
    assert isinstance(gateway._broker, ServerBroker)
    return gateway._broker


async def reconciled(gateway: Node) -> int:
    """How many channels differed."""
    broker = broker_of(gateway)
    before = broker.repaired
    assert broker.connection is not None
    await broker.reconciler.run_once(broker.connection)
    return broker.repaired - before


def take_out(event: str, logged: list[Line]) -> None:
    assert [line["event"] for line in logged if line["log_level"] == "error"] == [event]
    logged[:] = [line for line in logged if line["event"] != event]


async def test_an_id_that_is_missing_in_redis_is_subscribed_again(
    valkey: ValkeyProcess, logged: list[Line]
) -> None:
    names = [f"missing-{number}" for number in range(20)]
    async with (
        node_in_process(valkey.url) as gateway,
        Backend.on(valkey.url) as backend,
        load_clients([port_of(gateway)], names) as browsers,
    ):
        # The table takes for confirmed what has never been asked for.
        gateway._hub.broker = _Liar(gateway)
        member = Waiting("missing")
        gateway._hub.register(b"missing", member)
        gateway._hub.broker = broker_of(gateway)
        assert member.told == ["registered"]
        await backend.publish_all([*names, "missing"], 10_000)
        assert [accepted.name for accepted in backend.accepted if not accepted.receivers] == ["missing"]
        await until(lambda: not without_their_result(browsers), "the others hear")
        assert member.told == ["registered"], "control: without the reconciler it never gets its result"
        assert await reconciled(gateway) == 1
        await until(lambda: member.told[1:] == [result_of("missing")], "what was retained arrives")
        assert await backend.publish_once(["missing"]) == [1]
        assert await reconciled(gateway) == 0
        assert broker_of(gateway).outages == 0
        assert all_undisturbed(browsers)
        gateway._hub.leave(b"websocket:missing", member)
    take_out("reconciler: subscriptions missing", logged)


class _Liar:
    """Says of everything that it is subscribed."""

    def __init__(self, gateway: Node) -> None:
        self._hub = gateway._hub

    def reaches(self, name: bytes) -> bool:
        return True

    def subscribe(self, name: bytes) -> None:
        # The hub hears nothing while it says something.
        self._hub._table.confirmed(name, None)
        self._hub._table.members(name)[0].confirm(name)

    def read(self, name: bytes) -> None:
        raise NotImplementedError

    def unsubscribe(self, name: bytes) -> None:
        raise NotImplementedError

    def degraded(self, name: bytes) -> bool:
        return False


async def test_with_a_channel_too_many_the_link_is_given_up(
    valkey: ValkeyProcess, logged: list[Line]
) -> None:
    names = [f"surplus-{number}" for number in range(20)]
    async with (
        node_in_process(valkey.url) as gateway,
        Backend.on(valkey.url) as backend,
        load_clients([port_of(gateway)], names) as browsers,
    ):
        member = Waiting("forgotten")
        gateway._hub.register(b"forgotten", member)
        await until(lambda: member.told, "it is registered")
        del gateway._hub._table._channels[b"websocket:forgotten"]
        assert await backend.publish_once(["forgotten"]) == [1]
        assert await reconciled(gateway) == 1
        await until(lambda: not broker_of(gateway).connected, "the connection is closed")
        await until(lambda: broker_of(gateway).connected, "there is another")
        await backend.publish_all(names, 10_000)
        await until(lambda: not without_their_result(browsers), "the others hear")
        assert await backend.publish_once(["forgotten"]) == [0]
        assert await reconciled(gateway) == 0
        assert all_undisturbed(browsers)
    take_out("reconciler: subscription count differs from Redis", logged)


@pytest.mark.parametrize("safeguard", [True, False], ids=["safeguard", "control"])
async def test_with_sessions_that_come_and_go_the_reconciler_finds_nothing(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch, logged: list[Line], safeguard: bool
) -> None:
    """It compares when no question is open; the control compares at any moment."""
    monkeypatch.setattr(reconciler, "RECONCILE_INTERVAL", 0.01)
    monkeypatch.setattr(reconciler, "IDLE_POLL", 0.001)
    monkeypatch.setattr(reconciler, "RECHECK_DELAY", 0.001)
    if not safeguard:
        monkeypatch.setattr(SubscriberConnection, "idle", True)
    draw = random.Random(20260101)
    loop = asyncio.get_running_loop()
    async with node_in_process(valkey.url) as gateway, Backend.on(valkey.url) as backend:
        hub, broker = gateway._hub, broker_of(gateway)
        members: list[Waiting] = []
        end = loop.time() + (CHURN_SECONDS if safeguard else SECONDS)
        number = 0
        while loop.time() < end and (safeguard or not broker.repaired):
            for _ in range(draw.randrange(20)):
                number += 1
                members.append(Waiting(f"churn-{safeguard}-{number}"))
                hub.register(members[-1].name.encode(), members[-1])
            for _ in range(draw.randrange(min(20, len(members) + 1))):
                member = members.pop(draw.randrange(len(members)))
                hub.leave(f"websocket:{member.name}".encode(), member)
            await asyncio.sleep(draw.uniform(0, 0.004))
            if number % 50 == 0:
                await backend.client.client_kill_filter(_type="pubsub")
        for member in members:
            hub.leave(f"websocket:{member.name}".encode(), member)
        assert (broker.repaired == 0) is safeguard, broker.repaired
        assert broker.reconciler.runs >= 3 or not safeguard
    if not safeguard:
        logged[:] = [line for line in logged if not line["event"].startswith("reconciler: ")]
