"""The commands. What a setting is called, means and allows comes from `config`; here is what they do.

Exit codes: 0 well, 1 it could not be done, 2 wrong usage or settings; 3 and 4 are told by `publish` and
`watch`.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import shlex
import socket
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
import orjson
import structlog
from click.core import ParameterSource

from .. import __version__, embedded
from .. import config as settings
from ..config import EMBEDDED, SETTINGS, Config, Setting
from ..errors import ConfigError, DrillError, EmbeddedError, PublishError, Unconfirmed
from ..messages import NO_DATA, WEB_SOCKET_ID
from ..redis.url import redact
from ..telemetry import logs
from . import invocation

if TYPE_CHECKING:
    from ..node import ListenAddresses
    from ..publishing.api import Published, PublishOptions

EXIT_NO_RECEIVERS = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
WHOLE_ID = 8  # characters; a longer id is cut where `publish` shows it
REDIS_SECONDS = 3.0  # for all that `publish` does with Redis
# For a desk: the demo has no authentication, and nobody waits for a drain.
DEV_DEFAULTS = {"host": "127.0.0.1", "drain_delay": 0, "drain_seconds": 0}
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - only compared

T = TypeVar("T")
Command = Callable[..., Any]


class CommandFailed(click.ClickException):
    """It could not be done: one message, exit code 1."""


class UsageFailed(CommandFailed):
    """What was asked for makes no sense."""

    exit_code = 2


class ClientTurnedDown(CommandFailed):
    """The gateway will not have this client."""

    exit_code = 4


# Settings on the command line


class RawText(click.ParamType[str]):
    """A setting's text as it came: `config` checks them all, so that all mistakes are told at once."""

    name = "text"
    envvar_list_splitter = ","


class SettingsCommand(click.Command):
    """A command whose help lists the settings under their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        known = {setting.name: setting.group for setting in SETTINGS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(known.get(parameter.name or "", "Options"), []).append(record)
        for group, records in groups.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)


def settings_options(
    *names: str, without: tuple[str, ...] = (), defaults: Mapping[str, object] | None = None
) -> Callable[[Command], Command]:
    """Gives a command the flags of these settings, of all of them if none is named.

    `defaults` are the command's own, for its help; the command passes the same to `GivenSettings.config`.
    """
    own = defaults or {}
    chosen = [s for s in SETTINGS if (s.name in names if names else s.name not in without)]

    def decorate(command: Command) -> Command:
        for setting in reversed(chosen):
            command = _option(setting, str(own.get(setting.name, setting.default)))(command)
        return command

    return decorate


def _option(setting: Setting, default: str) -> Callable[[Command], Command]:
    return click.option(
        setting.flag,
        setting.name,
        type=RawText(),
        envvar=setting.variable,
        multiple=setting.repeatable,
        metavar=setting.metavar,
        help=f"{setting.help}  [{setting.variable}; default: {default or 'none'}]",
    )


@dataclass(frozen=True)
class GivenSettings:
    """What the command line and the environment say: texts by setting, and where each came from."""

    values: dict[str, object]
    origins: dict[str, str]

    def config(self, defaults: Mapping[str, object] | None = None) -> Config:
        """The Config of it, with the command's own `defaults`; exits with 2 and every mistake named."""
        try:
            return settings.build({**(defaults or {}), **self.values})
        except ConfigError as error:
            # A variable with a wrong name may well be why the others do not fit.
            raise UsageFailed("\n".join([str(error), *settings.unknown_variables(os.environ)])) from None


def read_settings() -> GivenSettings:
    """The settings given to the running command. An empty variable counts as none, as in most shells."""
    context = click.get_current_context()
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        source = context.get_parameter_source(setting.name)
        if source is ParameterSource.COMMANDLINE:
            origins[setting.name] = setting.flag
        elif source is ParameterSource.ENVIRONMENT:
            origins[setting.name] = setting.variable
        if setting.name in origins:
            values[setting.name] = context.params[setting.name]
    return GivenSettings(values, origins)


def _size(
    flag: str, kind: click.ParamType[Any], default: float, metavar: str, words: str
) -> Callable[[Command], Command]:
    """An option of the command drill."""
    return click.option(flag, type=kind, default=default, show_default=True, metavar=metavar, help=words)


# The commands


@click.group(
    name="webflow-gateway", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__)
def commands() -> None:
    """Tells a waiting browser at once that its login or payment was approved."""


