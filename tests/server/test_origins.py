"""Which pages may connect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import normalise_origin
from gateway.server.origins import MAX_LENGTH, _allowed, frame_ancestors, origin_allowed

url_like = st.text("htps:/[]@.%é\udc80a0:#?\t", max_size=20)

SAME = ("same-origin",)


BANK = ("https://bank.example",)


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "allowed", "verdict"),
    [
        # Programs send none
        (None, "gw", None, BANK, True),
        # Exact
        ("https://bank.example", "gw", None, BANK, True),
        ("HTTPS://Bank.Example", "gw", None, BANK, True),
        ("http://bank.example", "gw", None, BANK, False),
        ("https://bank.example:8443", "gw", None, BANK, False),
        ("https://bank.example.evil.example", "gw", None, BANK, False),
        ("https://evilbank.example", "gw", None, BANK, False),
        ("https://www.bank.example", "gw", None, BANK, False),
        ("https://bank.example/", "gw", None, BANK, False),
        ("https://bank.example", "bank.example", None, ("https://other.example",), False),
        ("https://b.example", "gw", None, ("https://a.example", "https://b.example"), True),
        # Anybody, asked for
        ("https://evil.example", "gw", None, ("*",), True),
        ("null", "gw", None, ("*",), True),
        ("null", "gw", None, ("*", "null"), True),
        # Named: a sandboxed frame, a file, apps
        ("null", "gw", None, (*BANK, "null"), True),
        ("null", "gw", None, ("file://",), False),
        ("file://", "gw", None, ("file://",), True),
        ("file://", "gw", None, ("null",), False),
        ("file:///home", "gw", None, ("file://",), False),
        ("capacitor://localhost", "gw", None, ("capacitor://localhost",), True),
        ("capacitor://localhost", "localhost", None, SAME, False),
        ("https://localhost", "gw", None, ("capacitor://localhost",), False),
        # A client that names the WebSocket's scheme, or the scheme's port
        ("wss://bank.example", "gw", None, BANK, True),
        ("wss://bank.example:443", "gw", None, BANK, True),
        ("https://bank.example:443", "gw", None, BANK, True),
        ("ws://bank.example", "gw", None, BANK, False),
        ("wss://gw.example", "gw.example", None, SAME, True),
        ("wss://gw.example", "gw.example", "https", SAME, True),
        ("wss://gw.example", "gw.example", "wss", SAME, True),
        ("ws://gw.example:8080", "gw.example:8080", None, SAME, True),
        ("wss://gw.example", "gw.example", "http", SAME, False),
        ("wss://evil.example", "gw.example", None, SAME, False),
        # A sandboxed frame, a file, garbage
        ("null", "gw", None, BANK + SAME, False),
        ("null", "null", None, SAME, False),
        ("", "", None, SAME, False),
        ("file://", "", None, SAME, False),
        ("*", "gw", None, BANK, False),
        ("same-origin", "gw", None, SAME, False),
        ("https://", "", None, SAME, False),
        ("https://[::1", "[::1", None, SAME, False),
        ("https://gw:port", "gw:port", None, SAME, False),
        ("https://gw:99999", "gw:99999", None, SAME, False),
        ("gw", "gw", None, SAME, False),
        ("ftp://gw", "gw", None, SAME, False),
        # Same origin
        ("https://gw.example", "gw.example", None, SAME, True),
        ("http://gw.example", "gw.example", None, SAME, True),
        ("https://GW.example", "gw.EXAMPLE", None, SAME, True),
        ("https://gw.example", "gw.example:443", None, SAME, True),
        ("http://gw.example", "gw.example:80", None, SAME, True),
        ("http://gw.example:8080", "gw.example:8080", None, SAME, True),
        ("http://localhost:8080", "localhost:8080", None, SAME, True),
        ("http://[::1]:8080", "[::1]:8080", None, SAME, True),
        ("https://gw.example", "gw.example:8443", None, SAME, False),
        ("https://gw.example:8443", "gw.example", None, SAME, False),
        ("http://gw.example", "gw.example:443", None, SAME, False),
        ("https://evil.example", "gw.example", None, SAME, False),
        ("https://gw.example.evil.example", "gw.example", None, SAME, False),
        ("https://gw.example", "", None, SAME, False),
        # Same origin, and a trusted proxy has told the scheme
        ("https://gw.example", "gw.example", "https", SAME, True),
        ("http://gw.example", "gw.example", "https", SAME, False),
        ("https://gw.example", "gw.example", "http", SAME, False),
        ("https://gw.example", "gw.example", "HTTPS", SAME, True),
        ("https://gw.example", "gw.example", "wss", SAME, True),  # Traefik names a WebSocket's scheme so
        ("http://gw.example", "gw.example", "ws", SAME, True),
        ("http://gw.example", "gw.example", "wss", SAME, False),
    ],
)
def test_origins(
    origin: str | None, host: str, scheme: str | None, allowed: tuple[str, ...], verdict: bool
) -> None:
    assert origin_allowed(origin, host, scheme, allowed) is verdict


@pytest.mark.parametrize("allowed", [("*",), SAME, BANK])
def test_what_is_too_long_is_no_origin_and_is_not_kept(allowed: tuple[str, ...]) -> None:
    """A client could fill the cache with megabytes."""
    kept = _allowed.cache_info().currsize
    for number in range(10):
        host = f"{number}{'a' * MAX_LENGTH}"
        assert not origin_allowed(f"https://{host}", "gw", None, allowed)
        assert not origin_allowed("https://bank.example", host, None, allowed)
        assert not origin_allowed("https://bank.example", "gw", host, allowed)
    assert _allowed.cache_info().currsize == kept


def canonical(origin: str) -> str | None:
    try:
        return normalise_origin(origin)
    except ValueError:
        return None


@given(
    st.text(max_size=30) | url_like.map("https://".__add__) | url_like,
    st.text(max_size=20) | url_like,
    st.none() | st.text(max_size=6),
)
def test_no_origin_is_too_strange(origin: str, host: str, scheme: str | None) -> None:
    assert origin_allowed(origin, host, scheme, BANK) is (canonical(origin) in BANK)
    assert origin_allowed(origin, host, scheme, SAME) in (True, False)
    assert origin_allowed(origin, host, scheme, ("*",)) is True


@pytest.mark.parametrize(
    ("allowed", "sources"),
    [
        (("same-origin", "https://bank.example"), "'self' https://bank.example"),
        (("*",), "*"),
        (("capacitor://localhost", "file://"), "capacitor://localhost file:"),
        (("null", "same-origin"), "'self'"),
        (("null",), "'none'"),
    ],
)
def test_pages_that_may_embed_a_frame(allowed: tuple[str, ...], sources: str) -> None:
    assert frame_ancestors(allowed) == sources
