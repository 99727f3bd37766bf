"""Who is let in, and what the others are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from structlog.testing import capture_logs

from gateway.server.access import AccessControl
from gateway.wire.handshake import (
    ADDRESS_BUSY,
    ADDRESS_FULL,
    CUT_OFF,
    NODE_FULL,
    ORIGIN,
    STOPPING,
    VERSION,
    Handshake,
)

from ..fakes import node

GOOD = {
    "Host": "gw.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def handshake(peer: str = "192.0.2.1", **changes: str) -> Handshake:
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    return Handshake((1, 1), CIMultiDictProxy(CIMultiDict({**GOOD, **named})), peer)


def access(**settings: Any) -> AccessControl:
    return AccessControl(node(None, None, **settings))


def test_who_may_come_in_is_counted_in() -> None:
    at = access(max_sessions=2, max_sessions_per_ip=1)
    assert at.check_upgrade(handshake(), "a") is None
    assert at.check_upgrade(handshake(), "a") is ADDRESS_FULL
    assert at.check_session("b") is None
    assert at.check_session("c") is NODE_FULL
    assert at.rejected == {"address_full": 1, "node_full": 1}
    assert at._context.admission.sessions == 2


def test_a_node_that_stops_lets_nobody_in() -> None:
    at = access()
    at.close()
    assert at.check_upgrade(handshake(Sec_WebSocket_Version="8"), "a") is STOPPING
    assert at.check_session("a") is STOPPING
    assert at.rejected == {"stopping": 2}


def test_a_node_that_is_cut_off_says_so_to_a_proxy_that_asks() -> None:
    at = access()
    strict = handshake(Gateway_Strict="1")
    assert at.check_upgrade(strict, "a") is None
    at._context.hub.broker.deaf = "Redis is not connected"
    assert at.check_upgrade(strict, "a") is at.check_strict(strict) is CUT_OFF
    assert at.check_upgrade(handshake(), "a") is None, "it asks nobody else to go away"
    assert at._context.admission.sessions == 2
    assert at.rejected == {"cut_off": 2}


def test_an_address_that_asks_too_often_gets_no_more_sessions() -> None:
    at = access(max_sessions_per_ip=1_000)
    verdicts = [at.check_upgrade(handshake(), "a") for _ in range(4_000)]
    assert verdicts[:1_000] == [None] * 1_000
    assert verdicts[1_000] is ADDRESS_FULL
    assert verdicts[-1] is ADDRESS_BUSY
    assert at.check_upgrade(handshake(), "b") is None


async def test_a_request_of_a_busy_address_waits_and_is_rejected_at_last() -> None:
    at = access()
    at._context.budgets.charge("192.0.2.1", 50 * 10.05, at._context.clock())
    begin = asyncio.get_running_loop().time()
    assert await at.pace(handshake(), 0) is None
    assert asyncio.get_running_loop().time() - begin >= 0.04
    at._context.budgets.charge("192.0.2.1", 50 * 20, at._context.clock())
    assert await at.pace(handshake(), 0) is ADDRESS_BUSY
    assert await at.pace(handshake("192.0.2.2"), 0) is None
    assert at.rejected == {"address_busy": 1}


async def test_the_size_of_a_body_is_paid_for_before_it_is_held() -> None:
    """Or one address could have 1,000 requests waiting, each with the largest body."""
    at = access()
    requests: list[asyncio.Task[object]] = []
    while not at.rejected:
        requests.append(asyncio.create_task(at.pace(handshake(), 65_536)))
        await asyncio.sleep(0)
    waiting = [request for request in requests if not request.done()]
    assert 0 < len(waiting) < 120
    for request in waiting:
        request.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_the_requests_that_wait_are_limited_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.access.MAX_WAITING", 100_000)
    at = access()
    at._context.budgets.charge("192.0.2.1", 50 * 10.02, at._context.clock())
    first = asyncio.create_task(at.pace(handshake(), 64_000))
    await asyncio.sleep(0)
    assert await at.pace(handshake(), 64_000) is ADDRESS_BUSY
    assert await at.pace(handshake(Cookie="c" * 16_000), 0) is ADDRESS_BUSY
    assert await at.pace(handshake(), 0) is None
    assert await at.pace(handshake("192.0.2.2"), 64_000) is None, "it has not to wait"
    assert await first is None
    assert await at.pace(handshake(), 64_000) is None
    assert at.rejected == {"address_busy": 2}


def test_what_is_wrong_with_a_handshake_comes_before_who_sent_it() -> None:
    at = access()
    evil = {"Origin": "http://evil.example"}
    assert at.check_upgrade(handshake(Sec_WebSocket_Version="8", **evil), "a") is VERSION
    with capture_logs() as lines:
        assert at.check_upgrade(handshake(**evil), "a") is ORIGIN
    assert [(line["event"], line["kind"], line["origin"]) for line in lines] == [
        ("request rejected", "origin_not_allowed", evil["Origin"])
    ]
    assert at._context.admission.sessions == 0
    assert at.rejected == {"unsupported_version": 1, "origin_not_allowed": 1}


@pytest.mark.parametrize(
    ("allowed", "origin", "peer", "scheme", "welcome"),
    [
        ("*", "http://anything.example", "192.0.2.1", "", True),
        ("*", "null", "192.0.2.1", "", True),
        ("*", "http://pag\udce9.example", "192.0.2.1", "", False),  # bytes that are no ASCII
        ("same-origin", "https://gw.example", "192.0.2.1", "", True),
        ("same-origin", "https://gw.example", "192.0.2.1", "http", True),
        ("same-origin", "https://gw.example", "10.0.0.1", "http", False),  # a proxy that knows
        ("same-origin", "https://gw.example", "10.0.0.1", "https", True),
        ("https://bank.example", "https://bank.example", "192.0.2.1", "", True),
        ("https://bank.example", "https://gw.example", "192.0.2.1", "", False),
    ],
)
def test_origins(allowed: str, origin: str, peer: str, scheme: str, welcome: bool) -> None:
    at = access(allowed_origins=allowed, trusted_proxies="10.0.0.0/8")
    with capture_logs():
        rejection = at.check_origin(handshake(peer, Origin=origin, X_Forwarded_Proto=scheme))
    assert (rejection is None) is welcome


def test_programs_send_no_origin() -> None:
    assert access(allowed_origins="https://bank.example").check_origin(handshake()) is None


def test_the_address_behind_proxies_and_one_warning_without() -> None:
    behind = handshake("10.0.0.1", X_Forwarded_For="198.51.100.7")
    with capture_logs() as lines:
        assert access(trusted_proxies="10.0.0.0/8").address(behind) == "198.51.100.7"
    assert lines == []
    at = access()
    with capture_logs() as lines:
        assert [at.address(behind) for _ in range(2)] == ["10.0.0.1"] * 2
    assert len(lines) == 1
