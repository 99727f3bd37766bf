"""The command config."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gateway.config import SETTINGS

from .conftest import Run

TOKEN = "0123456789abcdef+/=="


def test_config_tells_where_each_value_came_from(run: Run) -> None:
    result = run("config", "--json", "--port", "9000", GATEWAY_NODE="n1", GATEWAY_HEARTBEAT="")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert list(shown) == [setting.name for setting in SETTINGS]
    assert shown["port"] == {"value": "9000", "from": "--port"}
    assert shown["node"] == {"value": "n1", "from": "GATEWAY_NODE"}
    assert shown["heartbeat"] == {"value": "25", "from": "default"}


def test_a_flag_goes_before_its_variable(run: Run) -> None:
    shown = json.loads(run("config", "--json", "--port", "1", GATEWAY_PORT="2").stdout)
    assert shown["port"] == {"value": "1", "from": "--port"}


def test_every_setting_has_a_flag_and_a_variable(run: Run, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    url_file = tmp_path / "url"
    url_file.write_text("redis://r")
    for setting in SETTINGS:
        value = {"allowed_origins": "https://a.example", "trusted_proxies": "10.0.0.0/8"}.get(setting.name)
        value = value or {
            "log_level": "debug",
            "log_format": "json",
            "tracing": "otlp",
            "registration": "announced",
            "redis": "redis://r",
            "sockjs_url": "/s.js",
            "workers": "3",
            "publish_token_file": str(token_file),
            "redis_file": str(url_file),
            "events": "redis",
            "event_streams": "17",
        }.get(setting.name, "4097")
        if setting.name in ("publish_token", "registration_keys"):
            continue  # the one is not shown, the other needs --registration signed; see below
        for result in (
            run("config", "--json", setting.flag, value),
            run("config", "--json", **{setting.variable: value}),
        ):
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)[setting.name]["value"] == value
            assert json.loads(result.stdout)[setting.name]["from"] != "default"


def test_signed_registrations(run: Run, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-secret-that-only-the-backend-and-the-nodes-have")
    for result in (
        run("config", "--json", "--registration", "signed", "--registration-keys", str(keys)),
        run("config", "--json", GATEWAY_REGISTRATION="signed", GATEWAY_REGISTRATION_KEYS=str(keys)),
    ):
        assert result.exit_code == 0, result.output
        shown = json.loads(result.stdout)
        assert (shown["registration"]["value"], shown["registration_keys"]["value"]) == ("signed", str(keys))
    result = run("config", "--check", "--registration", "signed")
    assert result.exit_code == 2
    assert "--registration-keys (GATEWAY_REGISTRATION_KEYS)" in result.stderr


def test_the_token_is_not_shown(run: Run) -> None:
    for result in (
        run("config", "--publish-token", TOKEN),
        run("config", "--json", GATEWAY_PUBLISH_TOKEN=TOKEN),
        run("config", "--port", "x", "--publish-token", TOKEN),
        run("config", "--publish-token", "secret token"),
        run("config", "--publish-token", TOKEN, "--publish-token-file", "/nowhere"),
    ):
        assert TOKEN not in result.output
        assert "secret" not in result.output
        assert "***" in result.output or "--port" in result.output or "set only one" in result.output


def test_lists_are_repeated_flags_or_commas(run: Run) -> None:
    expected = "https://a.example,https://b.example"
    for result in (
        run(
            "config",
            "--json",
            "--allowed-origins",
            "https://a.example",
            "--allowed-origins",
            "https://b.example",
        ),
        run("config", "--json", "--allowed-origins", "https://a.example, https://b.example"),
        run("config", "--json", GATEWAY_ALLOWED_ORIGINS="https://a.example,https://b.example"),
    ):
        assert json.loads(result.stdout)["allowed_origins"]["value"] == expected


def test_config_as_a_table_hides_the_password(run: Run) -> None:
    result = run("config", "--redis", "redis://:secret@redis:6379")
    assert "secret" not in result.output
    assert re.search(r"^redis +redis://:\*\*\*@redis:6379 +--redis$", result.stdout, re.MULTILINE)
    assert re.search(r"^node +none +default$", result.stdout, re.MULTILINE), "a cell is never empty"


def test_config_tells_that_the_url_is_from_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("redis://:secret@redis/1\r\n")
    shown = json.loads(run("config", "--json", GATEWAY_REDIS_FILE=str(file)).stdout)
    assert shown["redis"] == {"value": "redis://:***@redis/1", "from": "GATEWAY_REDIS_FILE"}


def test_config_check(run: Run) -> None:
    assert run("config", "--check").output == "The settings are right.\n"
    result = run("config", "--check", "--port", "80a", GATEWAY_HEARTBEAT="10s")
    assert result.exit_code == 2
    assert "2 settings are wrong" in result.stderr
    assert "--port" in result.stderr
    assert "GATEWAY_HEARTBEAT" in result.stderr


def test_config_check_warns_of_variables_that_are_no_settings(run: Run) -> None:
    result = run("config", "--check", GATEWAY_PROT="1")
    assert result.exit_code == 0
    assert "GATEWAY_PROT is not a setting and has no effect; did you mean GATEWAY_PORT?" in result.stderr
    result = run("config", "--check", "--heartbeat", "10s", GATEWAY_PROT="1")
    assert result.exit_code == 2
    assert "--heartbeat" in result.stderr
    assert "GATEWAY_PROT is not a setting" in result.stderr


@pytest.mark.parametrize(("flag", "port"), [("--port", "8081"), ("--admin-port", "8080")])
def test_config_check_finds_ports_that_clash_with_a_default(run: Run, flag: str, port: str) -> None:
    result = run("config", "--check", flag, port)
    assert result.exit_code == 2
    assert "the public port has the same number" in result.stderr


def test_config_markdown_into_a_file(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- settings -->\nyesterday\n<!-- /settings -->\nafter\n")
    assert run("config", "--markdown", "--into", str(page)).output == ""
    text = page.read_text()
    assert text.startswith("before\n<!-- settings -->\n")
    assert run("config", "--markdown").stdout in text
    assert "yesterday" not in text


def test_help_lists_the_settings_by_group(run: Run) -> None:
    text = run("serve", "--help").stdout
    assert re.search(r"^Listening:\n  --host ADDRESS", text, re.MULTILINE)
    assert [text.count(setting.variable) >= 1 for setting in SETTINGS] == [True] * len(SETTINGS)
