"""The URL of Redis: one server, the Sentinels of a master, or the nodes of a Cluster. Pure.

    redis://[[user]:password@]host[:6379][/db][?options]
    unix:///path/to/socket[?options]
    redis+sentinel://[[user]:password@]host[:26379],…/service[/db][?options]
    redis+cluster://[[user]:password@]host[:6379],…[?options]

With rediss instead of redis they use TLS. User, password and options are those of the servers that hold the
results, in redis-py's notation (`ssl_ca_certs` and the like). The options `sentinel_username` and
`sentinel_password` are the credentials of the Sentinels; without them, Sentinels are asked without a login.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

SENTINEL_PORT: Final = 26_379
SERVER_PORT: Final = 6_379

EMBEDDED: Final = "embedded"
"""Stands for a URL: the node starts its own Valkey."""

_URL: Final = re.compile(
    r"(?P<scheme>rediss?|unix)(?:\+(?P<kind>sentinel|cluster))?://(?=.)"
    r"(?:(?P<credentials>[^/?#]*)@)?(?P<hosts>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<options>[^#]*))?"
)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_TOLD_HOST: Final = re.compile(rb"[A-Za-z0-9._:-]{1,255}")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")

HIDDEN: Final = "***"
"""What stands where something is not shown."""

_USER: Final = re.compile(r"[\w.-]*", re.ASCII)
_NUMBER_PATH: Final = re.compile(r"/?[0-9]*")
_NAME_PATH: Final = re.compile(r"[/\w.%~+-]*", re.ASCII)
_VALUE: Final = re.compile(r"[/\w.:-]*", re.ASCII)
_SECRET_OPTIONS: Final = frozenset({"username", "password", "ssl_password", *_SENTINEL_OPTIONS})
_HARMLESS_OPTIONS: Final = frozenset((
    "client_name", "db", "health_check_interval", "max_connections", "protocol", "retry_on_timeout",
    "socket_connect_timeout", "socket_keepalive", "socket_timeout", "ssl_ca_certs", "ssl_ca_path",
    "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile", "ssl_min_version", "timeout",
))  # fmt: skip


class RedisKind(Enum):
    """How the servers that hold the results are found."""

    SERVER = auto()
    SENTINEL = auto()
    CLUSTER = auto()


class Address(NamedTuple):
    """Where a server listens; an IPv6 address has no brackets here."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def told_address(host: object, port: object) -> Address:
    """The address that a Sentinel or a node of a Cluster names. Raises ValueError if there can be none."""
    if not isinstance(host, bytes) or _TOLD_HOST.fullmatch(host) is None:
        raise ValueError("a server was named whose host is no name and no address")
    if type(port) is not int or not 0 < port <= 65_535:
        raise ValueError("a server was named with a port that does not exist")
    return Address(host.decode(), port)


class RedisURL(NamedTuple):
    """A parsed URL; `parse_redis_url` makes one."""

    text: str
    kind: RedisKind
    addresses: tuple[Address, ...]
    """Of the Sentinels, or of some nodes of the Cluster. Empty for one server, whose URL is `text`."""
    service: str
    """The name of the master for the Sentinels; empty without Sentinels."""
    scheme: str
    credentials: str
    database: str
    options: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"RedisURL({redact(self.text)})"

    @property
    def place(self) -> str:
        """What says which Redis it is: the URL without user, password and options."""
        found = _URL.fullmatch(self.text)
        assert found is not None, "it has been parsed"
        return f"{found['scheme']}+{found['kind'] or ''}://{found['hosts']}{found['path'] or ''}"

    def server(self, address: Address) -> str:
        """The redis:// URL of the server at `address`, which holds results."""
        options = [option for option in self.options if option[0] not in _SENTINEL_OPTIONS]
        return self._url(f"{self.credentials}@" if self.credentials else "", address, self.database, options)

    def sentinel(self, address: Address) -> str:
        """The redis:// URL of the Sentinel at `address`: with the same TLS, and its own credentials."""
        found = dict(self.options)
        name, password = (quote(found.get(option, ""), safe="") for option in _SENTINEL_OPTIONS)
        # Options such as a database, a client name or a protocol do not apply to Sentinels.
        options = [option for option in self.options if option[0].startswith(("ssl_", "socket_"))]
        return self._url(f"{name}:{password}@" if name or password else "", address, "", options)

    def _url(self, credentials: str, address: Address, database: str, options: list[tuple[str, str]]) -> str:
        path = f"/{database}" if database else ""
        query = f"?{urlencode(options)}" if options else ""
        return f"{self.scheme}://{credentials}{address}{path}{query}"


