"""Who answers a request, and what is wrong with others. `test_acceptor` has how requests arrive."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from aiohttp.http import RawRequestMessage

from gateway.server.acceptor import MAX_HEAD, Acceptor
from gateway.server.bodies import CONTINUE
from gateway.server.dispatcher import MAX_FIELDS, MAX_SLASHES, ONCE, Dispatcher, UpgradeEndpoint
from gateway.server.rejections import Rejections
from gateway.wire.handshake import (
    BODY_TOO_LARGE,
    DEEP_PATH,
    ENCODED_BODY,
    EXPECTATION,
    HANDSHAKE_BODY,
    MALFORMED,
    NO_UPGRADE,
    TOO_LARGE,
    TRANSFER_CODING,
    TWICE,
    Handshake,
    Rejection,
)

from ..fakes import Clock, Transport, ledger, virtual

GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
HANDSHAKE = b"GET /ws HTTP/1.1\r\nHost: gw\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
POST = GET.replace(b"GET", b"POST")


def having(request: bytes, *lines: bytes) -> bytes:
    """`request` with more headers."""
    return request[:-2] + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


class Scene:
    """A dispatcher with one endpoint, /ws, which rejects; a sibling owns requests that contain `sibling`."""

    max_body = 100

    def __init__(self) -> None:
        self.handed_off: list[bytes] = []
        self.handshakes: list[Handshake] = []
        self.served: list[tuple[RawRequestMessage, bytes | None, bytes]] = []
        self.rejected: Counter[str] = Counter()
        self.transport = Transport()
        acceptor = Acceptor(lambda _transport, _data: None, ledger(handshakes=10), 5.0, 75.0, Clock())
        self.dispatcher = Dispatcher(acceptor, self, Rejections(self.rejected), self._resolve, self._hand_off)

    def _resolve(self, path: str) -> UpgradeEndpoint | None:
        return self._reject if path == "/ws" else None

    def _reject(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> Rejection | None:
        self.handshakes.append(handshake)
        return NO_UPGRADE

    def serve(
        self, transport: asyncio.Transport, message: RawRequestMessage, body: bytes | None, rest: bytes
    ) -> None:
        self.served.append((message, body, rest))

    def _hand_off(self, _transport: asyncio.Transport, head: bytes) -> bool:
        if b"sibling" not in head:
            return False
        self.handed_off.append(head)
        return True

    def dispatch(self, data: bytes) -> bytes:
        self.dispatcher.dispatch(self.transport, data)
        return self.transport.output


@virtual
async def test_a_request_of_a_sibling() -> None:
    scene = Scene()
    head = GET.replace(b"/ ", b"/sibling ")
    assert scene.dispatch(head) == b""
    assert (scene.handed_off, scene.served) == ([head], [])


@virtual
async def test_aiohttp_serves_what_is_no_handshake() -> None:
    scene = Scene()
    assert scene.dispatch(GET + b"rest") == b""
    ((message, body, rest),) = scene.served
    assert (message.path, body, rest) == ("/", b"", b"rest")


@pytest.mark.parametrize("target", [b"/ws", b"/ws?a=%62", b"/%77s", b"/ws#a", b"http://gw/ws?a"])
def test_a_rejected_handshake(target: bytes) -> None:
    @virtual
    async def rejected() -> None:
        assert Scene().dispatch(HANDSHAKE.replace(b"/ws", target, 1)) == NO_UPGRADE.response

    rejected()


EMPTY = {
    "Content-Length: 0": having(HANDSHAKE, b"Content-Length: 0"),
    "chunks": having(HANDSHAKE, b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
}


@pytest.mark.parametrize("request_", EMPTY.values(), ids=EMPTY)
def test_a_handshake_whose_body_is_empty(request_: bytes) -> None:
    """The JDK's client always sends Content-Length: 0, and so does Envoy for clients over HTTP/2."""

    @virtual
    async def arrived() -> None:
        scene = Scene()
        scene.dispatch(request_)
        assert len(scene.handshakes) == 1

    arrived()


@virtual
async def test_the_longest_head() -> None:
    scene = Scene()
    longest = having(GET, b"Cookie: " + b"x" * (MAX_HEAD - len(GET) - 10))
    assert len(longest) == MAX_HEAD
    assert scene.dispatch(longest) == b""
    assert len(scene.served) == 1
    assert Scene().dispatch(longest.replace(b": x", b": xx")) == TOO_LARGE.response