@commands.command(cls=SettingsCommand)
@settings_options()
def serve(**_: object) -> None:
    """Run a node until SIGTERM or Ctrl-C.

    SIGTERM drains: the node turns unready and, after --drain-delay, closes its sessions evenly over
    --drain-seconds. SIGINT (Ctrl-C) stops without a drain. A second signal of either kind ends it at once.
    """
    read = read_settings()
    config = read.config()
    logs.configure(config.log_level, config.log_format, config.node)
    log = structlog.get_logger()
    for remark in [*settings.unknown_variables(os.environ), *settings.remarks(config)]:
        log.warning("setting", remark=remark)
    with ExitStack() as stack:
        if config.redis == EMBEDDED:
            valkey = stack.enter_context(_own_valkey())
            log.info("embedded valkey", url=valkey.url, pid=valkey.pid)
            config = config.model_copy(update={"redis": valkey.url})
        sys.exit(_serve(config) if config.workers == 1 else _serve_by_workers(config))


@commands.command(cls=SettingsCommand, short_help="Try it out: a node, Valkey, the demo page.")
@settings_options(without=("redis", "workers"), defaults=DEV_DEFAULTS)
def dev(**_: object) -> None:
    """Run a node with a Valkey of its own and the demo page, to try things out on one machine.

    The demo has no authentication, so only this machine reaches it; --host 0.0.0.0 opens it to the network,
    to show it on a phone.
    """
    read = read_settings()
    config = read.config(DEV_DEFAULTS)
    notes: list[str] = []
    for name in ("port", "admin_port"):
        if name not in read.origins:  # a port that was asked for is had or complained of
            config = _on_free_port(config, name, notes)
    logs.configure(config.log_level, config.log_format, config.node)
    with suppress(KeyboardInterrupt), _own_valkey() as valkey:
        if valkey.port != embedded.DEFAULT_PORT:
            notes.append(f"Port {embedded.DEFAULT_PORT} is taken; Valkey listens on {valkey.port}.")
        config = config.model_copy(update={"redis": valkey.url})
        # A fresh one: with an earlier start's id its retained result would come before anybody approves.
        web_socket_id = f"demo-{secrets.token_hex(3)}"

        def announce(listening: ListenAddresses) -> None:
            click.echo(_welcome(config, listening, web_socket_id, notes))

        sys.exit(_serve(config, demo=True, announce=announce))


@commands.command(short_help="Send a result to a browser.")
@click.argument("web_socket_id", metavar="ID", required=False)
@click.argument("auth_result", metavar="RESULT", required=False)
@click.option("--data", metavar="JSON", help="Any JSON value for the page to receive along with the result.")
@click.option("--message-id", metavar="X", help="Tells repetitions apart. [default: a random one]")
@click.option(
    "--retain",
    type=click.IntRange(0, 86_400),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="For how long a browser that registers later gets it too; 0: not at all.",
)
@click.option(
    "--from",
    "lines",
    type=click.File("rb"),
    metavar="FILE",
    help="In place of ID and RESULT: a file, or - for standard input, with a JSON object on each line, as "
    "POST /publish takes them. Prints what became of each as such a line.",
)
@settings_options("redis", "channel_prefix", "max_result_size")
def publish(
    web_socket_id: str | None,
    auth_result: str | None,
    data: str | None,
    message_id: str | None,
    retain: int,
    lines: IO[bytes] | None,
    **_: object,
) -> None:
    """Send RESULT (CONFIRMED, FAILED, …) to the browser that has registered ID.

    Exit code 0: a node held the id, or the result was retained. 1: Redis refused or did not answer; then it
    is unknown whether the result went out: repeat with the same --message-id. 2: wrong usage; nothing was
    sent. 3: no node held the id, and the result was not retained. With --from it is 1, 2 or 3 if that is so
    for any of the results.
    """
    config = read_settings().config()
    if config.redis == EMBEDDED:
        raise UsageFailed("publish needs the URL of a Redis that runs: --redis redis://HOST:PORT")
    if lines is not None:
        if web_socket_id is not None or data is not None or message_id is not None:
            raise UsageFailed("with --from, ID, RESULT, data and messageId stand in the file")
        sys.exit(_run(_publish_lines(config, lines, retain)))
    if web_socket_id is None or auth_result is None:
        raise UsageFailed("name the ID and the RESULT, or a file by --from")
    message_id = uuid.uuid4().hex if message_id is None else message_id
    options: PublishOptions = {
        "data": _json(data),
        "message_id": message_id,
        "retain": retain,
        "channel_prefix": config.channel_prefix,
        "max_size": config.max_result_size,
    }
    published = _run(_publish(config, web_socket_id, auth_result, options))
    count = published.receivers
    held = "No node holds" if count == 0 else "1 node holds" if count == 1 else f"{count} nodes hold"
    kept = f"retained for {retain} s" if published.retained else "not retained"
    shown = web_socket_id if len(web_socket_id) <= WHOLE_ID else logs.short_id(web_socket_id)
    click.echo(f"{held} {shown}; the result is {kept} (messageId {message_id})")
    sys.exit(0 if count or published.retained else EXIT_NO_RECEIVERS)


