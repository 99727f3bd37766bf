"""The public port: composed of acceptor, dispatcher, endpoints and the handoff between workers. It listens,
stops listening when the node drains, and drops what is left.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from aiohttp import web

from ..core.session import SessionContext
from ..transports.connections import ConnectionLedger
from .acceptor import Acceptor
from .access import AccessControl
from .app import MAX_PUBLIC_BODY, PublicApp, web_app
from .dispatcher import Dispatcher
from .handoff import Handoff, Siblings
from .listeners import Serving
from .requests import RequestServer
from .wires import WIRES, WireRow, WireTable


class PublicPort:
    """The port that clients connect to. `build` makes it."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        backlog: int,
        acceptor: Acceptor,
        access: AccessControl,
        app: PublicApp,
        server: RequestServer,
        handoff: Handoff | None,
    ) -> None:
        """`handoff` exchanges connections with the other workers, if there are any."""
        self.acceptor = acceptor
        self.access = access
        self._serving = Serving(listeners, backlog)
        self._app = app
        self._server = server
        self._handoff = handoff

    @classmethod
    async def build(
        cls,
        context: SessionContext,
        ledger: ConnectionLedger,
        listeners: Sequence[socket.socket],
        *,
        wires: Sequence[WireRow] = WIRES,
        routes: Sequence[web.RouteDef] = (),
        siblings: Siblings | None = None,
    ) -> PublicPort:
        """Build the port, whose connections `ledger` counts. It serves after `open`.

        `routes` are served besides the endpoints of the wires. With `siblings`, several workers serve the
        port. Raises ValueError for wires that cannot be served.

        The parts form one cycle, because the acceptor takes back each connection whose response is complete:
        acceptor -> dispatcher -> endpoints -> acceptor. The acceptor is made first. It gets the dispatcher as
        a function that looks it up at each call, and nothing calls this function before `open`.
        """

        def dispatch(transport: asyncio.Transport, head: bytes) -> None:
            dispatcher.dispatch(transport, head)

        config = context.config
        table = WireTable(config, wires)
        access = AccessControl(context)
        acceptor = Acceptor(dispatch, ledger, config.handshake_timeout, config.keep_alive, context.clock)
        app = PublicApp(context, access, table, acceptor)
        server = await RequestServer.build(web_app([*app.routes(), *routes]), acceptor, MAX_PUBLIC_BODY)
        handoff = None if siblings is None else Handoff(siblings, table.sockjs, acceptor)
        hand_off = None if handoff is None else handoff.hand_off
        dispatcher = Dispatcher(acceptor, server, access.rejections, app.endpoint, hand_off)
        return cls(listeners, config.backlog, acceptor, access, app, server, handoff)

    @property
    def unsent_close_frames(self) -> int:
        """Polling clients whose session was closed and that have not fetched the close frame yet."""
        return self._app.unsent_close_frames

    async def open(self) -> None:
        """Serve connections."""
        await self._serving.start(self.acceptor)
        if self._handoff is not None:
            self._handoff.open()

    def reject_new(self) -> None:
        """Accept no more connections, and open no more sessions on those that there are."""
        self.access.close()
        self._serving.stop()

    def drop(self) -> None:
        """Drop the connections that are not sessions yet."""
        self._serving.stop()
        if self._handoff is not None:
            self._handoff.close()
        self.acceptor.abort_all()

    async def close(self) -> None:
        """Wait for the responses that are in progress, and reset what is not read by then."""
        await self._server.close()
        self.acceptor.abort_all()
        self.acceptor.ledger.close()
