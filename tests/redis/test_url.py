"""Where Redis is, as its URL says."""

from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.redis.url import Address, RedisKind, parse_redis_url, redact, told_address

CREDENTIALS = "user:p%40ss%3A"


@pytest.mark.parametrize("url", ["redis://redis:1/2", "rediss://redis", "unix:///run/redis.sock"])
def test_one_server_is_left_to_redis_py(url: str) -> None:
    found = parse_redis_url(url)
    assert (found.kind, found.text, found.addresses) == (RedisKind.SERVER, url, ())


def test_sentinels() -> None:
    found = parse_redis_url(
        f"redis+sentinel://{CREDENTIALS}@a,b:26380,[::1]:5/my%20master/3?socket_timeout=1"
    )
    assert found.kind is RedisKind.SENTINEL
    assert found.addresses == (Address("a", 26379), Address("b", 26380), Address("::1", 5))
    assert found.service == "my master"
    assert found.server(Address("c", 7)) == f"redis://{CREDENTIALS}@c:7/3?socket_timeout=1"
    assert found.sentinel(found.addresses[2]) == "redis://[::1]:5?socket_timeout=1"


def test_sentinels_have_credentials_of_their_own_and_the_same_tls() -> None:
    found = parse_redis_url(
        "rediss+sentinel://:pw@a/m?ssl_ca_certs=/x&sentinel_username=s&sentinel_password=a%2Fb"
    )
    assert found.sentinel(found.addresses[0]) == "rediss://s:a%2Fb@a:26379?ssl_ca_certs=%2Fx"
    assert found.server(Address("c", 7)) == "rediss://:pw@c:7?ssl_ca_certs=%2Fx"


def test_a_cluster() -> None:
    found = parse_redis_url("redis+cluster://:pw@a, b:7000,a")
    assert found.kind is RedisKind.CLUSTER
    assert found.addresses == (Address("a", 6379), Address("b", 7000)), "each once"
    assert found.server(Address("::1", 7000)) == "redis://:pw@[::1]:7000"
    assert parse_redis_url("redis+cluster://a/0").addresses == (Address("a", 6379),)


@pytest.mark.parametrize(
    "url", ["redis+cluster://", "redis+cluster://a,,b", "redis+cluster://a:x", "redis+cluster://a:65536"]
)
def test_hosts_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"host|port"):
        parse_redis_url(url)


# What is shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        # Nothing to hide
        ("embedded", "embedded"),
        ("redis://redis:6379/0", "redis://redis:6379/0"),
        ("rediss://[::1]:6379?ssl_cert_reqs=none&db=3", "rediss://[::1]:6379?ssl_cert_reqs=none&db=3"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("redis+sentinel://a, b:5/my%20master/2", "redis+sentinel://a, b:5/my%20master/2"),
        ("redis+cluster://a,b:7000", "redis+cluster://a,b:7000"),
        # The password in its place
        ("redis://:secret@redis/1", "redis://:***@redis/1"),
        ("redis://user:secret@redis/1", "redis://user:***@redis/1"),
        ("unix://user:secret@/run/redis.sock", "unix://user:***@/run/redis.sock"),
        ("redis+cluster://user:se@cret@a,b", "redis+cluster://user:***@a,b"),
        # Where many write it
        ("redis://secret@redis", "redis://***@redis"),
        ("redis://secret:@redis", "redis://***@redis"),
        ("redis://user%3Asecret@redis", "redis://***@redis"),
        ("redis://us%65r:secret@redis", "redis://***@redis"),
        # Options: by their decoded names; the unknown ones with their names
        ("redis://redis?password=secret&db=0", "redis://redis?password=***&db=0"),
        ("redis://redis?pass%77ord=secret", "redis://redis?password=***"),
        ("redis://redis?Password=secret", "redis://redis?***"),
        ("redis://redis?secret", "redis://redis?***"),
        ("redis://redis?credentials=secret&db=0", "redis://redis?***&db=0"),
        ("redis://redis?db=secret%00", "redis://redis?***"),
        ("redis+sentinel://a/m?sentinel_username=secret", "redis+sentinel://a/m?sentinel_username=***"),
        # Parts that are wrong
        ("redis://redis/secret", "redis://redis/***"),
        ("redis://user:secret", "redis://***"),
        ("redis://redis,user:secret", "redis://redis,***"),
        # Nobody can tell where the password ends
        ("redis://user:1/secret@redis", "***"),
        ("redis://user:1?secret@redis", "***"),
        ("redis://user:1#secret@redis", "***"),
        ("redis://user:1/secret%40redis", "***"),
        ("user:secret@redis:6379", "***"),
        ("rediss:user:secret@redis", "***"),
        ("http://user:secret@redis", "***"),
        ("secret", "***"),
        ("", "***"),
    ],
)
def test_only_what_is_harmless_is_shown(url: str, shown: str) -> None:
    assert redact(url) == shown


