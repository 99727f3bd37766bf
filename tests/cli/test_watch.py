"""The command watch."""

from __future__ import annotations

import json
import signal

import pytest

from gateway.cli.watch import print_json, print_sentence
from gateway.drill.fleet import NodeProcess, ValkeyProcess

from .conftest import Run
from .printing import Printing


def test_watch_refuses_what_makes_no_sense(run: Run) -> None:
    assert run("watch", "a b").exit_code == 2
    for url in ("http://localhost:8080/ws", "ws://[::1", "ws://localhost:port/ws", "ws://"):
        result = run("watch", "a", "--url", url)
        assert result.exit_code == 2
        assert "--url must be ws://" in result.stderr


def test_watch_prints_what_comes_until_ctrl_c(valkey: ValkeyProcess) -> None:
    with NodeProcess(valkey.url) as node:
        with Printing("watch", "seen", "--url", node.ws_url) as watching:
            watching.wait_for("registered seen")
            with Printing(
                "publish", "seen", "DONE", "--redis", valkey.url, "--message-id", "m", "--retain", "0"
            ) as p:
                assert p.ended() == 0
                assert p.out[0].startswith("1 node holds seen;")
            assert 'result DONE {"messageId":"m"}' in watching.wait_for("result")
            assert watching.interrupt() == 0
            assert watching.err == []
        with Printing("watch", "seen", "--url", node.ws_url, "--json") as watching:
            watching.wait_for("registered")
            node.signal(signal.SIGTERM)
            closed = json.loads(watching.wait_for("closed"))
            assert (closed["event"], closed["code"]) == ("closed", 1012)
            watching.wait_for("retrying")
            assert watching.interrupt() == 0
            assert [json.loads(line)["event"] for line in watching.out[:2]] == ["connected", "registered"]


def test_watch_ends_when_the_gateway_refuses_it(valkey: ValkeyProcess) -> None:
    with (
        NodeProcess(valkey.url) as node,
        Printing("watch", "a", "--url", node.ws_url, "--origin", "https://evil.example") as watching,
    ):
        assert watching.ended() == 4
        assert "HTTP 403" in watching.err[0]


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ({"event": "closed", "code": 1006, "reason": ""}, "closed with 1006"),
        ({"event": "closed", "code": 1013, "reason": "later"}, "closed with 1013: later"),
        ({"event": "unreachable", "reason": "HTTP 503"}, "cannot connect: HTTP 503"),
        ({"event": "retrying", "seconds": 0.5}, "retrying in 0.5 s"),
        ({"event": "problem", "code": "c", "message": "m"}, "error from the gateway: m (c)"),
        (
            {"event": "status", "push": "degraded"},
            "degraded: the node has lost Redis, so results may come late",
        ),
        ({"event": "status", "push": "restored"}, "restored: the node has Redis again"),
        ({"event": "status", "push": "new"}, 'received {"event":"status","push":"new"}'),
        ({"event": "message", "text": "\x1b[31m"}, 'received {"event":"message","text":"\\u001b[31m"}'),
        ({"event": "closed", "code": 1000, "reason": "\x1b"}, "closed with 1000: \\x1b"),
    ],
)
def test_watch_says(event: dict[str, object], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_sentence(event)
    assert capsys.readouterr().out[10:] == sentence + "\n"


def test_json_has_no_characters_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"event": "message", "text": "ř\x9b\u202e"})
    assert capsys.readouterr().out == '{"event":"message","text":"ř\\u009b\\u202e"}\n'
