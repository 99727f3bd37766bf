"""How Redis is reached, and what it lets a node do: users, databases, sockets, TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from gateway.drill.fleet import ValkeyProcess
from gateway.publishing import api as publishing

from ..certificates import self_signed
from .conftest import Line
from .faults import Proxy
from .in_process import node_in_process, port_of, unconnected_node
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


async def test_a_node_that_may_not_read_what_is_retained_registers_nobody(
    guarded: ValkeyProcess, restricted: Callable[..., Any], logged: list[Line]
) -> None:
    """It would acknowledge them, and what was published before would never come."""
    await restricted("&websocket:*", "%R~websocket:*", "-get")
    url = f"redis://restricted:secret@127.0.0.1:{guarded.port}"
    async with node_in_process(url) as gateway, Raw.upgraded(port_of(gateway)) as browser:
        browser.send(text({"webSocketId": "unreadable"}))
        await until(lambda: "redis connection lost" in [line["event"] for line in logged], "the node notices")
    why = next(line["reason"] for line in logged if line["event"] == "redis connection lost")
    assert "retained results cannot be read" in why


EXPECTED_ERROR = "channel denied by redis"


@pytest.mark.parametrize(
    "rules",
    [("&websocket:[^f]*", "~*"), ("&*", "~websocket:[^f]*")],
    ids=["may not subscribe", "may not read the retained result"],
)
async def test_an_id_that_redis_forbids_harms_no_other(
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
            answers = [await browser.message() for browser in (other, forbidden)]
            assert answers[0]["registrationSucceeded"] is True
            assert answers[1]["registrationSucceeded"] is False
            assert answers[1]["error"]["code"] == "not_allowed"
            for browser, name in ((early, "early"), (other, "other")):
                assert await administrator.publish(f"websocket:{name}", "CONFIRMED") == 1
                assert (await browser.message())["authResult"] == "CONFIRMED"
            await forbidden.register("allowed")  # the connection has stayed, and is free for another id
            assert await administrator.publish("websocket:forbidden", "CONFIRMED") == 0
            assert gateway._broker.outages == 0
    take_out(EXPECTED_ERROR, logged)


async def test_rights_that_are_taken_away_later(
    guarded: ValkeyProcess,
    administrator: redis.asyncio.Redis,
    restricted: Callable[..., Any],
    logged: list[Line],
) -> None:
    await restricted("&*", "~*")
    async with node_in_process(f"redis://restricted:secret@127.0.0.1:{guarded.port}") as gateway:
        port = port_of(gateway)
        async with Raw.registered(port, "forbidden") as forbidden, Raw.registered(port, "other") as other:
            await restricted("&websocket:[^f]*", "~*")  # Redis drops who listens to what is no longer allowed
            code, _ = await forbidden.closed()
            assert code == 1013, "a result could be missed without anybody knowing"
            await until(lambda: gateway._broker.connected, "Redis lets the node in again")
            await publishing.publish(administrator, "other", "CONFIRMED", message_id="1")
            assert (await other.message())["authResult"] == "CONFIRMED"
    take_out(EXPECTED_ERROR, logged)


def take_out(event: str, logged: list[Line]) -> None:
    """The test has provoked this error: it must have been logged, and is no complaint."""
    assert [line["log_level"] for line in logged if line["event"] == event] == ["error"]
    logged[:] = [line for line in logged if line["event"] != event]
