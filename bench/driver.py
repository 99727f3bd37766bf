"""The load: clients on raw sockets, and a backend that publishes, in one epoll loop.

It is not the drills' load, which reacts to whatever happens: the driver shares its core with Valkey, so it
does as little as possible per operation. Frames are made before the phase that sends them, and what arrives
is compared with the expected bytes. Every answer is checked: a client that gets another client's result, a
second result or anything else unexpected raises `BenchError`.

Outside the latency phase the driver polls for answers once a millisecond. If it waited for them, every frame
of the server under test would wake the other core, and on a virtual machine that alone costs more than the
work that is measured.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import ClassVar, NamedTuple

from bench.errors import BenchError
from gateway.drill import connection

STALL_SECONDS = 20.0  # without any answer for so long, the server hangs
TICK_SECONDS = 0.001
EVENTS = 1024
GOING_AWAY = (1001).to_bytes(2, "big")  # RFC 6455 section 7.4.1: the user leaves the page
CLOSED = b"\x88\x02" + GOING_AWAY  # the server echoes the code, section 5.5.1; aiohttp answers 1000
CLOSED_NORMALLY = b"\x88\x02\x03\xe8"
RESULT = b"CONFIRMED"
CSRF_TOKEN = b"0f8fad5b-d9cb-469f-a165-70867728950e"  # the page sends one; Spring's is a UUID
HEART_BEAT = b"\x81\x01\n"
_MASK = os.urandom(4)
_KEY = base64.b64encode(os.urandom(16)).decode()
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ACCEPT = base64.b64encode(hashlib.sha1(_KEY.encode() + _GUID).digest())


def client_frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame, as RFC 6455 section 5.1 requires from a client."""
    return connection.frame(opcode, payload, key=_MASK)


def server_frame(opcode: int, payload: bytes) -> bytes:
    """An unmasked frame, as a server sends it, with a payload under 64 KB. Independent of `gateway.wire`."""
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + payload


def _dump(**members: object) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


class Step(NamedTuple):
    """Part of a client's opening: the frames that it sends, one write each, and the expected answer."""

    frames: tuple[bytes, ...]
    answer: bytes


class Browser:
    """One client: its socket, the bytes it expects, and what it sends once they have arrived."""

    __slots__ = (
        "authorization",
        "expected",
        "inbox",
        "name",
        "opening",
        "publish",
        "sent_at",
        "socket",
        "step",
    )

    path: ClassVar = "/ws"
    subscription: ClassVar = b""
    """A frame that it sends after its registration, without an answer, or nothing."""

    def __init__(self, name: str) -> None:
        topic = "/user/topic/registration"
        self.name = name
        self.opening: tuple[Step, ...] = (
            Step(
                (client_frame(1, _dump(topic=topic, webSocketId=name)),),
                server_frame(1, _dump(topic=topic, webSocketId=name, registrationSucceeded=True)),
            ),
        )
        self.authorization = server_frame(
            1, _dump(topic="/user/topic/authorization", webSocketId=name, authResult=RESULT.decode())
        )
        channel = f"websocket:{name}".encode()
        self.publish = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            len(channel),
            channel,
            len(RESULT),
            RESULT,
        )
        self.socket: socket.socket
        self.step = 0  # of the opening: how many have begun
        self.expected = b""
        self.inbox = b""
        self.sent_at = 0

    def next_result(self) -> bytes:
        """The bytes of the next result."""
        return self.authorization


class StompBrowser(Browser):
    """Web Flow's page on a plain WebSocket: each STOMP frame is one WebSocket message and one packet.

    The page's library asks for heart-beats every 10 s, both ways. It sends SUBSCRIBE and SEND one right after
    the other, once CONNECTED has come, and subscribes to the result when its next screen opens.
    """

    __slots__ = ("messages",)

    path: ClassVar = "/websocket/websocket"
    subscription: ClassVar = client_frame(
        1, b"SUBSCRIBE\nid:sub-1\ndestination:/user/topic/authorization\n\n\0"
    )
    _CONNECT: ClassVar = client_frame(
        1, b"CONNECT\nX-CSRF-TOKEN:%b\naccept-version:1.2,1.1,1.0\nheart-beat:10000,10000\n\n\0" % CSRF_TOKEN
    )
    _CONNECTED: ClassVar = server_frame(
        1, b"CONNECTED\nversion:1.2\nheart-beat:25000,25000\nserver:webflow-gateway\n\n\0"
    )
    _SUBSCRIBE: ClassVar = client_frame(1, b"SUBSCRIBE\nid:sub-0\ndestination:/user/topic/registration\n\n\0")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        body = _dump(webSocketId=name)
        send = client_frame(
            1, b"SEND\ndestination:/app/registration\ncontent-length:%d\n\n%b\0" % (len(body), body)
        )
        self.messages = 1
        answer = self._message(b"registration", _dump(webSocketId=name, registrationSucceeded=True))
        self.opening = (Step((self._CONNECT,), self._CONNECTED), Step((self._SUBSCRIBE, send), answer))

    def next_result(self) -> bytes:
        self.messages += 1
        return self._message(b"authorization", _dump(webSocketId=self.name, authResult=RESULT.decode()))

    def _message(self, topic: bytes, body: bytes) -> bytes:
        subscription = b"sub-0" if topic == b"registration" else b"sub-1"
        return server_frame(
            1,
            b"MESSAGE\ndestination:/user/topic/%b\ncontent-type:application/json\nsubscription:%b\n"
            b"message-id:%d\ncontent-length:%d\n\n%b\0"
            % (topic, subscription, self.messages, len(body), body),
        )


