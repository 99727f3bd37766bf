"""Results published while a browser registers: whichever comes first, the browser gets it."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from types import SimpleNamespace
from typing import Any

import hiredis
import pytest
import redis.asyncio

from gateway.app import Gateway
from gateway.messages import Problem, Result
from gateway.publishing import SCRIPT

from ..processes import Valkey
from .here import gateway_here
from .load import until

ROUNDS = {True: 3_000, False: 1_000}  # with the cure and without
AT_A_TIME = 100
SPREAD = 0.004  # seconds: over which so many register and so many results are published, each at random


class Waiting:
    """A member of the hub, as a session is one; the WebSocket would only make the race rarer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[str] = []

    def acknowledge(self, web_socket_id: bytes) -> None:
        self.told.append("registered")

    def deliver(self, web_socket_id: bytes, result: Result) -> None:
        self.told.append(result.auth_result)

    def refuse(self, web_socket_id: bytes, problem: Problem) -> None:
        self.told.append(problem.code)

    def degraded(self) -> None:
        """It watches no status."""

    restored = degraded


class Publisher(asyncio.Protocol):
    """A connection to Redis that waits for no reply, so that a result costs no more than a write."""

    async def connect(self, valkey: Valkey) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", valkey.port)
        return self._transport

    def say(self, *command: str | int) -> None:
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # see gateway.link


def all_told(members: list[Waiting], which: int, what: str) -> bool:
    return all(member.told and member.told[which] == what for member in members)


async def lost_in_a_race(gateway: Gateway, publisher: Publisher, rounds: int) -> int:
    """Publish `rounds` retained results at random moments around registrations; how many did not arrive."""
    loop = asyncio.get_running_loop()
    hub = gateway._hub
    draw = random.Random(20260101)

    def publish(name: str) -> None:
        publisher.say("EVAL", SCRIPT, 1, f"websocket:{name}", "RESULT", 60)

    lost = 0
    for start in range(0, rounds, AT_A_TIME):
        members = [Waiting(f"race-{rounds}-{number}") for number in range(start, start + AT_A_TIME)]
        for member in members:
            loop.call_later(draw.uniform(0, SPREAD), hub.register, member.name.encode(), member)
            loop.call_later(draw.uniform(0, SPREAD), publish, member.name)
        await asyncio.sleep(SPREAD + 0.001)
        await until(partial(all_told, members, 0, "registered"), "all are registered")
        # A last result to each: what has not come before it never will.
        for member in members:
            publisher.say("PUBLISH", f"websocket:{member.name}", "LAST")
        await until(partial(all_told, members, -1, "LAST"), "the last results")
        assert all_told(members, 0, "registered"), "the answer comes first"
        lost += sum(member.told != ["registered", "RESULT", "LAST"] for member in members)
        for member in members:
            hub.leave(f"websocket:{member.name}".encode(), member)
    return lost


def read_before_subscribing(gateway: Gateway, client: redis.asyncio.Redis) -> None:
    """Make `gateway` read the retained result first and subscribe then, the obvious way round."""
    hub, broker = gateway._hub, gateway._broker
    early: dict[bytes, Any] = {}
    reading: set[asyncio.Task[None]] = set()
    subscribed = hub.subscribed

    async def read_and_subscribe(name: bytes) -> None:
        early[name] = await client.get(name)
        broker.subscribe(name)

    def subscribe(name: bytes) -> None:
        task = asyncio.create_task(read_and_subscribe(name))
        reading.add(task)
        task.add_done_callback(reading.discard)

    def confirmed(name: bytes, retained: bytes | None) -> None:
        subscribed(name, early.pop(name, None))

    hub.attach(
        SimpleNamespace(
            reaches=broker.reaches, subscribe=subscribe, read=broker.read, unsubscribe=broker.unsubscribe
        )
    )
    hub.subscribed = confirmed  # type: ignore[method-assign]


@pytest.mark.parametrize("cure", [True, False], ids=["cure", "control"])
async def test_a_result_published_while_its_browser_registers_arrives(
    valkey: Valkey, backend: redis.asyncio.Redis, cure: bool
) -> None:
    publisher = Publisher()
    transport = await publisher.connect(valkey)
    async with gateway_here(valkey.url) as gateway:
        if not cure:
            read_before_subscribing(gateway, backend)
        lost = await lost_in_a_race(gateway, publisher, ROUNDS[cure])
    transport.close()
    assert (lost == 0) is cure, lost
