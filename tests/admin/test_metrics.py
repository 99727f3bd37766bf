"""What stands in a scrape, held against what was done; and what several of them make."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shutil
import subprocess
from collections import Counter
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.admin.metrics import FAMILIES, LAG_BOUNDS, NodeMetrics, merge
from gateway.core.events import EventLog
from gateway.core.session import Session
from gateway.messages import INVALID_KINDS, CloseCode, InvalidResult
from gateway.nodes.sources import Readiness, Sources
from gateway.redis.event_writer import EventWriter
from gateway.server.acceptor import Acceptor
from gateway.server.access import AccessControl
from gateway.server.wires import session_kinds
from gateway.telemetry.latency import Histogram, Latency
from gateway.tokens.verification import REASONS
from gateway.wire.handshake import ORIGIN
from gateway.wire.json import JSON_WIRE

from .. import fakes
from ..fakes import virtual
from ..paths import DOCS, PACKAGE

OPERATIONS = DOCS / "operations.md"

Sample = tuple[str, frozenset[tuple[str, str]]]


def samples(text: bytes) -> dict[Sample, float]:
    """What a scrape says: the value of each sample, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for metric in text_string_to_metric_families(text.decode())
        for sample in metric.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    """The one sample of this name that has at least these labels."""
    wanted = set(labels.items())
    (found,) = [each for (of, has), each in samples(text).items() if of == name and wanted <= has]
    return found


class Probe:
    round_trip: float | None = None
    received, not_published, missed = 7, 2, 1


class Reconciler:
    runs = 3


class Broker:
    """A line to Redis that has had its troubles."""

    display_url = "redis://redis:6379/0"
    connected, ever_connected = True, True
    outages, repaired, slots_moved = 2, 0, 0
    deaf, denied_channels = "", 3
    missing_slots = range(10, 20)

    def __init__(self) -> None:
        self.probe = Probe()
        self.reconciler = Reconciler()
        self.server_brokers = [self]

    def outage_seconds(self) -> float:
        return 1.5


class Spoken(Session):
    """A session whose client hears nothing."""

    __slots__ = ()
    transport = "websocket"

    def _write(self, message: bytes) -> None: ...
    def _send_close(self, code: CloseCode, reason: str) -> None: ...


class Scene:
    """The metrics of parts that a test plays with."""

    def __init__(self) -> None:
        self.node = fakes.node()
        self.hub = self.node.hub
        self.access = AccessControl(self.node)
        self.broker = Broker()
        self.latency = Latency(lambda _call: None, lambda: 0.0, lambda: 0.0)
        self.lag = Histogram(LAG_BOUNDS)
        self.published: Counter[str] = Counter()
        acceptor = Acceptor(nobody, fakes.ledger(), 5.0, 75.0, self.node.clock)
        broker: Any = self.broker
        self.readiness = Readiness(broker)
        self.sources = Sources(
            "node-1",
            100,
            self.node,
            broker,
            acceptor,
            self.access,
            self.readiness,
            self.latency,
            self.lag,
            session_kinds(),
            self.published,
        )
        self.metrics = NodeMetrics(self.sources)

    def session(self, name: bytes = b"id") -> Session:
        self.node.admission.admit("192.0.2.1")
        session = Spoken(self.node, JSON_WIRE, "192.0.2.1")
        session.message_received(b'{"webSocketId":"%b"}' % name)
        return session

    def now(self, name: str, **labels: str) -> float:
        return value(self.metrics.render(), name, **labels)


def nobody(_transport: asyncio.Transport, _head: bytes) -> None:
    raise AssertionError("nobody connects")


@virtual
async def test_sessions_are_counted_by_what_they_speak_until_they_end() -> None:
    scene = Scene()
    here = {"protocol": "json", "transport": "websocket"}
    assert scene.now("gateway_sessions", **here) == 0
    sessions = [scene.session(), scene.session(b"other")]
    assert scene.now("gateway_sessions", **here) == 2
    assert scene.now("gateway_redis_channels", state="wanted") == 2
    sessions[0].close(CloseCode.POLICY, "slow consumer")
    sessions[0].ended()
    assert scene.now("gateway_sessions", **here) == 1
    assert scene.now("gateway_sessions_closed_total", code="1008", reason="slow consumer") == 1
    assert scene.now("gateway_slow_consumers_total") == 1


