"""/metrics of real nodes under load, held against what was done to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families

import gateway
from gateway.admin import metrics
from gateway.drill.fleet import NodeProcess, ValkeyProcess

from .load import load_clients, text
from .raw import Raw

TIMEOUT = aiohttp.ClientTimeout(10)
TOKEN = "0123456789abcdef"
BROWSERS = 200

JSON = "gateway_sessions{protocol=json,transport=websocket}"
CONFIRMED = "gateway_registrations_total{kind=,outcome=confirmed}"
DELIVERED = "gateway_results_total{kind=,outcome=delivered}"
STAMPED = "gateway_publish_to_socket_seconds_count{since=published}"
OTHERS = "gateway_publish_to_socket_seconds_count{since=arrived}"


class Scrapes:
    """What /metrics of a node says."""

    def __init__(self, http: aiohttp.ClientSession, admin_port: int) -> None:
        self._http = http
        self._url = f"http://127.0.0.1:{admin_port}/metrics"

    async def now(self) -> dict[str, float]:
        """Each sample, with its labels in alphabetical order and without quotes."""
        async with self._http.get(self._url) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE
            families = list(text_string_to_metric_families(await answer.text()))
        return {
            f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": sample.value
            for family in families
            for sample in family.samples
        }

    async def until(self, expected: Mapping[str, float]) -> dict[str, float]:
        """Scrape until these samples have these values."""
        end = time.monotonic() + 10
        while True:
            found = await self.now()
            if expected.items() <= found.items():
                return found
            if time.monotonic() > end:
                raise TimeoutError({name: found.get(name) for name in expected})
            await asyncio.sleep(0.02)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        yield session


async def test_the_numbers_are_those_of_what_was_done(
    valkey: ValkeyProcess, http: aiohttp.ClientSession
) -> None:
    names = [f"counted-{number}" for number in range(BROWSERS)]
    with NodeProcess(valkey.url, "--publish-token", TOKEN) as node:
        scrapes = Scrapes(http, node.admin_port)
        await scrapes.until({JSON: 0, CONFIRMED: 0, DELIVERED: 0, STAMPED: 0, OTHERS: 0})
        async with load_clients([node.port], names), redis.asyncio.Redis(port=valkey.port) as backend:
            held = {"gateway_redis_channels{state=wanted}": BROWSERS, CONFIRMED: BROWSERS, JSON: BROWSERS}
            await scrapes.until({**held, "gateway_redis_channels{state=confirmed}": BROWSERS})

            for name in names:  # one that says when it was published, one that does not, and one that is none
                for _ in range(2):
                    await gateway.publish(backend, name, "CONFIRMED", message_id=f"of-{name}", retain=0)
                await backend.publish(f"websocket:{name}", "DONE")
                await backend.publish(f"websocket:{name}", "confirmed")
            url = f"http://127.0.0.1:{node.admin_port}/publish"
            token = {"Authorization": f"Bearer {TOKEN}"}
            for name in (names[0], "nobody-there"):
                await http.post(
                    url, json={"webSocketId": name, "authResult": "DONE", "retain": 0}, headers=token
                )
            await http.post(url, json={})

            found = await scrapes.until(
                {
                    DELIVERED: 2 * BROWSERS + 1,
                    "gateway_results_total{kind=,outcome=duplicate}": BROWSERS,
                    "gateway_results_total{kind=not a result,outcome=invalid}": BROWSERS,
                    STAMPED: 2 * BROWSERS + 1,
                    OTHERS: BROWSERS,
                    "gateway_published_total{outcome=received}": 1,
                    "gateway_published_total{outcome=no_receivers}": 1,
                    "gateway_published_total{outcome=denied}": 1,
                }
            )
            total = found["gateway_publish_to_socket_seconds_sum{since=published}"]
            assert 0 < total / found[STAMPED] < 1
            assert found["gateway_clock_skew_total{}"] == 0, "it is the same machine"
            assert sum(value for name, value in found.items() if "_refused_total" in name) == 0

        async with Raw.upgraded(node.port) as stranger:
            stranger.send(text({"webSocketId": "?"}))
            await stranger.message()
            stranger.send(text("{"))
            await stranger.closed()
        async with http.get(f"http://127.0.0.1:{node.port}/ws", headers={"Origin": "https://x.example"}):
            pass
        server = f"server={valkey.url}"
        found = await scrapes.until(
            {
                JSON: 0,
                "gateway_redis_channels{state=wanted}": 0,
                "gateway_registrations_total{kind=invalid_id,outcome=rejected}": 1,
                "gateway_sessions_closed_total{code=1001,reason=closed by the client}": BROWSERS,
                "gateway_sessions_closed_total{code=1007,reason=not JSON}": 1,
                "gateway_rejected_total{kind=upgrade_required}": 1,
                f"gateway_redis_connected{{{server}}}": 1,
                "gateway_redis_outages_total{}": 0,
                "gateway_ready{}": 1,
            }
        )
        await until_heard(scrapes, f"gateway_redis_probes_total{{outcome=received,{server}}}")
        await until_heard(scrapes, "gateway_event_loop_lag_seconds_count{}")  # at the next sweep
        assert any(f"version={gateway.__version__}" in name for name in found)


async def until_heard(scrapes: Scrapes, number: str) -> None:
    end = time.monotonic() + 10
    while not (await scrapes.now())[number]:
        assert time.monotonic() < end, f"{number} is still 0"
        await asyncio.sleep(0.05)


async def test_a_redis_that_goes_is_seen_in_the_numbers(http: aiohttp.ClientSession) -> None:
    with ValkeyProcess() as redis_server, NodeProcess(redis_server.url) as node:
        scrapes = Scrapes(http, node.admin_port)
        line = f"gateway_redis_connected{{server={redis_server.url}}}"
        channels = "gateway_redis_channels{state=confirmed}"
        async with load_clients([node.port], ["one", "two"]):
            await scrapes.until({line: 1, channels: 2, "gateway_redis_outage_seconds_total{}": 0})
            redis_server.kill()
            gone = await scrapes.until({line: 0, channels: 0, "gateway_redis_outages_total{}": 1, JSON: 2})
            assert gone["gateway_redis_channels{state=wanted}"] == 2
            assert gone["gateway_ready{}"] == 1, "sessions stay"
            redis_server.start()
            back = await scrapes.until({line: 1, channels: 2, "gateway_redis_outages_total{}": 1})
            assert back["gateway_redis_outage_seconds_total{}"] > 0