@commands.command(short_help="Register an id and print what comes.")
@click.argument("web_socket_id", metavar="ID")
@click.option("--url", default="ws://localhost:8080/ws", show_default=True, help="The gateway's WebSocket.")
@click.option("--origin", help="The page's origin. [default: the host of the URL]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each event.")
def watch(web_socket_id: str, url: str, origin: str | None, as_json: bool) -> None:
    """Register ID as a browser would, print what comes, and come back when the connection is lost.

    Exit code 4: the gateway refuses this client for good. Ctrl-C ends it with 0.
    """
    from .. import client as watching  # with aiohttp, which the other commands need not wait for

    if not WEB_SOCKET_ID.fullmatch(web_socket_id):
        raise UsageFailed("ID must be 1 to 200 of A-Z a-z 0-9 . _ ~ -")
    if not re.match(r"wss?://[^/]", url):
        raise UsageFailed("--url must be ws://… or wss://…, such as ws://localhost:8080/ws")
    try:
        with suppress(KeyboardInterrupt):
            _run(watching.watch(url, web_socket_id, _say_json if as_json else _say, origin=origin))
    except watching.ClientRejected as refused:
        raise ClientTurnedDown(str(refused)) from None


@commands.command("id", short_help="Print the webSocketId of an operation.")
@click.argument("operation_id")
def id_(operation_id: str) -> None:
    """Print the webSocketId of an operation: the SHA-512 of its id, in lower-case hex."""
    if not operation_id.strip():  # as of an unset variable, which would give all users the same id
        raise UsageFailed("the operation's id is empty")
    click.echo(hashlib.sha512(operation_id.encode()).hexdigest())


@commands.command("config", cls=SettingsCommand, short_help="Print or check the settings.")
@click.option("--check", is_flag=True, help="Only say whether the settings are right; exit code 2 if not.")
@click.option("--json", "as_json", is_flag=True, help="Print the settings in force as JSON.")
@click.option("--markdown", is_flag=True, help="Print the reference of all settings as Markdown.")
@click.option(
    "--into",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="With --markdown: put it into this file, between <!-- settings --> and <!-- /settings -->.",
)
@settings_options()
def config_(check: bool, as_json: bool, markdown: bool, into: tuple[Path, ...], **_: object) -> None:
    """Print the settings in force and where each came from. Passwords are left out."""
    if markdown:
        for path in into:
            path.write_text(settings.with_table(path.read_text("utf-8")), "utf-8")
        if not into:
            click.echo(settings.table(), nl=False)
        return
    read = read_settings()
    config = read.config()
    for remark in [*settings.unknown_variables(os.environ), *settings.remarks(config)]:
        click.echo(f"Warning: {remark}", err=True)
    rows = [(name, value, read.origins.get(name, "default")) for name, value in config.shown().items()]
    if check:
        click.echo("The settings are right.")
    elif as_json:
        shown = {name: {"value": value, "from": origin} for name, value, origin in rows}
        click.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2))
    else:
        _print_table([("setting", "value", "from"), *rows])


