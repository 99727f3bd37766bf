"""A node proves that it hears what is published where publishers publish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gateway.drill.fleet import ValkeyProcess
from gateway.node import Node
from gateway.redis import probe
from gateway.redis import topology as topologies
from gateway.redis.server import Server
from gateway.redis.server_broker import ServerBroker

from .conftest import Line
from .faults import Proxy, never_probe
from .in_process import node_in_process, port_of
from .load import Backend, all_undisturbed, load_clients, until, without_their_result


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds otherwise takes tenths of them."""
    monkeypatch.setattr(probe, "PROBE_INTERVAL", 0.1)
    monkeypatch.setattr(probe, "RENEW_AFTER", 3)
    monkeypatch.setattr(probe, "PROBE_GRACE", 0.2)


def broker_of(gateway: Node) -> ServerBroker:
    assert isinstance(gateway._broker, ServerBroker)
    return gateway._broker


async def probed(gateway: Node, times: int) -> None:
    """Wait for so many more probes that come through."""
    heard = broker_of(gateway).probe.received
    await until(lambda: broker_of(gateway).probe.received >= heard + times, "the probes come through")


async def test_probes_come_through_and_have_a_round_trip(valkey: ValkeyProcess) -> None:
    async with node_in_process(valkey.url) as gateway:
        await probed(gateway, 10)
        found = broker_of(gateway).probe
        assert found.round_trip is not None
        assert found.round_trip < 1
        assert (found.not_published, found.missed, broker_of(gateway).outages) == (0, 0, 0)


async def test_the_name_of_redis_leads_elsewhere(valkey: ValkeyProcess, logged: list[Line]) -> None:
    """The old server is well, and so are its connections; publishers are at the new one by now."""
    names = [f"elsewhere-{number}" for number in range(50)]
    control_names = [f"elsewhere-control-{number}" for number in range(50)]
    with await asyncio.to_thread(ValkeyProcess) as new:
        async with (
            Proxy.before(valkey.port) as proxy,
            node_in_process(proxy.url) as gateway,
            node_in_process(proxy.url) as control,
            load_clients([port_of(gateway)], names) as browsers,
            load_clients([port_of(control)], control_names) as control_browsers,
        ):
            never_probe(control)
            await probed(gateway, 1)
            proxy.lead_to(new.port)
            async with Backend.on(proxy.url) as backend:
                await backend.publish_all(names + control_names, 10_000)
                assert {accepted.receivers for accepted in backend.accepted} == {0}, "nobody is there yet"
                await until(lambda: not without_their_result(browsers), "every result arrives")
                await backend.publish("elsewhere-0", "LIVE", retain=0)
                assert backend.accepted[-1].receivers == 1
            await probed(gateway, 10)
            assert broker_of(gateway).outages == broker_of(gateway).probe.missed == 1
            assert all_undisturbed(browsers)
            assert len(without_their_result(control_browsers)) == len(control_browsers), (
                "control: it stays deaf"
            )
            assert broker_of(control).outages == 0
    (lost,) = (line for line in logged if line["event"] == "redis connection lost")
    assert lost["reason"] == "a published probe did not arrive on it"


RIGHTS = ["~websocket:*", "&websocket:*", "+@all"]


@pytest.mark.parametrize(
    "rules", [["-publish"], ["resetchannels", "&websocket:[^:]*"]], ids=["no command", "no channel"]
)
async def test_a_node_that_may_not_probe_works_on(
    valkey: ValkeyProcess, logged: list[Line], rules: list[str]
) -> None:
    valkey.ask("ACL", "SETUSER", "mute", "on", ">secret", *RIGHTS, *rules)
    names = [f"mute-{len(rules)}-{number}" for number in range(10)]
    async with (
        node_in_process(valkey.url.replace("//", "//mute:secret@")) as gateway,
        load_clients([port_of(gateway)], names) as browsers,
        Backend.on(valkey.url) as backend,
    ):
        await until(lambda: broker_of(gateway).probe.not_published >= 5, "it has tried")
        await backend.publish_all(names, 10_000)
        await until(lambda: not without_their_result(browsers), "every result arrives")
        assert broker_of(gateway).outages == 0
        assert broker_of(gateway).probe.missed == 0
    warnings = [line["event"] for line in logged if line["log_level"] == "warning"]
    assert warnings.count("probe not published") == 1, "said once"
    valkey.ask("ACL", "DELUSER", "mute")


async def test_while_a_master_hangs_the_next_one_is_looked_for_no_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a probe waits for the master, the topology is asked."""
    monkeypatch.setattr(probe, "PROBE_INTERVAL", 0.3)
    monkeypatch.setattr(topologies, "LOOK_INTERVAL", 0.3)
    with await asyncio.to_thread(ValkeyProcess) as valkey:
        async with node_in_process(valkey.url) as gateway:
            topology = broker_of(gateway)._topology
            find: Callable[[], object] = topology.find
            looks = 0

            async def count() -> Server:
                nonlocal looks
                looks += 1
                return await find()  # type: ignore[no-any-return, misc]

            topology.find = count  # type: ignore[method-assign]
            await probed(gateway, 1)  # or the freeze could catch the first probe, whose PING has no timeout
            with valkey.frozen():
                await asyncio.sleep(10 * probe.PROBE_INTERVAL)
            assert looks >= 7
