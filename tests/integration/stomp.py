"""STOMP frames as Web Flow's own page writes and reads them, independent of the transport.

They are written and parsed here, and not by `gateway.wire`, which is under test.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

CONNECT = "CONNECT\nX-CSRF-TOKEN:a1b2:c3-\\x\naccept-version:1.1,1.0\nheart-beat:10000,10000\n\n\0"
TO_REGISTRATION = "SUBSCRIBE\nid:sub-0\ndestination:/user/topic/registration\n\n\0"
TO_AUTHORIZATION = "SUBSCRIBE\nid:sub-1\ndestination:/user/topic/authorization\n\n\0"
TO_STATUS = "SUBSCRIBE\nid:sub-2\ndestination:/user/topic/status\n\n\0"
DISCONNECT = "DISCONNECT\nreceipt:bye\n\n\0"


def send(name: str, **members: object) -> str:
    """The SEND that registers `name`, with further members in its body."""
    body = json.dumps({"webSocketId": name, **members})
    return f"SEND\ndestination:/app/registration\ncontent-length:{len(body)}\n\n{body}\0"


def conversation(name: str) -> list[str]:
    """What the page sends before it waits for its result."""
    return [CONNECT, TO_REGISTRATION, send(name), TO_AUTHORIZATION]


class Frame(NamedTuple):
    command: str
    headers: dict[str, str]
    body: str

    @property
    def said(self) -> dict[str, Any]:
        """The body, which is JSON."""
        said: dict[str, Any] = json.loads(self.body)
        return said


def parse(text: str) -> Frame:
    """Parse the one frame in `text`."""
    head, _, body = text.partition("\n\n")
    command, *lines = head.split("\n")
    assert body.endswith("\0"), text
    return Frame(command, dict(line.split(":", 1) for line in lines), body[:-1])


def registered(name: str) -> tuple[str, dict[str, object]]:
    return "/user/topic/registration", {"webSocketId": name, "registrationSucceeded": True}


def authorized(name: str, auth_result: str, **members: object) -> tuple[str, dict[str, object]]:
    return "/user/topic/authorization", {"webSocketId": name, "authResult": auth_result, **members}


def message(text: str) -> tuple[str, dict[str, object]]:
    """Destination and body of the MESSAGE frame in `text`."""
    frame = parse(text)
    assert frame.command == "MESSAGE", text
    return frame.headers["destination"], frame.said
