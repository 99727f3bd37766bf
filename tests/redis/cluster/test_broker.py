"""The broker of a Cluster whose nodes move slots, die and disagree. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Self

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.core.hub import Hub
from gateway.messages import Result
from gateway.redis import url as redis_url
from gateway.redis.cluster import slots
from gateway.redis.cluster.broker import MISSING_AFTER, SLOTLESS_SECONDS, ClusterBroker, ShardEventFilter
from gateway.redis.cluster.slots import SlotMap, key_slot
from gateway.redis.server import Server
from gateway.redis.url import Address

from ...fakes import turns, virtual
from ...wire import strategies  # noqa: F401 - sets hypothesis up
from .fake_cluster import WAY, WORK, FakeCluster, Node

COUNT = 16
"""Slots, for a test has no time for 16,384."""

SETTLED = 3.0
"""Seconds until a stable slot is served: two refreshes of the map, a connection, a subscription."""


@pytest.fixture(autouse=True)
def _small_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    structlog.configure(processors=[], wrapper_class=structlog.make_filtering_bound_logger("critical"))
    monkeypatch.setattr(slots, "SLOT_COUNT", COUNT)
    monkeypatch.setattr(slots, "UNKNOWN_MAP", SlotMap((None,) * COUNT))
    yield
    structlog.reset_defaults()


class Member:
    """A session: what it has heard and when it was answered, in the test's clock."""

    def __init__(self, name: bytes, clock: Callable[[], float]) -> None:
        self.name = name
        self.answers = 0
        self.answered_at = 0.0
        self.refused = False
        self.heard: list[bytes] = []
        self.owed: dict[bytes, float] = {}
        self._clock = clock

    def confirm(self, _web_socket_id: bytes) -> None:
        self.answers += 1
        self.answered_at = self._clock()

    def refuse_unknown(self, _web_socket_id: bytes) -> bool:
        self.refused = True
        return False

    def deliver(self, _web_socket_id: bytes, result: Result, retained: bool = False) -> None:
        assert self.answers == 1, "delivered before the answer"
        self.heard.append(result.auth_result.encode())

    def degraded(self) -> None:
        """An outage; the tests of the hub cover it."""

    def restored(self) -> None:
        """The outage is over."""


class Scene:
    """Hub, broker and connections as in a node; the test plays the Cluster."""

    def __init__(
        self,
        redis: FakeCluster,
        url: str = "redis+cluster://n0:7000,n1:7001",
        *,
        announced: bool = False,
    ) -> None:
        self.redis = redis
        self.loop = asyncio.get_running_loop()
        self.hub = Hub(
            "websocket:",
            1_000,
            lambda hub: ClusterBroker(
                redis_url.parse_redis_url(url),
                hub,
                "gateway-x",
                self.loop.time,
                1_000,
                b"websocket::probe:",
                announced=announced,
            ),
            slot_of=key_slot,
            announced=announced,
        )
        self.cluster = self.hub.broker
        self.members: list[Member] = []
        self.last_error: list[dict[str, Any]] = []
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._open, redis = Server.open, self.redis

        async def opened(server: Server, protocol: Any) -> Any:
            await redis.open(server.host, server.port, protocol)
            return protocol

        Server.open = opened  # type: ignore[method-assign,assignment]
        self.loop.set_exception_handler(lambda _loop, context: self.last_error.append(context))
        self.task = asyncio.create_task(self.cluster.run())
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await turns()
        Server.open = self._open  # type: ignore[method-assign]
        assert not self.last_error, "something raised where nobody listens"

    def whole(self) -> bool:
        """Whether every slot is served and connected."""
        return self.cluster.connected

    def join(self, web_socket_id: bytes) -> Member:
        member = Member(b"websocket:" + web_socket_id, self.loop.time)
        self.members.append(member)
        self.hub.register(web_socket_id, member)
        return member

    def leave(self, member: Member) -> None:
        self.members.remove(member)
        self.hub.leave(member.name, member)

    def why_lost(self) -> list[str]:
        """The reasons of all lost connections."""
        return [
            str(transport.protocol.closed.result())
            for transport in self.redis.transports
            if transport.protocol.closed.done()
        ]

    def misunderstood(self) -> list[str]:
        """The reasons of connections that were dropped by mistake."""
        return [
            why for why in self.why_lost() if "unexpected reply" in why or "more channels subscribed" in why
        ]


