"""Who answers a request; `test_acceptor` has the requests that arrive on connections."""

from __future__ import annotations

import asyncio

from gateway.server.acceptor import MAX_HEAD
from gateway.server.dispatcher import Dispatcher, UpgradeEndpoint
from gateway.wire.handshake import MALFORMED, NO_UPGRADE, TOO_LARGE, Handshake, Rejection

from ..fakes import Transport, virtual

GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
HANDSHAKE = b"GET /ws HTTP/1.1\r\nHost: gw\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class Scene:
    """A dispatcher with one endpoint, /ws, which rejects; a sibling owns requests that contain `sibling`."""

    def __init__(self) -> None:
        self.handed_off: list[bytes] = []
        self.served: list[asyncio.Protocol] = []
        self.dispatcher = Dispatcher(self._resolve, self._serve, self._hand_off)
        self.transport = Transport()

    def _resolve(self, path: str) -> UpgradeEndpoint | None:
        return self._reject if path == "/ws" else None

    def _reject(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes) -> Rejection | None:
        return NO_UPGRADE

    def _serve(self) -> asyncio.Protocol:
        self.served.append(asyncio.Protocol())
        return self.served[-1]

    def _hand_off(self, _transport: asyncio.Transport, head: bytes) -> bool:
        if b"sibling" not in head:
            return False
        self.handed_off.append(head)
        return True

    def dispatch(self, head: bytes) -> bytes:
        self.dispatcher.dispatch(self.transport, head)
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
    assert scene.dispatch(GET) == b""
    assert scene.transport.protocol is scene.served[0]


@virtual
async def test_a_rejected_handshake() -> None:
    assert Scene().dispatch(HANDSHAKE) == NO_UPGRADE.response


@virtual
async def test_a_head_that_is_too_large() -> None:
    fields = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 1_000) for number in range(MAX_HEAD // 1_000 + 1))
    assert Scene().dispatch(GET[:-2] + fields + b"\r\n") == TOO_LARGE.response


@virtual
async def test_bytes_that_are_no_request() -> None:
    assert Scene().dispatch(b"nonsense\r\n\r\n") == MALFORMED.response
