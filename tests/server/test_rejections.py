"""Rejected requests are counted by their code, and logged with what is known of them."""

from __future__ import annotations

from collections import Counter

from structlog.testing import capture_logs

from gateway.server.rejections import Rejections
from gateway.wire.handshake import MALFORMED


def test_a_rejection_is_counted_and_logged() -> None:
    counts: Counter[str] = Counter()
    with capture_logs() as lines:
        assert Rejections(counts).add(MALFORMED, peer="192.0.2.1") is MALFORMED
    assert counts == {"bad_request": 1}
    assert lines == [
        {
            "event": "request rejected",
            "log_level": "warning",
            "kind": "bad_request",
            "status": 400,
            "peer": "192.0.2.1",
        }
    ]
