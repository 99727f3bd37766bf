"""What workers are together."""

from __future__ import annotations

from typing import Any

from gateway.admin.aggregate import NO_WORKER, aggregate


def state(**members: Any) -> dict[str, Any]:
    redis = {
        "connected": True,
        "outages": 0,
        "outage_seconds": 0.0,
        "probe_seconds": 0.001,
        "repaired": 0,
        "missing_slots": 0,
        "denied_channels": 0,
    }
    return {
        "ready": True,
        "reasons": [],
        "strict": {"ready": True, "reasons": []},
        "node": "n",
        "sessions": 2,
        "handshakes": 1,
        "unread_bytes": 7,
        "channels": 2,
        "delivered": 5,
        "log_lines_dropped": 1,
        "connections": {"session": 2, "idle": 1},
        "invalid": {"not JSON": 1},
        "rejected": {},
        "closed": {"1000 disconnected": 3},
        **members,
        "redis": redis | members.get("redis", {}),
    }


def test_counts_are_summed() -> None:
    body = aggregate([state(), state(invalid={"not JSON": 2, "too long": 1})], "n", draining=False)
    assert body["ready"]
    assert (body["sessions"], body["handshakes"], body["channels"], body["delivered"]) == (4, 2, 4, 10)
    assert body["log_lines_dropped"] == 2
    assert (body["unread_bytes"], body["connections"]) == (14, {"session": 4, "idle": 2})
    assert body["invalid"] == {"not JSON": 3, "too long": 1}
    assert body["closed"] == {"1000 disconnected": 6}


def test_it_has_the_form_of_a_single_one() -> None:
    assert list(aggregate([state()], "n", draining=False)) == list(state())
    assert aggregate([state()], "n", draining=False) == state()


def test_of_redis_the_worst_is_told() -> None:
    away = {
        "connected": False,
        "outages": 1,
        "outage_seconds": 2.5,
        "probe_seconds": None,
        "missing_slots": 5461,
        "denied_channels": 3,
    }
    body = aggregate([state(redis={"outages": 2, "repaired": 1}), state(redis=away)], "n", draining=False)
    assert body["redis"] == {
        "connected": False,
        "outages": 3,
        "outage_seconds": 2.5,
        "probe_seconds": None,
        "repaired": 1,
        "missing_slots": 5461,
        "denied_channels": 3,
    }
    assert body["ready"], "all nodes share Redis"


def test_one_that_serves_is_enough() -> None:
    never = state(ready=False, reasons=["Redis has not been reached yet"])
    assert aggregate([never, state(), None], "n", draining=False)["ready"]
    body = aggregate([never, never], "n", draining=False)
    assert (body["ready"], body["reasons"]) == (False, ["Redis has not been reached yet"])


def test_one_that_is_cut_off_is_enough_for_a_strict_answer() -> None:
    """The kernel sends new browsers to every worker that serves."""
    cut_off = state(strict={"ready": False, "reasons": ["Redis is not connected"]})
    never = state(ready=False, reasons=["never"], strict={"ready": False, "reasons": ["never"]})
    body = aggregate([state(), cut_off, None], "n", draining=False)
    assert (body["ready"], body["strict"]) == (True, {"ready": False, "reasons": ["Redis is not connected"]})
    body = aggregate([state(), never, None], "n", draining=False)
    assert body["strict"]["ready"], "it does not listen yet"
    body = aggregate([never], "n", draining=False)
    assert body["strict"] == {"ready": False, "reasons": ["never"]}


def test_nobody_serves() -> None:
    body = aggregate([None, None], "n", draining=False)
    assert (body["ready"], body["reasons"], body["sessions"]) == (False, [NO_WORKER], 0)
    assert not body["redis"]["connected"]


def test_draining_is_told_whatever_workers_say() -> None:
    assert aggregate([state(), None], "n", draining=True)["reasons"] == ["draining"]
