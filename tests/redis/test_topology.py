"""What a Redis URL says, and the connection that is made of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from gateway.redis.topology import FixedTopology, SentinelTopology, Server, topology_of
from gateway.redis.url import Address, RedisURL, parse_redis_url


@pytest.mark.parametrize(
    ("url", "username", "password", "database"),
    [
        ("redis://127.0.0.1", "default", None, 0),
        ("redis://127.0.0.1:6390/7", "default", None, 7),
        ("redis://:secret@127.0.0.1", "default", "secret", 0),
        ("redis://gateway:secret@127.0.0.1/2", "gateway", "secret", 2),
        ("redis://gateway:p%40ss%3A@127.0.0.1", "gateway", "p@ss:", 0),
        ("redis://127.0.0.1?db=3", "default", None, 3),
        ("unix:///run/redis.sock?db=1", "default", None, 1),
        ("unix://gateway:secret@/run/redis.sock", "gateway", "secret", 0),
        ("rediss://:secret@redis.example:6380/1", "default", "secret", 1),
    ],
)
def test_credentials_and_database(url: str, username: str, password: str | None, database: int) -> None:
    server = Server(url)
    assert (server.username, server.password, server.database) == (username, password, database)


class Visit(asyncio.Protocol):
    """A connection that tells when it is made and when it is gone."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.made: asyncio.Future[asyncio.BaseTransport] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.set_result(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set_result(None)


class Listener(asyncio.Protocol):
    """A server that says one thing, in plain text, and hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"-ERR not TLS\r\n")
        transport.close()


async def test_opens_tcp() -> None:
    listener = await asyncio.get_running_loop().create_server(Listener, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        visit = await Server(f"redis://127.0.0.1:{port}").open(Visit())
        assert (await visit.made).get_extra_info("peername") == ("127.0.0.1", port)
        await visit.gone


async def test_opens_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    listener = await asyncio.get_running_loop().create_unix_server(Listener, path)
    async with listener:
        visit = await Server(f"unix://{path}").open(Visit())
        assert (await visit.made).get_extra_info("socket").family == socket.AF_UNIX
        await visit.gone


async def test_nobody_there_is_an_os_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OSError, match=str(port)):
        await Server(f"redis://127.0.0.1:{port}").open(Visit())
    with pytest.raises(OSError, match="No such file"):
        await Server(f"unix://{tmp_path}/none.sock").open(Visit())


def test_only_rediss_speaks_tls_and_checks_who_answers() -> None:
    assert Server("redis://redis.example")._tls is None
    tls = Server("rediss://redis.example")._tls
    assert tls is not None
    assert tls.verify_mode is ssl.CERT_REQUIRED
    assert tls.check_hostname


async def test_a_server_that_speaks_no_tls_is_an_os_error() -> None:
    listener = await asyncio.get_running_loop().create_server(Listener, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(OSError, match=r"(?i)ssl|reset"):
            await Server(f"rediss://127.0.0.1:{port}").open(Visit())


# Where the one server is


@pytest.mark.parametrize("only_masters", [False, True])
async def test_a_fixed_server_is_the_same_wherever_it_leads(only_masters: bool) -> None:
    fixed = FixedTopology("redis://:secret@127.0.0.1:6390/7", only_masters=only_masters)
    assert await fixed.find() is await fixed.find()
    assert (fixed.only_masters, fixed.display_url) == (only_masters, "redis://:***@127.0.0.1:6390/7")
    await fixed.close()


class Names:
    """Sentinels that name what a test tells them to."""

    def __init__(self, _url: RedisURL) -> None:
        self.named = Address("10.0.0.1", 6_379)
        self.closed = False

    async def master(self) -> Address:
        return self.named

    async def close(self) -> None:
        self.closed = True


async def test_behind_sentinels_it_is_another_server_only_when_they_name_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That it is the same object shows the probe that the master is the same."""
    monkeypatch.setattr("gateway.redis.topology.Sentinels", Names)
    sentinel = SentinelTopology(parse_redis_url("redis+sentinel://me:secret@s1,s2/mymaster/3"))
    sentinels = sentinel._sentinels
    assert isinstance(sentinels, Names)
    first = await sentinel.find()
    assert (first.url, first.username, first.database) == (
        "redis://me:secret@10.0.0.1:6379/3",
        "me",
        3,
    )
    assert await sentinel.find() is first
    sentinels.named = Address("10.0.0.2", 6_379)
    second = await sentinel.find()
    assert (second.url, second is first) == ("redis://me:secret@10.0.0.2:6379/3", False)
    assert sentinel.only_masters
    assert "secret" not in sentinel.display_url
    await sentinel.close()
    assert sentinels.closed


def test_a_url_says_how_the_server_is_found() -> None:
    assert isinstance(topology_of(parse_redis_url("redis://127.0.0.1")), FixedTopology)
    assert not topology_of(parse_redis_url("redis://127.0.0.1")).only_masters, "a replica may be meant"
    assert isinstance(topology_of(parse_redis_url("redis+sentinel://s1/mymaster")), SentinelTopology)
