"""Events on their way to Redis: batches, order, what is written again, what is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import hiredis
import pytest
from structlog.testing import capture_logs

from gateway.core.events import Delivery, Event, EventLog
from gateway.redis.connection import ConnectionLost
from gateway.redis.event_streams import event_streams
from gateway.redis.event_writer import ATTEMPT_TIMEOUT, BATCH, EventWriter
from gateway.redis.url import Address, RedisURL, parse_redis_url

from ..fakes import turns, virtual


class Server:
    """A server, its connection, and what it has stored."""

    display_url = "redis://fake"
    host = "10.0.0.1"

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []
        """Stream and messageId of each."""
        self.commands: list[tuple[Any, ...]] = []
        self.writes = 0
        self.connections = 0
        self.error: Callable[[int], str] = lambda _number: ""
        """The error with which it answers a command, by the command's number in the batch."""
        self.lost_after: int | None = None
        """Replies until the connection ends, with everything executed."""
        self.frozen = False

    async def pipeline(self, commands: Sequence[tuple[Any, ...]], replies: list[Any]) -> list[Any]:
        self.writes += 1
        for number, command in enumerate(commands):
            if self.frozen:
                await asyncio.Event().wait()
            reply = self._execute(number, command)
            if self.lost_after is None or len(replies) < self.lost_after:
                replies.append(reply)
        await asyncio.sleep(0.001)
        if self.lost_after is not None:
            raise ConnectionLost("gone")
        return replies

    def _execute(self, number: int, command: tuple[Any, ...]) -> object:
        self.commands.append(command)
        if error := self.error(number):
            return hiredis.ReplyError(error)
        if command[0] == "ASKING":
            return b"OK"
        fields = dict(zip(command[6::2], command[7::2], strict=True))
        self.entries.append((command[1], fields["messageId"]))
        return b"1-0"


class Router:
    """One server, or one for each stream."""

    def __init__(self, *servers: Server) -> None:
        self.all = servers
        self.pool: Any = self
        self.forgotten = self.dropped = 0
        self.unreachable = ""
        self.missing = False
        self.closed = False
        self.url: RedisURL | None = None

    async def servers(self, channels: Sequence[bytes]) -> list[Server | None]:
        if self.missing:
            return [None for _ in channels]
        numbers = [int(name.rpartition(b":")[2]) if len(self.all) > 1 else 0 for name in channels]
        return [self.all[number] for number in numbers]

    async def get(self, server: Server) -> Server:
        if self.unreachable:
            raise ConnectionLost(self.unreachable)
        return server

    def drop(self, server: Server) -> None:
        self.dropped += 1

    def forget(self) -> None:
        self.forgotten += 1

    def use(self, url: RedisURL) -> None:
        self.url = url

    def server_at(self, address: Address) -> Server:
        return self.all[address.port]

    async def close(self) -> None:
        self.closed = True


class Scene:
    """A writer between a queue and servers."""

    def __init__(self, *servers: Server, size: int = 1_000, streams: int = 1) -> None:
        self.server = servers[0] if servers else Server()
        self.router: Any = Router(*(servers or (self.server,)))
        self.log = EventLog("node-1", "run", lambda: 0.0, size)
        self.session = self.log.session()
        self.session.registered(b"id", "192.0.2.1", "json", "websocket", resumed=False)
        self.log.take(1)
        self.numbers = 0
        self.writer = EventWriter[Event](
            self.log,
            cast("Any", self.router),
            event_streams("websocket:", streams),
            1_000,
            asyncio.get_running_loop().time,
        )

    def record(self, count: int = 1, name: bytes = b"id") -> None:
        for _ in range(count):
            self.session.delivered(Delivery(name, str(self.numbers), "A", False))
            self.numbers += 1

    async def written(self) -> None:
        while self.writer.waiting:  # noqa: ASYNC110 - time is virtual
            await asyncio.sleep(0.001)

    @property
    def ids(self) -> list[int]:
        """Numbers of the events in the stream, in its order."""
        return [int(message_id) for server in self.router.all for _, message_id in server.entries]


@contextlib.asynccontextmanager
async def running(scene: Scene) -> AsyncIterator[Scene]:
    task = asyncio.create_task(scene.writer.run())
    try:
        yield scene
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.writer.close()
        assert scene.router.closed


@virtual
async def test_what_happens_in_one_turn_is_one_write_in_order() -> None:
    async with running(Scene()) as scene:
        await turns()
        asyncio.get_running_loop().call_soon(scene.record, 2)
        scene.record(3)
        await scene.written()
        assert scene.server.writes == 1
        assert scene.ids == [0, 1, 2, 3, 4]
        command = scene.server.commands[0]
        assert command[:6] == ("XADD", "websocket::events", "MAXLEN", "~", 1_000, "*")
        assert command[6:10] == ("event", "delivered", "webSocketId", b"id")


