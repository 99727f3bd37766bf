"""The names under which the admin port answers: a defence against DNS rebinding.

A web site can let its own name lead to 127.0.0.1 a moment after an operator's browser has loaded a page from
it. For the browser, this port then belongs to the site, whose page may read every answer. But the Host header
still has the site's name. So a request must name this node. It may also name an address: then the browser has
loaded the page from that address.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from ..config import ANY_HOST, Config, is_address
from .caller import caller_of
from .responses import error_response

HOST_NOT_ALLOWED: Final = "host_not_allowed"

LOOPBACK: Final = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
"""The names of 127.0.0.1 and ::1 in the /etc/hosts of common systems."""

_HOST: Final = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::[0-9]*)?")
"""A Host header (RFC 9110 section 7.2): a name or an address, and a port."""

_AUTHORITY: Final = re.compile(r"\A[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")
"""The host of a URL, with its port."""

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class KnownHosts:
    """Lets requests pass that name this node. Counts and logs all others."""

    def __init__(self, names: Iterable[str], rejected: Counter[str]) -> None:
        """With ANY_HOST among the `names` every request passes. `rejected` counts by reason."""
        self._names = frozenset(name.lower() for name in names)
        self._rejected = rejected

    def allow(self, host: str) -> bool:
        """Whether a request with this Host header means this node. The port does not matter: `ssh -L` and
        `kubectl port-forward` change it."""
        match = _HOST.fullmatch(host.strip())
        if match is None:
            return False
        name = match[1].lower().removesuffix(".")
        return ANY_HOST in self._names or name in self._names or is_address(name.strip("[]"))

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer 421 (RFC 9110 section 15.5.20) to a request for another host.

        A request without the header passes: HAProxy's health checks have none, and browsers always send one.
        A request target that is a whole URL counts as well: it replaces the header (RFC 9112 section 3.2.2).
        """
        hosts = [*request.headers.getall("Host", ()), *_AUTHORITY.findall(request.raw_path)]
        if all(map(self.allow, hosts)):
            return await handler(request)
        self._rejected[HOST_NOT_ALLOWED] += 1
        hint = "if this is your name for the node, add it to --admin-hosts (GATEWAY_ADMIN_HOSTS)"
        status = HTTPStatus.MISDIRECTED_REQUEST
        log.warning(
            "request rejected",
            kind=HOST_NOT_ALLOWED,
            status=int(status),
            host=", ".join(hosts),
            **caller_of(request),
            hint=hint,
        )
        return error_response(
            status, HOST_NOT_ALLOWED, f"the admin port does not answer under this name; {hint}"
        )


def known_names(config: Config, node: str) -> Iterator[str]:
    """The names of a node: those in its settings, its host's name, and `node`, its own."""
    yield from LOOPBACK
    yield from config.admin_hosts
    yield from config.admin_host
    yield node.partition(":")[0]
    yield from host_names(socket.gethostname(), Path("/etc/resolv.conf"))


def host_names(name: str, resolver: Path) -> Iterator[str]:
    """The host's name, short and in each domain that its resolver searches.

    socket.getfqdn asks the name servers, which may not answer for a long time.
    """
    short = name.partition(".")[0]
    yield from (name, short)
    try:
        lines = [line.split() for line in resolver.read_text("ascii", "replace").splitlines()]
    except OSError:
        return
    for keyword, *domains in filter(None, lines):
        if keyword in ("search", "domain"):
            yield from (f"{short}.{domain.strip('.')}" for domain in domains if domain.strip("."))
