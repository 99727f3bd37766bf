"""The command id."""

from __future__ import annotations

import hashlib

import click

from .errors import UsageFailed


@click.command("id", short_help="Print the webSocketId of an operation.")
@click.argument("operation_id")
def id_(operation_id: str) -> None:
    """Print the webSocketId of an operation: the SHA-512 of the operation's id, in lower-case hex."""
    if not operation_id.strip():  # an unset variable in a script, say: all users would get the same id
        raise UsageFailed("the operation's id is empty")
    click.echo(hashlib.sha512(operation_id.encode()).hexdigest())
