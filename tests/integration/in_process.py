"""Nodes in the process and event loop of the test, where a test can look into them and change them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from gateway import node as nodes
from gateway.config import build
from gateway.node import Node

from .load import SECONDS, until


@contextlib.asynccontextmanager
async def unconnected_node(redis_url: str, *, demo: bool = False, **settings: Any) -> AsyncIterator[Node]:
    """A node on free ports with these settings; it need not be connected to Redis. Stops at the end."""
    where = {"host": "127.0.0.1", "port": 0, "admin_port": 0, "redis": redis_url}
    gateway = await nodes.build(build(where | settings), demo={} if demo else None)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()
        await until(lambda: not gateway._acceptor.ledger.connections.total, "every connection is counted off")


@contextlib.asynccontextmanager
async def node_in_process(redis_url: str, *, demo: bool = False, **settings: Any) -> AsyncIterator[Node]:
    """The same, connected to Redis."""
    async with unconnected_node(redis_url, demo=demo, **settings) as gateway:
        await until(lambda: gateway._broker.connected, "the node is connected to Redis")
        yield gateway


def port_of(gateway: Node) -> int:
    """The public port of a node."""
    return gateway.listening.port


def admin_port_of(gateway: Node) -> int:
    """The admin port of a node."""
    return gateway.listening.admin_port


async def readiness(admin_port: int, *, strict: bool = False) -> tuple[int, dict[str, Any]]:
    """Status and body of /readyz, or of /readyz/strict, on this port."""
    timeout = aiohttp.ClientTimeout(SECONDS)
    url = f"http://127.0.0.1:{admin_port}/readyz{'/strict' * strict}"
    async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as answer:
        body: dict[str, Any] = await answer.json()
        return answer.status, body


async def until_status(admin_port: int, what: str, **expected: object) -> dict[str, Any]:
    """Poll /readyz until these members are as `expected`; returns the body, or raises TimeoutError."""
    clock = asyncio.get_running_loop().time
    end = clock() + SECONDS
    while clock() < end:
        _, body = await readiness(admin_port)
        if all(body[name] == value for name, value in expected.items()):
            return body
        await asyncio.sleep(0.01)
    raise TimeoutError(f"{what}: not within {SECONDS} s but {body}")
