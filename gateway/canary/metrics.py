"""The metrics of `canary --every`: what became of the checks so far."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..admin.metrics import Family, Samples, to_metric
from ..telemetry.latency import Histogram
from .check import Outcome
from .stages import TIMED, Stage

UP: Final = Family(
    GaugeMetricFamily,
    "gateway_canary_up",
    "1 if the latest check succeeded, else 0. It is absent before the first.",
)
LATEST: Final = Family(
    GaugeMetricFamily,
    "gateway_canary_latest_seconds",
    "The latest check, by stage: connect (look-up, TCP, TLS and upgrade), registration, delivery (from "
    "publishing to the result). A stage that it has not completed is absent.",
    ("stage",),
)
SECONDS: Final = Family(
    HistogramMetricFamily,
    "gateway_canary_stage_seconds",
    "How long a stage took, of all checks that completed it.",
    ("stage",),
)
LAST_SUCCESS: Final = Family(
    GaugeMetricFamily,
    "gateway_canary_last_success_timestamp_seconds",
    "When the latest check ended that succeeded, since 1970. It is absent before that.",
)
CHECKS: Final = Family(CounterMetricFamily, "gateway_canary_checks_total", "Checks that have ended.")
FAILURES: Final = Family(
    CounterMetricFamily,
    "gateway_canary_failures_total",
    "Checks that failed, by stage: lookup, tcp, tls, upgrade, announce, registration, publish, delivery.",
    ("stage",),
)

FAMILIES: Final = (UP, LATEST, SECONDS, LAST_SUCCESS, CHECKS, FAILURES)
"""In the order in which they are shown."""


class CanaryMetrics(Collector):
    """Counts checks, and renders the counters for a scrape."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._clock = clock
        self._latest: Outcome | None = None
        self._seconds = {stage: Histogram() for stage in TIMED}
        self._last_success: float | None = None
        self._checks = 0
        self._failures: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        """Count a check that has ended."""
        self._latest = outcome
        self._checks += 1
        for stage, seconds in outcome.seconds.items():
            self._seconds[stage].observe(seconds)
        if outcome.failure is None:
            self._last_success = self._clock()
        else:
            self._failures[outcome.failure.stage] += 1

    def render(self) -> bytes:
        """All metrics as text."""
        return exposition.generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        latest = self._latest
        samples: dict[Family, Samples] = {
            UP: {} if latest is None else {(): float(latest.failure is None)},
            LATEST: {} if latest is None else {(stage,): value for stage, value in latest.seconds.items()},
            SECONDS: {(stage,): histogram for stage, histogram in self._seconds.items()},
            LAST_SUCCESS: {} if self._last_success is None else {(): self._last_success},
            CHECKS: {(): self._checks},
            FAILURES: {(str(stage),): self._failures[stage] for stage in Stage},
        }
        return (to_metric(family, samples[family]) for family in FAMILIES)
