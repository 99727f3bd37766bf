"""Results published while a browser registers: whichever comes first, the browser gets it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import hiredis
import redis.asyncio

from gateway.core.hub import Member
from gateway.drill.fleet import ValkeyProcess
from gateway.messages import Result
from gateway.node import Node
from gateway.publishing.api import SCRIPT

from .in_process import node_in_process
from .load import until

ROUNDS = {True: 10_000, False: 2_000}  # with the safeguard and without
AT_A_TIME = 500
BEFORE = AFTER = 0.05
"""Seconds: a result is published so long before its registration begins, or after that, at most."""


class Waiting:
    """A member of the hub, as a session is one; the WebSocket would only make the race rarer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[str] = []

    def confirm(self, web_socket_id: bytes) -> None:
        self.told.append("registered")

    def refuse_unknown(self, web_socket_id: bytes) -> bool:
        raise AssertionError("this hub admits every id")

    def deliver(self, web_socket_id: bytes, result: Result, retained: bool = False) -> None:
        self.told.append(result.auth_result)

    def degraded(self) -> None:
        """It watches no status."""

    restored = degraded


class Publisher(asyncio.Protocol):
    """A connection to Redis that waits for no reply, so that a result costs no more than a write."""

    async def connect(self, valkey: ValkeyProcess) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", valkey.port)
        return self._transport

    def say(self, *command: str | int) -> None:
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # see gateway.redis.subscriber


class Race:
    """A registration, and a result published at a random moment around it."""

    def __init__(self, name: str, draw: random.Random) -> None:
        self.member = Waiting(name)
        self.channel = f"websocket:{name}"
        self.registers_at = draw.uniform(BEFORE, 2 * BEFORE)
        # Any moment, and the more often the closer to the registration, where it matters.
        near = draw.uniform(-1, 1) ** 3
        self.publishes_at = self.registers_at + near * (BEFORE if near < 0 else AFTER)
        self.after_the_answer = False
        """Whether the client had been told that it is registered when the result was published."""

    @property
    def lost(self) -> bool:
        return "RESULT" not in self.member.told


class Lost(NamedTuple):
    """How many results did not arrive, of those published before the answer and after it."""

    before: int
    after: int


async def lost_in_a_race(gateway: Node, publisher: Publisher, rounds: int, retain: int) -> Lost:
    """Publish `rounds` results at random moments around registrations."""
    hub = gateway._hub
    draw = random.Random(20260101)
    before = after = 0
    for start in range(0, rounds, AT_A_TIME):
        races = [Race(f"race-{retain}-{rounds}-{start + number}", draw) for number in range(AT_A_TIME)]
        await run(gateway, publisher, races, retain)
        # A last result to each: what has not come before it never will.
        for race in races:
            publisher.say("PUBLISH", race.channel, "LAST")
        await until(lambda: all(race.member.told[-1] == "LAST" for race in races), "the last results")  # noqa: B023 - at once
        assert all(race.member.told[0] == "registered" for race in races), "the answer comes first"
        assert not any(race.member.told.count("RESULT") > 1 for race in races)
        before += sum(race.lost and not race.after_the_answer for race in races)
        after += sum(race.lost and race.after_the_answer for race in races)
        for race in races:
            hub.leave(race.channel.encode(), race.member)
    return Lost(before, after)


async def run(gateway: Node, publisher: Publisher, races: list[Race], retain: int) -> None:
    """Until all are registered and all is published."""
    loop = asyncio.get_running_loop()
    hub = gateway._hub
    published = 0

    def publish(race: Race) -> None:
        nonlocal published
        published += 1
        race.after_the_answer = bool(race.member.told)
        publisher.say("EVAL", SCRIPT, 1, race.channel, "RESULT", retain)

    for race in races:
        loop.call_later(race.registers_at, hub.register, race.member.name.encode(), race.member)
        loop.call_later(race.publishes_at, publish, race)
    await until(lambda: published == len(races), "all is published")
    await until(lambda: all(hub.is_confirmed(race.channel.encode()) for race in races), "all are registered")


def answer_at_once(gateway: Node, _client: redis.asyncio.Redis) -> None:
    """Make `gateway` say that a client is registered without waiting for Redis."""
    register = gateway._hub.register

    def answer(web_socket_id: bytes, member: Member) -> bytes | None:
        member.confirm(web_socket_id)
        return register(web_socket_id, member)

    gateway._hub.register = answer  # type: ignore[method-assign]


def read_before_subscribing(gateway: Node, client: redis.asyncio.Redis) -> None:
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

    hub.broker = SimpleNamespace(
        reaches=broker.reaches,
        subscribe=subscribe,
        read=broker.read,
        unsubscribe=broker.unsubscribe,
        degraded=broker.degraded,
    )
    hub.subscribed = confirmed  # type: ignore[method-assign]


@asynccontextmanager
async def race(
    valkey: ValkeyProcess, retain: int, control: Callable[[Node, redis.asyncio.Redis], None] | None
) -> AsyncIterator[Lost]:
    publisher = Publisher()
    transport = await publisher.connect(valkey)
    pool = redis.asyncio.BlockingConnectionPool(port=valkey.port, max_connections=16)
    async with node_in_process(valkey.url) as gateway, redis.asyncio.Redis.from_pool(pool) as client:
        if control is not None:
            control(gateway, client)
        yield await lost_in_a_race(gateway, publisher, ROUNDS[control is None], retain)
    transport.close()


async def test_a_retained_result_arrives_whenever_it_is_published(valkey: ValkeyProcess) -> None:
    async with race(valkey, 60, None) as lost:
        assert lost == (0, 0)


async def test_control_what_is_published_between_reading_and_subscribing_is_lost(
    valkey: ValkeyProcess,
) -> None:
    async with race(valkey, 60, read_before_subscribing) as lost:
        assert sum(lost) > 0


async def test_without_retention_a_result_arrives_once_the_answer_is_there(valkey: ValkeyProcess) -> None:
    async with race(valkey, 0, None) as lost:
        assert lost.after == 0
        assert lost.before > ROUNDS[True] // 10, "control: what came before the answer needs retention"


async def test_control_an_answer_that_does_not_wait_for_redis_promises_too_much(
    valkey: ValkeyProcess,
) -> None:
    async with race(valkey, 0, answer_at_once) as lost:
        assert lost.after > 0
