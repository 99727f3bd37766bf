"""Where Redis is, as its URL says."""

from __future__ import annotations

import pytest

from gateway.redis.url import Address, RedisKind, parse_redis_url

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
