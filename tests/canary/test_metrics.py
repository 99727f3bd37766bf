"""The metrics of checks."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from gateway.canary.check import Outcome
from gateway.canary.metrics import FAMILIES, CanaryMetrics
from gateway.canary.stages import TIMED, CanaryFailed, Stage

from ..fakes import Clock

WELL = Outcome({"connect": 0.003, "registration": 0.004, "delivery": 0.2})
BROKEN = Outcome({"connect": 0.5}, CanaryFailed(Stage.REGISTRATION, "closed with 1013"))


def samples(metrics: CanaryMetrics) -> dict[tuple[str, str], float]:
    """The value of each sample by its name and its stage, without the buckets of histograms."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, sample.labels.get("stage", "")): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_before_the_first_check_nothing_is_claimed() -> None:
    found = samples(CanaryMetrics())
    assert ("gateway_canary_up", "") not in found
    assert ("gateway_canary_last_success_timestamp_seconds", "") not in found
    assert found["gateway_canary_checks_total", ""] == 0
    for stage in Stage:
        assert found["gateway_canary_failures_total", stage] == 0, "so that the first one is an increase"
    for name in TIMED:
        assert found["gateway_canary_stage_seconds_count", name] == 0


def test_checks_are_counted() -> None:
    clock = Clock(1_700_000_000)
    metrics = CanaryMetrics(clock)
    metrics.add(WELL)
    assert samples(metrics)["gateway_canary_up", ""] == 1
    assert samples(metrics)["gateway_canary_latest_seconds", "delivery"] == 0.2
    clock.now += 30
    metrics.add(BROKEN)
    found = samples(metrics)
    assert found["gateway_canary_up", ""] == 0
    assert found["gateway_canary_last_success_timestamp_seconds", ""] == 1_700_000_000
    assert found["gateway_canary_checks_total", ""] == 2
    assert found["gateway_canary_failures_total", "registration"] == 1
    assert found["gateway_canary_failures_total", "tls"] == 0
    assert found["gateway_canary_latest_seconds", "connect"] == 0.5
    assert ("gateway_canary_latest_seconds", "delivery") not in found, "that was the check before"
    assert found["gateway_canary_stage_seconds_sum", "connect"] == 0.503
    assert found["gateway_canary_stage_seconds_count", "delivery"] == 1


def test_every_metric_is_described() -> None:
    metrics = CanaryMetrics()
    metrics.add(WELL)
    text = metrics.render().decode()
    for family in FAMILIES:
        assert f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.type}\n" in text
    assert "_created" not in text
