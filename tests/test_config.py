"""Settings: defaults, what is accepted, what is complained of, and what is told of secrets."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway import config as settings
from gateway.config import SETTINGS, Config, build, normalise_origin
from gateway.errors import ConfigError
from gateway.redis.url import redact
from gateway.tokens.keys import KeySet

from .paths import DOCS

DOCUMENT = DOCS / "configuration.md"


def complaint(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        build(values)
    return str(caught.value)


def test_a_file_that_goes_on_is_no_token(tmp_path: Path) -> None:
    """Its beginning would be taken for one that nobody knows."""
    file = tmp_path / "token"
    file.write_text("x" * (settings.MAX_SECRET + 1))
    assert "one line with the token: 16 characters or more" in complaint(publish_token_file=str(file))


def test_braces_in_the_prefix_would_put_all_ids_into_one_slot() -> None:
    prefix = {"channel_prefix": "ws:{login}:"}
    assert "one slot" in complaint(redis="redis+cluster://a,b", **prefix)
    assert build({"redis": "redis://a", **prefix}).channel_prefix == "ws:{login}:"


def test_the_defaults_are_right() -> None:
    assert build({}) == Config()
    assert settings.remarks(Config()) == []


@pytest.mark.parametrize(
    ("value", "modes"),
    [
        ("open", ("open",)),
        ("announced", ("announced",)),
        (" announced , signed ", ("announced", "signed")),
        (("signed", "announced"), ("signed", "announced")),
    ],
)
def test_who_may_register(value: object, modes: tuple[str, ...], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"k" * 32)
    more = {"registration_keys": str(keys)} if "signed" in modes else {}
    assert build({"registration": value, **more}).registration == modes


@pytest.mark.parametrize("value", ["", ",", "closed", "announced,closed", "Announced"])
def test_who_may_register_has_few_words(value: str) -> None:
    assert complaint(registration=value).endswith(": write open, announced, signed, or announced,signed")


def test_an_open_node_asks_for_nothing_else() -> None:
    assert "open admits every id: write it alone" in complaint(registration="open,announced")


def test_texts_become_values() -> None:
    config = build(
        {
            "port": "0",
            "heartbeat": "0.5",
            "trusted_proxies": ("10.0.0.0/8, 192.0.2.7", "2001:db8::/32"),
            "allowed_origins": "same-origin,HTTPS://Bank.Example:443",
        }
    )
    assert (config.port, config.heartbeat) == (0, 0.5)
    assert config.trusted_proxies == tuple(
        ipaddress.ip_network(text) for text in ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32")
    )
    assert config.allowed_origins == ("same-origin", "https://bank.example")


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Config().port = 1  # type: ignore[misc]


def test_all_mistakes_are_told_at_once_by_flag_variable_and_value() -> None:
    text = complaint(port="80a", heartbeat="10s", log_level="loud", trusted_proxies="10.1.2.3/8", node="a b")
    lines = text.splitlines()
    assert lines[0] == "5 settings are wrong:"
    assert "  --port (GATEWAY_PORT) is '80a': must be a whole number from 0 to 65535" in lines
    assert (
        "  --heartbeat (GATEWAY_HEARTBEAT) is '10s': must be a number of seconds above 0, to 86400" in lines
    )
    assert "  --log-level (GATEWAY_LOG_LEVEL) is 'loud': must be one of debug, info, warning, error" in lines
    assert "write 10.0.0.0/8 for the network" in text
    assert "--node (GATEWAY_NODE) is 'a b': must be at most 100 printable" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("admin_port", "8080"),  # the public port's default
        ("port", "8081"),  # the admin port's default
        ("host", ""),
        ("heartbeat", "0"),
        ("heartbeat", "nan"),
        ("heartbeat", "25000000"),
        ("drain_delay", "-1"),
        ("max_sessions", "0"),
        ("max_sessions", "1.5"),
        ("max_message_size", "10"),
        ("channel_prefix", ""),
        ("channel_prefix", "web socket:"),
        ("channel_prefix", "x" * 65),
        ("channel_prefix", "ä"),
        ("allowed_origins", ""),
        ("allowed_origins", "*,https://a.example"),
        ("allowed_origins", "https://a.example/path"),
        ("allowed_origins", "https://*.example"),
        ("trusted_proxies", "proxy"),
        ("log_format", "xml"),
        ("tracing", "zipkin"),
        ("colour", "red"),
    ],
)
def test_mistakes(name: str, value: str) -> None:
    assert name.replace("_", "-") in complaint(**{name: value}).replace("_", "-")


def test_a_clash_of_ports_is_told_with_the_other_mistakes() -> None:
    text = complaint(port="8081", heartbeat="10s")
    assert text.startswith("2 settings are wrong:")
    assert "--admin-port (GATEWAY_ADMIN_PORT) is '8081': the public port has the same number" in text


@pytest.mark.parametrize(
    "zero",
    ["port", "admin_port", "max_sessions_per_ip", "max_sessions_per_id", "drain_delay", "drain_seconds"],
)
def test_zero_is_allowed_where_it_means_something(zero: str) -> None:
    assert getattr(build({zero: "0"}), zero) == 0


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://redis",
        "redis://user:p%40ss@redis:6380/2",
        "rediss://redis?ssl_cert_reqs=none",
        "redis://[::1]:6379",
        "unix:///run/redis.sock?db=1",
        "redis+sentinel://user:p%40ss@a,b:26380,[::1]/mymaster/2?sentinel_password=s",
        "rediss+cluster://a,b:6380?ssl_cert_reqs=none",
        "embedded",
    ],
)
def test_redis_urls(url: str) -> None:
    assert build({"redis": url}).redis == url


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("redis+sentinel://a,b", "name of the master is missing"),
        ("redis+sentinel://a,b/mymaster/zero", "number of the database"),
        ("redis+sentinel://a,,b/mymaster", "write the hosts"),
        ("redis+sentinel://a:0/mymaster", "a port must be 1 to 65535"),
        ("redis+sentinel://a/mymaster?no_such_option=1", "is not valid"),
        ("redis+cluster://a,b/1", "only database 0"),
        ("unix+cluster:///run/redis.sock", "write redis://host:port/db"),
        ("localhost:6379", "write redis://host:port/db"),
        ("http://redis", "write redis://host:port/db"),
        ("redis://", "write redis://host:port/db"),
        ("redis://:6379", "names no host"),
        ("redis://redis/zero", "number of a database"),
        ("redis://redis:port", "is not valid"),
        ("redis://redis?no_such_option=1", "is not valid"),
        ("redis://redis?socket_timeout=soon", "is not valid"),
        ("redis://[::1", "is not valid"),
        ("rediss://redis?ssl_cert_reqs=sometimes", "is not valid"),
        ("unix://run/redis.sock", "absolute path"),
    ],
)
def test_wrong_redis_urls(url: str, right: str) -> None:
    assert right in complaint(redis=url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@redis",
        "redis://user:secret@redis:6379/0",
        "redis://user:sec/secret@redis",
        "redis://user:se@secret@redis/x",
        "rediss:user:secret@redis",
        "user:secret@redis:6379",
        "redis://redis?password=secret&db=0",
        "http://user:secret@redis",
        "redis://user:secret@redis:port",
        "redis+sentinel://:secret@a,b/mymaster",
        "redis+sentinel://a,b/mymaster?sentinel_password=secret",
        "redis+cluster://user:secret@a,b",
        "redis://secret@redis",
        "redis://user%3Asecret@redis",
        "redis://redis?pass%77ord=secret",
    ],
)
def test_a_password_is_shown_nowhere(url: str) -> None:
    assert "secret" not in redact(url)
    said = ""
    try:
        config = build({"redis": url})
        said = f"{config} {config!r} {config.shown()}"
    except ConfigError as error:
        said = str(error)
    assert said
    assert "secret" not in said
    with pytest.raises(ValidationError) as caught:
        Config(redis=url, port="x")
    assert "secret" not in str(caught.value)


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    for url in ("redis://redis:6379/0", "redis://redis:6379", "unix:///run/redis.sock", "embedded"):
        assert redact(url) == url


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://bank.example", "https://bank.example"),
        ("HTTPS://Bank.Example:443", "https://bank.example"),
        ("http://bank.example:80", "http://bank.example"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("ionic://localhost:8100", "ionic://localhost:8100"),
        ("app://.", "app://."),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("file://", "file://"),
        ("null", "null"),
        ("NULL", "null"),
        ("wss://bank.example", "https://bank.example"),
        ("wss://bank.example:443", "https://bank.example"),
        ("ws://bank.example:8080", "http://bank.example:8080"),
    ],
)
def test_origins_as_browsers_send_them(text: str, origin: str) -> None:
    assert normalise_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null://*",
        "nullx",
        "bank.example",
        "https://",
        "wss://",
        "https://:443",
        "file:///",
        "file:///index.html",
        "file://:1",
        "https://bank.example/",
        "https://bank.example?x",
        "https://user@bank.example",
        "https://*.bank.example",
        "https://bank.example:0",
        "https://bank.example:65536",
        "https://bänk.example",
        "https://a b",
    ],
)
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(ValueError):
        normalise_origin(text)


@given(st.text())
def test_any_text_is_an_origin_that_stays_or_a_value_error(text: str) -> None:
    try:
        origin = normalise_origin(text)
    except ValueError:
        return
    assert normalise_origin(origin) == origin


@given(st.sampled_from([setting.name for setting in SETTINGS]), st.text())
def test_any_text_is_a_setting_or_a_config_error(name: str, text: str) -> None:
    try:
        config = build({name: text})
    except ConfigError:
        return
    assert "***" in config.shown()[name] or build({name: config.shown()[name]}) == config


@pytest.mark.parametrize("end", ["", "\n", "\r\n", " \n\n"])
def test_the_url_of_redis_is_given_or_stands_in_a_file(end: str, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_bytes(f"redis://:secret@one/1{end}".encode())
    config = build({"redis_file": str(file)})
    assert config.redis == "redis://:secret@one/1"
    assert config.shown()["redis"] == "redis://:***@one/1"
    assert "secret" not in f"{config} {config.shown()}"
    assert Config(redis_file=str(file)) == config, "whoever makes a Config gets the URL in the file"


def test_files_are_read_again(tmp_path: Path) -> None:
    url, token = tmp_path / "url", tmp_path / "token"
    url.write_text("redis://one")
    token.write_text("0123456789abcdef")
    config = build({"redis_file": str(url), "publish_token_file": str(token), "port": 1})
    url.write_text("redis://two")
    again = config.reread()
    assert (again.redis, again.port, config.redis) == ("redis://two", 1, "redis://one")
    url.write_text("one two")
    token.unlink()
    with pytest.raises(ConfigError) as caught:
        config.reread()
    assert "--redis-file (GATEWAY_REDIS_FILE)" in str(caught.value)
    assert "--publish-token-file (GATEWAY_PUBLISH_TOKEN_FILE)" in str(caught.value)
    assert build({"redis": "redis://fixed"}).reread().redis == "redis://fixed"


@pytest.mark.parametrize(
    ("content", "right"),
    [
        ("", "one line with the URL of Redis"),
        ("redis://secret@a\nredis://secret@b", "one line with the URL of Redis"),
        ("redis://secret\N{SNOWMAN}", "one line with the URL of Redis"),
        ("redis://" + "a" * settings.MAX_SECRET, "one line with the URL of Redis"),
        ("embedded", "one line with the URL of Redis"),
        ("redis:secret", "write redis://host:port/db"),
        ("redis://:secret@a/zero", "number of a database"),
    ],
    ids="1234567",
)
def test_a_wrong_file_is_named_and_not_quoted(content: str, right: str, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(content)
    said = complaint(redis_file=str(file))
    assert f"--redis-file (GATEWAY_REDIS_FILE) is '{file}': " in said
    assert right in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "secret",
    [
        "redis://:secret@redis:6379",
        "redis://secret@redis",
        "secretsecretsecret/Q2+x==",
        "/secret+secret/secretsecret==",
        "/secretsecretsecret",
        "secretsecretsecret" * 300,
    ],
)
@pytest.mark.parametrize("setting", ["redis_file", "publish_token_file"])
def test_a_secret_in_place_of_its_file_is_not_told(setting: str, secret: str) -> None:
    said = complaint(**{setting: secret})
    assert f"(GATEWAY_{setting.upper()}) is '***': the file cannot be read" in said
    assert "secret" not in said


def test_a_file_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secrets").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (f"{tmp_path}/none", "secrets/none", "secrets"):
        assert f"(GATEWAY_REDIS_FILE) is '{path}': the file cannot be read" in complaint(redis_file=path)


def test_a_url_and_a_file_with_one_are_one_too_many(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("redis://one")
    assert "set only one" in complaint(redis="redis://two", redis_file=str(file))
    assert "the file cannot be read: No such file" in complaint(redis_file=str(tmp_path / "none"))
    assert "the file cannot be read: Is a directory" in complaint(redis_file=str(tmp_path))


def test_a_variable_that_is_no_setting_gets_the_likely_name() -> None:
    environment = {"GATEWAY_PROT": "1", "GATEWAY_PORT": "1", "GATEWAY_XYZZY": "1", "HOME": "/"}
    assert settings.unknown_variables(environment) == [
        "GATEWAY_PROT is not a setting and has no effect; did you mean GATEWAY_PORT?",
        "GATEWAY_XYZZY is not a setting and has no effect",
    ]


def test_kubernetes_variables_are_recognised() -> None:
    assert "enableServiceLinks" in complaint(port="tcp://10.0.0.1:8080")


def test_pages_without_an_origin_are_remarked_on() -> None:
    (remark,) = settings.remarks(build({"allowed_origins": "null,https://bank.example"}))
    assert "sandboxed frame" in remark


@pytest.mark.parametrize("level", ["warning", "error"])
def test_a_log_level_that_leaves_audit_lines_out_is_remarked_on(level: str) -> None:
    (remark,) = settings.remarks(build({"publish_token": "0123456789abcdef", "log_level": level}))
    assert "audit" in remark
    assert settings.remarks(build({"publish_token": "0123456789abcdef"})) == []
    assert settings.remarks(build({"log_level": level})) == []


@pytest.mark.parametrize(
    "names", ["*,gateway", "http://gateway", "gateway:8081", "*.internal", "a b", "[::1]"]
)
def test_what_is_no_name_of_the_admin_port(names: str) -> None:
    assert "--admin-hosts (GATEWAY_ADMIN_HOSTS)" in complaint(admin_hosts=names)


@pytest.mark.parametrize(
    "host", ["a..b", ".", ".a", "a" * 64, "a b", "http://a", "[::1]:80", "0.0.0.0:80", ","]
)
def test_what_is_nowhere_to_listen(host: str) -> None:
    """Not even the system's look-up would take some of them."""
    for setting in ("host", "admin_host"):
        assert "write host names or IP addresses without a port" in complaint(**{setting: host})


