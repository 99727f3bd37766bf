"""Three nodes, one Valkey, a thousand browsers: every one gets its own result, once, and no other's."""

from __future__ import annotations

import asyncio
import resource
from functools import partial

from gateway.drill.fleet import ValkeyProcess

from .conftest import nodes_on
from .in_process import readiness
from .load import Backend, LoadClient, load_clients, until, without_their_result

BROWSERS = 1_000
ON_TWO_NODES = 100


async def test_every_browser_gets_its_own_result_and_no_others() -> None:
    allow_files(BROWSERS + ON_TWO_NODES + 200)
    names = [f"browser-{number:0119}" for number in range(BROWSERS)]  # as long as Web Flow's ids
    twice = names[:ON_TWO_NODES]
    with ValkeyProcess() as valkey, nodes_on(valkey.url, 3) as nodes:
        ports = [node.port for node in nodes]
        async with (
            load_clients(ports, names) as browsers,
            load_clients(ports[1:] + ports[:1], twice) as doubles,  # the same ids, each on the next node
            Backend.on(valkey.url) as backend,
        ):
            bodies = [(await readiness(node.admin_port))[1] for node in nodes]
            assert sum(body["sessions"] for body in bodies) == BROWSERS + ON_TWO_NODES
            assert min(body["sessions"] for body in bodies) >= BROWSERS // 3

            counts = await backend.publish_once(names)
            assert counts == [2] * ON_TWO_NODES + [1] * (BROWSERS - ON_TWO_NODES)
            everybody = browsers + doubles
            await until(lambda: all(browser.results for browser in everybody), "everybody has a result")
            for last in browsers[-3:]:  # one on each node: whatever was still on its way comes before this
                await backend.client.publish(f"websocket:{last.name}", "LAST")
                await until(partial(last_came, last), "the last result")
                last.messages.pop()
            assert without_their_result(everybody) == []
            assert not any(browser.closed_at for browser in everybody)
        for node in nodes:
            await asyncio.to_thread(node.stop)
            assert node.process.returncode == 0


def last_came(browser: LoadClient) -> bool:
    return browser.results[-1] == "LAST"


def allow_files(count: int) -> None:
    """Raise the limit of open files if it is below `count`, as it is on some systems for tests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
