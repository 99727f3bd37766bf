"""The command announce."""

from __future__ import annotations

import pytest

from gateway.drill.fleet import ValkeyProcess, free_port

from .conftest import Run


def test_announce_says_whether_the_id_is_new(run: Run, valkey: ValkeyProcess) -> None:
    result = run("announce", "1234567890", "--redis", valkey.url, "--channel-prefix", "x:", "--ttl", "60")
    assert (result.exit_code, result.stdout) == (0, "12345… may register for 60 s\n")
    with valkey.client() as client:
        assert client.get("x:1234567890") == b""
        assert 0 < int(str(client.ttl("x:1234567890"))) <= 60
        again = run("announce", "1234567890", "--channel-prefix", "x:", GATEWAY_REDIS=valkey.url)
        client.delete("x:1234567890")
    assert again.exit_code == 0
    assert "is known already; its announcement or result stays as it is" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ([], "Missing argument 'ID'"),
        (["a b"], "1 to 200 of"),
        (["a", "--ttl", "0"], "--ttl"),
        (["a", "--ttl", "86401"], "--ttl"),
        (["a", "--redis", "embedded"], "URL of a Redis that runs"),
        (["a", "--redis", "localhost"], "write redis://host:port/db"),
    ],
)
def test_announce_refuses_what_makes_no_sense(run: Run, arguments: list[str], right: str) -> None:
    result = run("announce", *arguments)
    assert result.exit_code == 2
    assert right in result.stderr


def test_announce_without_redis_ends_with_one_line(run: Run) -> None:
    result = run("announce", "a", "--redis", f"redis://:secret@127.0.0.1:{free_port()}")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Redis at redis://:***@127.0.0.1:")
    assert result.stderr.endswith("; Redis has not confirmed the announcement\n")