def test_where_to_listen() -> None:
    given = "0.0.0.0, [::], ::1,fe80::1%eth0,gw-1.bank.example,_x,localhost.,::ffff:10.0.0.1"
    expected = (
        "0.0.0.0",
        "::",
        "::1",
        "fe80::1%eth0",
        "gw-1.bank.example",
        "_x",
        "localhost.",
        "::ffff:10.0.0.1",
    )
    assert build({"host": given}).host == expected


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.5"])
def test_an_address_among_the_names_of_the_admin_port_was_meant_for_another_setting(address: str) -> None:
    assert f"to listen on {address}, write --admin-host (GATEWAY_ADMIN_HOST)" in complaint(
        admin_hosts=f"gateway,{address}"
    )


def test_remarks_on_what_is_seldom_meant() -> None:
    remarks = settings.remarks(Config(allowed_origins="*", write_buffer=2048))
    assert len(remarks) == 2
    assert "every web site" in remarks[0]
    assert "--write-buffer" in remarks[1]


@pytest.mark.parametrize("token", ["0123456789abcdef", "A-z0.9_~+/xxxxxxxx=="])
def test_a_token_is_given_or_stands_in_a_file(token: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token + "\n")
    assert build({"publish_token": token}).token() == token
    config = build({"publish_token_file": str(file)})
    assert config.token() == token
    for shown in (repr(build({"publish_token": token})), repr(config), *config.shown().values()):
        assert token not in shown
    file.unlink()
    with pytest.raises(ConfigError, match="the file cannot be read: No such file"):
        config.token()
    assert build({}).token() == ""