@virtual
async def test_refused_tokens_by_reason_where_tokens_are_wanted() -> None:
    class Verifier:
        def refusal(self, web_socket_id: str, token: str | None) -> str | None:
            return "expired"

    scene = Scene()
    assert "gateway_refused_tokens_total{" not in scene.metrics.render().decode()
    scene.node.verifier = Verifier()
    assert {scene.now("gateway_refused_tokens_total", reason=reason) for reason in REASONS} == {0}
    scene.session()
    assert scene.now("gateway_refused_tokens_total", reason="expired") == 1
    assert scene.now("gateway_registrations_total", outcome="rejected", kind="not_authorized") == 1


@virtual
async def test_registrations_by_outcome() -> None:
    scene = Scene()
    first, second, third = scene.session(), scene.session(b"other"), scene.session(b"third")
    scene.hub.subscribed(b"websocket:id", None)
    third._state_ends = 0
    third.deadline_passed()
    first.message_received(b'{"webSocketId":"another"}')
    second.message_received(b'{"topic":"/user/topic/registration"}')
    counted = {
        name: scene.now("gateway_registrations_total", outcome=name) for name in ("confirmed", "timed_out")
    }
    assert counted == {"confirmed": 1, "timed_out": 1}
    assert scene.now("gateway_registrations_total", outcome="rejected", kind="already_registered") == 1
    for kind in ("invalid_id", "unknown_id", "not_authorized"):  # a rate needs a beginning
        assert scene.now("gateway_registrations_total", outcome="rejected", kind=kind) == 0
    assert scene.now("gateway_registrations_total", outcome="rejected", kind="missing_id") == 1
    assert scene.now("gateway_redis_channels", state="confirmed") == 1
    assert scene.now("gateway_redis_channels", state="denied") == 3
    assert scene.now("gateway_redis_missing_slots") == 10


@virtual
async def test_results_by_outcome() -> None:
    scene = Scene()
    scene.session()
    scene.hub.subscribed(b"websocket:id", None)
    for payload in (
        b"CONFIRMED",
        b'{"authResult":"A","messageId":"1"}',
        b'{"authResult":"A","messageId":"1"}',
        b"?",
    ):
        scene.hub.received(b"websocket:id", payload)
    scene.hub.received(b"websocket:gone", b"CONFIRMED")
    counted = {
        name: scene.now("gateway_results_total", outcome=name)
        for name in ("delivered", "duplicate", "no_session")
    }
    assert counted == {"delivered": 2, "duplicate": 1, "no_session": 1}
    assert scene.now("gateway_results_total", outcome="invalid", kind="not a result") == 1


@virtual
async def test_a_result_that_is_held_for_its_session_has_one() -> None:
    scene = Scene()
    scene.session()
    scene.hub.received(b"websocket:id", b"CONFIRMED")
    assert scene.now("gateway_results_total", outcome="no_session") == 0
    scene.hub.subscribed(b"websocket:id", None)
    assert scene.now("gateway_results_total", outcome="delivered") == 1


@virtual
async def test_the_state_of_redis_and_of_the_node() -> None:
    scene = Scene()
    here = {"server": "redis://redis:6379/0"}
    scene.published.update(["received", "no_receivers", "no_receivers"])
    scene.sources.announced.update(["new", "known", "known"])
    scene.access.reject(ORIGIN)
    scene.lag.observe(0.3)
    text = scene.metrics.render()
    assert value(text, "gateway_ready") == 1
    assert value(text, "gateway_redis_connected", **here) == 1
    assert value(text, "gateway_redis_outages_total") == 2
    assert value(text, "gateway_redis_outage_seconds_total") == 1.5
    assert value(text, "gateway_redis_probes_total", outcome="missed", **here) == 1
    assert value(text, "gateway_redis_reconciliations_total", **here) == 3
    assert value(text, "gateway_published_total", outcome="no_receivers") == 2
    assert value(text, "gateway_announced_total", outcome="known") == 2
    assert value(text, "gateway_rejected_total", kind="origin_not_allowed") == 1
    assert value(text, "gateway_event_loop_lag_seconds_bucket", le="0.25") == 0
    assert value(text, "gateway_event_loop_lag_seconds_bucket", le="0.5") == 1
    assert value(text, "gateway_max_sessions") == 100
    assert value(text, "process_resident_memory_bytes") > 1e6
    assert not [name for name, _ in samples(text) if name.startswith("gateway_redis_probe_round")], "none yet"
    scene.broker.probe.round_trip = 0.002
    scene.readiness.draining = True
    assert scene.now("gateway_redis_probe_round_trip_seconds", **here) == 0.002
    assert scene.now("gateway_ready") == 0
    scene.readiness.draining = False
    assert scene.now("gateway_strictly_ready") == 1
    scene.broker.deaf = "Redis is not connected"
    assert (scene.now("gateway_ready"), scene.now("gateway_strictly_ready")) == (1, 0)


