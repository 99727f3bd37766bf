"""What to do about an error at login."""

from __future__ import annotations

import pytest

from gateway.redis.connection import ReplyError
from gateway.redis.hints import hint_for


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (
            "NOAUTH HELLO must be called with the client authenticated",
            "write the password into the URL",
        ),
        ("ERR max number of clients reached", "raise maxclients"),
        ("ERR unknown command 'HELLO'", "Redis 6.2"),
        ("ERR something else", None),
    ],
)
def test_what_helps(error: str, hint: str | None) -> None:
    found = hint_for(str(ReplyError("HELLO", error)))
    assert found is None if hint is None else hint in str(found)


def test_other_reasons_have_no_hint() -> None:
    assert hint_for("[Errno 111] Connection refused") is None
