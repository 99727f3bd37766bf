"""Webflow Gateway: tells a waiting browser at once that its login or payment was approved.

The packages and modules, each of which imports only from those above it:

    errors, messages, backoff, system   what can go wrong, what is said, retries, file descriptors
    wire/         codecs: bytes to messages and back, without I/O
    redis/        connections to one server, Sentinel or a Cluster; subscriptions and their repair
    publishing/   what backends use: publishes results and announces ids, for Python, the command line and the
                  admin port; reads events, for `gateway.events` and the command events
    tokens/       what a signed token proves
    config        the settings
    telemetry/    logs, latencies, traces
    core/         which session waits for which id, sessions, limits, timers, without I/O
    transports/   one client's bytes: WebSocket, server-sent events, SockJS
    server/       the public port: accepts connections, checks access, opens sessions
    nodes/        what nodes tell each other through Redis
    admin/        the admin port: health, metrics, POST /publish and /announce, dashboard
    node/         composes, runs, drains and stops one process
    workers/      several processes for one public port, and the parent that keeps them alive
    embedded, client, healthcheck, canary/, drill/, cli/
                  the Valkey of `dev`, the client of `watch`, the image's health check, the check of the whole
                  way, drills, commands

The two paths on which nothing awaits:

    Registration: transport, wire, core, redis; once Redis has confirmed it: core, wire, transport.
    Result:       redis, core, wire, transport.

docs/architecture.md gives the reasons; tests/test_architecture.py checks this order.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import NotAnnounced, NotPublished, PublishError, Unconfirmed
    from .publishing.announcing import announce
    from .publishing.api import Published, publish
    from .publishing.events import Event, events

__version__ = "0.1.0"
__all__ = [
    "announce",
    "publish",
    "Published",
    "PublishError",
    "NotAnnounced",
    "NotPublished",
    "Unconfirmed",
    "events",
    "Event",
]


def __getattr__(name: str) -> Any:
    """Import the public names at their first use, and redis-py with them (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import errors
    from .publishing import announcing, api, events

    homes = {
        "announce": announcing,
        "publish": api,
        "Published": api,
        "events": events,
        "Event": events,
    }
    return getattr(homes.get(name, errors), name)
