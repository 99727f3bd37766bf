"""On real servers of every kind, well and not so well, and always in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest

from gateway import publish
from gateway.drill.fleet import SentinelGroup, SentinelProcess, ValkeyCluster, ValkeyProcess, free_port
from gateway.errors import NotAnnounced, NotPublished, PublishError, Unconfirmed
from gateway.publishing import publisher as publisher_module
from gateway.publishing.api import Outgoing, Published, outgoing
from gateway.publishing.publisher import ATTEMPT_TIMEOUT, PUBLISH_TIMEOUT, Publisher, outcome_as_json
from gateway.redis.cluster.slots import key_slot

from ..publishing.test_redis_py import READONLY, fake_redis
from ..redis.test_sentinel import black_hole
from ..redis.test_server import HELLO, saying

# All that a publisher needs of Redis besides its keys and channels.
RIGHTS = ["-@all", "+hello", "+client|setname", "+ping", "+eval", "+set", "+publish"]
SLACK = 5.0  # seconds for a busy machine; nothing here is measured by it


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=1) as running:
        yield running


def results(count: int, stem: str, retain: int = 300) -> list[Outgoing]:
    return [outgoing(f"{stem}-{number}", "DONE", retain=retain) for number in range(count)]


@contextlib.asynccontextmanager
async def bounded(seconds: float = PUBLISH_TIMEOUT) -> AsyncIterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds + SLACK


def kept(server: ValkeyProcess | ValkeyCluster, result: Outgoing) -> bool:
    with server.client() as client:
        return bool(client.get(result.channel) == result.payload)


# One server


async def test_a_result_is_published_and_retained(valkey: ValkeyProcess) -> None:
    async with Publisher(valkey.url) as publisher:
        with valkey.client() as client, client.pubsub() as node:
            node.subscribe("websocket:one")
            node.get_message(timeout=5)
            published = await publisher.publish("one", "CONFIRMED", data=[1], message_id="m", retain=60)
            message = node.get_message(timeout=5)
            assert published == Published(1, True, "m")
            assert message is not None
            assert client.get("websocket:one") == message["data"]
            body = orjson.loads(message["data"])
            assert body.pop("publishedAt") > 0
            assert body == {"authResult": "CONFIRMED", "messageId": "m", "data": [1]}
        assert (await publisher.publish("one", "DONE", retain=0)).retained is False
        with pytest.raises(PublishError):
            await publisher.publish("o ne", "CONFIRMED")


async def test_an_id_is_announced_once_and_its_result_replaces_that(valkey: ValkeyProcess) -> None:
    async with Publisher(valkey.url) as publisher:
        assert await publisher.announce("announced", ttl=60) is True
        assert await publisher.announce("announced", ttl=60) is False
        assert (await publisher.publish("announced", "DONE", retain=60)).retained
        assert await publisher.announce("announced", ttl=60) is False
        with pytest.raises(PublishError):
            await publisher.announce("announced", ttl=0)
    async with Publisher(f"redis://127.0.0.1:{free_port()}", timeout=0.2) as publisher:
        with pytest.raises(NotAnnounced, match="Redis has not confirmed the announcement"):
            await publisher.announce("announced")


async def test_a_batch_goes_out_in_its_order(valkey: ValkeyProcess) -> None:
    batch = results(1000, "batch", retain=0)
    with valkey.client() as client, client.pubsub(ignore_subscribe_messages=True) as node:
        node.psubscribe("websocket:batch-*")
        node.get_message(timeout=5)
        async with Publisher(valkey.url) as publisher:
            ends = await publisher.send(batch)
        assert [end.message_id for end in ends] == [result.message_id for result in batch]
        assert all(isinstance(end, Published) and end.receivers == 1 for end in ends)
        heard: list[bytes] = []
        while len(heard) < len(batch) and (message := node.get_message(timeout=5)):
            heard.append(message["data"])
        assert heard == [result.payload for result in batch]


async def test_many_tasks_share_a_connection() -> None:
    with ValkeyProcess() as alone:  # a node of another test would connect to it from time to time
        async with Publisher(alone.url) as publisher:
            await publisher.publish("shared", "DONE")
            before = int(alone.info("stats")["total_connections_received"])
            await asyncio.gather(*(publisher.publish(f"shared-{number}", "DONE") for number in range(100)))
            received = int(alone.info("stats")["total_connections_received"])
            assert received == before + 1, "that of INFO itself"


async def test_nobody_there_is_an_error_in_bounded_time() -> None:
    async with Publisher(f"redis://127.0.0.1:{free_port()}", timeout=0.3) as publisher, bounded(0.3):
        with pytest.raises(NotPublished, match=r"Connect call failed.*; the result was not published$"):
            await publisher.publish("a", "DONE", message_id="m")


async def test_a_connection_that_redis_has_closed_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with ValkeyProcess() as server:
        async with Publisher(server.url) as publisher:
            await publisher.publish("a", "DONE")
            server.ask("CLIENT", "KILL", "TYPE", "normal")
            assert (await publisher.publish("a", "DONE")).retained
            server.kill()
            server.start()
            assert (await publisher.publish("a", "DONE")).retained
        monkeypatch.setattr(publisher_module, "FIRST_PAUSE", PUBLISH_TIMEOUT)
        async with Publisher(server.url, timeout=0.2) as once:
            await once.publish("a", "DONE")
            server.ask("CLIENT", "KILL", "TYPE", "normal")
            with pytest.raises(Unconfirmed):  # the control, which does not try again
                await once.publish("a", "DONE")


async def test_a_redis_that_is_back_before_the_deadline_has_lost_nothing() -> None:
    with ValkeyProcess() as server:
        async with Publisher(server.url) as publisher:
            await publisher.publish("a", "DONE")
            server.kill()
            (result,) = results(1, "back")
            sending = asyncio.create_task(publisher.send([result]))
            await asyncio.sleep(0)
            await asyncio.to_thread(server.start)
            (end,) = await sending
            assert isinstance(end, Published)
            assert kept(server, result)


async def test_a_frozen_redis_is_an_error_and_repeating_it_is_none() -> None:
    with ValkeyProcess() as server:
        async with Publisher(server.url) as publisher:
            await publisher.publish("a", "DONE")
            with server.frozen():
                async with bounded():
                    with pytest.raises(Unconfirmed, match=f"{server.port} gave no answer"):
                        await publisher.publish("a", "DONE", message_id="m")
            async with bounded(0):
                assert (await publisher.publish("a", "DONE", message_id="m")).retained


async def test_a_black_hole_is_an_error_and_does_not_hold_up_who_comes_later() -> None:
    with black_hole() as silent:
        async with Publisher(f"redis://127.0.0.1:{silent}") as publisher, bounded():
            ends = await asyncio.gather(*(publisher.send(results(2, "hole")) for _ in range(50)))
        assert all(isinstance(end, NotPublished) for pair in ends for end in pair), "no login, no command"


async def test_what_redis_refuses_for_good_is_not_tried_again() -> None:
    with ValkeyProcess() as server:
        server.ask("ACL", "SETUSER", "backend", "on", ">x", *RIGHTS, "-publish", "~*", "&*")
        async with Publisher(server.url.replace("//", "//backend:x@")) as publisher, bounded(0):
            with pytest.raises(Unconfirmed, match="no permissions to run the 'publish' command"):
                await publisher.publish("a", "DONE")
            with server.client() as client:
                assert client.get("websocket:a") is not None, "it is retained, since Redis undoes nothing"
            with pytest.raises(NotPublished, match="no permissions to run"):
                await publisher.publish("a", "DONE", retain=0)
        async with Publisher(server.url.replace("//", "//backend:wrong@")) as publisher, bounded(0):
            with pytest.raises(NotPublished, match="WRONGPASS"):
                await publisher.publish("a", "DONE")


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "OOM"),
        (("CONFIG", "SET", "min-replicas-to-write", "1"), "NOREPLICAS"),
        (("REPLICAOF", "127.0.0.1", "1"), "READONLY"),
        (("ACL", "SETUSER", "default", "-eval"), "NOPERM"),
    ],
    ids=["OOM", "NOREPLICAS", "READONLY", "NOPERM"],
)
async def test_what_redis_refuses_is_known_not_to_be_published(command: tuple[str, ...], word: str) -> None:
    with ValkeyProcess() as server:
        async with Publisher(server.url, timeout=0.3) as publisher:
            assert (await publisher.publish("first", "DONE")).retained
            server.ask(*command)
            with pytest.raises(NotPublished, match=f"{word}.*; the result was not published$"):
                await publisher.publish("a", "DONE")


async def test_without_the_password_nothing_is_published() -> None:
    with ValkeyProcess() as server:
        server.ask("CONFIG", "SET", "requirepass", "x")
        async with Publisher(server.url) as publisher, bounded(0):
            with pytest.raises(NotPublished, match="NOAUTH"):
                await publisher.publish("a", "DONE")


async def test_what_became_of_results_that_came_as_json(valkey: ValkeyProcess) -> None:
    given = {"webSocketId": "json", "authResult": "DONE", "messageId": "m"}
    async with Publisher(valkey.url) as publisher:
        ends = await publisher.send_json([given, {**given, "authResult": "done"}], "ws:", 1024)
    async with Publisher(f"redis://127.0.0.1:{free_port()}", timeout=0.2) as publisher:
        ends += await publisher.send_json([given], "ws:", 1024)
    answers = [outcome_as_json(given, end) for end in ends]
    assert answers[0] == {"webSocketId": "json", "messageId": "m", "receivers": 0, "retained": True}
    assert [answer.get("error", {}).get("code") for answer in answers[1:]] == ["invalid", "not_published"]  # type: ignore[attr-defined]
    assert answers[2]["messageId"] == "m"
    lost = outcome_as_json({"webSocketId": "x" * 201}, Unconfirmed("no answer", "m"))
    assert lost["webSocketId"] is None
    assert lost["error"] == {"code": "unconfirmed", "message": str(Unconfirmed("no answer", "m"))}


async def test_a_refusal_after_a_lost_attempt_proves_nothing() -> None:
    """As at a failover: the old master may have executed it before its connection was lost."""
    with fake_redis(None, *[READONLY] * 20) as port:
        async with Publisher(f"redis://127.0.0.1:{port}", timeout=0.5) as publisher:
            with pytest.raises(Unconfirmed, match="READONLY"):
                await publisher.publish("a", "DONE")


@pytest.mark.parametrize(
    "says",
    [
        b"-READONLY You can't write against a read only replica. script: 1, on @user_script:1.\r\n",
        b"-ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-NOREPLICAS Not enough good replicas to write.\r\n",
    ],
)
async def test_what_will_pass_is_tried_again(says: bytes) -> None:
    async with saying(HELLO, b"+PONG\r\n", says, says) as url, Publisher(url, timeout=0.2) as publisher:
        started = time.monotonic()
        with pytest.raises(NotPublished):
            await publisher.publish("a", "DONE")
        assert time.monotonic() - started >= 0.2


async def test_a_replica_takes_nothing(valkey: ValkeyProcess) -> None:
    with ValkeyProcess("--replicaof", f"127.0.0.1 {valkey.port}") as replica:
        async with Publisher(replica.url, timeout=0.2) as publisher:
            with pytest.raises(NotPublished, match="READONLY"):
                await publisher.publish("a", "DONE")


# Sentinel


async def test_a_master_that_crashes_is_followed_by_another() -> None:
    with SentinelGroup() as redises:
        async with Publisher(redises.url, timeout=20) as publisher:
            old = redises.master
            await publisher.publish("before", "DONE")
            old.kill()
            async with asyncio.timeout(20):
                (result,) = results(1, "after")
                (end,) = await publisher.send([result])
            assert isinstance(end, Published)
            assert kept(redises.master, result)
            assert redises.master is not old


async def test_a_frozen_master_is_given_up_for_another() -> None:
    with SentinelGroup() as redises:
        async with Publisher(redises.url, timeout=20) as publisher:
            await publisher.publish("before", "DONE")
            old = redises.master
            with old.frozen():
                (result,) = results(1, "after")
                (end,) = await publisher.send([result])
                new = redises.await_other_master(old)
                assert isinstance(end, Published)
                assert kept(new, result)


async def test_a_dead_and_a_silent_sentinel_hold_up_little(valkey: ValkeyProcess) -> None:
    with SentinelProcess(valkey.port) as sentinel, black_hole() as silent:
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{silent},{sentinel.address}"
        async with Publisher(f"redis+sentinel://{hosts}/mymaster") as publisher, bounded(ATTEMPT_TIMEOUT):
            assert (await publisher.publish("a", "DONE")).retained


# Cluster


async def test_each_result_goes_to_the_node_of_its_slot(cluster: ValkeyCluster) -> None:
    batch = results(300, "spread")
    with cluster.client() as client:
        node = client.pubsub()
        node.ssubscribe(batch[0].channel)
        assert node.get_sharded_message(timeout=5)["type"] == "ssubscribe"
        async with Publisher(cluster.url) as publisher:
            ends = await publisher.send(batch)
        message = node.get_sharded_message(timeout=5)
        node.close()
        assert message["data"] == batch[0].payload
        assert ends[0] == Published(1, True, batch[0].message_id)
        assert all(isinstance(end, Published) for end in ends)
        assert all(client.get(result.channel) == result.payload for result in batch)


async def test_a_node_of_a_cluster_named_as_one_server_is_said_to_be_that(cluster: ValkeyCluster) -> None:
    (result,) = results(1, "alone")
    owner = cluster.owner(key_slot(result.channel.encode()))
    other = next(node for node in cluster.masters if node is not owner)
    async with Publisher(other.url) as publisher, bounded(0):
        (end,) = await publisher.send([result])
    assert isinstance(end, NotPublished)
    assert "write redis+cluster://" in str(end)


async def test_a_slot_that_has_moved(cluster: ValkeyCluster) -> None:
    (result,) = results(1, "moved")
    number = key_slot(result.channel.encode())
    source = cluster.owner(number)
    target = next(node for node in cluster.masters if node is not source)
    async with Publisher(cluster.url) as publisher:
        await publisher.send([result])
        await asyncio.to_thread(cluster.move_slots, source, target, [number])
        (end,) = await publisher.send([result])
        assert isinstance(end, Published)
        assert kept(cluster, result)
        (end,) = await publisher.send([result])
        assert isinstance(end, Published)


async def test_a_slot_on_its_way_keeps_the_result_there_and_the_subscribers_here(
    cluster: ValkeyCluster,
) -> None:
    (result,) = results(1, "moving")
    number = key_slot(result.channel.encode())
    source = cluster.owner(number)
    target = next(node for node in cluster.masters if node is not source)
    target.ask("CLUSTER", "SETSLOT", number, "IMPORTING", source.id)
    source.ask("CLUSTER", "SETSLOT", number, "MIGRATING", target.id)
    with source.client() as client, cluster.client() as follower:
        node = client.pubsub(ignore_subscribe_messages=True)
        node.ssubscribe(result.channel)
        node.get_message(timeout=5)
        control = publish(follower, "moving-0", "DONE")
        assert control.receivers == 0, "a client that does no more than follow ASK reaches nobody"
        async with Publisher(cluster.url) as publisher:
            (end,) = await publisher.send([result])
        message = node.get_message(timeout=5)
        node.close()
    assert end == Published(1, True, result.message_id)
    assert message is not None
    assert message["data"] == result.payload
    await asyncio.to_thread(cluster.move_slots, source, target, [number])
    assert kept(cluster, result)
    assert cluster.owner(number) is target


async def test_a_frozen_node_holds_up_nobody_elses_results() -> None:
    batch = results(60, "others")
    with ValkeyCluster(replicas=0) as cluster:
        there = {key_slot for part in cluster.slots(cluster.nodes[0]) for key_slot in part}
        async with Publisher(cluster.url, timeout=ATTEMPT_TIMEOUT) as publisher, bounded(ATTEMPT_TIMEOUT):
            with cluster.nodes[0].frozen():
                ends = await publisher.send(batch)
    for result, end in zip(batch, ends, strict=True):
        frozen = key_slot(result.channel.encode()) in there
        assert isinstance(end, NotPublished if frozen else Published), "it has not let the publisher in"
    assert len({type(end) for end in ends}) == 2


async def test_a_master_of_a_cluster_that_crashes_is_followed_by_its_replica() -> None:
    with ValkeyCluster() as cluster:
        (result,) = results(1, "after")
        number = key_slot(result.channel.encode())
        async with Publisher(cluster.url, timeout=20) as publisher:
            await publisher.send(results(100, "before"))
            failed = cluster.owner(number)
            failed.kill()
            (end,) = await publisher.send([result])
            assert isinstance(end, Published)
            assert cluster.owner(number) is not failed
            assert kept(cluster, result)
