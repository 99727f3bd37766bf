"""The command canary; what a check does is in tests/canary."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.canary import check as engine
from gateway.canary.check import Check, Outcome
from gateway.canary.stages import CanaryFailed, Stage
from gateway.cli.canary import Changes
from gateway.drill.fleet import free_port
from gateway.telemetry import logs

from .conftest import Run

URL = "wss://bank.example/ws"
WELL = Outcome({"connect": 0.003, "registration": 0.004, "delivery": 0.005})

Checks = list[Check]
Ends = Callable[[Outcome], Checks]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    """Lets every check end so. Returns those that were made."""

    def install(outcome: Outcome) -> Checks:
        made: Checks = []

        async def run(check: Check) -> Outcome:
            made.append(check)
            return outcome

        monkeypatch.setattr(engine, "run", run)
        return made

    return install


def failed(stage: Stage) -> Outcome:
    return Outcome({}, CanaryFailed(stage, "what was seen", "where to look"))


def test_success_is_one_line_and_0(run: Run, ends: Ends) -> None:
    made = ends(WELL)
    result = run("canary", URL)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "OK - 12 ms | connect=0.0030s registration=0.0040s delivery=0.0050s\n"
    assert made == [Check(URL, "redis://127.0.0.1:6379/0")]


@pytest.mark.parametrize("stage", Stage)
def test_each_failing_stage_is_one_line_and_1(run: Run, ends: Ends, stage: Stage) -> None:
    ends(failed(stage))
    result = run("canary", URL)
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout == f"FAILED - {stage}: what was seen; where to look\n"


@pytest.mark.parametrize(
    ("outcome", "options", "code", "word"),
    [
        (WELL, ("--warning", "1", "--critical", "2"), 0, "OK"),
        (WELL, ("--warning", "0.01"), 1, "WARNING"),
        (WELL, ("--critical", "0.01"), 2, "CRITICAL"),
        (failed(Stage.TCP), ("--critical", "5"), 2, "CRITICAL"),
    ],
)
def test_with_thresholds_the_exit_codes_are_those_of_nagios(
    run: Run, ends: Ends, outcome: Outcome, options: tuple[str, ...], code: int, word: str
) -> None:
    ends(outcome)
    result = run("canary", URL, *options)
    assert result.exit_code == code
    assert result.stdout.startswith(f"{word} - ")
    assert result.stdout.count("\n") == 1


def test_what_is_checked(run: Run, ends: Ends, tmp_path: Path) -> None:
    made = ends(WELL)
    ca, url = tmp_path / "ca.pem", tmp_path / "url"
    ca.touch()
    url.write_text("redis://:secret@redis.example\n")
    options = ("--origin", "HTTPS://Bank.example:443", "--ca-file", str(ca), "--timeout", "3")
    run("canary", URL, *options, "--channel-prefix", "x:", "--redis-file", str(url))
    run("canary", URL, GATEWAY_REDIS="redis+cluster://one,two")
    assert made == [
        Check(URL, "redis://:secret@redis.example", "x:", "https://bank.example", str(ca), 3.0),
        Check(URL, "redis+cluster://one,two"),
    ]


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ((), "Missing argument 'URL'"),
        (("https://bank.example/ws",), "URL must be ws://… or wss://…"),
        (("ws://:80/ws",), "URL must be ws://… or wss://…"),
        (("ws://bank.example:port/ws",), "URL must be ws://… or wss://…"),
        ((URL, "--origin", "bank.example"), "--origin: 'bank.example' is not an origin"),
        ((URL, "--ca-file", "/no/such/file"), "does not exist"),
        ((URL, "--timeout", "0"), "--timeout"),
        ((URL, "--warning", "0"), "--warning"),
        ((URL, "--warning", "5", "--critical", "1"), "--warning must not be above --critical"),
        ((URL, "--every", "0.5"), "--every"),
        ((URL, "--listen", ":9099"), "--listen needs --every SECONDS"),
        ((URL, "--every", "30", "--warning", "1"), "are for a single check"),
        ((URL, "--every", "30", "--listen", "9099"), "such as :9099"),
        ((URL, "--every", "30", "--listen", ":99999"), "such as :9099"),
        ((URL, "--redis", "embedded"), "canary needs the URL of a Redis that runs"),
        ((URL, "--redis", "localhost"), "write redis://host:port/db"),
    ],
)
def test_it_refuses_what_makes_no_sense(run: Run, arguments: tuple[str, ...], right: str) -> None:
    result = run("canary", *arguments)
    assert result.exit_code == 2
    assert right in result.stderr


def test_a_real_check_of_nothing_is_one_line(run: Run) -> None:
    port = free_port()
    result = run("canary", f"ws://127.0.0.1:{port}/ws", "--redis", f"redis://127.0.0.1:{port}")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout == (
        f"FAILED - tcp: connection refused at 127.0.0.1 port {port}; does the proxy run?\n"
    )


# Again and again


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The signals and the log as before: uvloop does not restore handlers."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    "listen", [(), ("--listen", "127.0.0.1:0"), ("--listen", "[::1]:0"), ("--listen", ":0")]
)
def test_again_and_again_until_a_signal(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listen: tuple[str, ...]
) -> None:
    """The file with the URL of Redis is read again for each check."""
    made: Checks = []
    file = tmp_path / "url"
    file.write_text("redis://:first@redis.example")

    async def check(made_check: Check) -> Outcome:
        made.append(made_check)
        file.write_text("" if len(made) == 2 else f"redis://:after-{len(made)}@redis.example")
        if len(made) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return WELL

    monkeypatch.setattr(engine, "run", check)
    monkeypatch.setattr("gateway.canary.service.asyncio.sleep", no_sleep)
    result = run("canary", URL, "--every", "30", *listen, "--redis-file", str(file))
    assert (result.exit_code, result.stderr, result.exception) == (0, "", None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  OK - 12 ms \| .*\n", result.stdout)
    first = Check(URL, "redis://:first@redis.example")
    after_1 = replace(first, redis="redis://:after-1@redis.example")
    assert made[:4] == [
        first,
        after_1,
        after_1,  # the file is empty now
        replace(first, redis="redis://:after-3@redis.example"),
    ]


turn = asyncio.sleep


async def no_sleep(_seconds: float) -> None:
    """What stands between two checks."""
    await turn(0)


@pytest.mark.usefixtures("restored")
def test_a_port_that_is_taken(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("canary", URL, "--every", "30", "--listen", f"127.0.0.1:{port}")
    assert result.exit_code == 1
    assert result.stderr == f"Error: --listen: port {port} on 127.0.0.1 is taken\n"


def test_only_changes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    changes = Changes()
    for outcome in (WELL, WELL, failed(Stage.TCP), failed(Stage.TCP), failed(Stage.TLS), WELL):
        changes(outcome)
    lines = [line[21:].partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert [line.partition(" |")[0] for line in lines] == [
        "OK - 12 ms",
        "FAILED - tcp",
        "FAILED - tls",
        "OK - 12 ms",
    ]
