"""A node that is composed: it starts, drains and stops, in any process that runs an event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import structlog

from ..admin.dashboard import LocalSource
from ..admin.health import node_state
from ..admin.metrics import NodeMetrics
from ..admin.port import AdminPort
from ..config import Config
from ..nodes.sources import Sources
from ..nodes.survey import Survey
from ..server.listeners import ListenAddresses
from ..server.port import PublicPort
from ..server.timer_loop import run_timers
from .draining import close_sessions, each_in_turns
from .signals import reread

if TYPE_CHECKING:
    from ..telemetry.tracing import Tracing
    from ..tokens.verifier import Verifier

FLUSH_SECONDS: Final = 1.0
"""Seconds for the last events, which tell of the sessions that ended with the node."""

STOP_TIMEOUT: Final = 6.0 + FLUSH_SECONDS
"""Seconds. A stop takes some hundredths; responses in progress on both ports and the last spans have 5 s."""

log = structlog.get_logger()


class Node:
    """One process that serves browsers; `composition.build` makes it."""

    def __init__(
        self,
        config: Config,
        listening: ListenAddresses,
        sources: Sources,
        metrics: NodeMetrics,
        survey: Survey,
        dashboard: LocalSource,
        public_port: PublicPort,
        admin_port: AdminPort | None,
        tracing: Tracing | None,
        verifier: Verifier | None,
    ) -> None:
        """Without an `admin_port` it is a worker, whose parent has the port and asks for the answers."""
        self.config = config
        self.listening = listening
        self.dashboard = dashboard
        """What this process knows of all nodes."""
        self._sources = sources
        self._context = sources.context
        self._hub = sources.context.hub
        self._broker = sources.broker
        self._acceptor = sources.acceptor
        self._metrics = metrics
        self._survey = survey
        self._public_port = public_port
        self._admin_port = admin_port
        self._tracing = tracing
        self._verifier = verifier
        self._events = sources.event_writer
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        return self._sources.name

    @property
    def sessions(self) -> int:
        """Sessions that are open on this node."""
        return self._context.admission.sessions

    async def start(self) -> None:
        """Serve connections, and begin to connect to Redis."""
        await self._public_port.open()
        if self._admin_port is not None:
            await self._admin_port.open()
            log_listening(self.listening)
        context, lag = self._context, self._sources.lag
        self._tasks = [
            asyncio.create_task(self._broker.run(), name="broker"),
            asyncio.create_task(self._survey.run(), name="survey"),
            asyncio.create_task(run_timers(context.deadlines, context.clock, lag), name="session timers"),
            asyncio.create_task(run_timers(self._acceptor.deadlines, context.clock), name="handshake timers"),
        ]
        if self._verifier is not None:
            self._tasks.append(asyncio.create_task(self._verifier.watch(), name="registration keys"))
        if self._events is not None:
            self._tasks.append(asyncio.create_task(self._events.run(), name="event writer"))

    def state(self) -> dict[str, Any]:
        """The answer of /readyz."""
        return node_state(self._sources)

    def metrics(self) -> bytes:
        """This process's metrics in Prometheus's text format; `metrics.merge` joins those of several."""
        return self._metrics.render()

    def reload(self) -> None:
        """Read again the files that settings name. What cannot be used is logged, and changes nothing."""
        found = reread(self.config)
        if found is None:
            return
        self.config = found.config
        if found.redis is not None:
            self._broker.use(found.redis)
            if self._events is not None:
                self._events.use(found.redis)
        if self._verifier is not None:
            self._verifier.reload()
        if self._admin_port is not None:
            self._admin_port.use(found.config, found.redis)

    async def watch(self) -> None:
        """Wait until a background task ends, which none should; raises what ended it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def drain(self, delay: float, seconds: float) -> None:
        """Fail readiness, keep serving for `delay` seconds, then close all sessions evenly over `seconds`."""
        self._sources.readiness.draining = True
        log.info("draining", sessions=self.sessions, delay=delay, seconds=seconds)
        await asyncio.sleep(delay)
        self._public_port.reject_new()
        await close_sessions(
            list(self._context.deadlines),
            seconds,
            self._context.clock,
            lambda: self.sessions + self._public_port.unsent_close_frames,
            self.config.close_timeout,
        )

    async def stop(self) -> None:
        """Drop all open connections and release everything. `drain` closes sessions with a close frame.

        It takes at most STOP_TIMEOUT seconds: what is not released then ends with the process.
        """
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._release()
        except TimeoutError:
            log.error("not stopped in time", seconds=STOP_TIMEOUT)  # noqa: TRY400 - the place says nothing
        else:
            log.info("stopped")

    async def _release(self) -> None:
        self._public_port.drop()
        await each_in_turns(list(self._context.deadlines), lambda session: session.stop())
        if self._events is not None:
            await self._events.flush(FLUSH_SECONDS, lambda: self.sessions)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._events is not None:
            await self._events.close()
        await self._public_port.close()
        if self._admin_port is not None:
            await self._admin_port.close()
        if self._tracing is not None:
            await self._tracing.close()


def log_listening(listening: ListenAddresses, **about: object) -> None:
    """Say in the log where a node listens."""
    log.info(
        "listening",
        host=",".join(listening.host),
        port=listening.port,
        admin_host=",".join(listening.admin_host),
        admin_port=listening.admin_port,
        **about,
    )
