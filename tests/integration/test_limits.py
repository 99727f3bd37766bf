"""What a client may not do, over the wire: each breach is answered as documented and harms nobody else."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from gateway.drill.fleet import ValkeyProcess

from .conftest import Place
from .in_process import node_in_process, port_of
from .load import HANDSHAKE, frame, text, until
from .raw import Raw

NewId = Callable[[], str]

SOMAXCONN = int(Path("/proc/sys/net/core/somaxconn").read_text())

BROKEN = {
    "not JSON": (text("{"), 1007, "not JSON"),
    "an empty message": (text(""), 1007, "not JSON"),
    "not UTF-8": (frame(1, b'{"webSocketId": "\xff"}'), 1007, "text is not UTF-8"),
    "a surrogate": (frame(1, b'"\xed\xa0\x80"'), 1007, "text is not UTF-8"),
    "binary": (frame(2, b"{}"), 1003, "text messages only"),
    "too long": (frame(1, b" " * 16_385), 1009, "messages may have 16384 bytes"),
    "too long by its head": (b"\x81\xff" + (2**62).to_bytes(8, "big"), 1009, "messages may have 16384 bytes"),
    "too long in fragments": (
        frame(1, b" " * 16_000, first=0) + frame(0, b" " * 385),
        1009,
        "messages may have 16384 bytes",
    ),
    "unmasked": (b"\x81\x02{}", 1002, "client frames must be masked"),
    "compressed": (frame(1, b"{}", first=0xC0), 1002, "reserved bit set"),
    "a reserved opcode": (frame(3, b""), 1002, "reserved opcode"),
    "a long ping": (frame(9, b"x" * 126), 1002, "control frames must be short and whole"),
    "a ping in fragments": (frame(9, b"", first=0), 1002, "control frames must be short and whole"),
    "a continuation of nothing": (frame(0, b""), 1002, "fragments out of order"),
    "close code 1006": (frame(8, b"\x03\xee"), 1002, "invalid close code"),
    "a close code of one byte": (frame(8, b"\x03"), 1002, "invalid close code"),
    "many unknown messages": (text({}) * 6, 1008, "too many unknown messages"),
    "many messages": (frame(9, b"") * 21, 1008, "too many messages"),
    "many fragments": (frame(1, b"", first=0) + frame(0, b"", first=0) * 330, 1008, "too many messages"),
}


@pytest.mark.parametrize(("sent", "code", "reason"), BROKEN.values(), ids=BROKEN)
async def test_a_client_that_breaks_the_protocol_is_closed(
    place: Place, backend: redis.asyncio.Redis, new_id: NewId, sent: bytes, code: int, reason: str
) -> None:
    name = new_id()
    async with Raw.registered(place.port, name) as other, Raw.upgraded(place.port) as client:
        client.send(sent)
        told = []
        while (next_frame := await client.frame())[0] != 8:
            told.append(next_frame)
        assert (int.from_bytes(next_frame[1][:2], "big"), next_frame[1][2:].decode()) == (code, reason)
        client.send(frame(8, next_frame[1][:2]))
        assert await client.rest() == b"", "nothing follows a close"
        assert await backend.publish(f"websocket:{name}", "CONFIRMED") == 1
        assert (await other.message())["authResult"] == "CONFIRMED", "nobody else is harmed"
    assert len(told) <= 20


@pytest.mark.parametrize("sent", [{}, [], 1, "text", {"topic": "/nowhere", "webSocketId": "a"}, {"topic": 1}])
async def test_an_unknown_message_is_answered_and_the_sixth_closes(place: Place, sent: object) -> None:
    async with Raw.upgraded(place.port) as client:
        for _ in range(5):
            client.send(text(json.dumps(sent)))
            answer = await client.message()
            assert answer["topic"] == "/user/topic/error"
            assert answer["error"]["code"] == "unknown_message"
        client.send(text(json.dumps(sent)))
        assert await client.closed() == (1008, "too many unknown messages")


async def test_a_message_of_the_greatest_length_and_in_fragments(place: Place, new_id: NewId) -> None:
    body = json.dumps({"webSocketId": new_id()}).encode()
    async with Raw.upgraded(place.port) as client:
        client.send(frame(1, body[:9], first=0) + frame(9, b"between") + frame(0, body[9:].ljust(16_375)))
        assert await client.frame() == (10, b"between")
        assert (await client.message())["registrationSucceeded"] is True


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe9bye", b"\x0f\xa0"])
async def test_a_clients_close_is_answered_and_the_connection_ends(place: Place, payload: bytes) -> None:
    async with Raw.upgraded(place.port) as client:
        client.send(frame(8, payload))
        assert await client.frame() == (8, payload[:2])
        assert await client.rest() == b""


async def test_a_full_node(valkey: ValkeyProcess, new_id: NewId) -> None:
    async with node_in_process(valkey.url, max_sessions=2) as gateway:
        port = port_of(gateway)
        async with Raw.registered(port, new_id()), Raw.upgraded(port), Raw.connected(port) as third:
            third.send(f"{HANDSHAKE}\r\n".encode())
            status, headers, body = await third.answer()
            assert (status, json.loads(body)["error"]["code"]) == (503, "node_full")
            assert int(headers["retry-after"]) > 0
        await until(lambda: not gateway.sessions, "the two are gone")
        async with Raw.registered(port, new_id()), Raw.registered(port, new_id()):
            assert gateway.sessions == 2


async def status_of(port: int, headers: str) -> int:
    """What a handshake with these headers is answered; its session ends at once."""
    async with Raw.connected(port) as client:
        client.send(f"{HANDSHAKE}{headers}\r\n".encode())
        status, _, body = await client.answer()
        assert status == 101 or json.loads(body)["error"]["code"] == "address_full"
        return status


@pytest.mark.parametrize(
    ("trusted", "held", "others"),
    [
        # Nobody is trusted: all are the peer, whatever they say.
        ([], "", {"": 429, "X-Forwarded-For: 203.0.113.9\r\n": 429}),
        # The proxy is trusted: what it appended counts, what its client had written before does not.
        (
            ["127.0.0.1"],
            "X-Forwarded-For: 198.51.100.1, 203.0.113.1\r\n",
            {
                "X-Forwarded-For: 203.0.113.1\r\n": 429,
                "X-Forwarded-For: 198.51.100.2, 203.0.113.1\r\n": 429,
                "X-Forwarded-For: 198.51.100.2\r\nX-Forwarded-For: 203.0.113.1\r\n": 429,
                "X-Forwarded-For: 203.0.113.2\r\n": 101,
                "X-Forwarded-For: 203.0.113.1, 203.0.113.2\r\n": 101,
                "": 101,
            },
        ),
        # Two proxies are trusted: the hop before both.
        (
            ["127.0.0.1", "10.0.0.0/8"],
            "X-Forwarded-For: 203.0.113.1, 10.1.2.3\r\n",
            {
                "X-Forwarded-For: 203.0.113.1\r\n": 429,
                "X-Forwarded-For: 203.0.113.1, 10.9.9.9\r\n": 429,
                "X-Forwarded-For: 203.0.113.2, 10.1.2.3\r\n": 101,
            },
        ),
        # IPv6 counts by /64.
        (
            ["127.0.0.1"],
            "X-Forwarded-For: 2001:db8::1\r\n",
            {"X-Forwarded-For: 2001:db8::2\r\n": 429, "X-Forwarded-For: 2001:db8:0:1::1\r\n": 101},
        ),
    ],
)
async def test_sessions_per_address(
    valkey: ValkeyProcess, trusted: list[str], held: str, others: dict[str, int]
) -> None:
    async with node_in_process(valkey.url, max_sessions_per_ip=1, trusted_proxies=trusted) as gateway:
        port = port_of(gateway)
        async with Raw.upgraded(port, held):
            for headers, status in others.items():
                assert await status_of(port, headers) == status, headers
                await until(lambda: gateway.sessions == 1, "its session has ended")
        await until(lambda: not gateway.sessions, "all have ended")
        assert await status_of(port, held) == 101


async def test_a_refusal_per_address_names_a_time(valkey: ValkeyProcess) -> None:
    async with (
        node_in_process(valkey.url, max_sessions_per_ip=1) as gateway,
        Raw.upgraded(port_of(gateway)),
        Raw.connected(port_of(gateway)) as client,
    ):
        client.send(f"{HANDSHAKE}\r\n".encode())
        status, headers, _ = await client.answer()
        assert status == 429
        assert int(headers["retry-after"]) > 0


async def test_a_client_that_never_registers(valkey: ValkeyProcess, new_id: NewId) -> None:
    async with node_in_process(valkey.url, registration_timeout=0.3) as gateway:
        port = port_of(gateway)
        start = time.monotonic()
        async with (
            Raw.registered(port, new_id()) as registered,
            Raw.upgraded(port) as talks,
            Raw.upgraded(port) as silent,
        ):
            talks.send(text({"webSocketId": "?"}) + frame(9, b""))
            assert await silent.closed() == (1008, "registration timeout")
            assert time.monotonic() - start >= 0.3
            assert (await talks.message())["registrationSucceeded"] is False
            assert (await talks.frame())[0] == 10
            assert await talks.closed() == (1008, "registration timeout")
            registered.send(frame(9, b"still there"))
            assert await registered.frame() == (10, b"still there")


async def test_handshakes_that_are_never_finished(valkey: ValkeyProcess) -> None:
    async with node_in_process(valkey.url, handshake_timeout=0.5) as gateway:
        port = port_of(gateway)

        async def seconds_until_dropped(dribble: bytes) -> float:
            start = time.monotonic()
            async with Raw.connected(port) as client:
                dropped = asyncio.create_task(client.rest())
                for byte in dribble:
                    client.send(bytes((byte,)))
                    await asyncio.wait((dropped,), timeout=0.05)
                    if dropped.done():
                        break
                assert await dropped == b""
            return time.monotonic() - start

        times = await asyncio.gather(
            seconds_until_dropped(b""),
            seconds_until_dropped(HANDSHAKE.encode()),
            seconds_until_dropped(b"\r\n" * 100),
        )
        assert min(times) >= 0.5
        assert max(times) < 2, "a deadline, which no byte puts off"
        assert not gateway._acceptor.handshakes


async def test_handshakes_under_way(valkey: ValkeyProcess, new_id: NewId) -> None:
    async with (
        node_in_process(valkey.url, max_handshakes=2, max_sessions_per_ip=0) as gateway,
        Raw.registered(port_of(gateway), new_id()),
        Raw.upgraded(port_of(gateway)),  # these two are through the door
        Raw.connected(port_of(gateway)),
        Raw.connected(port_of(gateway)) as second,
    ):
        await until(lambda: gateway._acceptor.handshakes == 2, "two are under way")
        async with Raw.connected(port_of(gateway)) as third:
            status, headers, _ = await third.answer()
            assert status == 503
            assert int(headers["retry-after"]) > 0
            assert await third.rest() == b""
        second.send(f"{HANDSHAKE}\r\n".encode())
        assert (await second.head()).startswith(b"HTTP/1.1 101 ")
        async with Raw.registered(port_of(gateway), new_id()):
            assert gateway._acceptor.rejected == {"busy": 1}


async def test_a_browser_that_does_not_answer_heartbeats_is_dropped(
    valkey: ValkeyProcess, new_id: NewId
) -> None:
    async with node_in_process(valkey.url, heartbeat=0.3) as gateway:
        port = port_of(gateway)
        async with Raw.registered(port, new_id()) as lively, Raw.registered(port, new_id()) as dead:
            for _ in range(3):
                assert await lively.frame() == (9, b"")
                lively.send(frame(10, b""))
            assert await dead.rest() == b"\x89\x00", "one ping, then the end"
            assert gateway.sessions == 1


@pytest.mark.parametrize("backlog", [4096, 17])
async def test_the_backlog_is_what_the_setting_says(valkey: ValkeyProcess, backlog: int) -> None:
    settings: dict[str, Any] = {} if backlog == 4096 else {"backlog": backlog}
    async with node_in_process(valkey.url, **settings) as gateway:
        listener = gateway._public_port._serving._listeners[0]
        # Of a listening socket, tcpi_sacked in struct tcp_info is how long its queue may be.
        information = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        assert struct.unpack_from("I", information, 28)[0] == min(backlog, SOMAXCONN)
