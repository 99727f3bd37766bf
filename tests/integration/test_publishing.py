"""POST /publish on a real node, well and while Redis is not: an answer in bounded time, and the truth in it.

The browser gets each result once, however often it was posted.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from gateway.drill.fleet import NodeProcess, SentinelGroup, ValkeyCluster, ValkeyProcess
from gateway.node import Node
from gateway.publishing.publisher import PUBLISH_TIMEOUT
from gateway.redis.pool import PUBLISHER_NAME

from ..paths import DOCS
from .conftest import Line
from .faults import Proxy
from .in_process import admin_port_of, node_in_process, port_of
from .load import until
from .raw import Raw

TOKEN = "a-token-of-sixteen"
ACCESS = DOCS / "redis-access.md"
SLACK = 4.0  # seconds for a busy machine

Fault = Callable[[ValkeyProcess, Proxy], Awaitable[Callable[[], None]]]


class Backend:
    """A backend that has no Redis client, but the token."""

    def __init__(self, http: aiohttp.ClientSession, gateway: Node) -> None:
        self._http = http
        self._url = f"http://127.0.0.1:{admin_port_of(gateway)}/publish"

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, gateway: Node) -> AsyncIterator[Backend]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            yield cls(http, gateway)

    async def post(self, body: object) -> tuple[int, Any]:
        async with self._http.post(self._url, json=body) as answer:
            return answer.status, await answer.json()


def node(redis_url: str) -> contextlib.AbstractAsyncContextManager[Node]:
    return node_in_process(redis_url, publish_token=TOKEN)


def result(name: str, message_id: str, word: str = "CONFIRMED") -> dict[str, object]:
    return {"webSocketId": name, "authResult": word, "messageId": message_id}


async def messages_until(browser: Raw, message_id: str) -> list[str]:
    """The messageIds that the browser gets, up to this one."""
    heard = []
    while message_id not in heard:
        heard.append((await browser.message())["messageId"])
    return heard


async def test_a_browser_gets_what_is_posted(valkey: ValkeyProcess) -> None:
    async with (
        node(valkey.url) as gateway,
        Backend.of(gateway) as backend,
        Raw.registered(port_of(gateway), "posted") as browser,
    ):
        status, answer = await backend.post({**result("posted", "m1"), "data": {"a": 1}})
        assert (status, answer["receivers"], answer["retained"]) == (200, 1, True)
        assert await browser.message() == {
            "topic": "/user/topic/authorization",
            "webSocketId": "posted",
            "authResult": "CONFIRMED",
            "messageId": "m1",
            "data": {"a": 1},
        }
        await backend.post(result("posted", "m1"))
        await backend.post(result("posted", "m2"))
        assert await messages_until(browser, "m2") == ["m2"], "a repeated messageId is sent once"


async def test_a_thousand_at_once(valkey: ValkeyProcess) -> None:
    async with (
        node(valkey.url) as gateway,
        Backend.of(gateway) as backend,
        Raw.registered(port_of(gateway), "many-999") as browser,
    ):
        batch = [result(f"many-{number}", f"m{number}") for number in range(1000)]
        status, answer = await backend.post({"results": batch})
        assert status == 200
        assert [one["receivers"] for one in answer["results"]] == [0] * 999 + [1]
        assert (await browser.message())["messageId"] == "m999"


@pytest.mark.real
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_log_says_who_posted_what_and_who_was_denied(valkey: ValkeyProcess, workers: str) -> None:
    options = ("--workers", workers, "--publish-token", TOKEN)
    with await asyncio.to_thread(NodeProcess, valkey.url, *options) as running:
        url = f"http://127.0.0.1:{running.admin_port}/publish"
        async with aiohttp.ClientSession() as http:
            await http.post(url, json=result("audited-1", "m1"))
            access = {"Authorization": f"Bearer {TOKEN}"}
            await http.post(url, json={"results": [result("audited-1", "m1")] * 30}, headers=access)
        await until(lambda: len(running.logged("result posted")) == 30, "the lines are written")
        (denied,) = running.logged("publish denied")
        posted = running.logged("result posted")[0]
        logs = str(running.logs)
    assert (denied["level"], denied["kind"], denied["peer"]) == ("warning", "unauthorized", "127.0.0.1")
    assert (posted["level"], posted["id"], posted["result"]) == ("info", "audi…", "CONFIRMED")
    assert (posted["peer"], posted["outcome"], posted["retained"]) == ("127.0.0.1", "retained", True)
    assert TOKEN not in logs
    assert "audited-1" not in logs


async def test_off_by_default_and_only_on_the_admin_port(valkey: ValkeyProcess) -> None:
    async with node_in_process(valkey.url) as gateway, Backend.of(gateway) as backend:
        status, answer = await backend.post(result("off", "m"))
        assert status == 403
        assert "publishing over HTTP is off" in answer["error"]["message"]
        public = f"http://127.0.0.1:{port_of(gateway)}/publish"
        async with aiohttp.ClientSession() as http, http.post(public, json={}) as refused:
            assert refused.status == 404


async def test_a_node_that_publishes_needs_its_own_rights_and_those_of_a_backend() -> None:
    """As docs/redis-access.md has them."""
    page = ACCESS.read_text()
    (own,) = re.findall(r"ACL SETUSER node on >… (.* \+subscribe .*)\n", page)
    (backends,) = re.findall(r"ACL SETUSER backend on >… (.* \+publish)\n", page)
    with await asyncio.to_thread(ValkeyProcess) as valkey:
        valkey.ask("ACL", "SETUSER", "node", "on", ">x", *own.split(), *backends.split())
        async with (
            node(valkey.url.replace("//", "//node:x@")) as gateway,
            Backend.of(gateway) as backend,
            Raw.registered(port_of(gateway), "rights") as browser,
        ):
            status, answer = await backend.post(result("rights", "m"))
            assert (status, answer["receivers"]) == (200, 1)
            assert (await browser.message())["messageId"] == "m"


async def killed(valkey: ValkeyProcess, _proxy: Proxy) -> Callable[[], None]:
    valkey.kill()
    return valkey.start


async def frozen(valkey: ValkeyProcess, _proxy: Proxy) -> Callable[[], None]:
    valkey.freeze()
    return valkey.thaw


async def black_holed(_valkey: ValkeyProcess, proxy: Proxy) -> Callable[[], None]:
    """Connections stay open and carry nothing, and new ones too."""
    proxy.mute = True
    proxy.silence()

    def mend() -> None:
        proxy.mute = False

    return mend


@pytest.mark.parametrize("fault", [killed, frozen, black_holed])
async def test_redis_out_of_reach_while_results_are_posted(fault: Fault, logged: list[Line]) -> None:
    """Posted before, meanwhile and again after: 200, then 503 in bounded time, then 200; each heard once."""
    with await asyncio.to_thread(ValkeyProcess, "--appendonly", "yes", "--appendfsync", "always") as valkey:
        async with (
            Proxy.before(valkey.port) as proxy,
            node(proxy.url) as gateway,
            Backend.of(gateway) as backend,
            Raw.registered(port_of(gateway), "fault") as browser,
        ):
            assert (await backend.post(result("fault", "before")))[0] == 200
            assert await messages_until(browser, "before") == ["before"]
            mend = await fault(valkey, proxy)
            started = time.monotonic()
            answers = await asyncio.gather(
                backend.post(result("fault", "meanwhile")),
                backend.post({"results": [result("fault", "meanwhile-2"), result("fault", "x y")]}),
            )
            assert time.monotonic() - started < PUBLISH_TIMEOUT + SLACK
            (one, single), (other, batch) = answers
            codes = {"not_published", "unconfirmed"}  # killed between two attempts, or during one
            assert (one, single["messageId"]) == (503, "meanwhile")
            assert single["error"]["code"] in codes
            assert other == 503
            assert batch["results"][0]["error"]["code"] in codes
            assert batch["results"][1]["error"]["code"] == "invalid"
            await asyncio.to_thread(mend)
            for message_id in ("meanwhile", "meanwhile-2"):
                status, answer = await backend.post(result("fault", message_id))
                assert (status, answer["retained"]) == (200, True), "repeating it succeeds"
            heard = await messages_until(browser, "meanwhile-2")
            assert (await backend.post(result("fault", "meanwhile-2")))[0] == 200
            assert (await backend.post(result("fault", "after")))[0] == 200
            heard += await messages_until(browser, "after")
            assert len(heard) == len(set(heard)), "each once"
    assert {line["event"] for line in logged} & {"results unconfirmed", "results not published"}


async def test_a_master_fails_while_results_are_posted() -> None:
    redises = await asyncio.to_thread(SentinelGroup().__enter__)
    with contextlib.ExitStack() as running:
        running.push(redises.__exit__)
        async with (
            node(redises.url) as gateway,
            Backend.of(gateway) as backend,
            Raw.registered(port_of(gateway), "failover") as browser,
        ):
            assert (await backend.post(result("failover", "before")))[0] == 200
            old = redises.master
            await asyncio.to_thread(old.kill)
            async with asyncio.timeout(20):
                while (await backend.post(result("failover", "during")))[0] != 200:
                    pass  # each takes its three seconds
            await asyncio.to_thread(redises.await_other_master, old)
            assert (await messages_until(browser, "during")).count("during") == 1


async def test_a_cluster_takes_each_result_where_its_browser_hears_it() -> None:
    cluster = await asyncio.to_thread(ValkeyCluster(replicas=0).__enter__)
    with contextlib.ExitStack() as running:
        running.push(cluster.__exit__)
        async with node(cluster.url) as gateway, Backend.of(gateway) as backend:
            names = [f"spread-{number}" for number in range(12)]
            async with contextlib.AsyncExitStack() as open_:
                port = port_of(gateway)
                browsers = [await open_.enter_async_context(Raw.registered(port, name)) for name in names]
                status, answer = await backend.post({"results": [result(name, "m") for name in names]})
                assert status == 200
                assert all(one["receivers"] == 1 for one in answer["results"])
                for browser in browsers:
                    assert (await browser.message())["messageId"] == "m"


async def test_a_node_that_drains_publishes_on_and_leaves_nothing_behind(valkey: ValkeyProcess) -> None:
    async with node(valkey.url) as gateway, Backend.of(gateway) as backend:
        assert (await backend.post(result("drained", "m")))[0] == 200
        await gateway.drain(0, 0)
        assert (await backend.post(result("drained", "m")))[0] == 200
    await until(
        lambda: f"name={PUBLISHER_NAME}" not in valkey.ask("CLIENT", "LIST"), "the connection is gone"
    )
