"""Answers complete requests with aiohttp's handlers, one at a time on a connection.

aiohttp's own server protocol would read a connection's later requests by other rules than the first, inflate
bodies, and write what it cannot parse into the log and the answer. Here aiohttp does what it is good at:
routes, handlers and responses.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD, EmptyStreamReader, StreamReader

from ..telemetry.failures import log_failure
from ..transports.hijack import HIJACKED, RequestConnection, end_input
from ..transports.sockets import reset
from ..wire.handshake import FAILED
from .responses import rejection_response

HTTP_SHUTDOWN: Final = 1.0
"""Seconds for requests in progress to end when the node stops."""


class ConnectionSink(Protocol):
    """Takes the connections whose response is complete: see `acceptor.Acceptor`."""

    def lost(self, transport: asyncio.BaseTransport) -> None: ...
    def keep_alive(self, transport: asyncio.Transport, rest: bytes) -> None: ...
    def close_gracefully(self, transport: asyncio.Transport) -> None: ...


class OversizedBody(EmptyStreamReader):
    """In place of a body that was not read because it is too large. Raises HTTPRequestEntityTooLarge."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def at_eof(self) -> bool:
        return False

    async def readany(self) -> bytes:
        # A stored exception would keep the request that it was raised for.
        raise web.HTTPRequestEntityTooLarge(self._limit)


class RequestServer:
    """Has requests answered by the handlers of one aiohttp application. `build` makes it."""

    def __init__(self, runner: web.AppRunner, sink: ConnectionSink, max_body: int) -> None:
        """`runner` has been set up. `sink` takes each connection after its response."""
        assert runner.server is not None
        self._runner = runner
        self._new_request = runner.server.request_factory
        self._handle = runner.server.request_handler
        self._sink = sink
        self.max_body = max_body
        """Bytes of a request's body."""
        self._loop = asyncio.get_running_loop()
        self._answering: set[asyncio.Task[None]] = set()

    @classmethod
    async def build(cls, app: web.Application, sink: ConnectionSink, max_body: int) -> RequestServer:
        """Serve `app`."""
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        return cls(runner, sink, max_body)

    def serve(
        self, transport: asyncio.Transport, message: RawRequestMessage, body: bytes | None, rest: bytes
    ) -> None:
        """Answer a request. `body` is None if it is too large; `rest` is what was read after the request."""
        if body is None:  # what follows is the rest of the body
            message, rest = message._replace(should_close=True), b""
        connection = RequestConnection(self._loop, transport, rest, self._sink.lost)
        task = self._loop.create_task(self._answer(connection, message, self._payload(connection, body)))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def close(self) -> None:
        """Wait for the responses in progress for `HTTP_SHUTDOWN` seconds, then drop them."""
        if self._answering:
            await asyncio.wait(self._answering, timeout=HTTP_SHUTDOWN)
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        await self._runner.cleanup()

    def _payload(self, connection: RequestConnection, body: bytes | None) -> StreamReader:
        if body is None:
            return OversizedBody(self.max_body)
        if not body:
            return EMPTY_PAYLOAD
        payload = StreamReader(connection, limit=self.max_body, loop=self._loop)
        payload.feed_data(body)
        payload.feed_eof()
        return payload

    async def _answer(
        self, connection: RequestConnection, message: RawRequestMessage, payload: StreamReader
    ) -> None:
        transport = connection.transport
        if transport is None:  # the client has left before its request's turn came
            return
        try:
            writer = StreamWriter(connection, self._loop)
            task = cast("asyncio.Task[None]", asyncio.current_task())
            request = cast("web.Request", self._new_request(message, payload, connection, writer, task))  # type: ignore[arg-type]  # aiohttp names its own protocol there
            response = await self._response(request)
            if response is HIJACKED:
                if connection.ended:
                    end_input(transport)
                return
            if connection.overrun:
                response.force_close()
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:  # the client has gone
            reset(transport)
        except asyncio.CancelledError:  # the node stops
            reset(transport)
            raise
        except Exception as error:
            log_failure("request failed", error)
            reset(transport)
        else:
            self._give_back(connection, lasting=bool(response.keep_alive) and not connection.overrun)

    async def _response(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._handle(request)
        except web.HTTPException as response:
            # The traceback leads to the request and back here, so the request would wait for the collector.
            return response.with_traceback(None)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            log_failure("request failed", error, method=request.method)
            return rejection_response(FAILED)

    def _give_back(self, connection: RequestConnection, *, lasting: bool) -> None:
        """The response is complete."""
        if connection.transport is None:  # it has been lost
            return
        ended, rest = connection.ended, connection.rest
        transport = connection.release()
        if lasting:
            self._sink.keep_alive(transport, rest)
        else:
            self._sink.close_gracefully(transport)
        if ended:
            end_input(transport)
