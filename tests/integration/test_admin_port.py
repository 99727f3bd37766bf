"""Who may look, with one process and with several: under which names and on which addresses the admin port
answers.
"""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from gateway import healthcheck
from gateway.drill.fleet import NodeProcess, ValkeyProcess

from ..clients import clients_at
from .conftest import Place

PATHS = (
    "/", "/healthz", "/readyz", "/metrics", "/publish", "/dashboard/events", "/dashboard/dashboard.js",
    "/dashboard/session?webSocketId=a", "/nowhere",
)  # fmt: skip


async def status(port: int, path: str, host: str | None, address: str = "127.0.0.1") -> int:
    """The status of the answer to a request, which is a POST for /publish, with this Host header or none."""
    reader, writer = await asyncio.open_connection(address, port)
    method = "POST" if path == "/publish" else "GET"
    header = "" if host is None else f"Host: {host}\r\n"
    try:
        # As HAProxy's health check: HTTP/1.0 needs no Host.
        writer.write(f"{method} {path} HTTP/1.{int(host is not None)}\r\n{header}\r\n".encode())
        async with asyncio.timeout(10):
            return int((await reader.readline()).split()[1])
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_answers_only_under_known_names(place: Place, path: str) -> None:
    known = {"/publish": 403, "/nowhere": 404}.get(path, 200)
    for host in ("127.0.0.1:8081", "localhost", f"[::1]:{place.admin_port}", socket.gethostname(), None):
        assert await status(place.admin_port, path, host) == known, host
    for host in ("evil.example", "evil.example:8081", f"{socket.gethostname()}.evil.example"):
        assert await status(place.admin_port, path, host) == 421, host


@pytest.mark.parametrize("path", PATHS[:-1])
async def test_no_page_of_another_site_may_load_an_answer(place: Place, path: str) -> None:
    method = "POST" if path == "/publish" else "GET"
    url = f"http://127.0.0.1:{place.admin_port}{path}"
    async with aiohttp.ClientSession() as http, http.request(method, url) as answer:
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"].startswith("no-")
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_other_hosts_are_counted(place: Place) -> None:
    async def count() -> float:
        url = f"http://127.0.0.1:{place.admin_port}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            lines = (await answer.text()).splitlines()
        found = [line for line in lines if line.startswith("gateway_rejected") and "host_not_allowed" in line]
        return sum(float(line.split()[-1]) for line in found)

    before = await count()
    assert await status(place.admin_port, "/readyz", "evil.example") == 421
    assert await count() == before + 1


@pytest.mark.real
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_names_can_be_added(valkey: ValkeyProcess, workers: str) -> None:
    options = ("--workers", workers, "--node", "node-7", "--admin-hosts", "gateway,gw.bank.example")
    with await asyncio.to_thread(NodeProcess, valkey.url, *options) as node:
        for host in ("gateway:8081", "GW.bank.example", "node-7"):
            assert await status(node.admin_port, "/readyz", host) == 200
        assert await status(node.admin_port, "/readyz", "evil.example") == 421


@pytest.mark.real
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_both_ports_listen_on_both_families(valkey: ValkeyProcess, workers: str) -> None:
    """And the image's health check finds the node."""
    everywhere = ("--host", "::", "--admin-host", "::", "--workers", workers)
    with await asyncio.to_thread(NodeProcess, valkey.url, *everywhere) as node:
        for address, host in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")):
            async with clients_at(address) as clients:
                websocket = await clients.register(f"ws://{host}:{node.port}/ws", f"both-{workers}")
                await websocket.close()
            assert await status(node.admin_port, "/readyz", "localhost", address) == 200
        for hosts in ("::", "::1", "0.0.0.0", "127.0.0.1,::1"):
            environment = {"GATEWAY_ADMIN_HOST": hosts, "GATEWAY_ADMIN_PORT": str(node.admin_port)}
            assert await asyncio.to_thread(healthcheck.main, environment) == 0
