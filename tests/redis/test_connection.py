"""Commands and replies in order; the test plays Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import hiredis
import pytest

from gateway.redis.cluster.subscriber import ShardedSubscriberConnection
from gateway.redis.connection import Connection, ConnectionLost, ReplyError, pack
from gateway.redis.reply_limits import UnexpectedReply
from gateway.redis.sentinel import SentinelConnection
from gateway.redis.subscriber import SubscriberConnection

from ..fakes import Events, Transport, parse_commands, push, resp, turns, virtual


class Scene:
    """A connection that is open; the test plays Redis."""

    def __init__(self, kind: Callable[[], Connection] = Connection) -> None:
        self.connection = kind()
        self.transport = Transport(prompt=True)
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)

    async def asks(self, *command: str | bytes | int, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(self.connection.execute(*command, **options))
        await turns()
        return task

    def say(self, *messages: bytes) -> None:
        self.connection.data_received(b"".join(messages))

    async def why(self) -> str:
        return str(await self.connection.closed)


@virtual
async def test_replies_belong_to_the_commands_in_their_order() -> None:
    scene = Scene()
    first, second = await scene.asks("GET", b"a", 1), await scene.asks("GET", "b")
    assert parse_commands(scene.transport.output) == [[b"GET", b"a", b"1"], [b"GET", b"b"]]
    scene.say(resp(b"A"), resp(None))
    assert (await first, await second) == (b"A", None)


@virtual
async def test_a_reply_may_come_in_any_pieces() -> None:
    scene = Scene()
    task = await scene.asks("PING")
    for byte in resp(b"A" * 50):
        assert not task.done()
        scene.say(bytes([byte]))
    assert await task == b"A" * 50


@virtual
async def test_an_error_is_a_reply_error_and_leaves_the_connection_open() -> None:
    scene = Scene()
    task = await scene.asks("AUTH", "secret")
    scene.say(resp(Exception("NOPERM not allowed")))
    with pytest.raises(ReplyError, match="AUTH with: NOPERM") as refused:
        await task
    assert refused.value.reply == "NOPERM not allowed"
    assert "secret" not in str(refused.value)
    task = await scene.asks("PING")
    scene.say(resp("PONG"))
    assert await task == b"PONG"


@virtual
async def test_the_arguments_of_an_unknown_command_are_not_repeated() -> None:
    """As Redis quotes them: those of HELLO have the password."""
    scene = Scene()
    task = await scene.asks("HELLO", 3, "AUTH", "default", "secret")
    scene.say(b"-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 'secret' \r\n")
    with pytest.raises(ReplyError) as refused:
        await task
    assert refused.value.reply == "ERR unknown command 'HELLO'"


@virtual
async def test_a_reply_is_decoded_at_the_moment_it_arrives() -> None:
    scene = Scene()
    judged: list[bytes] = []

    def decode(reply: bytes) -> int:
        judged.append(reply)
        return len(judged)

    task = await scene.asks("PING", decode=decode)
    scene.say(resp("PONG"))
    assert judged == [b"PONG"]
    assert await task == 1
    task = await scene.asks("PING", decode=decode)
    scene.say(resp(Exception("ERR no")))
    with pytest.raises(ReplyError):
        await task
    assert judged == [b"PONG"]


@virtual
async def test_a_cancelled_caller_does_not_take_the_next_callers_reply() -> None:
    scene = Scene()
    impatient, patient = await scene.asks("GET", "a"), await scene.asks("GET", "b")
    impatient.cancel()
    await turns()
    scene.say(resp(b"A"), resp(b"B"))
    assert await patient == b"B"


@virtual
async def test_an_error_is_a_reply_to_send_too() -> None:
    scene = Scene()
    replies: list[Any] = []
    scene.connection.send(replies.append, "PING")
    scene.say(resp(Exception("ERR no")))
    assert [type(reply) for reply in replies] == [hiredis.ReplyError]


@virtual
async def test_a_reply_before_the_end_counts() -> None:
    scene = Scene()
    task = await scene.asks("PING")
    scene.say(resp("PONG"))
    scene.transport.lose()
    assert await task == b"PONG"


@virtual
async def test_the_end_of_the_connection_ends_every_command() -> None:
    scene = Scene()
    tasks = [await scene.asks("PING"), await scene.asks("PING")]
    scene.transport.lose(OSError("no route to host"))
    for task in tasks:
        with pytest.raises(ConnectionLost, match="no route to host"):
            await task
    with pytest.raises(ConnectionLost, match="is closed"):
        await scene.connection.execute("PING")
    with pytest.raises(ConnectionLost, match="is closed"):
        scene.connection.send(print, "PING")


@virtual
async def test_no_command_before_there_is_a_connection() -> None:
    with pytest.raises(ConnectionLost):
        await Connection().execute("PING")


@pytest.mark.parametrize("nonsense", [resp("OK"), b"!nonsense\r\n", b"*-7\r\n"])
def test_an_unexpected_reply_ends_it(nonsense: bytes) -> None:
    @virtual
    async def ended() -> None:
        scene = Scene()
        scene.say(nonsense)
        assert scene.transport.aborted
        assert "unexpected reply" in await scene.why()

    ended()


@virtual
async def test_a_push_is_no_reply() -> None:
    scene = Scene()
    task = await scene.asks("PING")
    scene.say(push(b"invalidate", [b"a"]), resp("PONG"))
    assert await task == b"PONG"


@virtual
async def test_the_first_reason_counts() -> None:
    scene = Scene()
    scene.connection.abort("first")
    scene.connection.abort("second")
    assert await scene.why() == "first"


@pytest.mark.parametrize(
    ("role", "is_master"), [(b"master", True), (b"replica", False), (None, True)], ids=str
)
def test_hello_tells_the_mode_and_the_role(role: bytes | None, is_master: bool) -> None:
    @virtual
    async def told() -> None:
        scene = Scene()
        task = asyncio.create_task(scene.connection.log_in("default", None, 0, "gateway-x"))
        fields = [b"mode", b"standalone", *([b"role", role] if role else [])]
        await turns()
        scene.say(b"%%%d\r\n" % (len(fields) // 2), *map(resp, fields), resp("PONG"))
        await task
        assert (scene.connection.mode, scene.connection.is_master) == (b"standalone", is_master)

    told()


@pytest.mark.parametrize(
    ("command", "packed"),
    [
        (("PING",), b"*1\r\n$4\r\nPING\r\n"),
        (
            ("GETRANGE", b"k\x00\r\n", 0, 100),
            b"*4\r\n$8\r\nGETRANGE\r\n$4\r\nk\x00\r\n\r\n$1\r\n0\r\n$3\r\n100\r\n",
        ),
        (("ECHO", "schön", b""), b"*3\r\n$4\r\nECHO\r\n$6\r\nsch\xc3\xb6n\r\n$0\r\n\r\n"),
    ],
)
def test_commands_are_packed_as_redis_reads_them(command: tuple[Any, ...], packed: bytes) -> None:
    assert pack(*command) == packed


# What no Redis says

KINDS: dict[str, Callable[[], Connection]] = {
    "pipeline": Connection,
    "Sentinel": SentinelConnection,
    "subscriber": lambda: SubscriberConnection(Events(), 1_000),
    "sharded": lambda: ShardedSubscriberConnection(Events(), 1_000),  # type: ignore[arg-type]
}

HOSTILE = {
    "array": b"*4294967295\r\n",
    "map": b"%4294967295\r\n",
    "set": b"~4294967295\r\n",
    "push": b">4294967295\r\n",
    "array in a push": b">3\r\n$7\r\nmessage\r\n*4294967295\r\n",
    "nesting": b"*2\r\n" * 60_000,
    "unhashable key": b"%1\r\n*0\r\n:1\r\n",
    "attribute": b"|1\r\n+a\r\n+b\r\n",
    "bulk": b"$9223372036854775808\r\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x16\r\n",
}


@pytest.mark.parametrize("says", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_no_redis_says_ends_the_connection_at_once(kind: Callable[[], Connection], says: bytes) -> None:
    @virtual
    async def ended() -> None:
        scene = Scene(kind)
        began = time.thread_time()
        scene.say(says)
        assert scene.transport.aborted
        assert "unexpected reply" in await scene.why()
        del scene
        assert time.thread_time() - began < 2, "of the loop's time; without a limit it is 10 s"

    ended()


PUSHES = {
    "empty": b">0\r\n",
    "unhashable name": push(b"message", [b"a"], b"CONFIRMED"),
    "short": push(b"message", b"a"),
    "no name": push(b"message"),
    "confirmation of a list": push(b"subscribe", [b"a"], 1),
    "confirmation of nothing": push(b"subscribe"),
    "confirmation without a request": push(b"subscribe", b"a", 1),
}


@pytest.mark.parametrize("says", PUSHES.values(), ids=PUSHES)
def test_pushes_of_no_form_end_a_subscriber(says: bytes) -> None:
    @virtual
    async def ended() -> None:
        scene = Scene(KINDS["subscriber"])
        scene.say(says)
        assert "unexpected reply" in await scene.why()

    ended()


@virtual
async def test_a_fault_of_our_own_is_not_blamed_on_redis() -> None:
    events = Events()

    def broken(_name: bytes, _payload: bytes) -> None:
        raise ZeroDivisionError

    events.received = broken  # type: ignore[method-assign, assignment]
    scene = Scene(lambda: SubscriberConnection(events, 1_000))
    with pytest.raises(ZeroDivisionError):
        scene.say(push(b"message", b"a", b"CONFIRMED"))
    scene = Scene(lambda: SubscriberConnection(events, 1_000))
    scene.say(push(b"message", b"a", 7))
    assert await scene.why() == "Redis sent an unexpected reply: ZeroDivisionError: "


@virtual
async def test_an_error_that_nobody_asked_for_is_the_reason() -> None:
    scene = Scene()
    scene.say(resp(Exception("ERR max number of clients \x1b[31mreached")))
    assert await scene.why() == r"Redis answered: ERR max number of clients \x1b[31mreached"


# The login

OK = resp("OK")
PONG = resp("PONG")
HELLO = b"%2\r\n+proto\r\n:3\r\n+mode\r\n+standalone\r\n"


async def logs_in(scene: Scene, password: str | None = None, username: str = "default") -> asyncio.Task[None]:
    task = asyncio.create_task(scene.connection.log_in(username, password, 0, "gateway-x"))
    await turns()
    return task


@pytest.mark.parametrize(
    ("username", "credentials"), [("default", [b"AUTH", b"secret"]), ("me", [b"AUTH", b"me", b"secret"])]
)
@pytest.mark.parametrize(
    "error", ["ERR Syntax error in HELLO option 'SETNAME'", "ERR wrong number of arguments for 'hello'"]
)
def test_a_server_without_the_options_of_hello(username: str, credentials: list[bytes], error: str) -> None:
    @virtual
    async def fallback() -> None:
        scene = Scene()
        task = await logs_in(scene, "secret", username)
        scene.say(resp(Exception(error)), resp(Exception("NOAUTH Authentication required.")))
        await turns()
        assert parse_commands(scene.transport.written[1]) == [
            credentials,
            [b"HELLO", b"3"],
            [b"PING"],
            [b"CLIENT", b"SETNAME", b"gateway-x"],
        ]
        scene.say(OK, HELLO, PONG, resp(Exception("ERR unknown subcommand")))
        await task
        assert scene.connection.mode == b"standalone"

    fallback()


@virtual
async def test_what_the_fallback_is_refused() -> None:
    cases: list[tuple[list[object], str]] = [
        ([Exception("WRONGPASS no"), *[Exception("NOAUTH")] * 3], "AUTH with: WRONGPASS no"),
        (["OK", Exception("NOPROTO no"), "PONG", "OK"], "HELLO with: NOPROTO no"),
    ]
    for answers, why in cases:
        scene = Scene()
        task = await logs_in(scene, "secret")
        scene.say(resp(Exception("ERR syntax error")), PONG)
        await turns()
        scene.say(*map(resp, answers))
        with pytest.raises(ReplyError, match=why):
            await task


@virtual
async def test_a_reply_to_hello_that_is_no_map() -> None:
    scene = Scene()
    task = await logs_in(scene)
    scene.say(OK, PONG)
    with pytest.raises(UnexpectedReply, match="no server that speaks RESP3"):
        await task


@virtual
async def test_an_error_counts_also_when_the_connection_ended_before_the_login() -> None:
    words = resp(Exception("ERR max number of clients reached"))
    early, late = Scene(), Scene()
    early.say(words)
    early.transport.lose()
    task = await logs_in(early)
    late_task = await logs_in(late)
    late.say(words)
    late.transport.lose(ConnectionResetError("reset by peer"))
    for one in (task, late_task):
        with pytest.raises(ReplyError) as caught:
            await one
        assert str(caught.value) == "Redis answered HELLO with: ERR max number of clients reached"
