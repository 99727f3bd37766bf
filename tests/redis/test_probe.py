"""Probes that arrive, do not arrive, or cannot be published. Time is virtual."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.redis.probe import (
    MAX_PROBE_GRACE,
    PROBE_GRACE,
    PROBE_INTERVAL,
    PROBE_TIMEOUT,
    RENEW_AFTER,
    Probe,
)
from gateway.redis.server import Server
from gateway.redis.subscriber import SubscriberConnection
from gateway.redis.url import RedisURL

from ..fakes import Events, Redis, Transport, resp, turns, virtual

CHANNEL = b"websocket::probe:1"


class FakeRedis(Redis):
    """A Redis that publishes to the one connection, unless it is `mute` or another reply is set."""

    def __init__(self) -> None:
        super().__init__()
        self.connection: Transport | None = None
        self.mute = False
        self.answer: bytes | None = None
        self.tokens: list[bytes] = []

    def execute(self, command: list[bytes]) -> bytes:
        if command[0] != b"PUBLISH":
            return super().execute(command)
        self.tokens.append(command[2])
        if self.answer is not None:
            return self.answer
        if not self.mute and self.connection is not None and not self.connection.closing:
            message = self.publish(command[1], command[2])
            asyncio.get_running_loop().call_soon(self.connection.protocol.data_received, message)
        return resp(1)


class Topology:
    """Finds the server, which is the topology itself."""

    connect: Any = Server.connect
    _connect: Any = Server._connect
    display_url = "redis://somewhere"
    only_masters = False
    username, password, database = "default", None, 0

    def __init__(self) -> None:
        self.redis = FakeRedis()
        self.found: Any = self
        self.opened: list[Transport] = []
        self.refuses = False

    def _check_mode(self, _mode: object) -> None:
        """It is what it should be."""

    def use(self, url: RedisURL) -> None:
        raise AssertionError

    async def find(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        if self.found is None:
            await asyncio.Event().wait()
        return self.found

    async def close(self) -> None:
        """Nothing is open."""

    async def open(self, protocol: Any) -> Any:
        if self.refuses:
            raise ConnectionRefusedError("Connect call failed")
        transport = Transport(prompt=True)
        transport.protocol = protocol
        self.redis.serve(transport)
        self.opened.append(transport)
        protocol.connection_made(transport)
        return protocol


class Scene:
    """A connection that is up, and the probe of it."""

    def __init__(self) -> None:
        self.topology = Topology()
        self.redis = self.topology.redis
        self.channel: bytes | None = CHANNEL
        self.probe = Probe(self.topology, "gateway-x", lambda: self.channel, asyncio.get_running_loop().time)
        self.lay()

    def lay(self) -> None:
        """A new connection, as the broker would make one."""
        self.connection = SubscriberConnection(Events(), 1_000)
        self.redis.connection = self.transport = Transport(prompt=True)
        self.transport.protocol = self.connection
        self.redis.serve(self.transport)
        self.redis.subscribed.clear()
        self.connection.connection_made(self.transport)
        self.connection.start()
        self.task = asyncio.create_task(self.probe.run(self.connection, self.topology))  # type: ignore[arg-type]

    async def why(self) -> str:
        why = str(await self.connection.closed)
        await self.task
        return why

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await turns()
        assert all(transport.lost for transport in self.topology.opened)


@pytest.fixture(autouse=True)
def _plain_logs() -> None:
    structlog.reset_defaults()


@virtual
async def test_a_connection_that_hears_is_probed_once_a_second() -> None:
    scene = Scene()
    await asyncio.sleep(60)
    assert 60 / PROBE_INTERVAL * 0.9 <= scene.probe.received <= 60 / PROBE_INTERVAL * 1.1 + 1
    assert (scene.probe.missed, scene.probe.not_published, scene.transport.aborted) == (0, 0, False)
    assert scene.probe.round_trip is not None
    assert len(set(scene.redis.tokens)) == len(scene.redis.tokens), "each has a word of its own"
    await scene.stop()


@virtual
async def test_its_way_is_found_anew_every_now_and_then() -> None:
    scene = Scene()
    await asyncio.sleep(60)
    assert len(scene.topology.opened) == -(-len(scene.redis.tokens) // RENEW_AFTER)
    assert [transport.lost for transport in scene.topology.opened].count(False) == 1
    await scene.stop()


@virtual
async def test_a_connection_that_receives_nothing_is_dropped_within_two_probes() -> None:
    scene = Scene()
    await asyncio.sleep(10)
    scene.redis.mute = True
    began = asyncio.get_running_loop().time()
    assert await scene.why() == "a published probe did not arrive on it"
    assert asyncio.get_running_loop().time() - began < 1.1 * PROBE_INTERVAL + PROBE_GRACE + 0.1
    assert scene.probe.missed == 1


@virtual
async def test_a_connection_to_an_old_master_is_dropped() -> None:
    scene = Scene()
    await asyncio.sleep(10)
    scene.topology.found = Topology()
    assert await scene.why() == "the master is redis://somewhere now"
    assert scene.probe.missed == 1


@virtual
async def test_connections_that_are_mute_one_after_another_get_ever_more_time() -> None:
    scene = Scene()
    scene.redis.mute = True
    graces = []
    for _ in range(9):
        began = asyncio.get_running_loop().time()
        await scene.why()
        graces.append(round(asyncio.get_running_loop().time() - began))
        scene.lay()
    assert graces[:4] == [1, 2, 4, 8]
    assert graces[-2:] == [MAX_PROBE_GRACE] * 2
    scene.redis.mute = False
    await asyncio.sleep(5)
    scene.redis.mute = True
    began = asyncio.get_running_loop().time()
    await scene.why()
    assert asyncio.get_running_loop().time() - began < 1.1 * PROBE_INTERVAL + PROBE_GRACE + 0.1


@virtual
async def test_a_word_may_come_late_but_within_the_grace() -> None:
    scene = Scene()
    scene.redis.mute = True
    await asyncio.sleep(PROBE_GRACE / 2)
    scene.connection.data_received(scene.redis.publish(CHANNEL, b"another"))
    await asyncio.sleep(PROBE_GRACE / 4)
    assert scene.probe.received == 0
    scene.connection.data_received(scene.redis.publish(CHANNEL, scene.redis.tokens[-1]))
    await turns()
    assert (scene.probe.received, scene.transport.aborted) == (1, False)
    assert scene.probe.round_trip == pytest.approx(PROBE_GRACE * 3 / 4)
    await scene.stop()


@virtual
async def test_a_channel_that_was_taken_away_proves_nothing() -> None:
    """A slot may move away and back unnoticed."""
    scene = Scene()
    scene.redis.mute = True
    await asyncio.sleep(PROBE_GRACE / 2)
    scene.connection._service_channels.clear()
    assert scene.probe.received == 0
    scene.redis.mute = False  # too late for the word that is out
    await asyncio.sleep(PROBE_GRACE)
    assert (scene.probe.missed, scene.transport.aborted) == (0, False)
    await asyncio.sleep(2)
    assert scene.probe.received > 0, "it is watched again"
    await scene.stop()


@virtual
async def test_without_a_channel_there_is_no_probe() -> None:
    scene = Scene()
    scene.channel = None
    await asyncio.sleep(10)
    assert (scene.redis.tokens, scene.probe.not_published, scene.probe.missed) == ([], 0, 0)
    scene.channel = CHANNEL
    await asyncio.sleep(2)
    assert scene.probe.received > 0
    scene.channel = b"websocket::probe:2"
    await asyncio.sleep(2)
    assert b"websocket::probe:2" in scene.connection.service_channels
    assert scene.probe.missed == 0
    await scene.stop()


def refuse(scene: Scene) -> None:
    scene.topology.refuses = True


def know_nobody(scene: Scene) -> None:
    scene.topology.found = OSError("no Sentinel names the master")


def say_nothing(scene: Scene) -> None:
    scene.redis.answer = b""


def hang(scene: Scene) -> None:
    scene.topology.found = None


def forbid(scene: Scene) -> None:
    scene.redis.answer = resp(Exception("NOPERM no permissions to run the 'publish' command"))


def have_moved(scene: Scene) -> None:
    scene.redis.answer = resp(Exception("MOVED 7 10.0.0.2:7002"))


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (refuse, "Connect call failed"),
        (know_nobody, "no Sentinel names the master"),
        (say_nothing, f"no answer within {PROBE_TIMEOUT:g} s"),
        (hang, f"no answer within {PROBE_TIMEOUT:g} s"),
        (forbid, "PUBLISH with: NOPERM"),
        (have_moved, "PUBLISH with: MOVED"),
    ],
)
def test_a_probe_that_cannot_be_published_proves_nothing_and_is_logged_once(trouble: Any, why: str) -> None:
    @virtual
    async def unpublished() -> None:
        with capture_logs() as logs:
            scene = Scene()
            trouble(scene)
            await asyncio.sleep(30)
            assert scene.probe.not_published >= 4
            assert (scene.probe.received, scene.probe.missed, scene.transport.aborted) == (0, 0, False)
            (line,) = [line for line in logs if line["event"] == "probe not published"]
            assert why in line["reason"]
            scene.topology.refuses, scene.topology.found, scene.redis.answer = False, scene.topology, None
            await asyncio.sleep(PROBE_TIMEOUT + 3)
            assert scene.probe.received > 0
            await scene.stop()

    unpublished()


@virtual
async def test_a_connection_that_is_lost_ends_its_probe() -> None:
    scene = Scene()
    await asyncio.sleep(5)
    scene.transport.lose()
    await scene.task
    assert (scene.probe.missed, scene.probe.not_published) == (0, 0)
    await turns()
    assert all(transport.lost for transport in scene.topology.opened)