def parse_redis_url(url: str) -> RedisURL:
    """Parse `url`. Raises ValueError, which says what to write instead and shows no part of a password.

    For one server only the scheme is checked here; redis-py reads the rest of the URL.
    """
    found = _URL.fullmatch(url)
    if found is None or (found["scheme"] == "unix" and found["kind"]):
        raise ValueError(
            "write redis://host:port/db, rediss://…, unix:///path, redis+sentinel://host1,host2/service, "
            "redis+cluster://host1,host2, or embedded; write @ : / ? # in a password as %40 %3A %2F %3F %23"
        )
    if not found["kind"]:
        return RedisURL(url, RedisKind.SERVER, (), "", found["scheme"], "", "", ())
    kind = RedisKind[found["kind"].upper()]
    service, database = _path(kind, found["path"] or "")
    return RedisURL(
        text=url,
        kind=kind,
        addresses=_addresses(found["hosts"], SENTINEL_PORT if kind is RedisKind.SENTINEL else SERVER_PORT),
        service=service,
        scheme=found["scheme"],
        credentials=found["credentials"] or "",
        database=database,
        options=tuple(parse_qsl(found["options"] or "", keep_blank_values=True)),
    )


def _addresses(hosts: str, default_port: int) -> tuple[Address, ...]:
    found = []
    for host in hosts.split(","):
        match = _HOST.fullmatch(host.strip())
        if match is None:
            raise ValueError("write the hosts as host1:port,host2:port; the port is optional")
        port = int(match[2]) if match[2] else default_port
        if not 0 < port <= 65_535:
            raise ValueError("a port must be 1 to 65535")
        found.append(Address(match[1].strip("[]"), port))
    return tuple(dict.fromkeys(found))


def _path(kind: RedisKind, path: str) -> tuple[str, str]:
    """Service and database."""
    first, _, second = path[1:].partition("/")
    if kind is RedisKind.CLUSTER:
        if second or first not in ("", "0"):
            raise ValueError(
                "a Cluster has only database 0: remove the path from redis+cluster://host1,host2"
            )
        return "", ""
    if not first:
        raise ValueError(
            "the name of the master is missing: write redis+sentinel://host1,host2,host3/mymaster"
        )
    if not re.fullmatch("[0-9]*", second):
        raise ValueError("write the number of the database after the name of the master, such as /mymaster/0")
    return unquote(first), second


def redact(url: str) -> str:
    """The Redis URL as logs, errors and pages may show it; malformed ones too.

    This does not look for passwords, because people write them in more ways than anybody can list. It shows
    what is known to be harmless, and *** for everything else. If it is not certain where the password ends,
    it shows *** for the whole URL.
    """
    if url == EMBEDDED:
        return url
    found = _URL.fullmatch(url)
    path, options = (found["path"] or "", found["options"] or "") if found else ("", "")
    # An @ behind the host means that the password had a / or ? in it, so that "the host" is its beginning.
    if found is None or "@" in unquote(path + options):
        return HIDDEN
    named = found["scheme"] == "unix" or found["kind"] == "sentinel"
    return "".join(
        (
            found["scheme"],
            f"+{found['kind']}" if found["kind"] else "",
            "://",
            _shown_credentials(found["credentials"]),
            ",".join(
                host if _HOST.fullmatch(host.strip()) else HIDDEN
                for host in found["hosts"].split(",")
                if host
            ),
            path if (_NAME_PATH if named else _NUMBER_PATH).fullmatch(path) else f"/{HIDDEN}",
            "?" if options else "",
            "&".join(_shown_option(*option) for option in parse_qsl(options, keep_blank_values=True)),
        )
    )


def _shown_credentials(credentials: str | None) -> str:
    if credentials is None:
        return ""
    user, _, password = credentials.partition(":")
    # Without a password, what looks like the user is often the password: redis://PASSWORD@host.
    return f"{user}:{HIDDEN}@" if password and _USER.fullmatch(user) else f"{HIDDEN}@"


def _shown_option(name: str, value: str) -> str:
    """An option after its name is decoded: ?pass%77ord= is a password too."""
    if name in _SECRET_OPTIONS:
        return f"{name}={HIDDEN}"
    return f"{name}={value}" if name in _HARMLESS_OPTIONS and _VALUE.fullmatch(value) else HIDDEN