def up(masters: int = 3, others: int = 1, **options: Any) -> Scene:
    """A scene with all connections up; use it with `async with`."""
    return Scene(FakeCluster(masters, others, count=COUNT), **options)


def ident(number: int, taken: str = "") -> bytes:
    """A webSocketId whose channel is in the slot."""
    return next(
        name
        for name in (b"%b%d" % (taken.encode(), i) for i in range(10_000))
        if key_slot(b"websocket:" + name) == number
    )


# One thing after another


@virtual
async def test_each_channel_is_subscribed_where_its_slot_is_served() -> None:
    async with up() as scene:
        early = [scene.join(ident(number)) for number in range(COUNT)]
        await asyncio.sleep(0.1)
        late = [scene.join(ident(number)) for number in range(COUNT)]
        await asyncio.sleep(0.1)
        assert [member.answers for member in early + late] == [1] * 2 * COUNT
        for number in range(COUNT):
            assert scene.redis.owner(number).publish(b"websocket:" + ident(number), b"DONE") == 1
        await asyncio.sleep(0.1)
        assert all(member.heard == [b"DONE"] for member in early + late)
        assert (scene.whole(), scene.cluster.ever_connected, scene.cluster.outages) == (True, True, 0)
        assert len(scene.redis.transports) == 3 + 2 + 3, "masters, first refresh, probes"
        assert (scene.cluster.slots_moved, scene.cluster.outage_seconds()) == (0, 0.0)


@virtual
async def test_the_end_closes_all_connections_and_timers() -> None:
    async with up() as scene:
        await asyncio.sleep(0.1)
        scene.cluster.topology.claim(0, scene.redis.node(3).address)
    assert all(transport.lost for transport in scene.redis.transports)
    opened = len(scene.redis.transports)
    await asyncio.sleep(10)
    assert len(scene.redis.transports) == opened
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual
async def test_a_slot_that_has_moved_takes_its_channels_along() -> None:
    """Retained results are read at the new master; a client gets no second answer."""
    async with up() as scene:
        member, name = scene.join(ident(0)), b"websocket:" + ident(0)
        await asyncio.sleep(0.1)
        source, target = scene.redis.node(0), scene.redis.node(3)
        target.keys[name] = b"MEANWHILE"
        scene.redis.move(0, target)
        scene.redis.gossip(target)
        scene.redis.gossip(source)
        await asyncio.sleep(0.05)
        assert target.subscribed == [name]
        assert (member.answers, member.heard, scene.cluster.slots_moved) == (1, [b"MEANWHILE"], 1)


@virtual
async def test_a_dead_master_is_an_outage_until_its_replica_has_taken_over() -> None:
    async with up(3, 2) as scene:
        member, name = scene.join(ident(0)), b"websocket:" + ident(0)
        await asyncio.sleep(0.1)
        dead, replica = scene.redis.node(0), scene.redis.node(4)
        dead.die()
        await asyncio.sleep(2)
        assert not scene.whole()
        assert not scene.cluster.reaches(name)
        assert scene.cluster.reaches(b"websocket:" + ident(1))
        replica.master = True
        replica.keys[name] = b"MEANWHILE"
        for number in range(0, COUNT, 3):
            scene.redis.move(number, replica)
        for node in scene.redis.nodes.values():
            scene.redis.gossip(node)
        await asyncio.sleep(0.5)
        assert scene.whole()
        assert scene.cluster.outages == 1
        assert scene.cluster.outage_seconds() == pytest.approx(2.2, abs=0.3)
        assert member.heard == [b"MEANWHILE"]
        assert dead.address not in scene.cluster._brokers


@virtual
async def test_an_answer_from_before_a_claim_does_not_undo_it() -> None:
    """A refresh that waits for a frozen node has answers that are a second old."""
    async with up() as scene:
        await asyncio.sleep(0.1)
        source, target, frozen = scene.redis.node(0), scene.redis.node(3), scene.redis.node(1)
        frozen.freeze()
        scene.redis.node(2).freeze()
        await asyncio.sleep(1.0)  # a look is under way
        scene.redis.move(0, target)
        scene.redis.gossip(target)
        scene.redis.gossip(source)
        member = scene.join(ident(0))
        await asyncio.sleep(0.05)
        assert member.answers == 1
        await asyncio.sleep(2)
        assert scene.cluster.slots_moved == 1, "and not there, back and there again"


