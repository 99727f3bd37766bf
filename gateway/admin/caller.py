"""Who asks the admin port, for the log."""

from __future__ import annotations

from aiohttp import web


def caller_of(request: web.Request) -> dict[str, str]:
    """The fields of a log line that say who sent `request`.

    `peer` is the address that connected. `forwarded_for` is what a proxy in between says of its client, if
    there is one. Anybody can write that header, so it counts only if `peer` is your proxy.
    """
    fields = {"peer": request.remote or ""}
    forwarded = ", ".join(request.headers.getall("X-Forwarded-For", ()))
    return {**fields, "forwarded_for": forwarded} if forwarded else fields