@given(
    st.integers(0, 255).map(
        lambda mask: "".join(f"%{ord(c):02x}" if mask >> i & 1 else c for i, c in enumerate("s3cretPW"))
    ),
    st.sampled_from(
        [
            "redis://{}@redis",
            "redis://:{}@redis/0",
            "redis://u%3A{}@redis",
            "redis://user:1/{}@redis",
            "redis://user:a?{}@redis",
            "redis://redis?{}=1",
            "redis://redis?password={}",
            "redis://redis?pass%77ord={}&db=0",
            "redis://redis?a={}&b={}",
            "redis://redis/{}",
            "redis://redis:{}",
            "redis+cluster://a,:{}@b",
            "redis+sentinel://a,b/mymaster?sentinel_%70assword={}",
            "redis+sentinel://{}@a,b/mymaster",
            "rediss://redis?ssl_password={}",
            "unix://{}@/run/redis.sock",
            "redis:{}@redis",
            "{}",
        ]
    ),
)
def test_a_password_is_not_shown_however_it_is_written(secret: str, form: str) -> None:
    shown = redact(form.replace("{}", secret))
    assert "s3cretPW" not in unquote(shown)
    assert secret not in shown


@given(st.text())
def test_any_text_can_be_shown(text: str) -> None:
    for url in (text, f"redis://{text}", f"redis+sentinel://a/{quote(text)}"):
        assert isinstance(redact(url), str)


def test_a_parsed_url_is_printed_without_its_password() -> None:
    assert repr(parse_redis_url("redis+sentinel://u:secret@a/m")) == "RedisURL(redis+sentinel://u:***@a/m)"


@pytest.mark.parametrize("host", ["10.0.0.1", "::1", "fe80::1", "redis-1.example", "a_b"])
def test_an_address_that_a_server_names(host: str) -> None:
    assert told_address(host.encode(), 6_379) == Address(host, 6_379)


@pytest.mark.parametrize(
    ("host", "port"),
    [(b"", 1), (b"a b", 1), (b"me:p@ss@h", 1), (b"a/b", 1), (b"a" * 256, 1), ("a", 1), (None, 1)]
    + [(b"a", port) for port in (0, -1, 65_536, b"1", None, True)],
    ids=str,
)
def test_an_address_that_no_server_has(host: object, port: object) -> None:
    with pytest.raises(ValueError, match="a server was named"):
        told_address(host, port)


@pytest.mark.parametrize(
    ("url", "same", "other"),
    [
        ("redis://node:old@h:1/0", "redis://other:new@h:1/0?socket_timeout=1", "redis://node:old@h:2/0"),
        ("redis://h:1/0", "redis://:new@h:1/0", "rediss://h:1/0"),
        ("redis://h:1/0", "redis://:new@h:1/0", "redis://h:1/1"),
        ("unix:///run/redis", "unix://node:new@/run/redis", "unix:///run/valkey"),
        (
            "redis+sentinel://a,b/m",
            "redis+sentinel://:new@a,b/m?sentinel_password=x",
            "redis+sentinel://a,b/n",
        ),
        ("redis+cluster://a,b", "redis+cluster://:new@a,b", "redis+cluster://a,c"),
    ],
)
def test_user_password_and_options_lead_to_no_other_place(url: str, same: str, other: str) -> None:
    assert parse_redis_url(url).place == parse_redis_url(same).place != parse_redis_url(other).place