@virtual
async def test_nodes_that_name_each_other_are_asked_until_they_agree() -> None:
    async with up() as scene:
        await asyncio.sleep(0.1)
        one, other = scene.redis.node(0), scene.redis.node(1)
        one.owners[0] = other.address
        other.owners[0] = one.address
        member = scene.join(ident(0))
        await asyncio.sleep(2)
        assert member.answers == 0
        scene.redis.move(0, other)
        scene.redis.gossip(other)
        await asyncio.sleep(0.5)
        assert member.answers == 1
        assert scene.misunderstood() == []


@virtual
async def test_while_a_slot_is_on_its_way_its_results_are_read_where_it_goes() -> None:
    async with up() as scene:
        await asyncio.sleep(0.1)
        source, target = scene.redis.node(0), scene.redis.node(3)
        source.migrating[0], target.importing = target.address, {0}
        target.keys[b"websocket:" + ident(0)] = b"THERE"
        gone, stayed = scene.join(ident(0)), scene.join(ident(0, "stayed"))
        source.keys[stayed.name] = b"HERE"
        await asyncio.sleep(0.5)
        assert (gone.answers, gone.heard) == (1, [b"THERE"])
        assert (stayed.answers, stayed.heard) == (1, [b"HERE"])
        assert source.subscribed == sorted([gone.name, stayed.name])
        assert scene.whole(), "a connection to a node without slots does not count"
        await asyncio.sleep(SLOTLESS_SECONDS + 2)
        assert target.address not in scene.cluster._brokers


@virtual
async def test_a_registration_waits_while_the_node_that_its_slot_goes_to_is_dead() -> None:
    async with up() as scene:
        await asyncio.sleep(0.1)
        source, target = scene.redis.node(0), scene.redis.node(3)
        source.migrating[0], target.importing = target.address, {0}
        target.die()
        member = scene.join(ident(0))
        await asyncio.sleep(2)
        assert member.answers == 0
        target.alive = True
        await asyncio.sleep(1)
        assert member.answers == 1


@virtual
async def test_masters_are_asked_when_no_node_of_the_url_answers() -> None:
    """The nodes of the settings may have left the Cluster long ago."""
    async with up(url="redis+cluster://n0:7000") as scene:
        await asyncio.sleep(0.1)
        for number in range(COUNT):
            if scene.redis.owners[number] == scene.redis.node(0).address:
                scene.redis.move(number, scene.redis.node(3))
        for node in scene.redis.nodes.values():
            scene.redis.gossip(node)
        await asyncio.sleep(2)
        for node in scene.redis.nodes.values():  # for a moment nobody is there, and then all but one
            node.die()
        await asyncio.sleep(3)
        assert not scene.whole()
        for number in (1, 2, 3):
            scene.redis.node(number).alive = True
        scene.redis.move(0, scene.redis.node(1))
        for node in scene.redis.nodes.values():
            scene.redis.gossip(node)
        await asyncio.sleep(3)
        assert scene.whole()
        assert scene.cluster.topology.map.owners[0] == scene.redis.node(1).address


@virtual
async def test_an_unreachable_cluster_is_logged_once() -> None:
    structlog.reset_defaults()
    with capture_logs() as logs:
        async with up() as scene:
            for node in scene.redis.nodes.values():
                node.die()
            await asyncio.sleep(5)
            assert not scene.cluster.ever_connected
    (line,) = [line for line in logs if line["event"] == "redis cluster unreachable"]
    assert "n0:7000: Connect call failed" in line["reason"]
    assert "n1:7001: Connect call failed" in line["reason"]


@virtual
async def test_a_node_that_starts_without_one_of_the_masters_serves_the_others() -> None:
    structlog.reset_defaults()
    with capture_logs() as logs:
        async with up() as scene:
            dead = scene.redis.node(2)
            dead.die()
            await asyncio.sleep(0.2)
            served, waits = scene.join(ident(0)), scene.join(ident(2))
            await asyncio.sleep(0.1)
            assert (scene.cluster.connected, scene.cluster.ever_connected) == (False, True)
            assert (served.answers, waits.answers) == (1, 0)
            missing = [number for number in range(COUNT) if number % 3 == 2]
            assert scene.cluster.missing_slots == missing
            assert scene.cluster.deaf.startswith("Redis is not connected for the slots 2, 5")
            await asyncio.sleep(2 * MISSING_AFTER)
            dead.alive = True
            await asyncio.sleep(1)
            assert (scene.cluster.connected, len(scene.cluster.missing_slots), waits.answers) == (True, 0, 1)
            assert (scene.cluster.deaf, scene.cluster.denied_channels) == ("", 0)
            assert scene.cluster.outages == 0, "none that it was connected to was lost"
    (line,) = [line for line in logs if line["event"] == "redis cluster slots missing"]
    assert line["slots"].startswith("2, 5")
    assert "it serves the ids in all other slots" in line["hint"]


