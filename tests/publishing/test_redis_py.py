"""What `gateway.publish` knows when redis-py fails, with each of its clients."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hiredis
import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from gateway import NotPublished, Published, PublishError, Unconfirmed, publish
from gateway.drill.fleet import ValkeyCluster, ValkeyProcess, free_port
from gateway.drill.fleet.cluster import ClusterNodeProcess
from gateway.publishing.redis_py import redis_answer
from gateway.redis.cluster.slots import key_slot

pytestmark = pytest.mark.real

ID = "refused"
CHANNEL = f"websocket:{ID}"
RETRIES = 2

Options = dict[str, Any]
Publish = Callable[[Options], Published]
"""Publishes ID with a new client that has these options; raises as `gateway.publish` does."""


def _sync(options: Options) -> Published:
    with redis.Redis(host="127.0.0.1", retry=Retry(NoBackoff(), RETRIES), **options) as client:
        published: Published = publish(client, ID, "DONE", message_id="m")
        return published


def _async(options: Options) -> Published:
    async def run() -> Published:
        retry = AsyncRetry(NoBackoff(), RETRIES)
        async with redis.asyncio.Redis(host="127.0.0.1", retry=retry, **options) as client:
            return await publish(client, ID, "DONE", message_id="m")

    return asyncio.run(run())


@pytest.fixture(params=[_sync, _async], ids=["sync", "async"])
def publish_with(request: pytest.FixtureRequest) -> Publish:
    found: Publish = request.param
    return found


def nothing_went_out(server: ValkeyProcess, publish_with: Publish, word: str, **options: object) -> None:
    """It is known that nothing was published, with Redis's word; and that is true."""
    with server.client() as administrator, administrator.pubsub(ignore_subscribe_messages=True) as node:
        node.subscribe(CHANNEL)
        node.get_message(timeout=5)
        with pytest.raises(NotPublished, match=f"{word}.*; the result was not published$") as caught:
            publish_with({"port": server.port, **options})
        assert isinstance(caught.value.__cause__, redis.RedisError)
        assert caught.value.message_id == "m"
        assert word in caught.value.reason
        assert administrator.get(CHANNEL) is None
        assert administrator.publish(CHANNEL, "last") == 1
        assert node.get_message(timeout=5)["data"] == b"last"


# Redis refuses


def user(server: ValkeyProcess, *rules: str) -> Options:
    allowed = ("-@all", "+hello", "+client|setinfo", "+ping", "+eval", "+set", "+publish", "~*", "&*")
    server.ask("ACL", "SETUSER", "restricted", "reset", "on", ">x", *allowed, *rules)
    return {"username": "restricted", "password": "x"}


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        (["-eval"], "NOPERM .* 'eval' command"),
        (["-set"], "'set' command"),
        (["resetkeys", "~other:*"], "NOPERM .* key"),
        (["off"], "WRONGPASS"),
    ],
    ids=["eval", "set", "key", "login"],
)
def test_rights_that_are_missing(
    valkey: ValkeyProcess, publish_with: Publish, rules: list[str], word: str
) -> None:
    with pytest.raises(NotPublished, match=word):
        publish_with({"port": valkey.port, **user(valkey, *rules)})
    with valkey.client() as client:
        assert client.get(CHANNEL) is None


def test_a_user_who_may_not_publish_has_retained_the_result(
    valkey: ValkeyProcess, publish_with: Publish
) -> None:
    """Redis does not undo the SET, and a browser that comes later gets the result."""
    with valkey.client() as client:
        with pytest.raises(Unconfirmed, match=r"'publish' command.*unknown"):
            publish_with({"port": valkey.port, **user(valkey, "-publish")})
        assert client.getdel(CHANNEL) is not None


def test_no_password(publish_with: Publish) -> None:
    with ValkeyProcess() as server:
        server.ask("CONFIG", "SET", "requirepass", "secret")
        with pytest.raises(NotPublished, match="NOAUTH"):
            publish_with({"port": server.port})
        assert publish_with({"port": server.port, "password": "secret"}).retained


@pytest.mark.parametrize(
    ("setting", "refusing", "harmless", "word"),
    [
        ("maxmemory", "1", "0", "OOM"),
        ("min-replicas-to-write", "1", "0", "NOREPLICAS"),
    ],
    ids=["memory", "replicas"],
)
def test_a_server_that_takes_no_writes(
    publish_with: Publish, setting: str, refusing: str, harmless: str, word: str
) -> None:
    with ValkeyProcess() as server:
        server.ask("CONFIG", "SET", setting, refusing)
        nothing_went_out(server, publish_with, word)
        server.ask("CONFIG", "SET", setting, harmless)
        assert publish_with({"port": server.port}).retained


def test_a_replica(valkey: ValkeyProcess, publish_with: Publish) -> None:
    with ValkeyProcess("--replicaof", f"127.0.0.1 {valkey.port}") as replica:
        nothing_went_out(replica, publish_with, "READONLY")


