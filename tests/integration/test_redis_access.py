"""How Redis is reached, and what it lets a node do: users, databases, sockets, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from gateway.config import Config
from gateway.drill.fleet import SentinelProcess, ValkeyCluster, ValkeyProcess
from gateway.publishing import api as publishing

from ..certificates import self_signed
from .conftest import Line
from .faults import Proxy
from .in_process import admin_port_of, node_in_process, port_of, readiness, unconnected_node
from .load import text, until
from .raw import Raw
from .test_redis_rights import ONE_SERVER

PASSWORD = "p@ss/wo:rd?#"
QUOTED = "p%40ss%2Fwo%3Ard%3F%23"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """A Valkey that also listens on a Unix socket and has a user with the rights of a node."""
    path = tmp_path_factory.mktemp("valkey") / "valkey.sock"
    with ValkeyProcess("--unixsocket", str(path)) as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "node", "on", f">{PASSWORD}", *ONE_SERVER)
            client.execute_command(
                "ACL", "SETUSER", "selecting", "on", f">{PASSWORD}", *ONE_SERVER, "+select"
            )
        yield server


@pytest.fixture
async def administrator(guarded: ValkeyProcess) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis(port=guarded.port) as client:
        yield client


async def serves(url: str, backend: redis.asyncio.Redis, name: str) -> None:
    """A gateway on this Redis delivers a retained result and a live one."""
    async with node_in_process(url) as gateway:
        await publishing.publish(backend, name, "RETAINED", message_id="1")
        async with Raw.registered(port_of(gateway), name) as browser:
            assert (await browser.message())["authResult"] == "RETAINED"
            assert await backend.publish(f"websocket:{name}", "LIVE") == 1
            assert (await browser.message())["authResult"] == "LIVE"


async def test_a_password_alone() -> None:
    with await asyncio.to_thread(ValkeyProcess) as server:
        async with redis.asyncio.Redis(port=server.port) as plain:
            await plain.config_set("requirepass", PASSWORD)
        async with redis.asyncio.Redis(port=server.port, password=PASSWORD) as backend:
            await serves(f"redis://:{QUOTED}@127.0.0.1:{server.port}", backend, "password")


async def test_another_database(guarded: ValkeyProcess) -> None:
    async with redis.asyncio.Redis(port=guarded.port, db=5) as backend:
        await serves(f"redis://selecting:{QUOTED}@127.0.0.1:{guarded.port}/5", backend, "database")


async def test_a_retained_result_in_another_database_is_not_seen(
    guarded: ValkeyProcess, administrator: redis.asyncio.Redis
) -> None:
    await publishing.publish(administrator, "elsewhere", "RETAINED")
    async with (
        node_in_process(f"redis://127.0.0.1:{guarded.port}/5") as gateway,
        Raw.registered(port_of(gateway), "elsewhere") as browser,
    ):
        # Channels, other than keys, belong to no database.
        assert await administrator.publish("websocket:elsewhere", "LIVE") == 1
        assert (await browser.message())["authResult"] == "LIVE"


async def test_a_unix_socket(guarded: ValkeyProcess, administrator: redis.asyncio.Redis) -> None:
    path = (await administrator.config_get("unixsocket"))["unixsocket"]
    await serves(f"unix://{path}", administrator, "unix")
    await serves(f"unix://node:{QUOTED}@{path}", administrator, "unix-2")


@pytest.mark.needs("openssl")
async def test_tls(
    guarded: ValkeyProcess, administrator: redis.asyncio.Redis, tmp_path: Path, logged: list[Line]
) -> None:
    """The Valkey of the tests is built without TLS, so a proxy speaks it; the gateway's side is the same."""
    certificate, key = await asyncio.to_thread(self_signed, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with Proxy.before(guarded.port, tls=context) as proxy:
        address = f"rediss://node:{QUOTED}@localhost:{proxy.port}"
        await serves(f"{address}?ssl_ca_certs={certificate}", administrator, "tls")
        for wrong in (address, f"rediss://127.0.0.2:{proxy.port}?ssl_ca_certs={certificate}", proxy.url):
            async with unconnected_node(wrong) as gateway:
                await until(
                    lambda: logged[-1]["event"] == "redis unreachable", "the certificate is looked at"
                )
                assert not gateway._broker.ever_connected
                logged.clear()


@pytest.mark.parametrize("credentials", ["node:wrong", "nobody:anything"], ids=["password", "user"])
async def test_a_node_that_redis_does_not_let_in_says_so_and_keeps_trying(
    guarded: ValkeyProcess, administrator: redis.asyncio.Redis, logged: list[Line], credentials: str
) -> None:
    async with unconnected_node(f"redis://{credentials}@127.0.0.1:{guarded.port}") as gateway:
        await until(lambda: logged[-1]["event"] == "redis unreachable", "it says so")
        assert not gateway._broker.ever_connected
    (told,) = (line for line in logged if line["event"] == "redis unreachable")
    assert "HELLO" in told["reason"]
    assert credentials.partition(":")[2] not in told["reason"].split()


COMMANDS = [right for right in ONE_SERVER if right.startswith("+")]


@pytest.fixture
async def restricted(administrator: redis.asyncio.Redis) -> AsyncIterator[Callable[..., Any]]:
    """Sets which channels and keys the user `restricted` may have; then its URL leads to them."""

    async def allow(*rules: str) -> None:
        rules = ("reset", "on", ">secret", *COMMANDS, "resetchannels", *rules)
        await administrator.execute_command("ACL", "SETUSER", "restricted", *rules)  # type: ignore[no-untyped-call]

    yield allow
    await administrator.acl_deluser("restricted")


EXPECTED_ERROR = "channel denied by redis"


async def test_a_node_that_may_not_read_what_is_retained_registers_nobody(
    guarded: ValkeyProcess, restricted: Callable[..., Any], logged: list[Line]
) -> None:
    """It would acknowledge them, and what was published before would never come."""
    rights = ("&websocket:*", "%R~websocket:*")
    await restricted(*rights, "-get")
    url = f"redis://restricted:secret@127.0.0.1:{guarded.port}"
    async with node_in_process(url) as gateway, Raw.upgraded(port_of(gateway)) as browser:
        browser.send(text({"webSocketId": "unreadable"}))
        await until(lambda: gateway._broker.denied_channels, "Redis denies it")
        await restricted(*rights)
        assert (await browser.message())["registrationSucceeded"] is True
        assert gateway._broker.outages == 0
    (line,) = take_out(EXPECTED_ERROR, logged)
    assert "retained results cannot be read" in line["reason"]


@pytest.mark.parametrize(
    "rules",
    [("&websocket:[^f]*", "~*"), ("&*", "~websocket:[^f]*")],
    ids=["may not subscribe", "may not read the retained result"],
)
async def test_an_id_that_redis_denies_harms_no_other_and_waits(
    guarded: ValkeyProcess,
    administrator: redis.asyncio.Redis,
    restricted: Callable[..., Any],
    logged: list[Line],
    rules: tuple[str, ...],
) -> None:
    await restricted(*rules)
    async with node_in_process(f"redis://restricted:secret@127.0.0.1:{guarded.port}") as gateway:
        port = port_of(gateway)
        async with (
            Raw.registered(port, "early") as early,
            Raw.upgraded(port) as forbidden,
            Raw.upgraded(port) as other,
        ):
            # In one turn of the loop, so that they travel in one command.
            for browser, name in ((other, "other"), (forbidden, "forbidden")):
                browser.send(text({"webSocketId": name}))
            assert (await other.message())["registrationSucceeded"] is True
            for browser, name in ((early, "early"), (other, "other")):
                assert await administrator.publish(f"websocket:{name}", "CONFIRMED") == 1
                assert (await browser.message())["authResult"] == "CONFIRMED"
            await until(lambda: gateway._broker.denied_channels == 1, "Redis denies the one")
            assert await administrator.publish("websocket:forbidden", "CONFIRMED") == 0
            await publishing.publish(administrator, "forbidden", "RETAINED")
            await restricted("&*", "~*")
            assert (await forbidden.message())["registrationSucceeded"] is True
            assert (await forbidden.message())["authResult"] == "RETAINED"
            assert gateway._broker.outages == 0
    take_out(EXPECTED_ERROR, logged)


async def test_what_redis_denies_ends_as_an_outage_does(
    guarded: ValkeyProcess, restricted: Callable[..., Any], logged: list[Line]
) -> None:
    """`registrationSucceeded: false` would send the page to its error screen for good."""
    await restricted("&websocket:[^f]*", "~*")
    url = f"redis://restricted:secret@127.0.0.1:{guarded.port}"
    async with node_in_process(url, registration_timeout=1) as gateway:
        async with Raw.upgraded(port_of(gateway)) as forbidden:
            forbidden.send(text({"webSocketId": "forbidden"}))
            assert await forbidden.closed() == (1013, "registration not confirmed in time")
        await until(lambda: not gateway._broker.denied_channels, "nobody waits, so nothing is asked for")
    (line,) = take_out(EXPECTED_ERROR, logged)
    assert line["hint"] == "give the node's Redis user &websocket:*"


async def test_rights_that_are_missing_for_a_while_end_no_session(
    guarded: ValkeyProcess,
    administrator: redis.asyncio.Redis,
    restricted: Callable[..., Any],
    logged: list[Line],
) -> None:
    """As when a rule is changed by mistake, or a replica without the rules is promoted."""
    await restricted("&*", "~*")
    async with node_in_process(f"redis://restricted:secret@127.0.0.1:{guarded.port}") as gateway:
        port, admin = port_of(gateway), admin_port_of(gateway)
        async with (
            Raw.registered(port, "early") as early,
            Raw.registered(port, "other") as other,
            Raw.upgraded(port) as late,
        ):
            await restricted("&websocket:other", "~*")  # Redis drops who listens to what it no longer allows
            await until(lambda: gateway._broker.denied_channels, "the node is denied the channel")
            late.send(text({"webSocketId": "late"}))
            await until(lambda: gateway._broker.denied_channels == 2, "and the next one")
            await publishing.publish(administrator, "other", "CONFIRMED", message_id="1")
            assert (await other.message())["authResult"] == "CONFIRMED"
            await until(lambda: "own probe" in gateway._broker.deaf, "its own channel is denied as well")
            assert (await readiness(admin, strict=True))[0] == 503
            assert (await readiness(admin))[0] == 200
            await publishing.publish(administrator, "early", "CONFIRMED", message_id="1")
            await restricted("&*", "~*")
            assert (await early.message())["authResult"] == "CONFIRMED"
            assert (await late.message())["registrationSucceeded"] is True
            await until(lambda: not gateway._broker.deaf, "it hears its probe")
            assert (await readiness(admin, strict=True))[0] == 200
    take_out(EXPECTED_ERROR, logged)


def take_out(event: str, logged: list[Line]) -> list[Line]:
    """The test has provoked this error: it must have been logged, once, and is no complaint."""
    lines = [line for line in logged if line["event"] == event]
    assert [line["log_level"] for line in lines] == ["error"]
    logged[:] = [line for line in logged if line["event"] != event]
    return lines


@contextlib.contextmanager
def any_redis(kind: str) -> Iterator[tuple[Sequence[ValkeyProcess], str]]:
    """The servers of a Redis, and its URL."""
    if kind == "cluster":
        with ValkeyCluster(replicas=0) as cluster:
            yield cluster.nodes, cluster.url
        return
    with ValkeyProcess() as server:
        if kind == "server":
            yield [server], server.url
        else:
            with SentinelProcess(server.port) as sentinel:
                yield [server], f"redis+sentinel://{sentinel.address}/mymaster"


@pytest.mark.parametrize("kind", ["server", "sentinel", "cluster"])
def test_after_a_reload_new_connections_use_the_new_password(
    kind: str, tmp_path: Path, logged: list[Line]
) -> None:
    file = tmp_path / "redis"

    def set_password(password: str) -> None:
        for server in servers:
            server.ask("ACL", "SETUSER", "node", "resetpass", f">{password}")
        file.write_text(url.replace("://", f"://node:{password}@"))

    async def reloads() -> None:
        default = Config.model_fields["redis"].default
        async with node_in_process(default, redis_file=str(file)) as gateway:
            broker, publisher = gateway._broker, gateway._admin_port._publisher  # type: ignore[union-attr]
            assert (await publisher.publish("before", "CONFIRMED")).retained
            await asyncio.to_thread(set_password, "new")
            gateway.reload()
            assert broker.connected, "what is open stays"
            for server in servers:
                await asyncio.to_thread(server.ask, "CLIENT", "KILL", "USER", "node")
            await until(lambda: broker.outages, "the connections are gone")
            await until(lambda: broker.connected, "they are back")
            assert (await publisher.publish("after", "CONFIRMED")).retained
            assert not broker.last_error

    with any_redis(kind) as (servers, url):
        for server in servers:
            server.ask("ACL", "SETUSER", "node", "on", "allkeys", "allchannels", "+@all")
        set_password("old")
        asyncio.run(reloads())
    assert not [line for line in logged if line["event"] == "redis unreachable"]
