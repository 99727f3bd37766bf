"""Bodies that come in pieces, late, never, or are too large."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any

import pytest

from gateway.server import bodies
from gateway.server.acceptor import Acceptor
from gateway.server.bodies import CONTINUE, Bodies
from gateway.wire.body import BodyReader, ChunkedBody, FixedBody
from gateway.wire.handshake import BUSY, MALFORMED, SLOW_BODY, Rejection

from ..fakes import Clock, Transport, ledger, virtual

TIMEOUT = 5.0
REQUEST: Any = "the request"


class Scene:
    """A port whose bodies have 100 bytes at most."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.answered: list[tuple[object, bytes | None, bytes]] = []
        self.rejected: Counter[str] = Counter()
        self.acceptor = Acceptor(
            lambda _transport, _data: None, ledger(handshakes=10), TIMEOUT, 75.0, self.clock
        )
        self.bodies = Bodies(self.acceptor, 100, self._answer, self._reject)

    def _answer(
        self, _transport: asyncio.Transport, message: object, body: bytes | None, rest: bytes
    ) -> None:
        self.answered.append((message, body, rest))

    def _reject(self, transport: asyncio.Transport, rejection: Rejection) -> None:
        self.rejected[rejection.code] += 1
        self.acceptor.reject(transport, rejection)

    def receive(self, reader: BodyReader, data: bytes, *, asked: bool = False) -> Transport:
        transport = Transport()
        self.bodies.receive(transport, REQUEST, reader, data, asked=asked)
        return transport

    def sweep(self) -> None:
        for connection in self.acceptor.deadlines.expired(self.clock.now):
            connection.deadline_passed()

    @property
    def waiting(self) -> int:
        return len(list(self.acceptor.deadlines))


@virtual
async def test_a_body_in_pieces() -> None:
    scene = Scene()
    transport = scene.receive(FixedBody(3), b"a")
    assert (scene.bodies.incomplete, scene.waiting) == (1, 1)
    transport.protocol.data_received(b"b")
    assert scene.bodies.incomplete == 2
    transport.protocol.data_received(b"cde")
    assert scene.answered == [(REQUEST, b"abc", b"de")]
    assert (scene.bodies.incomplete, scene.waiting) == (0, 0)


@virtual
async def test_a_body_that_comes_with_its_head_waits_for_nothing() -> None:
    scene = Scene()
    transport = scene.receive(FixedBody(3), b"abcde", asked=True)
    assert scene.answered == [(REQUEST, b"abc", b"de")]
    assert (transport.protocol, transport.output) == (None, b"")


@virtual
async def test_a_client_that_asks_before_it_sends() -> None:
    scene = Scene()
    assert scene.receive(FixedBody(3), b"", asked=True).output == CONTINUE
    assert scene.receive(FixedBody(3), b"a", asked=True).output == b"", "it has not waited"
    assert scene.receive(FixedBody(101), b"", asked=True).output == b"", "nobody wants that"


@pytest.mark.parametrize("make", [partial(FixedBody, 101), ChunkedBody])
def test_a_body_that_is_too_large_is_not_kept(make: Any) -> None:
    @virtual
    async def too_large() -> None:
        scene = Scene()
        transport = scene.receive(make(), b"32\r\n" + b"a" * 50 + b"\r\n")
        if not scene.answered:
            transport.protocol.data_received(b"33\r\n")
        assert scene.answered == [(REQUEST, None, b"")]
        assert (scene.bodies.incomplete, scene.waiting) == (0, 0)

    too_large()


@virtual
async def test_a_body_that_is_malformed() -> None:
    scene = Scene()
    transport = scene.receive(ChunkedBody(), b"1\r\na")
    transport.protocol.data_received(b"no end of the chunk\r\n")
    assert transport.output == MALFORMED.response
    assert scene.rejected == {"bad_request": 1}
    assert scene.bodies.incomplete == 0


@virtual
async def test_a_slow_body() -> None:
    scene = Scene()
    transport = scene.receive(FixedBody(50), b"a")
    for _ in range(5):  # bytes alone buy no time
        scene.clock.now += TIMEOUT / 5
        scene.sweep()
        assert transport.output == b""
        transport.protocol.data_received(b"a")
    scene.clock.now += 0.25
    scene.sweep()
    assert transport.output == SLOW_BODY.response
    assert transport.output.startswith(b"HTTP/1.1 408 ")
    assert scene.bodies.incomplete == 0


@virtual
async def test_a_client_that_leaves() -> None:
    scene = Scene()
    transport = scene.receive(FixedBody(3), b"a")
    assert not transport.protocol.eof_received(), "the body can never be complete"
    transport.lose()
    assert (scene.bodies.incomplete, scene.waiting) == (0, 0)
    assert (scene.answered, scene.rejected) == ([], {})


@virtual
async def test_a_client_that_does_not_read_what_it_has_asked_for_is_reset() -> None:
    scene = Scene()
    transport = Transport(stuck=True)
    scene.bodies.receive(transport, REQUEST, FixedBody(1), b"", asked=True)
    assert transport.output == CONTINUE
    transport.protocol.data_received(b"a")
    assert transport.aborted
    assert scene.answered == []
    transport.lose()
    assert (scene.bodies.incomplete, scene.waiting) == (0, 0)


@virtual
async def test_a_node_that_stops() -> None:
    scene = Scene()
    transport = scene.receive(FixedBody(3), b"a")
    scene.acceptor.abort_all()
    assert transport.aborted


@virtual
async def test_all_incomplete_bodies_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_INCOMPLETE", 100)
    scene = Scene()
    small = scene.receive(FixedBody(80), b"a" * 20)
    large = scene.receive(FixedBody(80), b"a" * 60)
    assert (small.output, large.output) == (b"", b"")
    newcomer = scene.receive(FixedBody(80), b"")
    newcomer.protocol.data_received(b"a" * 30)
    assert large.output == BUSY.response, "the largest is rejected, and not whoever comes next"
    assert (small.output, newcomer.output, scene.bodies.incomplete) == (b"", b"", 50)
    assert scene.receive(FixedBody(80), b"a" * 80).output == b"", "complete ones do not count"
    small.protocol.data_received(b"a" * 60)
    newcomer.protocol.data_received(b"a" * 50)
    assert scene.bodies.incomplete == 0
    assert len(scene.answered) == 3
