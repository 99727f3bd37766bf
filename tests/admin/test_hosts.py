"""Under which names the admin port answers."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from structlog.testing import capture_logs

from gateway.admin.hosts import HOST_NOT_ALLOWED, KnownHosts, host_names, known_names
from gateway.config import build


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8081",
        "localhost.:8081",
        "127.0.0.1:8081",
        "10.1.2.3",
        "[::1]:8081",
        "[2001:db8::7]",
        "gw-1:9000",
        "Gw-1",
        "gateway",
    ],
)
def test_addresses_and_known_names_are_allowed(host: str) -> None:
    assert KnownHosts(["localhost", "gw-1", "gateway"], Counter()).allow(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8081",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "gw-1.evil.example",
        "127.1",
        "0x7f000001",
        "",
        ":8081",
        "localhost:x",
        "localhost:80:80",
        "[::1",
        "::1",
        "[evil.example]",
        "localhost@evil.example",
        "evil.example/localhost",
        "localhost, evil.example",
        "*",
        "\udce9",
    ],
)
def test_others_are_not(host: str) -> None:
    assert not KnownHosts(["localhost", "gw-1"], Counter()).allow(host)


def test_a_star_allows_every_name() -> None:
    assert KnownHosts(["*"], Counter()).allow("evil.example")


def test_a_node_knows_its_own_names() -> None:
    config = build({"admin_hosts": "gateway, gw.Bank.example", "admin_host": "gw-admin"})
    names = set(known_names(config, "gw-1:8080"))
    assert {"gateway", "gw.Bank.example", "gw-admin", "gw-1", "localhost", socket.gethostname()} <= names


def test_the_names_of_a_host(tmp_path: Path) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("# search no\n\nnameserver 10.0.0.1\nsearch bank.internal example. .\ndomain corp\n")
    names = ["gw1.old", "gw1", "gw1.bank.internal", "gw1.example", "gw1.corp"]
    assert list(host_names("gw1.old", resolver)) == names
    assert list(host_names("gw1", tmp_path / "none")) == ["gw1", "gw1"]


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def status_of(target: str) -> int:
    """The answer to a request for `target` with the Host header of this node."""
    request = make_mocked_request("GET", target, headers={"Host": "localhost"})
    return (await KnownHosts(["localhost"], Counter()).check(request, hello)).status


async def test_the_host_of_a_target_that_is_a_whole_url_counts_as_well() -> None:
    for target in (
        "http://evil.example/metrics",
        "HTTP://evil.example:8081",
        "http://localhost@evil.example/",
    ):
        assert await status_of(target) == 421
    for target in ("http://localhost:8081/metrics", "http://127.0.0.1/", "/a?b=http://evil.example/"):
        assert await status_of(target) == 200


async def test_a_request_for_another_host_gets_421_and_is_counted_and_logged() -> None:
    rejected: Counter[str] = Counter()
    app = web.Application(middlewares=[KnownHosts(["localhost"], rejected).check])
    app.add_routes([web.get("/", hello)])
    async with TestClient(TestServer(app)) as client:
        async with client.get("/", headers={"Host": "localhost:1"}) as answer:
            assert (answer.status, await answer.text()) == (200, "hello")
        with capture_logs() as lines:
            for path in ("/", "/nowhere"):
                headers = {"Host": "evil.example", "X-Forwarded-For": "192.0.2.1"}
                async with client.get(path, headers=headers) as answer:
                    assert answer.status == 421
                    error = (await answer.json())["error"]
    assert error["code"] == HOST_NOT_ALLOWED
    assert "--admin-hosts (GATEWAY_ADMIN_HOSTS)" in error["message"]
    assert rejected == {HOST_NOT_ALLOWED: 2}
    assert lines[0] == {
        "event": "request rejected",
        "log_level": "warning",
        "kind": HOST_NOT_ALLOWED,
        "status": 421,
        "host": "evil.example",
        "peer": "127.0.0.1",
        "forwarded_for": "192.0.2.1",
        "hint": lines[0]["hint"],
    }
