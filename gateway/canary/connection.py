"""Opens a WebSocket step by step, so that a failure says which step it was."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from .. import __version__
from ..client import display_url, origin_of, system_words
from ..redis.dial import connect, look_up
from .stages import CanaryFailed, Stage

if TYPE_CHECKING:
    from aiohttp.tracing import Trace

CLOSE_SECONDS: Final = 1.0
"""For the answer to the close frame of a check that is over, and the same again for its connections."""

USER_AGENT: Final = f"webflow-gateway/{__version__} canary"

STATUS_HINTS: Final = {
    400: "a proxy may not pass the headers Upgrade and Connection on",
    401: "a proxy wants a login",
    404: "write the path of the gateway's WebSocket, such as /ws",
    426: "a proxy does not pass the headers Upgrade and Connection on",
    429: "too many sessions or requests from this address",
    500: "the log of the node says why",
    502: "the proxy does not reach a node",
    504: "the proxy waits for a node that does not answer",
}

Progress = Callable[[Stage], None]
"""Is told which stage begins."""


class WebSocketOpener:
    """Opens WebSockets at `url` as a page of `origin` does; the default is the page of the URL's own host.

    Each is a connection of its own. With `ca_file`, certificates of these CAs are trusted instead of the
    system's.
    """

    def __init__(self, url: str, origin: str | None, ca_file: str | None, progress: Progress) -> None:
        self._url = url
        self._origin = origin or origin_of(url)
        self._progress = progress
        self._tls = _tls_context(ca_file) if url.startswith("wss:") else None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """The session that `open` needs. It ends with its connections, in `CLOSE_SECONDS` at most."""
        tracing = aiohttp.TraceConfig()
        tracing.on_request_redirect.append(_refuse_redirect)
        session = aiohttp.ClientSession(
            connector=_StagedConnector(self._tls, self._progress),
            timeout=aiohttp.ClientTimeout(total=None),  # the caller limits the time
            trace_configs=[tracing],
            headers={"User-Agent": USER_AGENT},
        )
        try:
            yield session
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await session.close()

    async def open(self, session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        """Open one. Raises CanaryFailed. The caller limits the time."""
        try:
            return await session.ws_connect(
                self._url, origin=self._origin, timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS)
            )
        except aiohttp.WSServerHandshakeError as error:
            raise self._not_upgraded(error) from None
        except (aiohttp.ClientError, OSError) as error:
            secure = "" if self._tls else "; if TLS is needed here, write wss://"
            reason = str(error).replace(self._url, display_url(self._url)) or type(error).__name__
            raise CanaryFailed(
                Stage.UPGRADE, f"no HTTP answer: {reason}", f"the proxy or node has hung up{secure}"
            ) from None

    def _not_upgraded(self, error: aiohttp.WSServerHandshakeError) -> CanaryFailed:
        if error.status == 101:
            return CanaryFailed(
                Stage.UPGRADE, f"the answer is wrong: {error.message}", "a proxy changes its headers"
            )
        if error.status == 403:
            hint = f"do the nodes allow the origin {self._origin}? --origin names another"
        elif error.status == 503:
            # The gateway always says when to come back; a proxy without nodes does not know.
            full = "Retry-After" in (error.headers or {})
            hint = "the nodes are full or stopping" if full else "the proxy has no node that is ready"
        elif 200 <= error.status < 300:
            hint = "this is a page and no WebSocket: write the path of the gateway's WebSocket, such as /ws"
        else:
            hint = STATUS_HINTS.get(error.status, "the log of the proxy says why")
        return CanaryFailed(Stage.UPGRADE, f"HTTP {error.status} from {display_url(self._url)}", hint)


async def _refuse_redirect(
    _session: aiohttp.ClientSession, _context: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams
) -> None:
    """A redirect is a failure: browsers do not follow it with a WebSocket, though aiohttp would."""
    params.response.close()  # nobody else would, and its body may never end
    target = display_url(urljoin(str(params.url), params.response.headers.get("Location", "")))
    raise CanaryFailed(
        Stage.UPGRADE,
        f"HTTP {params.response.status} leads to {target}",
        "browsers follow no redirect of a WebSocket: write the address where the gateway answers",
    )


class _StagedConnector(aiohttp.BaseConnector):
    """Connects for aiohttp. Its own connector would not say how far it has come when the time is up, and
    looks names up in threads that the process waits for at its end."""

    def __init__(self, tls: ssl.SSLContext | None, progress: Progress) -> None:
        super().__init__(force_close=True)
        self._tls = tls
        self._progress = progress
        self._made: list[Connection] = []

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - that is how aiohttp calls it
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        self._made.append(connection)
        return connection

    def close(self, *, abort_ssl: bool = False) -> Awaitable[None]:
        # Whichever way a check has ended, none outlives it. Otherwise aiohttp would wait here for the other
        # side of TLS, and warn of the connection later.
        for connection in self._made:
            connection.close()
        return super().close(abort_ssl=abort_ssl)

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - that is how aiohttp calls it
    ) -> ResponseHandler:
        host, port = req.url.raw_host or "", req.url.port or 0
        self._progress(Stage.LOOK_UP)
        try:
            addresses = await look_up(host, port)
        except OSError as error:
            raise CanaryFailed(Stage.LOOK_UP, str(error), "is the name right, and in DNS?") from None
        self._progress(Stage.TCP)
        try:
            connected = await connect(addresses)
        except OSError as error:
            raise CanaryFailed(
                Stage.TCP, f"{system_words(error)} at {host} port {port}", "does the proxy run?"
            ) from None
        loop = asyncio.get_running_loop()
        if self._tls is None:
            self._progress(Stage.UPGRADE)
            return (await loop.create_connection(self._factory, sock=connected))[1]
        self._progress(Stage.TLS)
        try:
            _, protocol = await loop.create_connection(
                self._factory, sock=connected, ssl=self._tls, server_hostname=host
            )
        except OSError as error:
            raise _tls_failed(error, host, port) from None
        self._progress(Stage.UPGRADE)
        return protocol


def _tls_failed(error: OSError, host: str, port: int) -> CanaryFailed:
    if isinstance(error, ssl.SSLCertVerificationError):
        return CanaryFailed(
            Stage.TLS,
            f"the certificate of {host} is not valid: {error.verify_message}",
            "renew it or complete its chain; if its CA is your own, name the CA by --ca-file",
        )
    reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else system_words(error)
    reason = reason or "the connection was closed"
    return CanaryFailed(
        Stage.TLS, f"no TLS with {host} port {port}: {reason}", "without TLS the URL begins with ws://"
    )


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one, and does not say which file it is about
        raise CanaryFailed(
            Stage.TLS, f"{ca_file} cannot be used: {error}", "name a PEM file with the certificates of CAs"
        ) from None
    context.set_alpn_protocols(["http/1.1"])  # as browsers do for a WebSocket
    return context
