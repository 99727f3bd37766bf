"""Which errors of Redis say that the script has done nothing; as servers have answered them."""

from __future__ import annotations

import pytest

from gateway.publishing.refusals import is_refusal

WITHIN = " script: f1, on @user_script:1."


@pytest.mark.parametrize(
    "error",
    [
        "NOAUTH Authentication required.",
        "NOPERM User backend has no permissions to run the 'eval' command",
        "NOPERM No permissions to access a key",
        "CLUSTERDOWN Hash slot not served",
        "MOVED 866 127.0.0.1:6379",
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    ],
)
def test_an_error_before_the_script(error: str) -> None:
    assert is_refusal(error, 0)
    assert is_refusal(error, 300)


@pytest.mark.parametrize(
    "error",
    [
        "OOM command not allowed when used memory > 'maxmemory'." + WITHIN,
        "READONLY You can't write against a read only replica." + WITHIN,
        "NOREPLICAS Not enough good replicas to write." + WITHIN,
        "MISCONF Errors writing to the AOF file: No space left on device" + WITHIN,
        "ERR ACL failure in script: User a has no permissions to run the 'set' command" + WITHIN,
        "ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't write",
        "ERR @user_script: 1: The user executing the script can't access at least one of the keys mentioned",
    ],
)
def test_an_error_of_the_scripts_first_command(error: str) -> None:
    assert is_refusal(error, 300)


@pytest.mark.parametrize(
    "error",
    [
        "ERR ACL failure in script: User a has no permissions to run the 'publish' command" + WITHIN,
        "ERR ACL failure in script: No permissions to access a channel" + WITHIN,
        "ERR Unknown Redis command called from script" + WITHIN,
        "ERR @user_script: 1: The user executing the script can't run this command or subcommand",
    ],
)
def test_an_error_that_may_come_after_the_result_was_retained(error: str) -> None:
    assert not is_refusal(error, 300)
    assert is_refusal(error, 0), "without retention there is one command"
