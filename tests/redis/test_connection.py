"""Commands and replies in order; the test plays Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
import pytest

from gateway.redis.connection import Connection, ConnectionLost, ReplyError, pack

from ..fakes import Transport, parse_commands, push, resp, turns, virtual


class Scene:
    """A connection that is open; the test plays Redis."""

    def __init__(self) -> None:
        self.connection = Connection()
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