@commands.command("drill", short_help="Break things under load and see that no result is lost.")
@click.argument("names", metavar="[DRILL]...", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="List the drills.")
@_size("--clients", click.IntRange(1, 100_000), 2_000, "COUNT", "Clients (browsers).")
@_size("--rate", click.FloatRange(0.1, 10_000), 200, "NUMBER", "Results published a second.")
@_size("--nodes", click.IntRange(1, 16), 3, "COUNT", "Gateway nodes.")
@_size("--workers", click.IntRange(1, 16), 1, "COUNT", "Processes of each node.")
@_size("--retain", click.IntRange(0, 86_400), 60, "SECONDS", "How long a result is retained; 0: not at all.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 86_400),
    metavar="SECONDS",
    help="How long results are published, the fault included.  [default: 15 to 22, by drill]",
)
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write the logs of the nodes to this folder.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object for each drill; progress goes to stderr."
)
def drill_(
    names: tuple[str, ...],
    listing: bool,
    seconds: float | None,
    logs: Path | None,
    as_json: bool,
    **size: Any,
) -> None:
    """Run each DRILL, or all: a fault under load, with nodes and Redis servers that the drill starts.

    Everything runs on this machine only and is removed afterwards. Drills need the extra `embedded`; two of
    them use HAProxy if it is installed. The report counts results that were published, delivered, lost and
    duplicate, and shows their latency and the outages of each node.

    Exit code 0: no retained result was lost. 1: a retained result was lost, or the drill could not run.
    """
    from ..drill import (  # with aiohttp and redis, which other commands need not wait for
        DrillOptions,
        command,
    )

    if listing:
        click.echo(command.listing())
        return
    try:
        drills = command.named(names)
    except LookupError as unknown:
        raise UsageFailed(f"there is no drill {unknown}; these are:\n{command.listing()}") from None
    if not drills:
        raise UsageFailed(f"name a drill, or all; these are:\n{command.listing()}")
    try:
        reports = _run(command.run_all(drills, DrillOptions(**size), seconds, logs, as_json=as_json))
    except (DrillError, EmbeddedError, TimeoutError) as error:
        raise CommandFailed(f"the drill could not run: {str(error) or 'it took too long'}") from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("\nInterrupted. Everything that the drill started is stopped.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(any(report.broken for report in reports))


# Running


def _run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        from uvloop import new_event_loop
    except ImportError:  # it is not installed where it does not run
        return None
    return new_event_loop


def _serve(
    config: Config, *, demo: bool = False, announce: Callable[[ListenAddresses], None] | None = None
) -> int:
    from ..node import serve as serve_node  # with aiohttp, which the other commands need not wait for

    try:
        return _run(serve_node(config, demo=demo, announce=announce))
    except ConfigError as error:  # an address that cannot be had
        raise CommandFailed(str(error)) from None
    finally:
        logs.flush(at_once=True)


def _serve_by_workers(config: Config) -> int:
    from ..workers.supervisor import run

    try:
        return run(config, _loop_factory())
    except ConfigError as error:  # an address that cannot be had
        raise CommandFailed(str(error)) from None
    finally:
        logs.flush(at_once=True)


@contextmanager
def _own_valkey() -> Iterator[embedded.EmbeddedValkey]:
    try:
        with embedded.valkey() as valkey:
            yield valkey
    except EmbeddedError as error:
        raise CommandFailed(str(error)) from None


def _is_taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the node itself does: connections of an earlier run that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False


def _on_free_port(config: Config, name: str, notes: list[str]) -> Config:
    """The config with the first port from the wanted one up that is free; a note says so if it is another."""
    host, wanted = (config.host, config.port) if name == "port" else (config.admin_host, config.admin_port)
    if not _is_taken(host, wanted):
        return config
    others = (
        port for port in range(wanted + 1, wanted + 100) if port not in (config.port, config.admin_port)
    )
    # With none of a hundred free, the node itself complains of the one that was wanted.
    free = next((port for port in others if not _is_taken(host, port)), wanted)
    notes.append(f"Port {wanted} is taken; took {free} (--{name.replace('_', '-')}).")
    return config.model_copy(update={name: free})


async def _publish(
    config: Config, web_socket_id: str, auth_result: str, options: PublishOptions
) -> Published:
    from ..publishing.publisher import Publisher  # with redis-py, only for this command

    _keep_the_deadline()
    async with Publisher(config.redis, timeout=REDIS_SECONDS) as publisher:
        try:
            return await publisher.publish(web_socket_id, auth_result, **options)
        except PublishError as error:
            raise UsageFailed(str(error)) from None
        except Unconfirmed as error:
            repeat = f"--message-id {shlex.quote(error.message_id)}"
            raise CommandFailed(
                f"Redis at {redact(config.redis)}: {error.why}; "
                f"it is unknown whether the result went out: repeat with {repeat}"
            ) from None


async def _publish_lines(config: Config, lines: IO[bytes], retain: int) -> int:
    """Publish the JSON object on each line as it comes; the exit code."""
    from ..publishing.publisher import Publisher, outcome_as_json

    _keep_the_deadline()
    codes = {0}
    async with Publisher(config.redis, timeout=REDIS_SECONDS) as publisher:
        for line in filter(bytes.strip, lines):
            try:
                item = orjson.loads(line)
            except orjson.JSONDecodeError:
                item = None  # which is no result either
            if isinstance(item, dict):
                item = {"retain": retain, **item}
            (end,) = await publisher.send_json([item], config.channel_prefix, config.max_result_size)
            click.echo(orjson.dumps(outcome_as_json(item, end)))
            match end:
                case PublishError():
                    codes.add(UsageFailed.exit_code)
                case Unconfirmed():
                    codes.add(CommandFailed.exit_code)
                case _:
                    codes.add(0 if end.receivers or end.retained else EXIT_NO_RECEIVERS)
    return next(code for code in (1, 2, EXIT_NO_RECEIVERS, 0) if code in codes)


def _keep_the_deadline() -> None:
    """Once the look-up of a host's name was given up, what is left of it is neither waited for nor heard of.

    The C library tries for 10 s and more for each name server, in a thread that the process waits for at its
    end: 20 s were seen.
    """
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)


