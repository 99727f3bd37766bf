"""Retained results too large, or too many at once, for Redis to send: it cuts off who asks for them."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio

from gateway.drill.fleet import ValkeyProcess
from gateway.redis import history
from gateway.redis import subscriber as link

from .in_process import node_in_process, port_of
from .load import until
from .raw import Raw

# What MGET does: as much as there is, whatever becomes of the connection.
UNBOUNDED = """local results = {}
for i, key in ipairs(KEYS) do results[i] = redis.pcall('GET', key) end
return results"""


@pytest.mark.parametrize("safeguard", [True, False], ids=["safeguard", "control"])
async def test_a_huge_retained_result_deafens_nobody(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis, safeguard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not safeguard:
        monkeypatch.setattr(link, "READ_SCRIPT", UNBOUNDED)
    await backend.set("websocket:huge", b"A" * 40_000_000, ex=60)
    try:
        async with node_in_process(valkey.url) as gateway, Raw.upgraded(port_of(gateway)) as victim:
            victim.send(b"")
            async with Raw.registered(port_of(gateway), "innocent") as browser:
                if not safeguard:
                    gateway._hub.register(b"huge", _Deaf())
                    await until(
                        lambda: gateway._broker.outages > 1, "Redis cuts the node off again and again"
                    )
                    return
                await victim.register("huge")
                assert await backend.publish("websocket:innocent", "CONFIRMED") == 1
                assert (await browser.message())["authResult"] == "CONFIRMED"
                assert gateway._hub.invalid == {"too big": 1}
                assert gateway._broker.outages == 0
    finally:
        await backend.delete("websocket:huge")


async def test_many_large_results_come_in_their_turn(
    valkey: ValkeyProcess, backend: redis.asyncio.Redis
) -> None:
    """600 legal results of 60 KB are more than one reply, or Redis's limit for all of them, may hold."""
    names = [f"large-{number}" for number in range(600)]
    payload = b'{"authResult":"DONE","data":"' + b"x" * 60_000 + b'"}'
    for name in names:
        await backend.set(f"websocket:{name}", payload, ex=60)
    try:
        async with node_in_process(valkey.url) as gateway:
            members = [_Deaf() for _ in names]
            for name, member in zip(names, members, strict=True):
                gateway._hub.register(name.encode(), member)
            await until(lambda: all(member.delivered for member in members), "each has its result")
            assert gateway._broker.outages == 0
    finally:
        await backend.delete(*(f"websocket:{name}" for name in names))


SMALL_RESULT = b'{"authResult":"DONE","data":"' + b"x" * 4_000 + b'"}'


@pytest.mark.parametrize(
    ("limit", "safeguard"),
    [("256kb", True), ("1mb", True), ("256kb", False)],
    ids=["256kb", "1mb", "control"],
)
async def test_batches_shrink_to_the_output_buffer_that_redis_allows(
    limit: str, safeguard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not safeguard:
        monkeypatch.setattr(history, "SMALLEST", 0)
    names = [f"narrow-{number:0120}" for number in range(2_000)]
    options = ("--client-output-buffer-limit", f"pubsub {limit} 0 0")
    with await asyncio.to_thread(ValkeyProcess, *options) as valkey:
        with valkey.client() as client:
            client.mset({f"websocket:{name}": SMALL_RESULT for name in names})
        async with node_in_process(valkey.url) as gateway:
            members = [_Deaf() for _ in names]
            for name, member in zip(names, members, strict=True):
                gateway._hub.register(name.encode(), member)
            if not safeguard:
                await until(lambda: gateway._broker.outages > 8, "Redis closes it again and again")
                assert not all(member.delivered for member in members)
                return
            await until(lambda: all(member.delivered for member in members), "each has its result")
            outages = gateway._broker.outages
            assert 1 <= outages <= 8
            valkey.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: gateway._broker.outages > outages, "it is cut off once more")
            await until(lambda: gateway._hub.count_confirmed() == len(names), "all are back")
            assert gateway._broker.outages == outages + 1, "what the node has learnt, it remembers"


class _Deaf:
    """A member of the hub that only counts."""

    def __init__(self) -> None:
        self.delivered = 0

    def confirm(self, web_socket_id: bytes) -> None:
        """It was registered."""

    def refuse_unknown(self, web_socket_id: bytes) -> bool:
        raise AssertionError("this hub admits every id")

    def deliver(self, web_socket_id: bytes, result: object, retained: bool = False) -> None:
        self.delivered += 1

    def degraded(self) -> None:
        """It watches no status."""

    restored = degraded
