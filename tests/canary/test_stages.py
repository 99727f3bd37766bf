"""What can fail, and how it is said."""

from __future__ import annotations

from gateway.canary.stages import CanaryFailed, Stage


def test_a_failure_names_its_stage_what_was_seen_and_where_to_look() -> None:
    failure = CanaryFailed(Stage.TCP, "connection refused", "does the proxy run?")
    assert failure.stage is Stage.TCP
    assert str(failure) == "tcp: connection refused; does the proxy run?"
    assert str(CanaryFailed(Stage.LOOK_UP, "no address")) == "lookup: no address"
