"""The health check of the container image: `python -m gateway.healthcheck` ends with 0 if the node is alive.

It asks for /healthz where GATEWAY_ADMIN_HOST and GATEWAY_ADMIN_PORT say that the admin port listens; it does
not know the flags of `serve`. It runs every few seconds, so it imports nothing but sockets.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Final

SECONDS: Final = 2.0
"""For the answer of one address."""

LOOPBACKS: Final = {"0.0.0.0": ("127.0.0.1",), "::": ("127.0.0.1", "::1")}  # noqa: S104 - only looked up
"""Where to ask a port that listens everywhere."""


def main(environment: Mapping[str, str]) -> int:
    """The exit code. If no address answers 200, stderr says what each did."""
    found = []
    for host, port in addresses(environment):
        answer = ask(host, port)
        if answer == "200":
            return 0
        found.append(f"{host} port {port}: {answer}")
    print("; ".join(found), file=sys.stderr)
    return 1


def addresses(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each address where the admin port should answer."""
    port = environment.get("GATEWAY_ADMIN_PORT") or "8081"
    for text in (environment.get("GATEWAY_ADMIN_HOST") or "127.0.0.1").split(","):
        host = text.strip().removeprefix("[").removesuffix("]")
        yield from ((each, port) for each in LOOPBACKS.get(host, (host,)))


def ask(host: str, port: str) -> str:
    """The status of the answer to GET /healthz, or what went wrong."""
    try:
        with socket.create_connection((host, int(port)), SECONDS) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as answer:
                words = answer.readline(100).split()
    except (OSError, ValueError) as error:
        return str(error)
    return words[1].decode("ascii", "replace") if len(words) > 1 else "no answer"


if __name__ == "__main__":
    sys.exit(main(os.environ))