def test_every_kind_of_invalid_payload_is_known() -> None:
    source = (PACKAGE / "messages.py").read_text()
    raised = set(re.findall(r'InvalidResult\("([^"]+)"\)', source))
    hub = (PACKAGE / "core" / "hub.py").read_text()
    assert raised | set(re.findall(r'_invalid\(name, payload, "([^"]+)"\)', hub)) == set(INVALID_KINDS)
    assert InvalidResult("too big").kind in INVALID_KINDS


@virtual
async def test_events_by_kind_and_what_becomes_of_them() -> None:
    scene = Scene()
    assert scene.now("gateway_events_total", kind="registered") == 0
    assert scene.now("gateway_events_waiting") == 0
    log = EventLog("node-1", "run", lambda: 0.0, 2)
    writer = EventWriter(log, any_router(), ("stream",), 1_000, lambda: 0.0)
    scene.node.events = log
    scene.sources = dataclasses.replace(scene.sources, event_writer=writer)
    scene.metrics = NodeMetrics(scene.sources)
    session = scene.session()
    for _ in range(3):
        session.message_received(b'{"webSocketId":"another"}')
    scene.hub.subscribed(b"websocket:id", None)
    writer.failures = 4
    assert scene.now("gateway_events_total", kind="refused") == 3
    assert scene.now("gateway_events_total", kind="registered") == 1
    assert scene.now("gateway_events_total", kind="closed") == 0
    assert scene.now("gateway_events_waiting") == 2
    assert scene.now("gateway_events_dropped_total") == 2
    assert scene.now("gateway_event_write_failures_total") == 4


def any_router() -> Any:
    return None


@virtual
async def test_workers_metrics_become_one_text() -> None:
    first, second = Scene(), Scene()
    first.session()
    text = merge({"0": first.metrics.render(), "1": second.metrics.render()})
    kinds = {"protocol": "json", "transport": "websocket"}
    assert value(text, "gateway_sessions", worker="0", **kinds) == 1
    assert value(text, "gateway_sessions", worker="1", **kinds) == 0
    types = re.findall(rb"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert types == re.findall(rb"^# TYPE (\S+) (\S+)$", first.metrics.render(), re.MULTILINE)
    helps = re.findall(rb"^# HELP .*$", text, re.MULTILINE)
    assert helps == re.findall(rb"^# HELP .*$", first.metrics.render(), re.MULTILINE)
    assert len(samples(text)) == len(samples(first.metrics.render())) + len(samples(second.metrics.render()))


@virtual
async def test_every_family_is_in_a_scrape() -> None:
    text = Scene().metrics.render()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text.decode(), re.MULTILINE))
    assert types == {family.name: family.type for family in FAMILIES}


@pytest.mark.needs("promtool")
@virtual
@pytest.mark.real
async def test_prometheus_has_nothing_against_the_names() -> None:
    scene = Scene()
    scene.broker.probe.round_trip = 0.002
    for text in (scene.metrics.render(), merge({"0": scene.metrics.render()})):
        assert promtool(text) == (0, b"")


def promtool(text: bytes) -> tuple[int, bytes]:
    """The exit code of `promtool check metrics`, and what it says."""
    command = [shutil.which("promtool") or "", "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True, timeout=30, check=False)
    return checked.returncode, checked.stdout + checked.stderr
