"""The command events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from gateway.drill.fleet import ValkeyProcess, free_port
from gateway.redis.event_streams import event_streams, stream_of

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


def last_line(run: Run, valkey: ValkeyProcess, options: list[str], fields: dict[str, str]) -> str:
    with valkey.client() as client:
        client.xadd(STREAM, dict(fields))
    result = run("events", *options)
    assert (result.exit_code, result.exception) == (0, None)
    return result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x by=client", '"x by=client"'),
        ('x"', r'"x\""'),
        ("YWI=", "YWI="),
        ("a\\b", r'"a\\b"'),
        ("line\nline", r'"line\nline"'),
        ("a\u2028b", r'"a\u2028b"'),
        ("\u0661", "\u0661"),
        ("curl/8.5.0", "curl/8.5.0"),
    ],
)
def test_no_value_looks_like_another_field(
    run: Run, options: list[str], valkey: ValkeyProcess, value: str, shown: str
) -> None:
    fields = {"event": "closed", "webSocketId": "1", "userAgent": value, "seconds": "1.5"}
    line = last_line(run, valkey, options, fields)
    assert line.endswith(f"  closed      1          userAgent={shown} seconds=1.5")


@pytest.mark.parametrize("at", ["²", "-1", "9" * 13, "9" * 5_000, "", "1.5", "\u0661"])
def test_whatever_a_foreign_writer_puts_into_the_stream_is_shown(
    run: Run, options: list[str], valkey: ValkeyProcess, at: str
) -> None:
    fields = {"": "\x00", "a b": "c", "event": "x  y=z", "webSocketId": "a b", "at": at}
    line = last_line(run, valkey, options, fields)
    assert line.endswith(r""""x  y=z"    "a b"      ""=\x00 "a b"=c""")


def test_the_id_in_json_is_the_entry_s(run: Run, options: list[str], valkey: ValkeyProcess) -> None:
    line = last_line(run, valkey, [*options, "--json"], {"id": "x", "event": "closed"})
    assert re.fullmatch(r'\{"id":"\d+-\d","event":"closed"\}', line)


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
    streams = event_streams("apart:", 5)
    own = stream_of(b"12345678", streams)
    options = ["--redis", valkey.url, "--channel-prefix", "apart:", "--event-streams", "5"]
    with valkey.client() as client:
        for stream in streams:
            client.set(stream, "no stream")
        client.delete(own)
        client.xadd(own, {"event": "closed", "webSocketId": "12345678"})
        try:
            result = run("events", "12345678", *options)
            assert (result.exit_code, result.stdout.count("closed")) == (0, 1)
            assert run("events", *options).exit_code == 1, "the others cannot be read"
        finally:
            client.delete(*streams)


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
