"""The settings of a node: one frozen `Config`, and everything that is derived from its fields.

Each setting is one field. Its name gives the flag and the environment variable, its type and bounds give the
check and the error message, its description gives the help text and docs/configuration.md.

Sizes are in bytes and times in seconds, unless a description says otherwise.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from redis import RedisError
from redis.asyncio import ConnectionPool

from .errors import ConfigError
from .redis import url as redis_url
from .redis.url import redact
from .system import cpu_count

if TYPE_CHECKING:
    from .tokens.keys import KeySet

VARIABLE_PREFIX = "GATEWAY_"
EMBEDDED = redis_url.EMBEDDED
AUTO = "auto"
SAME_ORIGIN = "same-origin"
ANY_ORIGIN = "*"
NULL_ORIGIN = "null"
"""What browsers send for pages without an origin: sandboxed frames, most files."""
ANY_HOST = "*"
OPEN, ANNOUNCED, SIGNED = "open", "announced", "signed"
"""How `--registration` decides about an id."""
MAX_SECRET = 4_096  # bytes of a file with a token or a URL
A_DAY = 86_400.0  # sessions live for minutes: a longer timeout was meant in milliseconds

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORTS = {"http": 80, "https": 443}
"""The schemes of web pages."""

PAGE_SCHEMES = {"ws": "http", "wss": "https"}
"""Some clients, and Traefik in X-Forwarded-Proto, name the WebSocket's scheme instead of the page's."""

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?)?")
_HOST_NAME = r"[0-9A-Za-z_-]{1,63}(?:\.[0-9A-Za-z_-]{1,63})*\.?"
"""Parts between dots, none of which is too long to be looked up (RFC 1035 section 2.3.4)."""
_BEARER = r"^(?:[A-Za-z0-9._~+/-]{16,}=*)?$"  # RFC 6750's b64token, too long to be guessed
_BEARER_FORM = "16 characters or more of A-Z a-z 0-9 . _ ~ + / - with = at the end"
_VISIBLE = r"^[!-~]*$"  # printable ASCII without the space


def _masked(token: str) -> str:
    return "***" if token else ""


def _path_or_masked(text: str) -> str:
    """The path of a secret's file. Somebody may write the secret itself there, which may look like a path: so
    the file must exist, or the first folder of its path."""
    parts = Path(text).parts
    first = os.path.join(*parts[: 2 if text.startswith("/") else 1]) if parts else ""  # noqa: PTH118
    # Unlike Path.exists, this is False for a name that is too long.
    known = os.path.exists(text) or (os.path.exists(first) and first != text)  # noqa: PTH110
    return text if known else _masked(text)


_SECRET: dict[str, Callable[[str], str]] = {
    "redis": redact,
    "redis_file": _path_or_masked,
    "registration_keys": _path_or_masked,
    "publish_token": _masked,
    "publish_token_file": _path_or_masked,
}
"""Settings that are never shown as they are, and what is shown instead."""


def _setting(default: Any, group: str, metavar: str, description: str, **bounds: Any) -> Any:
    """A field of `Config`; `group` is its heading in the help, `metavar` stands for its value there."""
    extra: dict[str, Any] = {"group": group, "metavar": metavar}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def _seconds(default: float, group: str, description: str, *, zero: bool = False) -> Any:
    bounds: dict[str, float] = {"ge": 0.0} if zero else {"gt": 0.0}
    return _setting(default, group, "SECONDS", description, le=A_DAY, allow_inf_nan=False, **bounds)


class Config(BaseModel):
    """What a node runs with. Reading a field is a plain attribute access.

    `Config(...)` raises pydantic's ValidationError; `build` is the same with one readable ConfigError.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    _keys: Any = PrivateAttr(None)  # a KeySet
    _keys_problem: str = PrivateAttr("")

    host: tuple[str, ...] = _setting(
        ("0.0.0.0",),  # noqa: S104 - see the description
        "Listening",
        "ADDRESSES",
        "Addresses of the public port. 0.0.0.0 is all IPv4 interfaces, since a load balancer connects to a "
        "container from outside; :: is all IPv6 and IPv4 interfaces. 127.0.0.1 is loopback only, the default "
        "of the command dev. Separate them by commas, or repeat the flag.",
    )
    port: int = _setting(
        8080, "Listening", "PORT", "Public port, for browsers. 0 picks a free port.", ge=0, le=65_535
    )
    admin_host: tuple[str, ...] = _setting(
        ("127.0.0.1",),
        "Listening",
        "ADDRESSES",
        "Addresses of the admin port, as for --host. Loopback by default, because only POST /publish "
        "requires authentication, and the dashboard shows client addresses.",
    )
    admin_port: int = _setting(
        8081,
        "Listening",
        "PORT",
        "Admin port: dashboard at /, liveness at /healthz, readiness at /readyz, /metrics, POST /publish. "
        "0 picks a free port.",
        ge=0,
        le=65_535,
        validate_default=True,  # the public port may have been set to the same number
    )
    admin_hosts: tuple[str, ...] = _setting(
        (),
        "Listening",
        "NAMES",
        "Names, without a port, under which the admin port answers, besides every IP address, localhost, the "
        "name of the host and --node. It answers 421 to other names, because a web site could let its own "
        "name lead to this port and read it through a browser (DNS rebinding). Separate them by commas, or "
        "repeat the flag. *, alone: every name.",
    )
    backlog: int = _setting(
        4096,
        "Listening",
        "COUNT",
        "Connections that the kernel queues until they are accepted. Large, because all browsers reconnect "
        "after a restart. The kernel limits it to net.core.somaxconn.",
        ge=1,
        le=65_535,
    )
    workers: int = _setting(
        1,
        "Listening",
        "COUNT_OR_AUTO",
        "Processes that serve the public port, to use more than one processor. auto: one for each processor. "
        "With more than 1, a parent process keeps them alive, and each has its own connection to Redis.",
        ge=1,
        le=256,
    )
    redis_file: str = _setting(
        "",
        "Redis",
        "FILE",
        "File with the URL of Redis, instead of --redis: the URL has a password, and other users of the "
        "machine can read command lines. Docker, Kubernetes and systemd provide secrets as files.",
    )
    redis: str = _setting(
        "redis://127.0.0.1:6379/0",
        "Redis",
        "URL",
        "The Redis or Valkey server: redis://[[user]:password@]host[:port][/db], rediss:// (TLS) or unix://. "
        "Sentinel: redis+sentinel://host1,host2,host3/mymaster. Cluster: redis+cluster://host1,host2. "
        "embedded: the node starts its own Valkey (development only).",
        validate_default=True,  # the URL may be in a file
    )
    channel_prefix: str = _setting(
        "websocket:",
        "Redis",
        "PREFIX",
        "A channel's name is this prefix and the webSocketId. Publishers must use the same prefix. "
        "Printable ASCII without spaces.",
        min_length=1,
        max_length=64,
        pattern=_VISIBLE,
    )
    events: Literal["off", "redis"] = _setting(
        "off",
        "Events",
        "KIND",
        "redis: backends learn of each registration, delivery and close by a stream in Redis, "
        "docs/events.md. The node's Redis user then needs the right to XADD.",
    )
    events_kept: int = _setting(
        100_000,
        "Events",
        "COUNT",
        "Entries to which the streams are trimmed, about and in total; 100,000 have some 30 MB. "
        "A backend that is away for longer misses events.",
        ge=100,
        le=100_000_000,
    )
    event_streams: int = _setting(
        1,
        "Events",
        "COUNT",
        "Streams over which webSocketIds are spread, so that the masters of a Cluster share the work. The "
        "same on all nodes.",
        ge=1,
        le=64,
    )
    publish_token: str = _setting(
        "",
        "Publishing",
        "TOKEN",
        "Token for POST /publish on the admin port; without a token POST /publish is off. 16 characters or "
        "more of A-Z a-z 0-9 . _ ~ + / - with = at the end: use openssl rand -base64 32. Other users of the "
        "machine can read command lines, so set the variable or use a file.",
        pattern=_BEARER,
    )
    publish_token_file: str = _setting(
        "",
        "Publishing",
        "FILE",
        "File with the token, as Docker and Kubernetes provide secrets. It is read at the start.",
    )
    allowed_origins: tuple[str, ...] = _setting(
        (SAME_ORIGIN,),
        "Access",
        "ORIGINS",
        "Origins whose pages may connect: scheme://host[:port], no wildcards; also those of apps, such as "
        "capacitor://localhost or file://. Separate them by commas, or repeat the flag. same-origin: the "
        "host of the request. null: pages without an origin, which every web site can make. *, alone: every "
        "web site.",
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        (),
        "Access",
        "NETWORKS",
        "Addresses or networks (CIDR) of the proxies whose X-Forwarded-For is trusted. Separate them by "
        "commas, or repeat the flag. Without any, the client's address is the address of the peer.",
    )
    registration: tuple[str, ...] = _setting(
        (OPEN,),
        "Access",
        "MODES",
        "Which ids may register. open: every well-formed id. announced: an id that a backend has announced, "
        'by an empty retained value: SET websocket:ID "" EX 600 NX. signed: an id with a token that '
        "--registration-keys verifies. announced,signed: either. Separate them by commas, or repeat it.",
    )
    registration_keys: str = _setting(
        "",
        "Access",
        "FILE",
        "File with the keys that verify tokens, for --registration signed: a public key (PEM, JWK or JWKS; "
        "RS256, ES256, EdDSA) or a secret of 32 bytes or more (HS256). It is read again when it changes. "
        "Needs the extra jwt.",
        validate_default=True,  # --registration signed needs it
    )
    sockjs_url: str = _setting(
        "/sockjs.min.js",
        "Access",
        "URL_OR_PATH",
        "Address of the SockJS client library for /websocket/iframe.html, a page for browsers without CORS: "
        "the address from which your own pages load it. The script runs with the rights of this host.",
        pattern=r"^(?:/|https?://)[^\s\"'<>&]*$",
    )
    max_sessions: int = _setting(
        100_000,
        "Limits",
        "COUNT",
        "Sessions on this node; further ones are rejected with 503. Each needs a file descriptor and about "
        "2 KB, and 16 KB more while a long message arrives. Workers share the number equally.",
        ge=1,
    )
    max_sessions_per_ip: int = _setting(
        1_000,
        "Limits",
        "COUNT",
        "Sessions from one client address; further ones are rejected with 429. High, because companies and "
        "mobile networks share addresses. Their messages and requests are limited by it, too: "
        "docs/protocols.md. Each worker counts for itself. An address may also have three connections for "
        "each session, and no more than it leaves to others. 0: no limits for an address.",
        ge=0,
    )
    max_sessions_per_id: int = _setting(
        100,
        "Limits",
        "COUNT",
        "Sessions of one webSocketId on this node; further ones are closed with 1013 and may try again. A "
        "customer has one or two pages open. Each worker counts for itself. 0: no limit.",
        ge=0,
    )
    max_handshakes: int = _setting(
        5_000,
        "Limits",
        "COUNT",
        "Connections that have not finished their handshake; further ones are closed at once. One address "
        "may have as many as it leaves to others.",
        ge=1,
    )
    max_message_size: int = _setting(
        16_384,
        "Limits",
        "BYTES",
        "Largest message from a client; a larger one closes the session with 1009. A registration has about "
        "250 bytes.",
        ge=1_024,
        le=1_048_576,
    )
    max_result_size: int = _setting(
        65_536,
        "Limits",
        "BYTES",
        "Largest published payload; a larger one is counted and not forwarded.",
        ge=1_024,
        le=1_048_576,
    )
    messages_per_second: float = _setting(
        20.0,
        "Limits",
        "NUMBER",
        "Messages a second from one session, answers to pings included; more close the session with 1008. So "
        "do more bytes a second than two of the largest messages have. A browser sends one or two in all.",
        ge=1,
        le=10_000,
        allow_inf_nan=False,
    )
    write_buffer: int = _setting(
        131_072,
        "Limits",
        "BYTES",
        "Bytes that a client may leave unread before its session is closed with 1008 (slow consumer). Set it "
        "above the largest result.",
        ge=1_024,
        le=16_777_216,
    )
    max_unread: int = _setting(
        67_108_864,
        "Limits",
        "BYTES",
        "Bytes that all clients of this node together may leave unread; above it, those with most are "
        "dropped. At most a quarter of the container's memory. Workers share the number equally.",
        ge=1_024,
    )
    handshake_timeout: float = _seconds(
        5.0,
        "Timeouts",
        "Time from the TCP connection to the end of the handshake's headers, and for the head and for the "
        "body of any request; then the connection is closed.",
    )
    keep_alive: float = _seconds(
        75.0,
        "Timeouts",
        "Time that an HTTP connection may be idle between two requests. Keep it above the time for which "
        "your load balancer keeps idle connections to a node.",
    )
    registration_timeout: float = _seconds(
        10.0,
        "Timeouts",
        "Time from the handshake to a registration that Redis has confirmed; then the session is closed with "
        "1008 or 1013.",
    )
    heartbeat: float = _seconds(
        25.0,
        "Timeouts",
        "Time between two pings to a client. Keep it below 30 s, after which many proxies drop an idle "
        "connection.",
    )
    close_timeout: float = _seconds(
        2.0, "Timeouts", "Time for a client to answer a close frame; then its connection is dropped."
    )
    drain_delay: float = _seconds(
        5.0,
        "Stopping",
        "Time from failing readiness to closing the first session, in which the load balancer notices.",
        zero=True,
    )
    drain_seconds: float = _seconds(
        20.0,
        "Stopping",
        "Time over which sessions are closed evenly, so that browsers do not all reconnect at once. Together "
        "with the drain delay it must fit into the orchestrator's grace period (Kubernetes: 30 s).",
        zero=True,
    )
    node: str = _setting(
        "",
        "Logging",
        "NAME",
        "Name of this node in logs, metrics and pages. Empty: host name and public port.",
        max_length=100,
        pattern=_VISIBLE,
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "Logging", "LEVEL", "Lowest level that is logged: debug, info, warning or error."
    )
    log_format: Literal["auto", "console", "json"] = _setting(
        "auto",
        "Logging",
        "FORMAT",
        "console: for people. json: one object a line. auto: console on a terminal, else json.",
    )

    tracing: Literal["off", "otlp"] = _setting(
        "off",
        "Logging",
        "KIND",
        "otlp: an OpenTelemetry span for each result that has a traceparent, sent to the endpoint that the "
        "OTEL_* variables name. Needs the extra otel.",
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _count_processors(cls, value: object) -> object:
        return cpu_count() if value == AUTO else value

    @field_validator("host", "admin_host", "allowed_origins", "admin_hosts", "registration", mode="before")
    @classmethod
    def _read_list(cls, value: object) -> object:
        return _split(value)

    @field_validator("host", "admin_host")
    @classmethod
    def _check_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        addresses = tuple(text.removeprefix("[").removesuffix("]") for text in value)
        if not addresses or not all(is_address(text) or re.fullmatch(_HOST_NAME, text) for text in addresses):
            raise ValueError("write host names or IP addresses without a port, such as 0.0.0.0 or ::")
        return addresses

    @field_validator("admin_hosts")
    @classmethod
    def _check_admin_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if ANY_HOST in value and len(value) > 1:
            raise ValueError("* allows every name: write it alone")
        for name in value:
            if is_address(name):
                raise ValueError(
                    f"every address is allowed: to listen on {name}, write --admin-host (GATEWAY_ADMIN_HOST)"
                )
            if name != ANY_HOST and not re.fullmatch(r"[0-9A-Za-z._-]+", name):
                raise ValueError(f"{name!r} is not a host name: write it without scheme, port and wildcards")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError(f"name at least one origin, or {SAME_ORIGIN}")
        if ANY_ORIGIN in value:
            if len(value) > 1:
                raise ValueError("* allows every origin: write it alone")
            return value
        return tuple(text if text == SAME_ORIGIN else normalise_origin(text) for text in value)

    @field_validator("registration")
    @classmethod
    def _check_registration(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not set(value) <= {OPEN, ANNOUNCED, SIGNED}:
            raise ValueError(f"write {OPEN}, {ANNOUNCED}, {SIGNED}, or {ANNOUNCED},{SIGNED}")
        if OPEN in value and len(set(value)) > 1:
            raise ValueError(f"{OPEN} admits every id: write it alone")
        return value

    @field_validator("registration_keys")
    @classmethod
    def _check_registration_keys(cls, value: str, info: ValidationInfo) -> str:
        modes = info.data.get("registration")
        if modes is None:  # its own mistake is enough
            return value
        if value and SIGNED not in modes:
            raise ValueError("it has no effect without --registration signed (GATEWAY_REGISTRATION)")
        if SIGNED in modes:
            if not value:
                raise ValueError("--registration signed (GATEWAY_REGISTRATION) needs a file with keys")
            if info.context is None:  # else there are keys, which may stay
                _read_keys(value)
        return value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _read_networks(cls, value: object) -> object:
        return tuple(_network(part) if isinstance(part, str) else part for part in _split(value))

    @field_validator("redis_file")
    @classmethod
    def _check_redis_file(cls, value: str) -> str:
        if value:
            _check_redis_url(_read_redis_url(value))
        return value

    @field_validator("redis", mode="before")
    @classmethod
    def _choose_redis(cls, value: object, info: ValidationInfo) -> object:
        path = info.data.get("redis_file")
        if path and value != cls.model_fields["redis"].default:
            raise ValueError(
                "the URL is in the file of --redis-file (GATEWAY_REDIS_FILE) already: set only one"
            )
        return _read_redis_url(path) if path else value

    @field_validator("redis")
    @classmethod
    def _check_redis(cls, value: str) -> str:
        _check_redis_url(value)
        return value

    @field_validator("publish_token_file")
    @classmethod
    def _check_token_file(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("publish_token"):
            raise ValueError(
                "the token is set by --publish-token (GATEWAY_PUBLISH_TOKEN) already: set only one"
            )
        if value:
            _read_token(value)
        return value

    @field_validator("channel_prefix")
    @classmethod
    def _check_prefix(cls, value: str, info: ValidationInfo) -> str:
        if "{" in value and "+cluster://" in str(info.data.get("redis", "")):
            raise ValueError("in a Cluster, { would put all ids into one slot: write the prefix without it")
        return value

    @field_validator("admin_port")
    @classmethod
    def _check_ports_differ(cls, value: int, info: ValidationInfo) -> int:
        if value and value == info.data.get("port"):
            raise ValueError("the public port has the same number: choose another")
        return value

    def node_name(self, port: int) -> str:
        """The node's name; `port` is the public port it really listens on."""
        return self.node or f"{socket.gethostname()}:{port}"

    def reread(self) -> Config:
        """The same settings, with what the files that they name contain now.

        Raises ConfigError, which names each file that cannot be used; the present Config stays valid then.
        If only the file of `registration_keys` cannot be used, the keys stay, and `keys_problem` says why.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        if self.redis_file:
            del values["redis"]
        return build(values, self._keys)

    def token(self) -> str:
        """The token for POST /publish; empty if it is off. Raises ConfigError if the file cannot be read."""
        if not self.publish_token_file:
            return self.publish_token
        try:
            return _read_token(self.publish_token_file)
        except ValueError as error:  # it could be read when the settings were checked
            raise ConfigError(f"--publish-token-file (GATEWAY_PUBLISH_TOKEN_FILE): {error}") from None

    def model_post_init(self, keys: Any) -> None:
        """`keys` are those that the file had; None at a start."""
        if not self.registration_keys:
            return
        try:
            self._keys = _read_keys(self.registration_keys, keys)
        except ValueError as error:
            problem = f"--registration-keys (GATEWAY_REGISTRATION_KEYS): {error}"
            if keys is None:  # it could be read when the settings were checked
                raise ConfigError(problem) from None
            self._keys, self._keys_problem = keys, problem

    def verification_keys(self) -> KeySet | None:
        """The keys that the file of `registration_keys` had when the settings were read; None without it.

        So a worker that starts while the file cannot be used has those that its parent has read.
        """
        keys: KeySet | None = self._keys
        return keys

    def keys_problem(self) -> str:
        """Why the last `reread` kept the keys that the file had before; empty if it did not."""
        return self._keys_problem

    def shown(self) -> dict[str, str]:
        """Every setting as on the command line; passwords and tokens are shown as ***."""
        return {name: show(name, getattr(self, name)) for name in type(self).model_fields}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        # pydantic prints this in repr and str: the Redis URL may hold a password.
        for name in type(self).model_fields:
            value = getattr(self, name)
            yield name, show(name, value) if name in _SECRET else value


@dataclass(frozen=True, slots=True)
class Setting:
    """One field, as the command line and docs/configuration.md show it."""

    name: str
    field: FieldInfo

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + self.name.upper()

    @property
    def group(self) -> str:
        return str(self._extra["group"])

    @property
    def metavar(self) -> str:
        return str(self._extra["metavar"])

    @property
    def help(self) -> str:
        return self.field.description or ""

    @property
    def default(self) -> str:
        return show(self.name, self.field.default)

    @property
    def repeatable(self) -> bool:
        return isinstance(self.field.default, tuple)

    @property
    def _extra(self) -> dict[str, Any]:
        extra = self.field.json_schema_extra
        assert isinstance(extra, dict)
        return extra


SETTINGS: tuple[Setting, ...] = tuple(Setting(name, field) for name, field in Config.model_fields.items())


def build(values: Mapping[str, object], keys: KeySet | None = None) -> Config:
    """A Config from texts (or values) by field name; the other fields have their defaults. `keys` are those
    that the file of `registration_keys` had: they stay if it cannot be used.

    Raises ConfigError, whose message has a line for every mistake: the flag and the variable, the value,
    and what to write instead.
    """
    try:
        return Config.model_validate(dict(values), context=keys)
    except ValidationError as error:
        found = error.errors()
    mistakes = dict.fromkeys(_mistake(details, values) for details in found)
    heading = "1 setting is wrong:" if len(mistakes) == 1 else f"{len(mistakes)} settings are wrong:"
    raise ConfigError("\n  ".join([heading, *mistakes]))


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for every GATEWAY_… variable that is no setting, with the name that was probably meant."""
    known = {setting.name.upper() for setting in SETTINGS}
    names = sorted(
        name.removeprefix(VARIABLE_PREFIX) for name in environment if name.startswith(VARIABLE_PREFIX)
    )
    sentences = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {VARIABLE_PREFIX}{close[0]}?" if close else ""
            sentences.append(f"{VARIABLE_PREFIX}{name} is not a setting and has no effect{hint}")
    return sentences


def remarks(config: Config) -> list[str]:
    """Sentences on settings that are allowed but seldom meant; `serve` logs them as warnings."""
    said = []
    if config.allowed_origins == (ANY_ORIGIN,):
        said.append("--allowed-origins * lets the pages of every web site connect: name your origins")
    if NULL_ORIGIN in config.allowed_origins:
        said.append("--allowed-origins null lets every web site connect, from a sandboxed frame")
    if config.write_buffer < config.max_result_size:
        said.append("--write-buffer is below --max-result-size, so one large result can close a session")
    if (config.publish_token or config.publish_token_file) and config.log_level in ("warning", "error"):
        said.append("the audit lines of POST /publish have the level info: --log-level leaves them out")
    return said


def show(name: str, value: object) -> str:
    """A setting's value as on the command line; a token and the password in a Redis URL become ***."""
    if isinstance(value, (tuple, list)):
        return ",".join(str(part) for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return _SECRET[name](str(value)) if name in _SECRET else str(value)


def _read_secret(path: str) -> str:
    """The one line of a file, without the line end. Raises ValueError, whose message does not quote it.

    The text is empty if the file is longer than any secret: its beginning would be another secret.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_SECRET + 1).decode("ascii", "replace")
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    return text.strip() if len(text) <= MAX_SECRET else ""


def _read_keys(path: str, before: KeySet | None = None) -> KeySet:
    """The keys in a file, which had `before`. Raises ValueError, whose message does not quote the file."""
    try:
        from .tokens.keys import read_keys
    except ImportError as error:
        raise ValueError(f"it needs more packages: pip install 'webflow-gateway[jwt]' ({error})") from None
    return read_keys(path, before)


def _read_token(path: str) -> str:
    """The token in a file. Raises ValueError, whose message does not quote the file."""
    token = _read_secret(path)
    if not token or not re.fullmatch(_BEARER, token):
        raise ValueError("the file must have one line with the token: " + _BEARER_FORM)
    return token


def _read_redis_url(path: str) -> str:
    """The URL of Redis in a file. Raises ValueError, whose message does not quote the file."""
    url = _read_secret(path)
    if not re.fullmatch(r"[!-~]+", url) or url == EMBEDDED:
        raise ValueError(f"the file must have one line with the URL of Redis, of at most {MAX_SECRET} bytes")
    return url


def normalise_origin(text: str) -> str:
    """`scheme://host[:port]` in lower case without the scheme's default port, as browsers send it (RFC 6454).

    wss://host becomes https://host. An app's scheme may stand without a host, as in file://. The other origin
    is `null`. Raises ValueError for anything else: a path, a wildcard, user information, no scheme.
    """
    lowered = text.strip().lower()
    if lowered == NULL_ORIGIN:
        return lowered
    if "*" in lowered:
        raise ValueError(f"{text!r} has a wildcard: write each origin, or * alone")
    match = _ORIGIN.fullmatch(lowered)
    if match is None:
        raise ValueError(f"{text!r} is not an origin: write scheme://host[:port] with nothing after it")
    scheme, host, port = match.groups(default="")
    scheme = PAGE_SCHEMES.get(scheme, scheme)
    if not host and scheme in DEFAULT_PORTS:
        raise ValueError(f"{text!r} names no host: write {scheme}://host")
    if not port or int(port) == DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    if not 0 < int(port) <= 65_535:
        raise ValueError(f"{text!r} has no valid port: write 1 to 65535")
    return f"{scheme}://{host}:{int(port)}"


def is_address(text: str) -> bool:
    """Whether `text` is an IP address, not a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _split(value: object) -> tuple[object, ...]:
    """The parts of a text with commas, or of several such texts; other values stay as they are."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    texts = [text.strip() for part in parts if isinstance(part, str) for text in part.split(",")]
    return (*filter(None, texts), *(part for part in parts if not isinstance(part, str)))


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an address or a network: write 10.0.0.1 or 10.0.0.0/8") from None
    raise ValueError(f"{text!r} names a host in a network: write {meant} for the network")


def _check_redis_url(url: str) -> None:
    """Raises ValueError unless redis-py can connect to this URL."""
    if url == EMBEDDED:
        return
    found = redis_url.parse_redis_url(url)
    if found.kind is redis_url.RedisKind.SERVER:
        _check_server_url(url)
        return
    for address in found.addresses:
        _check_server_url(found.server(address))
        _check_server_url(found.sentinel(address))


def _check_server_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        pool = ConnectionPool.from_url(url)
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, AttributeError, RedisError):
        # redis-py's own message is not repeated: it may quote a part of the password.
        raise ValueError(
            "the URL is not valid: check the port and the options after ?, "
            "and write @ : / ? # in a password as %40 %3A %2F %3F %23"
        ) from None
    if parts.scheme == "unix" and (parts.hostname or not parts.path.startswith("/")):
        raise ValueError("unix:// needs an absolute path: unix:///run/redis.sock")
    if parts.scheme != "unix" and not parts.hostname:
        raise ValueError("the URL names no host: write redis://host:port/db")
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*", parts.path):
        raise ValueError("the path of the URL must be the number of a database, such as /0")


def _mistake(details: ErrorDetails, values: Mapping[str, object]) -> str:
    name = str(details["loc"][0])
    setting = next((setting for setting in SETTINGS if setting.name == name), None)
    if setting is None:
        return f"{name} is not a setting"
    value = values.get(name, setting.field.default)
    custom = details["type"] == "value_error"
    right = str(details["ctx"]["error"]) if custom else f"must be {_right(setting)}"
    if str(value).startswith("tcp://"):
        right += (
            " (Kubernetes sets such a variable for a Service named gateway: set enableServiceLinks: false)"
        )
    return f"{setting.flag} ({setting.variable}) is {show(name, value)!r}: {right}"


def _right(setting: Setting) -> str:
    """What to write for this setting, from its type and bounds."""
    annotation = setting.field.annotation
    choices = get_args(annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return "one of " + ", ".join(choices)
    if annotation in (int, float):
        kind = "a whole number" if annotation is int else "a number"
        unit = " of seconds" if setting.metavar == "SECONDS" else ""
        also = f", or {AUTO}" if setting.metavar == "COUNT_OR_AUTO" else ""
        return kind + unit + _range(setting.field) + also
    return {
        "FILE": "the path of a file",
        "PREFIX": "1 to 64 printable ASCII characters without spaces",
        "NAME": "at most 100 printable ASCII characters without spaces",
        "URL": "a text",
        "TOKEN": _BEARER_FORM,
        "URL_OR_PATH": "a path that begins with /, or http://… or https://…, without spaces and \" ' < > &",
    }.get(setting.metavar, "texts separated by commas")


def _range(field: FieldInfo) -> str:
    bounds = {
        key: getattr(part, key) for part in field.metadata for key in ("gt", "ge", "le") if hasattr(part, key)
    }
    low = f" above {bounds['gt']:g}," if "gt" in bounds else f" from {bounds['ge']:g}"
    return low + (f" to {bounds['le']:.0f}" if "le" in bounds else " up")


def table() -> str:
    """The reference of all settings as Markdown tables, one for each group."""
    lines: list[str] = []
    group = ""
    for setting in SETTINGS:
        if setting.group != group:
            group = setting.group
            lines += [
                "",
                f"**{group}**",
                "",
                "| flag | variable | default | meaning |",
                "| --- | --- | --- | --- |",
            ]
        default = f"`{setting.default}`" if setting.default else "none"
        text = setting.help.replace("|", r"\|").replace("*", r"\*")
        lines.append(f"| `{setting.flag}` | `{setting.variable}` | {default} | {text} |")
    return "\n".join(lines[1:]) + "\n"


def with_table(document: str) -> str:
    """The Markdown document with the current `table` between its marks, if it has them."""
    begin, end = "<!-- settings -->\n", "<!-- /settings -->"
    before, mark, rest = document.partition(begin)
    _, close, after = rest.partition(end)
    return f"{before}{begin}\n{table()}\n{end}{after}" if mark and close else document