@virtual
async def test_one_silent_master_makes_a_node_deaf() -> None:
    async with up() as scene:
        await asyncio.sleep(0.2)
        assert scene.cluster.deaf == ""
        scene.redis.node(1).freeze()
        await asyncio.sleep(3.2)
        assert scene.cluster.deaf.startswith("Redis has been silent for")


# In any order


def ids(count: int) -> list[bytes]:
    """Each in a slot of its own, and one more in the first one's."""
    found: dict[int, bytes] = {}
    for number in range(1_000):
        name = b"%d" % number
        place = key_slot(b"websocket:" + name) % COUNT
        if len(found) < count:
            found.setdefault(place, name)
        elif place == next(iter(found)):
            return [*found.values(), name]
    raise AssertionError("there are always some")


IDS = ids(3)
OFTEN = ["join"] * 5 + ["leave"] * 4 + ["publish"] * 6 + ["gossip"] * 5
SELDOM = ["migrate", "migrate", "key", "finish", "finish", "hand over", "die", "back", "freeze", "thaw"]
SELDOM += ["fail over", "down", "up", "expire", "cut"]
PAUSES = [0.0, WORK, 2 * WORK, WAY, WAY + WORK, 2 * WAY, 2 * WAY + 2 * WORK, 0.005, 0.011, 0.02, 0.15, 0.6]

steps = st.lists(
    st.tuples(st.sampled_from(OFTEN + SELDOM), st.integers(0, 63), st.sampled_from([*PAUSES, 0.0, WORK])),
    min_size=10,
    max_size=70,
)