def test_a_key_of_another_type_is_no_obstacle(valkey: ValkeyProcess, publish_with: Publish) -> None:
    with valkey.client() as client:
        client.lpush(CHANNEL, "x")
        assert publish_with({"port": valkey.port}).retained
        client.delete(CHANNEL)


def test_a_form_that_no_node_would_forward_is_no_matter_of_redis(valkey: ValkeyProcess) -> None:
    with valkey.client() as client, pytest.raises(PublishError):
        publish(client, ID, "done")


# Redis is not there


def test_nobody_listens(publish_with: Publish) -> None:
    with pytest.raises(NotPublished, match=r"onnect.*; the result was not published"):
        publish_with({"port": free_port()})


def test_a_server_that_went_between_two_results() -> None:
    retry = Retry(NoBackoff(), RETRIES)
    with ValkeyProcess() as server, redis.Redis(port=server.port, retry=retry) as client:
        assert publish(client, ID, "DONE").retained
        server.kill()
        with pytest.raises(NotPublished):
            publish(client, ID, "DONE")


def test_a_server_that_hangs(publish_with: Publish) -> None:
    """It has let nobody in, so it has been sent nothing."""
    with ValkeyProcess() as server, server.frozen(), pytest.raises(NotPublished, match=r"[Tt]imeout"):
        publish_with({"port": server.port, "socket_timeout": 0.2})


def test_a_connection_that_hangs_once_it_is_open() -> None:
    """Redis may have read the command, and executes it when it goes on."""
    with ValkeyProcess() as server:
        never = Retry(NoBackoff(), 0)
        with redis.Redis(port=server.port, socket_timeout=0.2, retry=never) as client:
            client.ping()
            with server.frozen(), pytest.raises(Unconfirmed, match=r"unknown whether.*messageId m$"):
                publish(client, ID, "DONE", message_id="m")
        with server.client() as client:
            assert client.get(CHANNEL) is not None, "and it was executed"


class FakeRedis(socketserver.ThreadingTCPServer):
    """Takes logins, and answers the EVALs one after the other as it is told; None cuts the connection."""

    allow_reuse_address = True
    daemon_threads = False

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(socketserver.BaseRequestHandler):
    server: FakeRedis

    def handle(self) -> None:
        reader = hiredis.Reader()
        while data := self.request.recv(65_536):
            reader.feed(data)
            while (command := reader.gets()) is not False:
                answer = self._answer(command)
                if answer is None:
                    if not self.server.answers:
                        self.server.socket.close()  # nobody listens from now on
                    return
                self.request.sendall(answer)

    def _answer(self, command: Sequence[bytes]) -> bytes | None:
        if command[0] == b"HELLO":
            return b"%1\r\n$5\r\nproto\r\n:3\r\n"
        return self.server.answers.pop(0) if command[0] == b"EVAL" else b"+OK\r\n"


