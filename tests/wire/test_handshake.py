"""What is no handshake, and the two kinds of answer."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.wire.handshake import (
    BAD_KEY,
    NO_HOST,
    NO_UPGRADE,
    NODE_FULL,
    VERSION,
    Handshake,
    Rejection,
    accept_key,
    acceptance,
    rejection_of,
    subprotocol,
)

from . import strategies  # noqa: F401 - sets hypothesis up

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
GOOD = {
    "Host": "gw.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}


def handshake(
    changes: Mapping[str, str] | Mapping[str, str | None] = {}, version: tuple[int, int] = (1, 1)
) -> Handshake:
    """A good handshake but for `changes`; None leaves the header out."""
    headers: dict[str, str | None] = {**GOOD, **changes}
    present = CIMultiDict({name: value for name, value in headers.items() if value is not None})
    return Handshake(version, CIMultiDictProxy(present), "127.0.0.1")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Upgrade": "WebSocket"},
        {"Connection": "upgrade"},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "keep-alive,UPGRADE"},
        {"Sec-WebSocket-Extensions": "permessage-deflate"},
    ],
)
def test_handshakes(changes: dict[str, str]) -> None:
    assert rejection_of(handshake(changes)) is None


@pytest.mark.parametrize(
    ("changes", "rejection"),
    [
        ({"Upgrade": None}, NO_UPGRADE),
        ({"Upgrade": "h2c"}, NO_UPGRADE),
        ({"Connection": None}, NO_UPGRADE),
        ({"Connection": "keep-alive"}, NO_UPGRADE),
        ({"Connection": "notupgrade"}, NO_UPGRADE),
        ({"Sec-WebSocket-Version": None}, VERSION),
        ({"Sec-WebSocket-Version": "8"}, VERSION),
        ({"Sec-WebSocket-Version": "7"}, VERSION),
        ({"Sec-WebSocket-Version": "013"}, VERSION),
        ({"Host": None}, NO_HOST),
        ({"Host": ""}, NO_HOST),
        ({"Sec-WebSocket-Key": None}, BAD_KEY),
        ({"Sec-WebSocket-Key": ""}, BAD_KEY),
        ({"Sec-WebSocket-Key": "!!!"}, BAD_KEY),
        ({"Sec-WebSocket-Key": "AAAA"}, BAD_KEY),
        ({"Sec-WebSocket-Key": KEY * 2}, BAD_KEY),
        ({"Sec-WebSocket-Key": "é"}, BAD_KEY),
    ],
)
def test_no_handshakes(changes: dict[str, str | None], rejection: Rejection) -> None:
    assert rejection_of(handshake(changes)) is rejection


def test_http_1_0_cannot_upgrade() -> None:
    assert rejection_of(handshake(version=(1, 0))) is NO_HOST


@given(st.dictionaries(st.sampled_from(list(GOOD)), st.text(max_size=30)))
def test_no_header_is_too_strange(changes: dict[str, str]) -> None:
    assert rejection_of(handshake(changes)) in (None, NO_UPGRADE, VERSION, NO_HOST, BAD_KEY)


def test_the_accept_of_section_1_3() -> None:
    assert accept_key(KEY) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_accepts_to_the_letter() -> None:
    assert acceptance(handshake(), None) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    assert b"\r\nSec-WebSocket-Protocol: v12.stomp\r\n" in acceptance(handshake(), "v12.stomp")
    assert b"Extensions" not in acceptance(
        handshake({"Sec-WebSocket-Extensions": "permessage-deflate"}), None
    )


def test_refuses_to_the_letter() -> None:
    head, _, body = NODE_FULL.response.partition(b"\r\n\r\n")
    assert head.decode().split("\r\n") == [
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "Retry-After: 5",
    ]
    assert json.loads(body) == {"error": {"code": "node_full", "message": "this node is full"}}
    assert NODE_FULL.body == body


def test_a_header_of_the_rejection_itself_stands_once() -> None:
    assert NO_UPGRADE.response.lower().count(b"\r\nconnection: ") == 1


SPOKEN = ("v12.stomp", "v11.stomp", "v10.stomp")


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        ([], None),
        ([""], None),
        (["mqtt"], None),
        (["v10.stomp, v11.stomp, v12.stomp"], "v12.stomp"),
        (["v10.stomp,mqtt"], "v10.stomp"),
        (["v10.stomp", "v11.stomp"], "v11.stomp"),
        (["V12.STOMP"], None),
    ],
)
def test_subprotocols(offers: list[str], chosen: str | None) -> None:
    headers = CIMultiDict([("Sec-WebSocket-Protocol", offer) for offer in offers])
    assert subprotocol(CIMultiDictProxy(headers), SPOKEN) == chosen
