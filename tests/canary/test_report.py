"""The line of a check, and the exit code."""

from __future__ import annotations

import pytest

from gateway.canary.check import Outcome
from gateway.canary.report import CRITICAL, FAILED, OK, WARNING, Thresholds, Verdict, line
from gateway.canary.stages import CanaryFailed, Stage

WELL = Outcome({"connect": 0.003, "registration": 0.004, "delivery": 0.00512})
BROKEN = Outcome({"connect": 0.003}, CanaryFailed(Stage.REGISTRATION, "closed with 1013", "look at the log"))
BROKEN_AT_ONCE = Outcome({}, CanaryFailed(Stage.LOOK_UP, "no | such\nname"))


@pytest.mark.parametrize(
    ("outcome", "thresholds", "said"),
    [
        (WELL, Thresholds(), "OK - 12 ms | connect=0.0030s registration=0.0040s delivery=0.0051s"),
        (
            WELL,
            Thresholds(5, 10),
            "OK - 12 ms | total=0.0121s;5;10 connect=0.0030s registration=0.0040s delivery=0.0051s",
        ),
        (
            WELL,
            Thresholds(warning=0.01),
            (
                "WARNING - 12 ms, more than 0.01 s"
                " | total=0.0121s;0.01; connect=0.0030s registration=0.0040s delivery=0.0051s"
            ),
        ),
        (
            WELL,
            Thresholds(0.001, 0.01),
            (
                "CRITICAL - 12 ms, more than 0.01 s"
                " | total=0.0121s;0.001;0.01 connect=0.0030s registration=0.0040s delivery=0.0051s"
            ),
        ),
        (BROKEN, Thresholds(), "FAILED - registration: closed with 1013; look at the log | connect=0.0030s"),
        (
            BROKEN,
            Thresholds(critical=5),
            "CRITICAL - registration: closed with 1013; look at the log | connect=0.0030s",
        ),
        (BROKEN_AT_ONCE, Thresholds(), "FAILED - lookup: no / such\\nname"),
    ],
)
def test_the_line(outcome: Outcome, thresholds: Thresholds, said: str) -> None:
    assert line(outcome, thresholds) == said


@pytest.mark.parametrize(
    ("outcome", "thresholds", "verdict", "code"),
    [
        (WELL, Thresholds(), OK, 0),
        (BROKEN, Thresholds(), FAILED, 1),
        (WELL, Thresholds(1, 2), OK, 0),
        (WELL, Thresholds(0.01, 2), WARNING, 1),
        (WELL, Thresholds(None, 0.01), CRITICAL, 2),
        (BROKEN, Thresholds(1, None), CRITICAL, 2),
    ],
)
def test_exit_codes_are_0_and_1_or_those_of_nagios(
    outcome: Outcome, thresholds: Thresholds, verdict: Verdict, code: int
) -> None:
    assert thresholds.judge(outcome) is verdict
    assert verdict.exit_code == code