class BatchingBrowser(StompBrowser):
    """As `StompBrowser`, but sends everything at once: four messages in one packet."""

    __slots__ = ()

    subscription: ClassVar = b""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        (connect, connected), (frames, answer) = self.opening
        said = b"".join((*connect, *frames, StompBrowser.subscription))
        self.opening = (Step((said,), connected + answer),)


def browsers(count: int, kind: type[Browser] = Browser) -> list[Browser]:
    """`count` clients with ids of 128 lower-case hexadecimal characters, as of a SHA-512."""
    return [kind(os.urandom(64).hex()) for _ in range(count)]


class Driver:
    """All clients of one server, and one connection to publish with. Call `close` at the end."""

    def __init__(self, port: int, redis: tuple[str, int], in_flight: int, path: str) -> None:
        self._port = port
        self._in_flight = in_flight
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, Browser] = {}
        self._publisher = socket.create_connection(redis)
        self._publisher.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upgrade = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\n"
            "Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
            f"Upgrade: websocket\r\nOrigin: http://127.0.0.1:{port}\r\nSec-WebSocket-Version: 13\r\n"
            "Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-GB,en;q=0.9\r\n"
            f"Sec-WebSocket-Key: {_KEY}\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
        ).encode()

    def close(self) -> None:
        for browser in self._by_descriptor.values():
            browser.socket.close()
        self._publisher.close()
        self._epoll.close()

    def register(self, arriving: Sequence[Browser]) -> None:
        """Connect, upgrade and register each browser, `in_flight` of them at a time."""
        self._in_turn(arriving, self._connect, self._registration_step)

    def subscribe(self, registered: Sequence[Browser], slice_size: int, slice_seconds: float) -> None:
        """Subscribe each client to its result, `slice_size` of them every `slice_seconds`.

        The server does not answer; if it has not understood, it will not deliver.
        """
        due = time.monotonic()
        for start in range(0, len(registered), slice_size):
            for browser in registered[start : start + slice_size]:
                browser.socket.send(browser.subscription)
            due += slice_seconds
            time.sleep(max(0.0, due - time.monotonic()))

    def disconnect(self, leaving: Sequence[Browser]) -> None:
        """Leave as a page does: close frame 1001, the server's, the end of TCP; `in_flight` at a time."""
        close_frame = client_frame(8, GOING_AWAY)

        def start(browser: Browser) -> None:
            browser.socket.send(close_frame)

        self._in_turn(leaving, start, self._close_step)

    def deliver(self, receivers: Sequence[Browser], slice_size: int, slice_seconds: float) -> None:
        """Publish one result to each, `slice_size` in one pipelined write every `slice_seconds`."""
        due = time.monotonic()
        for start in range(0, len(receivers), slice_size):
            group = receivers[start : start + slice_size]
            for browser in group:
                browser.expected = browser.next_result()
            self._publisher.sendall(b"".join([browser.publish for browser in group]))
            due += slice_seconds
            time.sleep(max(0.0, due - time.monotonic()))
            self._await(len(group), self._receive)
            self._replies(len(group))

    def latencies(self, receivers: Sequence[Browser], count: int, per_second: int) -> list[int]:
        """Nanoseconds from just before each of `count` PUBLISHes until its frame has been read."""
        taken: list[int] = []

        def arrived(browser: Browser) -> bool:
            done = self._receive(browser)
            if done:
                taken.append(time.monotonic_ns() - browser.sent_at)
            return done

        begin = time.monotonic()
        for number in range(count):
            self._until(begin + number / per_second, arrived)
            browser = receivers[number % len(receivers)]
            if browser.expected:
                raise BenchError("a result is still in flight when the next one for the same client is due")
            browser.expected = browser.next_result()
            browser.sent_at = time.monotonic_ns()
            self._publisher.sendall(browser.publish)
        end = time.monotonic() + STALL_SECONDS
        while len(taken) < count and time.monotonic() < end:
            self._until(time.monotonic() + 0.01, arrived)
        self._replies(count)
        return taken

    def quiet(self, seconds: float) -> None:
        """Wait until everything has settled. Anything that arrives, except a ping, is an error."""
        self._until(time.monotonic() + seconds, self._receive)

    # --- one client after another, with a limit of concurrent ones ---

    def _in_turn(
        self, everyone: Sequence[Browser], start: Callable[[Browser], None], step: Callable[[Browser], bool]
    ) -> None:
        rest = iter(everyone)
        for browser in islice(rest, self._in_flight):
            start(browser)

        def stepped(browser: Browser) -> bool:
            done = step(browser)
            if done:
                for successor in islice(rest, 1):
                    start(successor)
            return done

        self._await(len(everyone), stepped)

    def _connect(self, browser: Browser) -> None:
        browser.socket = client = socket.create_connection(("127.0.0.1", self._port))
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._by_descriptor[client.fileno()] = browser
        self._epoll.register(client.fileno(), select.EPOLLIN)
        browser.expected = b""
        client.send(self._upgrade)

    def _registration_step(self, browser: Browser) -> bool:
        if browser.step == 0:
            browser.inbox += self._read(browser)
            if b"\r\n\r\n" not in browser.inbox:
                return False
            _check_upgrade(browser.inbox)
            browser.inbox = b""
        elif not self._receive(browser):
            return False
        if browser.step == len(browser.opening):
            return True
        frames, browser.expected = browser.opening[browser.step]
        browser.step += 1
        for frame in frames:
            browser.socket.send(frame)
        return False

    def _close_step(self, browser: Browser) -> bool:
        try:
            data = browser.socket.recv(4096)
            while data:
                browser.inbox += data
                data = browser.socket.recv(4096)
        except BlockingIOError:
            return False  # the end of the connection comes in another packet
        browser.inbox = _answer_heartbeats(browser, browser.inbox)
        if browser.inbox not in (CLOSED, CLOSED_NORMALLY):
            raise BenchError(f"expected a close frame and the end, received {browser.inbox!r}")
        del self._by_descriptor[browser.socket.fileno()]
        browser.socket.close()
        return True

    # --- reading ---

    def _read(self, browser: Browser) -> bytes:
        data = browser.socket.recv(4096)
        if not data:
            raise BenchError(f"the server closed a connection; last read: {browser.inbox!r}")
        return data

    def _receive(self, browser: Browser) -> bool:
        """Read. True once all expected bytes have arrived. Raises BenchError for any other bytes."""
        inbox = _answer_heartbeats(browser, browser.inbox + self._read(browser))
        if not inbox:
            return False
        if inbox == browser.expected:
            browser.inbox = browser.expected = b""
            return True
        if not browser.expected.startswith(inbox):
            raise BenchError(f"expected {browser.expected!r}, received {inbox!r}")
        browser.inbox = inbox
        return False

    def _replies(self, count: int) -> None:
        """Read the replies to `count` PUBLISHes: each must have reached exactly one subscriber."""
        wanted = b":1\r\n" * count
        got = b""
        while len(got) < len(wanted) and wanted.startswith(got):
            got += self._publisher.recv(65536)
        if got != wanted:
            raise BenchError(f"a PUBLISH did not reach exactly one subscriber: {got[:200]!r}")

    def _await(self, count: int, step: Callable[[Browser], bool]) -> None:
        """Read what has arrived every TICK_SECONDS, until `step` was true `count` times."""
        moved = time.monotonic()
        while count > 0:
            time.sleep(TICK_SECONDS)
            ready = self._epoll.poll(0, EVENTS)
            now = time.monotonic()
            if ready:
                moved = now
            elif now > moved + STALL_SECONDS:
                raise BenchError(f"nothing arrived for {STALL_SECONDS} s; {count} answers are missing")
            for descriptor, _ in ready:
                count -= step(self._by_descriptor[descriptor])

    def _until(self, end: float, step: Callable[[Browser], bool]) -> None:
        """Poll until the monotonic clock shows `end`."""
        while (left := end - time.monotonic()) > 0:
            for descriptor, _ in self._epoll.poll(left, EVENTS):
                step(self._by_descriptor[descriptor])


def _answer_heartbeats(browser: Browser, inbox: bytes) -> bytes:
    """Answer the heartbeats at the beginning of `inbox`, and return the rest.

    A ping is too short to be cut. A STOMP client that answers each heartbeat of the server sends its own
    often enough, because both are due at the same interval.
    """
    while True:
        if inbox.startswith(HEART_BEAT):
            end, answer = len(HEART_BEAT), client_frame(1, b"\n")
        elif inbox[:1] == b"\x89" and len(inbox) > 1:
            end = 2 + inbox[1]
            answer = client_frame(10, inbox[2:end])
        else:
            return inbox
        with suppress(ConnectionError):  # the server may have closed since
            browser.socket.send(answer)
        inbox = inbox[end:]


def _check_upgrade(response: bytes) -> None:
    if not response.startswith(b"HTTP/1.1 101 ") or _ACCEPT not in response:
        raise BenchError(f"the upgrade was rejected: {response[:200]!r}")
    if not response.endswith(b"\r\n\r\n") or b"sec-websocket-extensions" in response.lower():
        raise BenchError(f"the answer to the upgrade has more than expected: {response!r}")
