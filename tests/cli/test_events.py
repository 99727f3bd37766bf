"""The command events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from gateway.drill.fleet import ValkeyProcess, free_port

from .conftest import Run
from .printing import Printing

STREAM = "told::events"


@pytest.fixture
def options(valkey: ValkeyProcess) -> Iterator[list[str]]:
    """Where the events are; two are there."""
    with valkey.client() as client:
        client.xadd(
            STREAM,
            {
                "event": "registered",
                "webSocketId": "1234567890",
                "session": "s-1",
                "node": "node-1",
                "at": "1700000000123",
                "address": "192.0.2.1",
                "origin": "",
                "userAgent": "\x1b[31mred",
            },
        )
        client.xadd(STREAM, {"event": "refused", "webSocketId": "", "at": "x", "code": "invalid_id"})
        yield ["--redis", valkey.url, "--channel-prefix", "told:"]
        client.delete(STREAM)


def test_all_events_as_lines(run: Run, options: list[str]) -> None:
    result = run("events", *options)
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.123  registered  12345…     .*", first), first
    assert "session=s-1 node=node-1 address=192.0.2.1 userAgent=\\x1b[31mred" in first
    assert "origin" not in first
    assert second.endswith("refused     -          code=invalid_id")


def test_those_of_one_id_as_json(run: Run, options: list[str]) -> None:
    result = run("events", "1234567890", "--json", *options)
    told = json.loads(result.stdout)
    assert (told["event"], told["at"], told["userAgent"]) == ("registered", "1700000000123", "\x1b[31mred")
    assert re.fullmatch(r"\d+-\d", told["id"])


def test_an_id_without_events(run: Run, options: list[str]) -> None:
    result = run("events", "nobody", *options)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No events. Nodes write them with --events redis" in result.stderr


def test_only_the_stream_of_the_id_is_read(run: Run, valkey: ValkeyProcess) -> None:
    result = run("events", "nobody", "--redis", valkey.url, "--event-streams", "5")
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "right"),
    [(["a b"], "1 to 200 of"), (["--redis", "embedded"], "the URL of a Redis that runs")],
)
def test_wrong_usage(run: Run, arguments: list[str], right: str) -> None:
    result = run("events", *arguments)
    assert result.exit_code == 2
    assert right in result.stderr


def test_redis_is_away(run: Run) -> None:
    result = run("events", "--redis", f"redis://:secret@127.0.0.1:{free_port()}")
    assert result.exit_code == 1
    assert "secret" not in result.stderr


def test_following_until_ctrl_c(options: list[str], valkey: ValkeyProcess) -> None:
    with Printing("events", "--follow", *options) as printing:
        printing.wait_for("registered")
        with valkey.client() as client:
            client.xadd(STREAM, {"event": "closed", "webSocketId": "1234567890", "code": "1000"})
        printing.wait_for("code=1000")
        assert printing.interrupt() == 0