REJECTED = {
    "a head without end": (b"GET / HTTP/1.1\r\nA: " + b"a" * MAX_HEAD, TOO_LARGE),
    "too many headers": (having(GET, *[b"A: b"] * MAX_FIELDS), TOO_LARGE),
    "no request": (b"nonsense\r\n\r\n", MALFORMED),
    "a CR in a header": (having(GET, b"Authorization: Bearer TOKEN\r"), MALFORMED),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", MALFORMED),
    "empty lines": (b"\r\n\r\n", MALFORMED),
    "no target": (b"CONNECT \r\nHost: gw\r\n\r\n", MALFORMED),
    "HTTP/0.9": (b"GET /\r\nHost: gw\r\n\r\n", MALFORMED),
    "HTTP/2.0": (GET.replace(b"1.1", b"2.0"), MALFORMED),
    "two hosts": (having(GET, b"Host: gw"), MALFORMED),
    "two lengths": (having(POST, b"Content-Length: 1", b"Content-Length: 1") + b"a", MALFORMED),
    "a length and chunks": (having(POST, b"Content-Length: 1", b"Transfer-Encoding: chunked"), MALFORMED),
    "chunks over HTTP/1.0": (
        having(POST.replace(b"1.1", b"1.0"), b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        MALFORMED,
    ),
    "a broken chunk": (having(POST, b"Transfer-Encoding: chunked") + b"x\r\n", MALFORMED),
    **{
        f"two {name}": (having(GET, f"{name}: 1".encode(), f"{name.lower()}: 1".encode()), TWICE)
        for name in ONCE
    },
    "an inflated body": (
        having(POST, b"Content-Encoding: deflate", b"Content-Length: 1") + b"a",
        ENCODED_BODY,
    ),
    "a coding that nobody knows": (
        having(POST, b"Content-Encoding: identity, x", b"Content-Length: 1") + b"a",
        ENCODED_BODY,
    ),
    "inflated chunks": (
        having(POST, b"Content-Encoding: GZIP", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        ENCODED_BODY,
    ),
    "an inflated body of GET": (
        having(GET, b"Content-Encoding: br", b"Content-Length: 1") + b"a",
        ENCODED_BODY,
    ),
    "a transfer coding": (having(POST, b"Transfer-Encoding: gzip, chunked"), TRANSFER_CODING),
    "another expectation": (having(POST, b"Expect: a miracle", b"Content-Length: 1"), EXPECTATION),
    "a path with many slashes": (GET.replace(b"/ ", b"/" * (MAX_SLASHES + 1) + b" "), DEEP_PATH),
    "a large body of GET": (having(GET, b"Content-Length: 101"), BODY_TOO_LARGE),
    "a handshake with a body": (having(HANDSHAKE, b"Content-Length: 3") + b"abc", HANDSHAKE_BODY),
}


@pytest.mark.parametrize(("request_", "rejection"), REJECTED.values(), ids=REJECTED)
def test_what_is_wrong_on_any_path(request_: bytes, rejection: Rejection) -> None:
    @virtual
    async def rejected() -> None:
        scene = Scene()
        assert scene.dispatch(request_) == rejection.response
        assert scene.rejected == {rejection.code: 1}
        assert (scene.served, scene.handshakes) == ([], [])
        assert scene.transport.eof

    rejected()


RIGHT = {
    "identity": having(POST, b"Content-Encoding: Identity", b"Content-Length: 3") + b"abc",
    "a length with many zeros": having(POST, b"Content-Length: " + b"0" * 5_000 + b"3") + b"abc",
    "chunks": having(POST, b"Transfer-Encoding: Chunked") + b"3\r\nabc\r\n0\r\n\r\n",
    "an expectation": having(POST, b"Expect: 100-Continue", b"Content-Length: 3") + b"abc",
    "two cookies": having(POST, b"Cookie: a", b"Cookie: b", b"Content-Length: 3") + b"abc",
}


@pytest.mark.parametrize("request_", RIGHT.values(), ids=RIGHT)
def test_what_is_right(request_: bytes) -> None:
    @virtual
    async def served() -> None:
        scene = Scene()
        assert scene.dispatch(request_ + GET) == b""
        ((message, body, rest),) = scene.served
        assert (body, rest) == (b"abc", GET)
        assert "Expect" not in message.headers, "it is met"

    served()


@virtual
async def test_an_expectation_without_a_body_is_no_reason_to_answer_twice() -> None:
    scene = Scene()
    assert scene.dispatch(having(GET, b"Expect: 100-continue")) == b""
    assert "Expect" not in scene.served[0][0].headers


@virtual
async def test_only_clients_of_http_1_1_are_told_to_continue() -> None:
    asking = having(POST, b"Expect: 100-continue", b"Content-Length: 3")
    assert Scene().dispatch(asking) == CONTINUE
    older = Scene()
    assert older.dispatch(asking.replace(b"HTTP/1.1", b"HTTP/1.0")) == b"", "100 would be its response"
    older.transport.protocol.data_received(b"abc")
    assert [body for _, body, _ in older.served] == [b"abc"]


@virtual
async def test_a_query_may_have_any_slashes() -> None:
    scene = Scene()
    assert (
        scene.dispatch(GET.replace(b"/ ", b"/" * MAX_SLASHES + b"?next=" + b"/a" * MAX_SLASHES + b" ")) == b""
    )
    assert len(scene.served) == 1


@virtual
async def test_no_body_is_not_inflated() -> None:
    scene = Scene()
    assert scene.dispatch(having(POST, b"Content-Encoding: gzip", b"Content-Length: 0")) == b""
    assert len(scene.served) == 1


@virtual
async def test_a_port_without_websockets() -> None:
    scene = Scene()
    acceptor = Acceptor(lambda _transport, _data: None, ledger(handshakes=10), 5.0, 75.0, Clock())
    Dispatcher(acceptor, scene, Rejections(scene.rejected)).dispatch(scene.transport, HANDSHAKE)
    assert len(scene.served) == 1