def _json(text: str | None) -> object:
    if text is None:
        return NO_DATA
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageFailed(f"--data is not JSON: {error}") from None


# What is printed


def _welcome(config: Config, listening: ListenAddresses, web_socket_id: str, notes: list[str]) -> str:
    program = invocation.program()
    local = config.host in (*EVERYWHERE, "127.0.0.1", "::1")
    host = "localhost" if local else f"[{config.host}]" if ":" in config.host else config.host
    port = listening.port
    channel = shlex.quote(config.channel_prefix + web_socket_id)
    default = Config.model_fields["channel_prefix"].default
    prefix = (
        "" if config.channel_prefix == default else f" --channel-prefix {shlex.quote(config.channel_prefix)}"
    )
    url = "" if (host, port) == ("localhost", 8080) else f" --url ws://{host}:{port}/ws"
    page = click.style(f"http://{host}:{port}/?id={web_socket_id}", bold=True)
    open_to_all = [
        "Every machine that reaches this one can open the page, without authentication; on a phone, write",
        "this machine's address in place of localhost.",
    ]
    lines = [
        "",
        f"Webflow Gateway {__version__} is running, with a Valkey of its own. Ctrl-C stops both.",
        *notes,
        *(open_to_all if config.host in EVERYWHERE else []),
        "",
        f"  Demo page  {page}",
        f"  Live page  http://{config.admin_host}:{listening.admin_port}/",
        f"  Health     http://{config.admin_host}:{listening.admin_port}/readyz",
        "",
        "Open the page, then approve from another terminal, with either line:",
        "",
        f"  {invocation.redis_cli(config.redis)} PUBLISH {channel} CONFIRMED",
        f"  {program} publish {web_socket_id} CONFIRMED --redis {config.redis}{prefix}",
        "",
        "Without a browser, this registers the same id and prints what comes:",
        "",
        f"  {program} watch {web_socket_id}{url}",
        "",
    ]
    return "\n".join(lines)


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        click.echo(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}")


def _say_json(event: dict[str, Any]) -> None:
    click.echo(orjson.dumps(event))


def _say(event: dict[str, Any]) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')}  {logs.visible(_sentence(event))}")


def _sentence(event: dict[str, Any]) -> str:
    match event:
        case {"event": "connected", "url": url}:
            return f"connected to {url}"
        case {"event": "registered", "webSocketId": web_socket_id}:
            return f"registered {web_socket_id}"
        case {"event": "result", "authResult": result}:
            rest = {key: event[key] for key in ("messageId", "data") if key in event}
            return f"result {result}" + (f" {orjson.dumps(rest).decode()}" if rest else "")
        case {"event": "status", "push": "degraded"}:
            return "results cannot be heard: the node has lost Redis"
        case {"event": "status", "push": "restored"}:
            return "results are heard again"
        case {"event": "closed", "code": code, "reason": reason}:
            return f"closed with {code}" + (f": {reason}" if reason else "")
        case {"event": "unreachable", "reason": reason}:
            return f"cannot connect: {reason}"
        case {"event": "retrying", "seconds": seconds}:
            return f"retrying in {seconds} s"
        case {"event": "problem", "code": code, "message": message}:
            return f"the gateway complains: {message} ({code})"
    return f"received {orjson.dumps(event).decode()}"