@pytest.mark.parametrize(
    "token",
    ["tooShort", "0123456789 abcdef", "0123456789abcdé", "=" * 20, ""],
    ids="12345",
)
def test_what_is_no_token(token: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    said = complaint(publish_token_file=str(file))
    assert "one line with the token: 16 characters or more" in said
    if token:
        assert token not in said
        assert "'***': must be 16 characters or more" in complaint(publish_token=token)
    assert "the file cannot be read" in complaint(publish_token_file=str(tmp_path))
    assert "set only one" in complaint(publish_token="0123456789abcdef", publish_token_file=str(file))


def test_the_nodes_name() -> None:
    assert Config(node="n1").node_name(8080) == "n1"
    assert Config().node_name(8080).endswith(":8080")


def test_every_setting_has_all_that_is_derived_from_it() -> None:
    assert {setting.name for setting in SETTINGS} == set(Config.model_fields)
    for setting in SETTINGS:
        assert setting.help.endswith("."), setting.name
        assert setting.group
        assert setting.metavar.isupper()
        assert build({setting.name: setting.default or setting.field.default}) == Config()


def test_the_reference_page_is_up_to_date() -> None:
    text = DOCUMENT.read_text()
    assert settings.with_table(text) == text, (
        "run: python -m gateway config --markdown --into docs/configuration.md"
    )
    assert settings.table() in text


def test_a_document_without_the_marks_is_left_alone() -> None:
    assert settings.with_table("nothing\n") == "nothing\n"


# Signed registrations

SECRET = "a-secret-that-only-the-backend-and-the-nodes-have"

PUBLIC_KEY = """\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""


def mistake(**values: object) -> str:
    text = complaint(**values)
    assert SECRET not in text
    assert text.startswith("1 setting is wrong:")
    return text


def test_signed_needs_keys_and_keys_need_signed(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(SECRET)
    for modes in ("signed", "announced,signed", ("signed",)):
        config = build({"registration": modes, "registration_keys": str(file)})
        keys = config.verification_keys()
        assert keys is not None
        assert keys.algorithms == {"HS256"}
        assert config.shown()["registration_keys"] == str(file)
        assert SECRET not in f"{config!r} {config.shown()}"
        assert "--registration-keys (GATEWAY_REGISTRATION_KEYS) is ''" in mistake(registration=modes)
    assert build({}).verification_keys() is None
    for modes in ("open", "announced"):
        text = mistake(registration=modes, registration_keys=str(file))
        assert "no effect without --registration signed" in text
    # What is wrong with the one setting is no mistake of the other.
    assert "--registration (" in mistake(registration="singed", registration_keys=str(file))


def test_keys_that_cannot_be_used_are_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("short")
    assert "must have 32 to 1024" in mistake(registration="signed", registration_keys=str(file))
    file.unlink()
    assert "cannot be read: No such file" in mistake(registration="signed", registration_keys=str(file))
    text = mistake(registration="signed", registration_keys=SECRET)  # the secret itself in place of its file
    assert "***" in text


def test_the_keys_are_those_of_the_time_at_which_the_settings_were_read(tmp_path: Path) -> None:
    """A worker that is started later gets the settings, and the file may be broken by then."""
    file = tmp_path / "keys"
    file.write_text(SECRET)
    config = build({"registration": "signed", "registration_keys": str(file)})
    keys = config.verification_keys()
    file.write_text("broken")
    assert config.verification_keys() is keys
    assert config.model_copy(update={"redis": "redis://other"}).verification_keys() is keys
    file.write_text(SECRET[::-1])
    again = config.reread().verification_keys()
    assert again is not None
    assert again.keys[0].material == SECRET[::-1].encode()


def test_a_broken_file_of_keys_holds_up_no_other_file(tmp_path: Path) -> None:
    keys, url = tmp_path / "keys", tmp_path / "url"
    keys.write_text(SECRET)
    url.write_text("redis://one")
    config = build({"registration": "signed", "registration_keys": str(keys), "redis_file": str(url)})
    assert config.keys_problem() == ""
    keys.write_text("broken")
    url.write_text("redis://two")
    again = config.reread()
    assert again.redis == "redis://two"
    assert again.verification_keys() is config.verification_keys()
    assert again.keys_problem().startswith("--registration-keys (GATEWAY_REGISTRATION_KEYS): a secret for")
    assert again.reread().verification_keys() is config.verification_keys()
    keys.write_text(SECRET[::-1])
    assert again.reread().keys_problem() == ""
    url.write_text("one two")
    with pytest.raises(ConfigError, match="--redis-file"):
        config.reread()


def test_public_keys_become_a_secret_only_at_a_start(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(PUBLIC_KEY)
    values = {"registration": "signed", "registration_keys": str(file)}
    config = build(values)
    file.write_text(SECRET)
    again = config.reread()
    assert again.verification_keys() is config.verification_keys()
    assert "had public keys" in again.keys_problem()
    started = build(values).verification_keys()
    assert started is not None
    assert started.algorithms == {"HS256"}


def test_keys_that_are_broken_just_after_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(SECRET)
    read = settings._read_keys

    def reading(path: str, before: KeySet | None = None) -> object:
        keys = read(path, before)
        file.write_text("broken")
        return keys

    monkeypatch.setattr(settings, "_read_keys", reading)
    text = complaint(registration="signed", registration_keys=str(file))
    assert text.startswith("--registration-keys (GATEWAY_REGISTRATION_KEYS): a secret for HS256 has 6 bytes")


@pytest.mark.parametrize("module", ["jwt", "cryptography.hazmat.primitives.asymmetric.ec"])
def test_signed_without_the_library_names_the_extra(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text(SECRET)
    monkeypatch.delitem(sys.modules, "gateway.tokens.keys", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    expected = "pip install 'webflow-gateway[jwt]'"
    assert expected in mistake(registration="signed", registration_keys=str(file))
