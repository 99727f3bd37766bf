"""The client behind the commands `watch` and `canary`: it registers as pages do, and says what comes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from .backoff import Backoff
from .errors import GatewayError
from .messages import AUTHORIZATION, ERROR, REGISTRATION, STATUS, CloseCode

CONNECT_SECONDS = 10.0
HEARTBEAT_SECONDS = 30.0  # a gateway that vanished is noticed after one and a half of them
FIRST_DELAY = 0.5
MAX_DELAY = 30.0
FINAL_STATUSES = (400, 401, 403, 404, 410)  # HTTP answers that a retry would not change

Callback = Callable[[dict[str, Any]], None]


class ClientRejected(GatewayError):
    """The gateway rejects this client or this id; a retry would not change that."""


async def watch(
    url: str,
    web_socket_id: str,
    on_event: Callback,
    *,
    origin: str | None = None,
    token: str | None = None,
    backoff: Backoff | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Register `web_socket_id` at `url` (ws:// or wss://) and report everything to `on_event`, for ever.

    `on_event` gets an object with `event`: connected, registered, result, status, problem, message, closed,
    unreachable or retrying, and further members. `origin` is the page's; the default is the host of the URL.
    `token` proves that the client may register the id. Raises ClientRejected when the gateway rejects the
    client for good.
    """
    client = _Client(
        url,
        web_socket_id,
        on_event,
        origin or origin_of(url),
        backoff or Backoff(FIRST_DELAY, MAX_DELAY),
        token,
    )
    async with aiohttp.ClientSession() as http:
        while True:
            least = await client.connect(http)
            seconds = max(least, client.backoff.next())
            on_event({"event": "retrying", "seconds": round(seconds, 1)})
            await sleep(seconds)


def origin_of(url: str) -> str:
    """The origin of a page that is served by the host of this WebSocket URL."""
    parts = urlsplit(url)
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc.rpartition('@')[2]}"


def display_url(url: str) -> str:
    """The URL without what may be a secret: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def system_words(error: OSError) -> str:
    """Why there is no connection, in the system's words, which are clearer than a library's."""
    known = error.errno is not None and error.errno > 0  # getaddrinfo has error numbers of its own
    why = os.strerror(error.errno or 0) if known else error.strerror or str(error)
    return f"{why[:1].lower()}{why[1:]}"


async def next_event(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """What comes next on a connection: `closed`, with the code and the reason, or as `event_of` says."""
    while True:
        frame = await socket.receive()
        if frame.type is aiohttp.WSMsgType.TEXT:
            return event_of(frame.data)
        if frame.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
            code = socket.close_code or CloseCode.ABNORMAL
            reason = frame.extra if frame.type is aiohttp.WSMsgType.CLOSE else ""
            return {"event": "closed", "code": int(code), "reason": reason or ""}


def event_of(text: str) -> dict[str, Any]:
    """What a message of the gateway says: registered, refused (with code and message), result, status,
    problem, or a message that is none of these."""
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        body = None
    topic = body.pop("topic", None) if isinstance(body, dict) else None
    if topic == REGISTRATION:
        succeeded = body.get("registrationSucceeded") is True
        return {"event": "registered"} if succeeded else {"event": "refused", **_problem(body)}
    if topic == AUTHORIZATION:
        return {"event": "result", **body}
    if topic == STATUS:
        return {"event": "status", **body}
    if topic == ERROR:
        return {"event": "problem", **_problem(body)}
    return {"event": "message", "text": text}


@dataclass
class _Client:
    url: str
    web_socket_id: str
    on_event: Callback
    origin: str
    backoff: Backoff
    token: str | None = field(default=None, repr=False)
    last_message_id: str | None = field(default=None, init=False)
    was_registered: bool = field(default=False, init=False)

    async def connect(self, http: aiohttp.ClientSession) -> float:
        """Run one connection from start to end; returns the minimal delay in seconds before the next."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                socket = await http.ws_connect(self.url, origin=self.origin, heartbeat=HEARTBEAT_SECONDS)
        except aiohttp.WSServerHandshakeError as error:
            return self._rejected(error)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            self.on_event({"event": "unreachable", "reason": self._obstacle(error)})
            return 0.0
        self.on_event({"event": "connected", "url": display_url(self.url)})
        async with socket:
            await self._listen(socket)
        return 0.0

    def _obstacle(self, error: Exception) -> str:
        if not isinstance(error, aiohttp.ClientConnectorError) or isinstance(error, aiohttp.ClientSSLError):
            return str(error).replace(self.url, display_url(self.url)) or "no answer in time"
        return f"{system_words(error.os_error)} at {urlsplit(self.url).netloc.rpartition('@')[2]}"

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        with suppress(ConnectionError):  # if the connection is gone already, receive() says why
            await socket.send_str(orjson.dumps(self._registration()).decode())
        while True:
            event = await next_event(socket)
            self._on_message(event)
            if event["event"] == "closed":
                return

    def _registration(self) -> dict[str, object]:
        asked = {"topic": REGISTRATION, "webSocketId": self.web_socket_id, "status": True}
        more = {"lastMessageId": self.last_message_id, "token": self.token}
        return asked | {name: value for name, value in more.items() if value is not None}

    def _on_message(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "registered"}:
                self.was_registered = True
                self.backoff.reset()
                event["webSocketId"] = self.web_socket_id
            case {"event": "refused", "code": "unknown_id", **problem} if self.was_registered:
                # The id was announced, and Redis may lack that for a moment after a failover. The gateway
                # closes an unregistered connection, and the next one asks again.
                event = {"event": "problem", "code": "unknown_id", "message": problem["message"]}
            case {"event": "refused", "code": code, "message": message}:
                raise ClientRejected(f"the gateway rejects the id: {message} ({code})")
            case {"event": "result"}:
                self.last_message_id = event.get("messageId", self.last_message_id)
        self.on_event(event)

    def _rejected(self, error: aiohttp.WSServerHandshakeError) -> float:
        if error.status in FINAL_STATUSES:
            hint = f"; is the origin {self.origin} allowed?" if error.status == 403 else ""
            raise ClientRejected(
                f"the gateway answers HTTP {error.status} to {display_url(self.url)}{hint}"
            ) from None
        self.on_event({"event": "unreachable", "reason": f"HTTP {error.status}"})
        after = error.headers.get("Retry-After", "") if error.headers else ""
        return min(float(after), MAX_DELAY) if after.isascii() and after.isdigit() else 0.0


def _problem(body: dict[str, Any]) -> dict[str, str]:
    problem = body.get("error")
    if not isinstance(problem, dict):
        problem = {}
    return {
        "code": str(problem.get("code", "unknown")),
        "message": str(problem.get("message", "no reason given")),
    }