@virtual
async def test_a_batch_has_a_bound_and_there_is_one_at_a_time() -> None:
    async with running(Scene()) as scene:
        scene.record(BATCH * 2 + 1)
        await turns()
        assert scene.server.writes == 1
        assert scene.writer.waiting == BATCH * 2 + 1
        await scene.written()
        assert scene.server.writes == 3
        assert scene.ids == list(range(BATCH * 2 + 1))


@virtual
async def test_while_redis_is_away_events_wait_and_are_written_after() -> None:
    with capture_logs() as lines:
        async with running(Scene()) as scene:
            scene.router.unreachable = "connection refused"
            scene.record(3)
            await asyncio.sleep(60)
            assert scene.writer.waiting == 3
            assert scene.writer.failures > 20
            scene.record()
            scene.router.unreachable = ""
            await scene.written()
            assert scene.ids == [0, 1, 2, 3]
    (first, second, last) = lines
    assert first["event"] == second["event"] == "events not written"
    assert (first["log_level"], first["reason"], first["waiting"]) == ("warning", "connection refused", 3)
    assert first["stream"] is None, "no stream is to blame"
    assert last["event"] == "events written again"
    assert last["after"] > 60


@virtual
async def test_after_a_lost_connection_what_was_not_confirmed_is_written_again() -> None:
    async with running(Scene()) as scene:
        scene.server.lost_after = 2
        scene.record(4)
        await turns(20)
        await asyncio.sleep(0.01)
        scene.server.lost_after = None
        await scene.written()
        assert scene.ids == [0, 1, 2, 3, 2, 3]
        assert scene.router.dropped == 1


@virtual
async def test_a_server_that_says_nothing_is_given_up() -> None:
    async with running(Scene()) as scene:
        scene.server.frozen = True
        scene.record()
        await asyncio.sleep(ATTEMPT_TIMEOUT - 0.1)
        assert not scene.router.dropped
        await asyncio.sleep(0.2)
        assert scene.router.dropped
        scene.server.frozen = False
        await scene.written()
        assert scene.ids == [0]


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("NOPERM no permissions", "give the node's Redis user (+xadd ~websocket::events*)"),
        ("OOM command not allowed", "raise maxmemory"),
        ("WRONGTYPE Operation against a key", "--channel-prefix"),
        ("READONLY You can't write against a read only replica.", ""),
        ("LOADING Redis is loading", ""),
    ],
)
@virtual
async def test_what_redis_refuses_is_told_and_tried_again(error: str, hint: str) -> None:
    with capture_logs() as lines:
        async with running(Scene()) as scene:
            scene.server.error = lambda number: error if number == 1 else ""
            scene.record(3)
            await asyncio.sleep(0.01)
            assert scene.writer.failures == 1
            assert scene.writer.waiting == 1
            scene.server.error = lambda _number: ""
            await scene.written()
            assert scene.ids == [0, 2, 1]
            assert scene.router.forgotten
    assert [line["event"] for line in lines] == ["events not written", "events written again"]
    assert (lines[0]["reason"], lines[0]["stream"]) == (error, "websocket::events")
    assert hint in (lines[0]["hint"] or "")


@virtual
async def test_what_overflows_is_told_once_in_a_while() -> None:
    with capture_logs() as lines:
        async with running(Scene(size=10)) as scene:
            scene.router.unreachable = "connection refused"
            for _ in range(10):
                scene.record(5)
                await asyncio.sleep(2)
            told = [line for line in lines if line["event"] == "events dropped"]
            assert 2 <= len(told) <= 4
            assert sum(line["events"] for line in told) <= scene.log.dropped == 40
            assert told[0]["log_level"] == "error"
            scene.router.unreachable = ""
            await scene.written()
            assert scene.ids == list(range(40, 50))


@virtual
async def test_each_server_of_a_cluster_gets_its_streams() -> None:
    servers = Server(), Server()
    async with running(Scene(*servers, streams=2)) as scene:
        for number in range(40):
            scene.record(name=b"%d" % number)
        await scene.written()
        for number, server in enumerate(servers):
            assert {stream for stream, _ in server.entries} == {f"websocket::events:{number}"}
            assert server.commands[0][4] == 500, "together they keep as many as are to be kept"
        assert sorted(scene.ids) == list(range(40))


