"""The command watch."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import click
import orjson

from ..messages import WEB_SOCKET_ID
from ..telemetry import logs
from .errors import UsageFailed, WatchRejected
from .runner import run


@click.command(short_help="Register an id and print what comes.")
@click.argument("web_socket_id", metavar="ID")
@click.option("--url", default="ws://localhost:8080/ws", show_default=True, help="The gateway's WebSocket.")
@click.option("--origin", help="The page's origin. [default: the host of the URL]")
@click.option("--token", help="The token for the id, where a gateway wants one: docs/tokens.md.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each event.")
def watch(web_socket_id: str, url: str, origin: str | None, token: str | None, as_json: bool) -> None:
    """Register ID as a browser would, print what comes, and reconnect when the connection is lost.

    Exit code 4: the gateway rejects this client for good. Ctrl-C ends the command with 0.
    """
    from .. import client  # with aiohttp, which the other commands need not wait for

    if not WEB_SOCKET_ID.fullmatch(web_socket_id):
        raise UsageFailed("ID must be 1 to 200 of A-Z a-z 0-9 . _ ~ -")
    check_url(url, "--url")
    try:
        with suppress(KeyboardInterrupt):
            show = print_json if as_json else print_sentence
            run(client.watch(url, web_socket_id, show, origin=origin, token=token))
    except client.ClientRejected as rejected:
        raise WatchRejected(str(rejected)) from None


def check_url(url: str, name: str) -> None:
    """Raises UsageFailed, with the `name` of the option or argument, if `url` is not a WebSocket's."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or the address no address
        right = False
    if not right:
        raise UsageFailed(f"{name} must be ws://… or wss://…, such as ws://localhost:8080/ws")


def print_json(event: dict[str, Any]) -> None:
    click.echo(logs.safe_json(event).encode())


def print_sentence(event: dict[str, Any]) -> None:
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
            return "degraded: the node has lost Redis, so results may come late"
        case {"event": "status", "push": "restored"}:
            return "restored: the node has Redis again"
        case {"event": "closed", "code": code, "reason": reason}:
            return f"closed with {code}" + (f": {reason}" if reason else "")
        case {"event": "unreachable", "reason": reason}:
            return f"cannot connect: {reason}"
        case {"event": "retrying", "seconds": seconds}:
            return f"retrying in {seconds} s"
        case {"event": "problem", "code": code, "message": message}:
            return f"error from the gateway: {message} ({code})"
    return f"received {orjson.dumps(event).decode()}"
