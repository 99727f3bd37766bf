"""Which results become spans, from when to when, and in whose trace."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis.asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

import gateway
from gateway.drill.fleet import NodeProcess, ValkeyProcess
from gateway.messages import Origin
from gateway.publishing.api import current_trace
from gateway.telemetry import tracing as module
from gateway.telemetry.tracing import Tracing

from ..integration.load import until
from ..integration.raw import Raw

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
PARENT = 0xB7AD6B7169203331
GIVEN = f"00-{TRACE:032x}-{PARENT:016x}-01"
NOW = 1_700_000_000.0


class Scene:
    """Tracing whose spans stay in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing("node-1", self.exporter)


async def test_a_result_with_a_trace_is_a_span_from_its_publishing_to_the_socket() -> None:
    scene = Scene()
    scene.tracing(Origin(NOW - 0.5, GIVEN), NOW, NOW + 0.25)
    await scene.tracing.close()
    (span,) = scene.exporter.get_finished_spans()
    assert (span.name, span.kind) == ("deliver", SpanKind.CONSUMER)
    assert span.context is not None
    assert span.parent is not None
    assert (span.context.trace_id, span.parent.span_id) == (TRACE, PARENT)
    assert (span.start_time, span.end_time) == ((NOW - 0.5) * 1e9, (NOW + 0.25) * 1e9)
    assert [event.timestamp for event in span.events] == [NOW * 1e9]
    assert span.resource.attributes["service.instance.id"] == "node-1"
    assert span.resource.attributes["service.name"] == "webflow-gateway"


@pytest.mark.parametrize("published_at", [None, NOW + 5, NOW - 3600])
async def test_it_begins_at_the_node_if_nothing_better_is_known(published_at: float | None) -> None:
    scene = Scene()
    scene.tracing(Origin(published_at, GIVEN), NOW, NOW + 0.25)
    await scene.tracing.close()
    (span,) = scene.exporter.get_finished_spans()
    assert span.start_time == NOW * 1e9


@pytest.mark.parametrize(
    "given", [None, 5, "", GIVEN[:-1], GIVEN.upper(), f"00-{0:032x}-{PARENT:016x}-01", f"{GIVEN}\n"]
)
async def test_what_is_no_trace_is_no_span(given: object) -> None:
    scene = Scene()
    scene.tracing(Origin(NOW, given), NOW, NOW)
    await scene.tracing.close()
    assert scene.exporter.get_finished_spans() == ()


async def test_a_trace_that_is_not_sampled_is_no_span() -> None:
    scene = Scene()
    scene.tracing(Origin(NOW, GIVEN[:-1] + "0"), NOW, NOW)
    await scene.tracing.close()
    assert scene.exporter.get_finished_spans() == ()


async def test_the_service_is_called_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "logins")
    scene = Scene()
    scene.tracing(Origin(NOW, GIVEN), NOW, NOW)
    await scene.tracing.close()
    (span,) = scene.exporter.get_finished_spans()
    assert span.resource.attributes["service.name"] == "logins"


async def test_a_collector_that_is_away_keeps_no_node_from_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "LAST_SPANS", 0.2)
    before = threading.enumerate()
    tracing = Tracing("node-1")
    tracing(Origin(NOW, GIVEN), NOW, NOW)
    await tracing.close()
    assert threading.enumerate() == before, "no thread goes on trying"


def test_who_publishes_within_a_span_passes_it_on() -> None:
    assert current_trace() is None
    with TracerProvider().get_tracer("test").start_as_current_span("approve") as span:
        context = span.get_span_context()
        assert (
            current_trace() == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        )


@pytest.mark.real
def test_who_publishes_needs_no_opentelemetry() -> None:
    without = "import sys; sys.modules['opentelemetry'] = None"
    code = f"{without}; from gateway.publishing.api import outgoing; outgoing('a', 'DONE')"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


# On a real node


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """A collector of OTLP over HTTP: its address, and the spans that it was sent."""
    spans: list[Span] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
            spans.extend(s for of in request.resource_spans for scope in of.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """The test looks at the spans."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans
        finally:
            server.shutdown()
            thread.join()


async def test_a_backends_trace_goes_on_to_the_browsers_socket(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as (address, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with NodeProcess(valkey.url, "--tracing", "otlp") as node:
            async with (
                redis.asyncio.Redis(port=valkey.port) as backend,
                Raw.registered(node.port, "traced") as page,
            ):
                await gateway.publish(backend, "traced", "CONTINUE")
                with TracerProvider().get_tracer("test").start_as_current_span("approve") as approving:
                    await gateway.publish(backend, "traced", "CONFIRMED")
                told = [(await page.message()).keys() for _ in range(2)]
                await until(lambda: spans, "the node sends its span")
    assert told == [{"topic", "webSocketId", "authResult", "messageId"}] * 2, "pages hear nothing of it"
    (span,) = spans
    context = approving.get_span_context()
    assert span.trace_id == context.trace_id.to_bytes(16, "big")
    assert span.parent_span_id == context.span_id.to_bytes(8, "big")
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 5e9
    assert not [line for line in node.logs if line["level"] == "error"]


@pytest.mark.real
def test_a_node_that_lacks_the_library_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
        "from gateway.__main__ import main; sys.argv[1:] = ['serve', '--redis', 'redis://127.0.0.1:1', "
        "'--port', '0', '--admin-port', '0', '--tracing', 'otlp']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "pip install 'webflow-gateway[otel]'" in done.stderr
