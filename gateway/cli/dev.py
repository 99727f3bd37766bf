"""The command dev: a node with an embedded Valkey and the demo page."""

from __future__ import annotations

import errno
import secrets
import shlex
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from .. import __version__, embedded
from ..config import Config
from ..telemetry import logs
from . import invocation
from .runner import embedded_valkey, leave, run_node
from .settings import SettingsCommand, read_settings, settings_options

if TYPE_CHECKING:
    from ..server.listeners import ListenAddresses

DEV_DEFAULTS: Final = {"host": "127.0.0.1", "drain_delay": 0, "drain_seconds": 0}
"""The demo has no authentication, and nobody waits for a drain."""

ALL_INTERFACES: Final = ("0.0.0.0", "::")  # noqa: S104 - only compared


@click.command(cls=SettingsCommand, short_help="Try it out: a node, Valkey, the demo page.")
@settings_options(without=("redis", "redis_file", "workers"), defaults=DEV_DEFAULTS)
def dev(**_: object) -> None:
    """Run a node with its own Valkey and the demo page, to try things out on one machine.

    The demo has no authentication, so the public port listens on loopback. With --host 0.0.0.0 other
    machines can open the page too, for example a phone.
    """
    given = read_settings()
    config = given.config(DEV_DEFAULTS)
    notes: list[str] = []
    for name in ("port", "admin_port"):
        if name not in given.origins:  # a port that was asked for must be free
            config = on_free_port(config, name, notes)
    logs.configure(config.log_level, config.log_format, config.node)
    logs.capture_output(stdout=False)
    code = 0
    with suppress(KeyboardInterrupt), embedded_valkey() as valkey:
        if valkey.port != embedded.DEFAULT_PORT:
            notes.append(f"Port {embedded.DEFAULT_PORT} is taken; using {valkey.port} for Valkey.")
        config = config.model_copy(update={"redis": valkey.url})
        # A new id each time: under an earlier one, a retained result would come before anybody approves.
        web_socket_id = f"demo-{secrets.token_hex(3)}"

        def announce(listening: ListenAddresses) -> None:
            click.echo(welcome(config, listening, web_socket_id, notes))

        demo = {"redisCli": invocation.redis_cli(config.redis), "cli": invocation.program()}
        code = run_node(config, demo=demo, announce=announce)
    leave(code)


def on_free_port(config: Config, name: str, notes: list[str]) -> Config:
    """The config with the first free port from the wanted one up; a note says so if it is another."""
    hosts, wanted = (config.host, config.port) if name == "port" else (config.admin_host, config.admin_port)
    if not _is_taken(hosts, wanted):
        return config
    others = (
        port for port in range(wanted + 1, wanted + 100) if port not in (config.port, config.admin_port)
    )
    # If none of a hundred is free, the node itself reports the one that was wanted.
    free = next((port for port in others if not _is_taken(hosts, port)), wanted)
    notes.append(f"Port {wanted} is taken; using {free} (choose with --{name.replace('_', '-')}).")
    return config.model_copy(update={name: free})


def _is_taken(hosts: Sequence[str], port: int) -> bool:
    return any(_is_taken_on(host, port) for host in hosts)


def _is_taken_on(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the node does: connections of an earlier run that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False


def welcome(config: Config, listening: ListenAddresses, web_socket_id: str, notes: list[str]) -> str:
    """What `dev` prints once the node listens."""
    program = invocation.program()
    host, admin_host = _in_url(config.host), _in_url(config.admin_host)
    port = listening.port
    channel = shlex.quote(config.channel_prefix + web_socket_id)
    default = Config.model_fields["channel_prefix"].default
    prefix = (
        "" if config.channel_prefix == default else f" --channel-prefix {shlex.quote(config.channel_prefix)}"
    )
    url = "" if (host, port) == ("localhost", 8080) else f" --url ws://{host}:{port}/ws"
    page = click.style(f"http://{host}:{port}/?id={web_socket_id}", bold=True)
    open_to_all = [
        "Every machine in this network can open the page without authentication. On a phone, write this",
        "machine's address instead of localhost.",
    ]
    lines = [
        "",
        f"Webflow Gateway {__version__} is running, with its own Valkey. Press Ctrl-C to stop both.",
        *notes,
        *(open_to_all if set(config.host) & set(ALL_INTERFACES) else []),
        "",
        f"  Demo page  {page}",
        f"  Dashboard  http://{admin_host}:{listening.admin_port}/",
        f"  Health     http://{admin_host}:{listening.admin_port}/readyz",
        "",
        "Open the page, then approve from another terminal with one of these commands:",
        "",
        f"  {invocation.redis_cli(config.redis)} PUBLISH {channel} CONFIRMED",
        f"  {program} publish {web_socket_id} CONFIRMED --redis {config.redis}{prefix}",
        "",
        "Without a browser, this command registers the same id and prints what comes:",
        "",
        f"  {program} watch {web_socket_id}{url}",
        "",
    ]
    return "\n".join(lines)


def _in_url(hosts: Sequence[str]) -> str:
    """How a URL on this machine names a port that listens on `hosts`."""
    if set(hosts) & {*ALL_INTERFACES, "127.0.0.1", "::1"}:
        return "localhost"
    return f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]
