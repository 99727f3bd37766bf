"""What is wrong, in words, and what is believed of others."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from gateway import __version__
from gateway.core.session import MAX_REMEMBERED_IDS, Session
from gateway.messages import Result
from gateway.nodes.info import (
    MAX_DESCRIBED_SESSIONS,
    NODE_QUESTION,
    SESSION_QUESTION,
    InfoSource,
    RedisInfo,
    denial_troubles,
    node_troubles,
    parse_holder_info,
    parse_node_info,
    redis_troubles,
)
from gateway.nodes.sources import Readiness, Sources
from gateway.nodes.survey import MAX_MESSAGE
from gateway.redis.broker import Broker
from gateway.telemetry.latency import BOUNDS, Histogram, Latency

from ..core.test_session import Spoken
from ..fakes import Clock, node

LONGEST = "x" * 200  # an id's and a messageId's
REFUSED = "[Errno 111] Connection refused"


def redis(**different: Any) -> RedisInfo:
    well = {
        "connected": True,
        "servers": 1,
        "servers_up": 1,
        "down_for": None,
        "probe_age": 0.4,
        "round_trip": 0.001,
        "outages": 0,
        "outage_seconds": 0.0,
    }
    return RedisInfo.model_validate(well | different)


DOWN = redis(connected=False, servers_up=0, down_for=12.7, probe_age=None)


@pytest.mark.parametrize(
    ("state", "why", "unpublished", "ever", "expected"),
    [
        (redis(), "", "", True, None),
        (redis(), "", "no answer", True, None),  # one missed probe is nothing yet
        (redis(probe_age=2.9), "", "", True, None),
        (redis(probe_age=4.2), "", "", True, ("bad", "has not received its probe for 4 s")),
        (redis(probe_age=4.2), "", "NOPERM", True, ("warn", "has not received its probe for 4 s (NOPERM)")),
        (DOWN, "", "", True, ("bad", "has been without Redis for 12 s")),
        (DOWN, REFUSED, "", True, ("bad", "has been without Redis for 12 s (Connection refused)")),
        (DOWN, REFUSED, "", False, ("bad", "has not reached Redis for 12 s (Connection refused)")),
        (
            redis(connected=False, servers=3, servers_up=2, down_for=125.0),
            "",
            "",
            True,
            (
                "bad",
                "has been without Redis for 2 min; 2 of 3 servers of the Cluster are connected",
            ),
        ),
    ],
)
def test_says_what_is_wrong_with_redis(
    state: RedisInfo, why: str, unpublished: str, ever: bool, expected: tuple[str, str] | None
) -> None:
    found = [(trouble.tone, trouble.text) for trouble in redis_troubles(state, why, unpublished, ever=ever)]
    assert found == ([expected] if expected else [])


def test_a_long_reason_is_cut() -> None:
    (trouble,) = redis_troubles(DOWN, "x" * 1000, "", ever=True)
    assert len(trouble.text) == 300


def test_says_what_redis_denies() -> None:
    assert denial_troubles(0) == []
    (trouble,) = denial_troubles(1_200)
    assert (trouble.tone, trouble.text[:24]) == ("bad", "is denied 1,200 channels")


@pytest.mark.parametrize(
    ("sessions", "draining", "expected"),
    [
        (0, False, []),
        (899, False, []),
        (900, False, [("warn", "has 900 of at most 1,000 sessions")]),
        (1_000, False, [("bad", "is full: it has 1,000 sessions and rejects more")]),
        (3, True, [("note", "is draining: it closes its sessions and accepts no new ones")]),
    ],
)
def test_says_what_is_to_know_of_the_node(
    sessions: int, draining: bool, expected: list[tuple[str, str]]
) -> None:
    found = node_troubles(sessions, 1_000, draining=draining)
    assert [(trouble.tone, trouble.text) for trouble in found] == expected


# A node's own answers


class Line:
    """As much of a broker as a report reads."""

    connected = ever_connected = True
    down_for: float | None = None
    probe_age: float | None = 0.5
    last_error = ""
    outages = 2
    denied_channels = 0
    probe = SimpleNamespace(round_trip=None, last_error="")

    @property
    def server_brokers(self) -> list[Line]:
        return [self]

    def outage_seconds(self) -> float:
        return 3.25


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.node = node(self.clock)
        self.line = Line()
        self.latency = Latency(lambda call: call(), self.clock, self.clock)
        self.lag = Histogram((0.01, 0.1))
        broker, unused = cast("Broker", self.line), cast("Any", None)
        self.readiness = Readiness(broker)
        sources = Sources(
            "node-1",
            1_000,
            self.node,
            broker,
            unused,
            unused,
            self.readiness,
            self.latency,
            self.lag,
            (),
            Counter(),
        )
        self.info = InfoSource("node-1", sources)

    def registered(self, name: str = "12345678") -> Session:
        self.node.admission.admit("192.0.2.1")
        session = Spoken(self.node)
        session.message_received(orjson.dumps({"webSocketId": name}))
        self.node.hub.subscribed(b"websocket:" + name.encode(), None)
        return session

    def told(self) -> dict[str, Any]:
        """Its report, as it comes out at another node."""
        answer = orjson.loads(orjson.dumps({**self.info.answer({"ask": NODE_QUESTION}), "from": "f" * 16}))
        report = parse_node_info(answer)
        assert report is not None
        return report.model_dump()


def test_reports_what_the_node_counts() -> None:
    scene = Scene()
    scene.registered()
    scene.node.hub.received(b"websocket:12345678", b"CONFIRMED")
    scene.node.hub.received(b"websocket:12345678", b"confirmed")
    scene.clock.now += 60
    told = scene.told()
    expected = {
        "id": "f" * 16,
        "node": "node-1",
        "version": __version__,
        "up": 60,
        "draining": False,
        "sessions": 1,
        "room": 1_000,
        "registered": 1,
        "delivered": 1,
        "invalid": 1,
        "troubles": (),
    }
    assert {name: told[name] for name in expected} == expected
    assert told["redis"]["outage_seconds"] == 3.25


def test_reports_all_durations_together() -> None:
    scene = Scene()
    scene.latency.from_arrival.observe(0.0007, 3)
    scene.latency.from_publisher.observe(0.002)
    scene.latency.from_publisher.observe(60.0)
    scene.lag.observe(0.05)
    told = scene.told()
    assert told["latency"]["bounds"] == BOUNDS
    assert told["latency"]["counts"] == (0, 3, *[4] * (len(BOUNDS) - 2), 5)
    assert told["lag"] == {"bounds": (0.01, 0.1), "counts": (0, 1, 1)}


def test_reports_its_troubles() -> None:
    scene = Scene()
    scene.line.probe_age = 5.0
    scene.readiness.draining = True
    assert [trouble["tone"] for trouble in scene.told()["troubles"]] == ["bad", "note"]


@pytest.mark.parametrize(
    "different",
    [
        {"node": 7},
        {"node": "x" * 301},
        {"sessions": -1},
        {"sessions": "many"},
        {"delivered": None},
        {"clock": float("nan")},
        {"redis": {}},
        {"troubles": [{"tone": "loud", "text": ""}]},
        {"troubles": [{"tone": "bad", "text": ""}] * 11},
    ],
)
def test_a_report_of_another_form_is_none(different: dict[str, Any]) -> None:
    answer = {**Scene().info.node_info(), "from": "f" * 16}
    assert parse_node_info(answer) is not None
    assert parse_node_info({**answer, **different}) is None


def test_what_a_newer_version_tells_besides_is_left_out() -> None:
    answer = {**Scene().info.node_info(), "from": "f" * 16, "colour": "blue"}
    report = parse_node_info(answer)
    assert report is not None
    assert "colour" not in report.model_dump()


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"ask": "weather"},
        {"ask": SESSION_QUESTION},
        {"ask": SESSION_QUESTION, "webSocketId": 7},
        {"ask": SESSION_QUESTION, "webSocketId": "a b"},
    ],
)
def test_what_it_does_not_understand_it_answers_with_its_name(question: dict[str, Any]) -> None:
    answer = Scene().info.answer(question)
    assert answer == {"node": "node-1"}
    assert parse_node_info(answer) is None
    assert parse_holder_info(answer) is None


# The look-up


def test_tells_of_a_session_what_it_was_sent_and_since_when() -> None:
    scene = Scene()
    session = scene.registered()
    for number in range(MAX_REMEMBERED_IDS + 1):
        session.deliver(b"12345678", Result("CONFIRMED", f"m-{number}"))
    session.deliver(b"12345678", Result("CONFIRMED", f"m-{number}"))  # which is not sent again
    session.deliver(b"12345678", Result("CONFIRMED"))
    scene.clock.now += 90
    held = parse_holder_info(scene.info.answer({"ask": SESSION_QUESTION, "webSocketId": "12345678"}))
    assert held is not None
    (found,) = held.sessions
    assert found.model_dump() == {
        "node": "node-1",
        "state": "registered",
        "protocol": "json",
        "transport": "none",
        "address": "192.0.2.1",
        "registered_for": 90,
        "results": MAX_REMEMBERED_IDS + 2,
        "message_ids": tuple(f"m-{number}" for number in range(1, MAX_REMEMBERED_IDS + 1)),
        "degraded": False,
    }


def test_tells_of_one_that_waits_for_its_answer() -> None:
    scene = Scene()
    scene.node.admission.admit("192.0.2.1")
    Spoken(scene.node).message_received(b'{"webSocketId":"12345678"}')
    held = parse_holder_info(scene.info.holder_info("12345678"))
    assert held is not None
    assert [(found.state, found.registered_for) for found in held.sessions] == [("waiting", None)]


def test_tells_of_an_id_that_nobody_has() -> None:
    assert Scene().info.holder_info("12345678") == {"node": "node-1", "sessions": [], "more": 0}


def test_the_largest_answer_fits_into_a_message() -> None:
    """Many sessions may have one id: four are described and the others counted."""
    scene = Scene()
    for _ in range(MAX_DESCRIBED_SESSIONS + 3):
        session = scene.registered(LONGEST)
        for number in range(MAX_REMEMBERED_IDS):
            session.deliver(LONGEST.encode(), Result("CONFIRMED", f"{number:0200}"))
    answer = orjson.dumps(scene.info.holder_info(LONGEST))
    assert len(answer) < MAX_MESSAGE - 200
    held = parse_holder_info(orjson.loads(answer))
    assert held is not None
    assert (len(held.sessions), held.more) == (MAX_DESCRIBED_SESSIONS, 3)