@virtual
async def test_one_server_that_fails_does_not_hold_up_another_for_long() -> None:
    servers = Server(), Server()
    async with running(Scene(*servers, streams=2)) as scene:
        servers[1].error = lambda _number: "MOVED 1 10.0.0.1:0"
        for number in range(40):
            scene.record(name=b"%d" % number)
        await asyncio.sleep(0.01)
        assert scene.writer.waiting == 40 - len(servers[0].entries) > 0
        servers[1].error = lambda _number: ""
        await scene.written()
        assert sorted(scene.ids) == list(range(40))


@virtual
async def test_a_stream_whose_slot_migrates_is_written_where_it_goes() -> None:
    servers = Server(), Server()
    async with running(Scene(*servers)) as scene:
        scene.router.servers = lambda channels: answer([servers[0]] * len(channels))
        servers[0].error = lambda _number: "ASK 1 10.0.0.2:1"
        servers[1].error = lambda number: "TRYAGAIN" if number == 3 else ""
        scene.record(2)
        await asyncio.sleep(0.01)
        assert [command[0] for command in servers[1].commands] == ["ASKING", "XADD"] * 2
        assert scene.writer.waiting == 1
        servers[1].lost_after = 0
        await asyncio.sleep(0.1)
        servers[1].lost_after = None
        servers[1].error = lambda _number: ""
        await scene.written()
        assert set(scene.ids) == {0, 1}


async def answer(value: Any) -> Any:
    return value


@virtual
async def test_a_slot_that_nobody_serves_and_servers_that_nobody_names() -> None:
    async with running(Scene()) as scene:
        scene.router.missing = True
        scene.record()
        await asyncio.sleep(0.01)
        assert scene.router.forgotten == 1
        scene.router.missing = False

        async def silent(_channels: Sequence[bytes]) -> list[Server | None]:
            raise ConnectionError

        asks, scene.router.servers = scene.router.servers, silent
        await asyncio.sleep(1)
        assert scene.writer.waiting == 1
        scene.router.servers = asks
        await scene.written()


@virtual
async def test_a_bug_loses_a_batch_and_not_the_writer() -> None:
    with capture_logs() as lines:
        async with running(Scene()) as scene:

            async def broken(_channels: Sequence[bytes]) -> list[Server | None]:
                raise KeyError("no")

            asks, scene.router.servers = scene.router.servers, broken
            scene.record(2)
            await asyncio.sleep(0.01)
            scene.router.servers = asks
            scene.record()
            await scene.written()
            assert scene.ids == [2]
            assert scene.log.dropped == 2
    (told,) = lines
    assert told["event"] == "event writer failed"
    assert told["events"] == 2
    assert "a bug" in told["hint"], "and not that too many wait"


@virtual
async def test_a_bug_with_one_server_waits_for_the_others() -> None:
    """Or they would write beside the next batch."""
    servers = Server(), Server()
    async with running(Scene(*servers, streams=2)) as scene:

        def broken(_number: int) -> str:
            raise KeyError("no")

        servers[0].error = broken
        for number in range(10):
            scene.record(name=b"%d" % number)
        servers[1].frozen = True
        await asyncio.sleep(0.01)
        assert scene.writer._on_their_way == 10
        servers[0].error = lambda _number: ""
        await asyncio.sleep(ATTEMPT_TIMEOUT)
        servers[1].frozen = False
        scene.record()
        await scene.written()
        assert scene.log.dropped == 10
        assert scene.ids[-1] == 10


@virtual
async def test_at_the_end_what_waits_is_written() -> None:
    async with running(Scene()) as scene:
        scene.router.unreachable = "connection refused"
        scene.record(3)
        await asyncio.sleep(30)
        scene.router.unreachable = ""
        expected = 1

        def last() -> None:
            nonlocal expected
            expected = 0
            scene.record()

        loop = asyncio.get_running_loop()
        loop.call_later(0.1, last)
        started = loop.time()
        await scene.writer.flush(1.0, lambda: expected)
        assert loop.time() - started < 0.3
        assert scene.ids == [0, 1, 2, 3]
        assert scene.log.dropped == 0


@virtual
async def test_the_end_does_not_wait_for_a_redis_that_is_away() -> None:
    with capture_logs() as lines:
        async with running(Scene()) as scene:
            scene.router.unreachable = "connection refused"
            scene.record(3)
            loop = asyncio.get_running_loop()
            started = loop.time()
            await scene.writer.flush(1.0, lambda: 0)
            assert loop.time() - started == pytest.approx(1.0, abs=0.05)
        assert scene.log.dropped == 3
        assert scene.writer.waiting == 0
    assert lines[-1]["event"] == "events dropped"
    assert lines[-1]["events"] == 3


@virtual
async def test_a_new_url_reaches_the_router() -> None:
    scene = Scene()
    url = parse_redis_url("redis://other")
    scene.writer.use(url)
    assert scene.router.url is url