@contextlib.contextmanager
def fake_redis(*answers: bytes | None) -> Iterator[int]:
    with FakeRedis(*answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.port
        finally:
            server.shutdown()
            thread.join()


READONLY = b"-READONLY You can't write against a read only replica. script: 1, on @user_script:1.\r\n"


def test_a_refusal_after_a_lost_attempt_proves_nothing(publish_with: Publish) -> None:
    """As at a failover: the old master has executed it, and the connection leads to a replica then."""
    with fake_redis(None, READONLY) as port, pytest.raises(Unconfirmed, match="READONLY"):
        publish_with({"port": port})
    with fake_redis(READONLY) as port, pytest.raises(NotPublished, match="READONLY"):
        publish_with({"port": port})


def test_a_refused_connection_after_a_lost_attempt_proves_nothing(publish_with: Publish) -> None:
    with fake_redis(None) as port, pytest.raises(Unconfirmed):
        publish_with({"port": port})


def test_a_retry_that_succeeds_is_a_success(publish_with: Publish) -> None:
    with fake_redis(None, b":1\r\n") as port:
        assert publish_with({"port": port}).receivers == 1


def test_publishing_leaves_the_clients_pool_as_it_was(valkey: ValkeyProcess) -> None:
    with redis.Redis(port=valkey.port, max_connections=1) as client:
        for _ in range(3):
            publish(client, ID, "DONE")
        (connection,) = client.connection_pool._available_connections
        assert connection._connect_callbacks == []
        client.delete(CHANNEL)


def test_the_connection_of_a_client_that_has_a_single_one(publish_with: Publish) -> None:
    """It may have said something on it, AUTH perhaps."""
    with fake_redis(b":1\r\n") as port:
        assert publish_with({"port": port, "single_connection_client": True}).receivers == 1


def test_a_client_with_a_single_connection_opens_no_other() -> None:
    # With nobody else who would connect.
    with ValkeyProcess() as alone, redis.Redis(port=alone.port, single_connection_client=True) as client:
        before = client.info("stats")["total_connections_received"]
        publish(client, ID, "DONE")
        assert client.info("stats")["total_connections_received"] == before


def test_a_pool_without_a_free_connection(valkey: ValkeyProcess) -> None:
    with redis.Redis(port=valkey.port, max_connections=1) as client:
        taken = client.connection_pool.get_connection()
        with pytest.raises(NotPublished, match="Too many connections"):
            publish(client, ID, "DONE")
        client.connection_pool.release(taken)


def test_redis_answers_have_their_code_again() -> None:
    refused = redis.exceptions.OutOfMemoryError("not now", status_code="OOM")
    assert redis_answer(refused) == "OOM not now"
    assert redis_answer(redis.ResponseError("MISCONF disk")) == "MISCONF disk"
    assert redis_answer(redis.ConnectionError("gone")) is None


# In a Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster("--cluster-require-full-coverage", "no", replicas=0) as running:
        yield running


def owner(cluster: ValkeyCluster) -> ClusterNodeProcess:
    return cluster.owner(key_slot(CHANNEL.encode()))


def elsewhere(cluster: ValkeyCluster) -> int:
    """The port of a node that leads to the owner."""
    return next(node.port for node in cluster.nodes if node is not owner(cluster))


def _sync_in_cluster(cluster: ValkeyCluster, during: contextlib.AbstractContextManager[object]) -> Published:
    port = elsewhere(cluster)
    retry = Retry(NoBackoff(), RETRIES)
    client = redis.RedisCluster(host="127.0.0.1", port=port, retry=retry, socket_timeout=0.3)
    with client, during:
        return publish(client, ID, "DONE", message_id="m")


def _async_in_cluster(cluster: ValkeyCluster, during: contextlib.AbstractContextManager[object]) -> Published:
    async def run() -> Published:
        port, retry = elsewhere(cluster), AsyncRetry(NoBackoff(), RETRIES)
        client = redis.asyncio.RedisCluster(host="127.0.0.1", port=port, retry=retry, socket_timeout=0.3)
        async with client:
            with during:
                return await publish(client, ID, "DONE", message_id="m")

    return asyncio.run(run())


InCluster = Callable[[ValkeyCluster, contextlib.AbstractContextManager[object]], Published]


@pytest.fixture(params=[_sync_in_cluster, _async_in_cluster], ids=["sync", "async"])
def publish_in(request: pytest.FixtureRequest) -> InCluster:
    found: InCluster = request.param
    return found


def test_a_cluster_that_refuses(cluster: ValkeyCluster, publish_in: InCluster) -> None:
    @contextlib.contextmanager
    def full() -> Iterator[None]:
        owner(cluster).ask("CONFIG", "SET", "maxmemory", "1")
        try:
            yield
        finally:
            owner(cluster).ask("CONFIG", "SET", "maxmemory", "0")

    with pytest.raises(NotPublished, match="OOM"):
        publish_in(cluster, full())
    assert publish_in(cluster, contextlib.nullcontext()).retained
    owner(cluster).ask("DEL", CHANNEL)


def test_a_slot_that_nobody_serves(cluster: ValkeyCluster, publish_in: InCluster) -> None:
    server, slot = owner(cluster), key_slot(CHANNEL.encode())

    @contextlib.contextmanager
    def unserved() -> Iterator[None]:
        server.ask("CLUSTER", "DELSLOTS", slot)
        try:
            yield
        finally:
            server.ask("CLUSTER", "ADDSLOTS", slot)

    with pytest.raises(NotPublished, match="CLUSTERDOWN Hash slot not served"):
        publish_in(cluster, unserved())


def test_a_node_of_a_cluster_that_hangs(cluster: ValkeyCluster) -> None:
    """Once it has a connection, it may have read the command."""
    with redis.RedisCluster(host="127.0.0.1", port=elsewhere(cluster), socket_timeout=0.3) as client:
        client.get(CHANNEL)
        with owner(cluster).frozen(), pytest.raises(Unconfirmed, match=r"messageId m$"):
            publish(client, ID, "DONE", message_id="m")
        assert publish(client, ID, "DONE").retained


async def test_a_node_of_a_cluster_that_hangs_with_asyncio(cluster: ValkeyCluster) -> None:
    port = elsewhere(cluster)
    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=port, socket_timeout=0.3) as client:
        await client.get(CHANNEL)
        with owner(cluster).frozen(), pytest.raises(Unconfirmed, match=r"messageId m$"):
            await publish(client, ID, "DONE", message_id="m")
        assert (await publish(client, ID, "DONE")).retained


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_of_a_cluster_that_is_gone(publish_in: InCluster) -> None:
    with ValkeyCluster("--cluster-require-full-coverage", "no", replicas=0) as cluster:

        @contextlib.contextmanager
        def gone() -> Iterator[None]:
            owner(cluster).kill()
            yield

        with pytest.raises(NotPublished, match="Error 111"):
            publish_in(cluster, gone())
        gc.collect()  # redis-py's asyncio client leaves connections open when it reads the slots again
