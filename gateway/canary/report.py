"""One line for a check, and the exit code. Pure.

    OK - 12 ms | connect=0.0031s registration=0.0042s delivery=0.0047s
    FAILED - tls: the certificate of bank.example is not valid: certificate has expired; renew it …

What stands behind the bar is performance data, as Nagios and its relatives read it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..telemetry.logs import visible
from .check import Outcome


class Verdict(NamedTuple):
    """How a check has ended: the word that its line begins with, and the exit code."""

    word: str
    exit_code: int


OK: Final = Verdict("OK", 0)
FAILED: Final = Verdict("FAILED", 1)
"""The only other one where nobody has asked for the exit codes of Nagios."""
WARNING: Final = Verdict("WARNING", 1)
CRITICAL: Final = Verdict("CRITICAL", 2)


class Thresholds(NamedTuple):
    """Seconds for a whole check; None for no limit. With either, words and exit codes are those of Nagios."""

    warning: float | None = None
    critical: float | None = None

    @property
    def given(self) -> bool:
        return self != Thresholds()

    def judge(self, outcome: Outcome) -> Verdict:
        """How the check has ended."""
        if outcome.failure is not None:
            return CRITICAL if self.given else FAILED
        if self.critical is not None and outcome.total > self.critical:
            return CRITICAL
        if self.warning is not None and outcome.total > self.warning:
            return WARNING
        return OK


NO_THRESHOLDS: Final = Thresholds()


def line(outcome: Outcome, thresholds: Thresholds = NO_THRESHOLDS) -> str:
    """The line for people and Nagios."""
    verdict = thresholds.judge(outcome)
    text = f"{outcome.total * 1000:.0f} ms" if outcome.failure is None else visible(str(outcome.failure))
    if outcome.failure is None and verdict is not OK:
        limit = thresholds.critical if verdict is CRITICAL else thresholds.warning
        text += f", more than {limit:g} s"
    figures = [f"{name}={seconds:.4f}s" for name, seconds in outcome.seconds.items()]
    if thresholds.given and outcome.failure is None:
        limits = ";".join("" if limit is None else f"{limit:g}" for limit in thresholds)
        figures.insert(0, f"total={outcome.total:.4f}s;{limits}")
    # Nagios takes everything behind a bar for performance data.
    shown = f"{verdict.word} - {text.replace('|', '/')}"
    return " | ".join([shown, " ".join(figures)] if figures else [shown])
