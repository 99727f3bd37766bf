"""Real Sentinels, each with the view of the world that its test gives it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from gateway.drill.fleet import SentinelProcess, ValkeyProcess, free_port, wait_until
from gateway.errors import GatewayError, NoMaster
from gateway.redis import sentinel as sentinels
from gateway.redis.majority import Patience
from gateway.redis.sentinel import Sentinels
from gateway.redis.url import Address, parse_redis_url

from ..certificates import self_signed
from ..integration.faults import Proxy
from ..integration.load import until

BEFORE, AFTER = 7001, 7002  # ports of masters that need not exist

PATIENCE = 10.0
"""Seconds, far more than anything here takes; redis-py waits 58 s for a Sentinel that is dead."""


@pytest.fixture(scope="module")
def sentinel() -> Iterator[SentinelProcess]:
    with SentinelProcess(AFTER, "config-epoch mymaster 4") as running:
        yield running


@pytest.fixture(scope="module")
def outdated() -> Iterator[SentinelProcess]:
    """Has not heard of the last failover."""
    with SentinelProcess(BEFORE, "config-epoch mymaster 3") as running:
        yield running


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]


@contextlib.asynccontextmanager
async def asked(*ports: int, options: str = "", service: str = "mymaster") -> AsyncIterator[Sentinels]:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    found = Sentinels(parse_redis_url(f"redis+sentinel://{hosts}/{service}{options}"))
    yield found
    await found.close()


async def port_and_seconds(found: Sentinels) -> tuple[int, float]:
    started = time.monotonic()
    master = await found.master()
    return master.port, time.monotonic() - started


@pytest.mark.parametrize("first", ["outdated", "up to date"])
async def test_the_latest_epoch_counts(
    sentinel: SentinelProcess, outdated: SentinelProcess, first: str
) -> None:
    ports = [outdated.port, sentinel.port] if first == "outdated" else [sentinel.port, outdated.port]
    async with asked(*ports) as found:
        assert await found.master() == Address("127.0.0.1", AFTER)


async def test_a_dead_first_sentinel_delays_nothing(
    sentinel: SentinelProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinels, "SENTINEL_PATIENCE", Patience(PATIENCE, PATIENCE, 0.1))
    async with asked(free_port(), sentinel.port) as found:
        port, seconds = await port_and_seconds(found)
    assert port == AFTER
    assert seconds < PATIENCE


async def test_a_silent_first_sentinel_takes_no_more_than_the_timeout(sentinel: SentinelProcess) -> None:
    with black_hole() as silent:
        async with asked(silent, sentinel.port) as found:
            port, seconds = await port_and_seconds(found)
    assert port == AFTER
    assert sentinels.SENTINEL_PATIENCE.others <= seconds < PATIENCE, "one of two is not most of them"


async def test_when_most_have_answered_a_silent_one_has_a_short_grace(
    sentinel: SentinelProcess, outdated: SentinelProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinels, "SENTINEL_PATIENCE", Patience(PATIENCE, PATIENCE, 0.1))
    with black_hole() as silent:
        async with asked(silent, outdated.port, sentinel.port) as found:
            port, seconds = await port_and_seconds(found)
    assert port == AFTER
    assert sentinels.SENTINEL_PATIENCE.rest <= seconds < PATIENCE


async def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinels, "SENTINEL_PATIENCE", Patience(0.5, 0.5, 0.1))
    dead = free_port()
    with black_hole() as silent:
        async with asked(dead, silent) as found:
            started = time.monotonic()
            with pytest.raises(NoMaster) as caught:
                await found.master()
            assert time.monotonic() - started < PATIENCE
    assert isinstance(caught.value, GatewayError)
    assert isinstance(caught.value, OSError), "as of a server that is away"
    assert f"127.0.0.1:{dead}: [Errno 111]" in str(caught.value)
    assert f"127.0.0.1:{silent}: no answer" in str(caught.value)


async def test_sentinels_that_know_no_such_master(sentinel: SentinelProcess) -> None:
    async with asked(sentinel.port, service="other") as found:
        with pytest.raises(NoMaster, match=r"of other: .*No such master"):
            await found.master()
        with pytest.raises(NoMaster, match="No such master"):
            await found.master()


async def test_a_server_that_is_no_sentinel(valkey: ValkeyProcess, sentinel: SentinelProcess) -> None:
    async with asked(valkey.port) as found:
        with pytest.raises(NoMaster, match=f"this is no Sentinel: write redis://127.0.0.1:{valkey.port} for"):
            await found.master()
    async with asked(valkey.port, sentinel.port) as found:
        assert (await found.master()).port == AFTER


async def test_connections_are_kept_and_made_anew_when_they_were_cut(sentinel: SentinelProcess) -> None:
    with sentinel.client() as administrator:

        def connections() -> set[str]:
            return {client["id"] for client in administrator.client_list() if client["name"] != "control"}

        administrator.client_setname("control")
        async with asked(sentinel.port) as found:
            await found.master()
            first = connections()
            await found.master()
            assert connections() == first
            (ours,) = first
            administrator.client_kill_filter(_id=ours)
            assert (await found.master()).port == AFTER, "the cut is not told"
            assert connections().isdisjoint(first)
        await until(lambda: not connections(), "close drops the connection")


async def test_an_answer_that_came_too_late_is_not_taken_for_the_next_ones(
    sentinel: SentinelProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinels, "SENTINEL_PATIENCE", Patience(0.5, 0.5, 0.1))
    async with asked(sentinel.port) as found:
        await found.master()
        with sentinel.frozen(), pytest.raises(NoMaster, match="no answer"):
            await found.master()
        assert (await found.master()).port == AFTER


def array(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


EPOCH = array(b"config-epoch", b"5")


@pytest.mark.parametrize(
    "says",
    [
        b"*4294967295\r\n",
        EPOCH + array(b"10.0.0.1", b"65536"),
        EPOCH + array(b"me:secret@h/?x", b"6379"),
        EPOCH + array(b"10.0.0.1"),
        EPOCH + b":7\r\n",
        array(b"name", b"mymaster") + array(b"10.0.0.1", b"6379"),
        array(b"config-epoch", b"many") + array(b"10.0.0.1", b"6379"),
        b"*2\r\n*0\r\n:1\r\n" + array(b"10.0.0.1", b"6379"),
        b"_\r\n" * 2,
        b"+OK\r\n" * 3,
    ],
    ids=range(10),
)
async def test_what_no_sentinel_says_decides_nothing(sentinel: SentinelProcess, says: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            writer.write(says)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        async with asked(port, sentinel.port) as found:
            assert (await found.master()).port == AFTER
        async with asked(port) as found:
            with pytest.raises(NoMaster):
                await found.master()


async def test_sentinels_that_are_far_away(sentinel: SentinelProcess) -> None:
    """A connection and a question take two round trips, here of 0.6 s in all."""
    async with Proxy.before(sentinel.port) as proxy:
        proxy.delay = 0.3
        async with asked(proxy.port) as found:
            assert (await found.master()).port == AFTER


async def test_callers_take_turns(sentinel: SentinelProcess) -> None:
    async with asked(sentinel.port) as found:
        masters = await asyncio.gather(*(found.master() for _ in range(10)))
    assert {master.port for master in masters} == {AFTER}


async def test_a_caller_that_gives_up_leaves_nothing_behind(sentinel: SentinelProcess) -> None:
    with black_hole() as silent:
        async with asked(silent, sentinel.port) as found:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(found.master(), 0.05)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert (await found.master()).port == AFTER


@pytest.mark.real
async def test_a_sentinel_with_users_needs_two_rights() -> None:
    with SentinelProcess(AFTER) as guarded, guarded.client() as administrator:
        rights = ["-@all", "+sentinel|master", "+sentinel|get-master-addr-by-name"]
        administrator.execute_command("ACL", "SETUSER", "node", "on", ">p@ss", *rights)
        administrator.execute_command("ACL", "SETUSER", "default", "off")
        async with asked(guarded.port, options="?sentinel_username=node&sentinel_password=p%40ss") as found:
            assert (await found.master()).port == AFTER
        async with asked(guarded.port, options="?sentinel_username=node&sentinel_password=secret") as found:
            with pytest.raises(NoMaster, match="invalid username-password") as caught:
                await found.master()
            right = "sentinel_username=node&sentinel_password=p%40ss"
            found.use(parse_redis_url(f"redis+sentinel://127.0.0.1:{guarded.port}/mymaster?{right}"))
            assert (await found.master()).port == AFTER
        assert "secret" not in str(caught.value)
        async with asked(guarded.port) as found:
            with pytest.raises(NoMaster, match="Authentication required"):
                await found.master()


@pytest.mark.real
@pytest.mark.needs("openssl")
async def test_tls(sentinel: SentinelProcess, tmp_path: Path) -> None:
    certificate, key = await asyncio.to_thread(self_signed, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with Proxy.before(sentinel.port, tls=context) as proxy:
        address = f"rediss+sentinel://localhost:{proxy.port}/mymaster"
        found = Sentinels(parse_redis_url(f"{address}?ssl_ca_certs={certificate}"))
        assert (await found.master()).port == AFTER
        await found.close()
        doubting = Sentinels(parse_redis_url(address))
        with pytest.raises(NoMaster, match="certificate"):
            await doubting.master()
        await doubting.close()


@pytest.mark.real
async def test_during_a_failover_the_new_master_is_named() -> None:
    """As long as a replica does not follow, SENTINEL MASTER says the new epoch and the old address."""
    with ValkeyProcess() as old, ValkeyProcess() as new, ValkeyProcess() as stubborn:
        for replica, priority in ((new, 1), (stubborn, 0)):
            with replica.client() as client:
                client.config_set("replica-priority", priority)
                client.replicaof("127.0.0.1", old.port)
        with SentinelProcess(old.port) as leader, leader.client() as administrator:
            wait_until(lambda: len(administrator.sentinel_slaves("mymaster")) == 2, "it finds both replicas")
            with stubborn.client() as client:
                client.execute_command("ACL", "SETUSER", "default", "-replicaof", "-slaveof")
            wait_until(lambda: starts_failover(administrator), "it starts a failover")
            async with asked(leader.port) as found:
                await until(lambda: role(new) == "master", "there is a new master")

                def shown() -> tuple[int, int]:
                    state = administrator.sentinel_master("mymaster")
                    return state["port"], state["config-epoch"]

                await until(lambda: shown()[1] == 1, "the Sentinel sees it")
                assert (await found.master()).port == new.port
                assert shown() == (old.port, 1), "the control"


def starts_failover(administrator: redis.Redis) -> bool:
    try:
        return bool(administrator.sentinel_failover("mymaster"))
    except redis.ResponseError:  # NOGOODSLAVE: it does not know the replicas' state yet
        return False


def role(server: ValkeyProcess) -> str:
    with server.client() as client:
        return str(client.info("replication")["role"])