class Play:
    """What happens to a scene, and what its members are owed because of it."""

    def __init__(self, scene: Scene, *, announced: bool) -> None:
        """With `announced` every id is announced for ever."""
        self.scene = scene
        self.redis = scene.redis
        self.announced = announced
        self.published = 0
        self.unstable: dict[int, float] = {}
        if announced:
            for name in (b"websocket:" + web_socket_id for web_socket_id in IDS):
                self.redis.owner(key_slot(name)).keys[name] = b""

    def expire(self, keys: dict[bytes, bytes], name: bytes) -> None:
        if not self.announced:
            keys.pop(name, None)
        elif name in keys:
            keys[name] = b""

    def do(self, what: str, number: int) -> None:
        name = b"websocket:" + IDS[number % len(IDS)]
        if what == "join":
            self.scene.join(IDS[number % len(IDS)])
        elif what == "leave":
            for member in self.scene.members[number % 8 :][:1]:
                self.scene.leave(member)
        elif what == "publish":
            self.publish(name, retain=number % 8 < 4)
        elif what == "expire":
            for node in self.redis.nodes.values():
                self.expire(node.keys, name)
        elif what in ("migrate", "key", "finish", "hand over"):
            self.reshard(what, name, self.redis.node(number // 4))
        else:
            self.befall(what, self.redis.node(number))
        self.look()

    # Slots that move

    def reshard(self, what: str, name: bytes, target: Node) -> None:
        number = key_slot(name)
        source = self.redis.owner(number)
        if what == "migrate":
            fit = target is not source and target.master and target.alive and source.serves(number)
            if fit and number not in source.migrating:
                source.migrating[number] = target.address
                target.importing.add(number)
        elif number in source.migrating and source.alive and not source.frozen:
            target = self.redis.nodes[source.migrating[number]]
            if not (target.alive and target.master) or target.frozen or number not in target.importing:
                return
            if what == "key":
                self.redis.migrate_key(name, source, target)
            else:
                self.hand_over(number, source, target)
                self.redis.gossip(target if what == "finish" else source)

    # Nodes

    def befall(self, what: str, node: Node) -> None:
        possible: dict[str, tuple[bool, Callable[[Node], object]]] = {
            "gossip": (True, self.gossip),
            "die": (node.alive, Node.die),
            "back": (not node.alive, self.back),
            "freeze": (node.alive, Node.freeze),
            "thaw": (node.frozen, Node.thaw),
            "fail over": (node.frozen or not node.alive, self.fail_over),
            "down": (True, Node.go_down),
            "up": (True, Node.come_up),
            "cut": (True, self.cut),
        }
        can, do = possible[what]
        if can:
            do(node)

    def cut(self, node: Node) -> None:
        """One of its connections breaks."""
        if node.connections:
            node.connections[0].lose()
            for number, owner in self.redis.owners.items():
                if owner == node.address:
                    self.disturb(number)

    def gossip(self, node: Node) -> None:
        if node.alive and not node.frozen:
            before = dict(node.owners)
            self.redis.gossip(node)
            for number in range(COUNT):
                if node.owners[number] != before[number]:
                    self.disturb(number)
            if not node.master or node.address in self.redis.owners.values():
                node.down = False
            elif before != node.owners and node.address in before.values():
                node.master = False  # it has lost all of its slots, so it follows who has them
                node.importing.clear()

    def back(self, node: Node) -> None:
        node.alive, node.frozen, node.down = True, False, True
        node.migrating.clear()
        node.importing.clear()

    def fail_over(self, node: Node) -> None:
        """A replica takes over the slots of a node that does not answer, with its keys."""
        replicas = [other for other in self.redis.nodes.values() if not other.master and other.alive]
        replicas = [other for other in replicas if not other.frozen]
        numbers = [number for number, owner in self.redis.owners.items() if owner == node.address]
        if not replicas or not numbers:
            return
        replica = replicas[0]
        replica.master = True
        replica.down = False
        replica.keys = dict(node.keys)
        for number in numbers:
            self.redis.move(number, replica)
        self.redis.gossip(replica)

    # What is owed

    def stable(self, number: int) -> bool:
        """Whether all nodes agree about the slot, and its owner does its work."""
        owner = self.redis.owner(number)
        return (
            owner.alive
            and not (owner.frozen or owner.down)
            and number not in owner.migrating
            and all(
                node.owners[number] == owner.address and node.serves(number) == (node is owner)
                for node in self.redis.nodes.values()
                if node.alive
            )
        )

    def look(self) -> None:
        for number in range(COUNT):
            if not self.stable(number):
                self.disturb(number)

    def disturb(self, number: int) -> None:
        self.unstable[number] = self.scene.loop.time()
        for member in self.scene.members:
            if key_slot(member.name) == number:
                for payload in set(member.owed) - set(member.heard):
                    del member.owed[payload]

    def publish(self, name: bytes, *, retain: bool) -> None:
        number = key_slot(name)
        node = self.redis.owner(number)
        if retain and number in node.migrating and name not in node.keys:
            node = self.redis.nodes[node.migrating[number]]
            if number not in node.importing and not node.serves(number):
                return
        elif not node.serves(number):
            return
        if not node.alive or node.frozen or (node.down and retain):
            return
        self.published += 1
        payload = b"R%06d" % self.published
        if retain:
            node.keys[name] = payload
        node.publish(name, payload)
        self.owe(name, number, payload)

    def owe(self, name: bytes, number: int, payload: bytes) -> None:
        now = self.scene.loop.time()
        last = self.unstable.get(number, -1.0)
        for member in self.scene.members:
            # The answer is as old as the way from Redis is long.
            fresh = member.answered_at - WAY - WORK <= last and now - last <= SETTLED
            if member.name == name and member.answers and not fresh and self.stable(number):
                member.owed[payload] = now

    # The end

    async def settle(self) -> None:
        """Nothing happens any more, and everybody hears of everything."""
        for node in self.redis.nodes.values():
            if not node.alive:
                self.back(node)
            node.thaw()
        self.gossip_all()
        for number in range(COUNT):
            self.finish(number)
        self.gossip_all()
        for node in self.redis.nodes.values():
            node.down = False
        self.look()
        await asyncio.sleep(SETTLED)

    def gossip_all(self) -> None:
        for node in self.redis.nodes.values():
            self.gossip(node)

    def finish(self, number: int) -> None:
        """The slot's way ends where it was to, or where it began if nobody is there any more."""
        source = self.redis.owner(number)
        if number not in source.migrating:
            return
        target = self.redis.nodes[source.migrating[number]]
        if target.master and number in target.importing:
            self.hand_over(number, source, target)
            self.redis.gossip(target)
        else:
            del source.migrating[number]

    def hand_over(self, number: int, source: Node, target: Node) -> None:
        for key in [key for key in source.keys if key_slot(key) == number]:
            self.redis.migrate_key(key, source, target)
        self.redis.move(number, target)

    def check(self) -> None:
        for member in self.scene.members:
            assert member.answers == 1, f"answered {member.answers} times"
            assert not member.refused
            missed = [payload for payload in member.owed if payload not in member.heard]
            assert not missed, f"missed {missed} of {member.owed}"
            retained = self.redis.owner(key_slot(member.name)).keys.get(member.name)
            assert not retained or retained in member.heard, f"missed what is retained: {retained!r}"
        assert self.subscribed() == sorted(
            (self.redis.owners[key_slot(name)], name)
            for name in {member.name for member in self.scene.members}
        )
        assert self.scene.whole()
        assert self.scene.misunderstood() == []
        assert sum(broker.probe.missed for broker in self.scene.cluster.server_brokers) == 0

    def subscribed(self) -> list[tuple[Address, bytes]]:
        return sorted((node.address, name) for node in self.redis.nodes.values() for name in node.subscribed)

    async def audited(self) -> None:
        for line in list(self.scene.cluster._brokers.values()):
            if line.connection is not None:
                async with asyncio.timeout(60):
                    await line.reconciler.run_once(line.connection)
        assert self.scene.cluster.repaired == 0


async def play(drawn: list[tuple[str, int, float]], *, announced: bool = False) -> None:
    """All of it, from the first connection until everybody has left."""
    async with Scene(FakeCluster(3, 3, count=COUNT), announced=announced) as scene:
        play = Play(scene, announced=announced)
        await asyncio.sleep(0.1)
        assert scene.whole()
        for what, number, pause in drawn:
            play.do(what, number)
            await asyncio.sleep(pause)
        await play.settle()
        play.check()
        await play.audited()
        for member in list(scene.members):
            scene.leave(member)
        await asyncio.sleep(SETTLED)
        play.check()
        assert scene.hub.channels == 0


@given(steps)
def test_whatever_the_cluster_does_nobody_waits_or_misses_anything(
    drawn: list[tuple[str, int, float]],
) -> None:
    virtual(play)(drawn)


@given(steps)
def test_whatever_the_cluster_does_an_announced_id_is_never_refused(
    drawn: list[tuple[str, int, float]],
) -> None:
    virtual(play)(drawn, announced=True)


@virtual
async def test_an_id_is_announced_where_its_slot_is() -> None:
    """Also while the slot is on its way, when its keys are at one node or the other."""
    redis = FakeCluster(3, 3, count=COUNT)
    async with Scene(redis, announced=True) as scene:
        await asyncio.sleep(0.1)
        source, target = redis.node(0), redis.node(3)
        names = [ident(0, text) for text in ("here", "there", "nowhere")]
        source.keys[b"websocket:" + names[0]] = b""
        target.keys[b"websocket:" + names[1]] = b""
        source.migrating[0], target.importing = target.address, {0}
        members = [scene.join(name) for name in names]
        await asyncio.sleep(0.5)
        assert [member.answers for member in members] == [1, 1, 1]
        assert [member.refused for member in members] == [False, False, True]


@virtual
async def test_a_redirection_to_the_same_address_drops_the_connection() -> None:
    """Another node has that address by now; to ask it again would never end."""
    here, there = Address("here", 1), Address("there", 2)
    gone: list[str] = []
    claims: list[Address] = []
    cluster: Any = SimpleNamespace(
        topology=SimpleNamespace(
            map=SlotMap((here,) * COUNT), claim=lambda _slot, owner: claims.append(owner)
        ),
        connection_for=lambda _name: SimpleNamespace(abort=gone.append),
    )
    shard = ShardEventFilter(cluster, Hub("websocket:", 1_000, lambda _hub: cluster, slot_of=key_slot), here)
    shard.moved(b"x", "there", 2)
    assert (claims, gone) == ([there], [])
    for host in ("here", ""):
        shard.moved(b"x", host, 1)
    assert claims == [there]
    assert gone == ["here:1 leads to another node"] * 2


def test_events_for_some_slots_are_limited_to_the_slots_of_the_master() -> None:
    here, there = Address("here", 1), Address("there", 2)
    cluster: Any = SimpleNamespace(topology=SimpleNamespace(map=SlotMap((here, here, there, there))))
    events = ShardEventFilter(cluster, Hub("websocket:", 1_000, lambda _hub: cluster, slot_of=key_slot), here)
    assert set(events._own(None)) == {0, 1}
    assert set(events._own({1, 2})) == {1}
