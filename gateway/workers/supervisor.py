"""The parent of a node's workers: it starts them, keeps them alive, and answers the admin port for all.

Workers are forked once all is imported and the collector has been told to let it be (gc.freeze), so that they
share those pages. Forking happens while no event loop runs: `run` leaves the loop for it.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import structlog
from aiohttp import web

from ..admin.dashboard import Dashboard, JsonObject
from ..admin.metrics import ParentMetrics
from ..admin.publish import MAX_PUBLISH_BODY, PublishEndpoint
from ..admin.workers import WorkersHealthEndpoints
from ..config import Config
from ..errors import ConfigError
from ..node import ListenAddresses, StopOrder, WorkerShare, announce_in_log, cannot_listen, stop_orders
from ..publishing.publisher import Publisher
from ..server.app import HTTP_SHUTDOWN, start_runner, web_app
from ..telemetry import logs
from .control import Control, Message
from .listeners import listen
from .liveness import HEARTBEAT_INTERVAL
from .slots import WorkerProcess, WorkerSlot
from .standby import StandbyAcceptor
from .worker import WorkerSpec, run_worker

STOP_MARGIN: Final = 5.0
"""Seconds that workers may take to end beyond what their own bounds add up to; then they are killed."""

ANSWER_TIMEOUT: Final = 1.0
"""Seconds that a worker has for an answer; an orchestrator's probe waits no longer for all of them."""

DIVIDED_LIMITS: Final = ("max_sessions", "max_handshakes")
"""Limits of which each worker has its part, since any connection may come to any worker."""

LoopFactory = Callable[[], asyncio.AbstractEventLoop] | None

log = structlog.get_logger()


def run(config: Config, loop_factory: LoopFactory) -> int:
    """Run a node of `config.workers` workers until SIGTERM or SIGINT; returns the exit code.

    The signals mean what they mean for `app.serve`. Raises ConfigError if an address cannot be had. Workers
    get their loops from `loop_factory`; the parent, which has little to do, runs on asyncio's own.
    """
    with asyncio.Runner() as runner:
        supervisor = Supervisor(config)
        try:
            runner.run(supervisor.open())
            while (post := runner.run(supervisor.vacancy())) is not None:
                _fork(supervisor, post, loop_factory)
        except ConfigError as error:
            log.error("cannot start", why=str(error))  # noqa: TRY400 - the sentence says it all
            raise
        finally:
            runner.run(supervisor.close())
    return supervisor.exit_code


def _fork(supervisor: Supervisor, post: WorkerSlot, loop_factory: LoopFactory) -> None:
    """Start a worker at `post`. The child does not return from here."""
    parent = os.getpid()
    gc.collect()
    gc.freeze()
    with ExitStack() as opened, _signals_blocked():
        try:
            ours, theirs = (opened.enter_context(end) for end in socket.socketpair())
            pid = os.fork()
        except OSError as error:  # no process or no descriptor to be had at the moment
            supervisor.unborn(post, error)
            return
        if not pid:
            code = 1
            try:
                code = run_worker(supervisor.birth(post, theirs, parent, loop_factory))
                sys.stderr.flush()
            finally:
                os._exit(code)
        theirs.close()
        opened.pop_all()
    supervisor.born(post, pid, ours)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """What comes meanwhile is for the parent, and must not reach the child by the parent's handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Supervisor:
    """The parent, between two forks."""

    def __init__(self, config: Config) -> None:
        self.name = ""
        self.draining = False
        self.exit_code = 0
        self._config = config
        part = {name: math.ceil(getattr(config, name) / config.workers) for name in DIVIDED_LIMITS}
        self._workers_config = config.model_copy(update=part)
        self._posts: list[WorkerSlot] = []
        self._relief: StandbyAcceptor | None = None
        self._vacant: asyncio.Queue[WorkerSlot | None] = asyncio.Queue()
        self._stops = 0
        self._started = False  # every worker has listened
        self._listening = ListenAddresses(config.host, config.port, config.admin_host, config.admin_port)
        self._runner: web.AppRunner | None = None
        self._admin: asyncio.Server | None = None
        self._live: Dashboard | None = None
        self._publisher: Publisher | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # Starting

    async def open(self) -> None:
        """Listen, and ask for the workers. Raises ConfigError if an address cannot be had."""
        config, self._loop = self._config, asyncio.get_running_loop()
        try:
            groups = listen(config.host, config.port, config.workers, config.backlog)
        except OSError as error:
            raise ConfigError(cannot_listen(error, "port", config.host, config.port)) from error
        self._posts = [WorkerSlot(number, group) for number, group in enumerate(groups, 1)]
        self._relief = StandbyAcceptor(self._posts)
        port: int = groups[0][0].getsockname()[1]
        self.name = config.node_name(port)
        admin_port = await self._open_admin()
        self._listening = ListenAddresses(config.host, port, config.admin_host, admin_port)
        logs.configure(config.log_level, config.log_format, self.name)
        for number, order in stop_orders(config).items():
            self._loop.add_signal_handler(number, self._stop, order)
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        self._do(self._watch())
        for post in self._posts:
            self._vacant.put_nowait(post)

    async def _open_admin(self) -> int:
        config = self._config
        self._publisher = Publisher(config.redis)
        publishing = PublishEndpoint(
            self._publisher, config.token(), config.channel_prefix, config.max_result_size
        )
        metrics = ParentMetrics(self.accounts, publishing.outcomes)
        self._live = Dashboard(self, self.name, config.admin_host)
        routes = [
            *WorkersHealthEndpoints(self, metrics.render).routes(),
            *publishing.routes(),
            *self._live.routes(),
        ]
        self._runner = await start_runner(web_app(routes, max_body=MAX_PUBLISH_BODY))
        assert self._runner.server is not None
        host, port, server = config.admin_host, config.admin_port, self._runner.server
        try:
            self._admin = await self._loop.create_server(server, host, port, backlog=config.backlog)
        except OSError as error:
            raise ConfigError(cannot_listen(error, "admin_port", host, port)) from error
        actual: int = self._admin.sockets[0].getsockname()[1]
        return actual

    async def vacancy(self) -> WorkerSlot | None:
        """The next post that needs a worker; None when the node has stopped."""
        while True:
            post = await self._vacant.get()
            if post is None or not self.draining:
                return post

    def birth(
        self, post: WorkerSlot, control: socket.socket, parent: int, loop_factory: LoopFactory
    ) -> WorkerSpec:
        """What the next worker at `post` is born with."""
        share = WorkerShare(post.number, post.listeners, [each.inbox for each in self._posts])
        return WorkerSpec(self._workers_config, self.name, share, control, parent, loop_factory)

    def born(self, post: WorkerSlot, pid: int, line: socket.socket) -> None:
        """A worker runs at `post`; `line` leads to it."""
        control = Control(lambda message: self._heard(post, message), _ignore)
        post.life = WorkerProcess(pid, control)
        post.pulse.beat()
        log.info("worker started", worker=post.number, pid=pid)
        self._do(control.open(line))

    def unborn(self, post: WorkerSlot, error: OSError) -> None:
        """There is no worker at `post`, since the system would not have it."""
        log.error("worker not started", worker=post.number, why=error.strerror or str(error))
        self._missed(post, 0.0)

    # What workers say

    def accounts(self) -> list[dict[str, Any]]:
        """What is known of each worker."""
        return [post.account() for post in self._posts]

    async def ask(self, what: str) -> list[Any]:
        """Every worker's answer, None where there is none."""
        return await asyncio.gather(*(self._ask(post, what) for post in self._posts))

    async def snapshot(self) -> JsonObject | None:
        """What the live page shows, as any worker knows it."""
        return await self._ask_any("live")

    async def look_up(self, web_socket_id: str) -> JsonObject | None:
        """Who holds an id, as any worker finds it."""
        return await self._ask_any("session", web_socket_id)

    async def _ask_any(self, what: str, about: str = "") -> JsonObject | None:
        for post in self._posts:
            answer: JsonObject | None = await self._ask(post, what, about)
            if answer is not None:
                return answer
        return None

    async def _ask(self, post: WorkerSlot, what: str, about: str = "") -> Any:
        life = post.life
        if life is None or not life.listening or post.pulse.quiet:
            return None
        return await life.control.ask(what, ANSWER_TIMEOUT, about)

    def _heard(self, post: WorkerSlot, message: Message) -> None:
        life = post.life
        if life is None:
            return
        match message:
            case {"beat": _}:
                post.pulse.beat()
            case {"listening": _}:
                life.listening = True
                self._announce()
            case {"leave": _}:
                self._dismiss(post, life)
        self._adjust()

    def _announce(self) -> None:
        if not self._started and all(post.life and post.life.listening for post in self._posts):
            self._started = True
            announce_in_log(self._listening, self.name, workers=len(self._posts))

    def _dismiss(self, post: WorkerSlot, life: WorkerProcess) -> None:
        """One worker has had a SIGTERM. Service managers send it to every process of a service."""
        if self.draining or life.leaving:
            return
        log.info("worker leaves", worker=post.number, pid=life.pid)
        life.leaving = True
        life.control.say({"stop": list(stop_orders(self._config)[signal.SIGTERM])})

    def _adjust(self) -> None:
        if self._relief is not None and not self.draining:
            self._relief.adjust()

    # Keeping workers alive

    async def _watch(self) -> None:
        """Count the workers' signs of life for ever, and kill those that give none."""
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL)
            logs.flush()
            for post in self._posts:
                post.pulse.look()
                if post.life is not None and post.pulse.hung:
                    _kill(post, post.life, "worker hangs, and is killed")
            self._adjust()

    def _reap(self) -> None:
        for post in self._posts:
            if post.life is None:
                continue
            pid, status = os.waitpid(post.life.pid, os.WNOHANG)
            if pid:
                self._ended(post, post.life, os.waitstatus_to_exitcode(status))

    def _ended(self, post: WorkerSlot, life: WorkerProcess, code: int) -> None:
        """A worker is gone, by a signal if `code` is negative."""
        life.control.close()
        post.life = None
        expected = code == 0 and (self.draining or life.leaving)
        say = log.info if expected else log.error
        how = {"signal": _signal_name(-code)} if code < 0 else {"code": code}
        say("worker ended", worker=post.number, pid=life.pid, **how)
        if life.listening and not self.draining:
            self._do(self._replace(post, time.monotonic() - life.born))
        else:
            self._missed(post, time.monotonic() - life.born)

    def _missed(self, post: WorkerSlot, lived: float) -> None:
        """Nobody is at `post`, who perhaps has never listened."""
        assert self._relief is not None
        if self.draining:
            self._relief.empty(post, math.inf)
            self._finish()
        elif not self._started:  # it never could; neither will the next
            self.exit_code = 1
            self._stop(StopOrder(0, 0))
        else:
            self._do(self._replace(post, lived))

    async def _replace(self, post: WorkerSlot, lived: float) -> None:
        assert self._relief is not None
        pause = post.backoff.pause(lived)
        post.restarts += 1
        self._adjust()
        self._relief.empty(post, pause)
        log.warning("worker is replaced", worker=post.number, restarts=post.restarts, in_seconds=pause)
        await asyncio.sleep(pause)
        self._relief.leave_to_worker(post)
        self._vacant.put_nowait(post)

    # Stopping

    def _stop(self, order: StopOrder) -> None:
        """Have all workers drain; the second time, have them end at once."""
        self._stops += 1
        if self._stops == 1:
            log.info("draining", workers=len(self._posts), delay=order.delay, seconds=order.seconds)
            self.draining = True
            self._do(self._drain(order))
        for post in self._posts:
            # To a worker that leaves already, another order would be the second.
            if post.life is not None and (not post.life.leaving or self._stops > 1):
                post.life.control.say({"stop": list(order)})
        self._finish()

    async def _drain(self, order: StopOrder) -> None:
        """Close the port when the workers do, and see that they end."""
        assert self._relief is not None
        await asyncio.sleep(order.delay)
        self._relief.close()
        self._close_port()
        for post in self._posts:
            if post.life is None:
                self._relief.empty(post, math.inf)
        await asyncio.sleep(order.seconds + self._config.close_timeout + HTTP_SHUTDOWN + STOP_MARGIN)
        for post in self._posts:
            if post.life is not None:
                self.exit_code = 1
                _kill(post, post.life, "worker does not end, and is killed")

    def _finish(self) -> None:
        if self.draining and all(post.life is None for post in self._posts):
            self._vacant.put_nowait(None)

    def _close_port(self) -> None:
        for post in self._posts:
            for listener in post.listeners:
                listener.close()

    async def close(self) -> None:
        """Release everything; no worker runs by now, unless something failed, and then its line ends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._relief is not None:
            self._relief.close()
        self._close_port()
        for post in self._posts:
            post.inbox.close()
        if self._admin is not None:
            self._admin.close()
        if self._live is not None:
            self._live.feed.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._publisher is not None:
            await self._publisher.close()
        if self._posts:
            log.info("stopped")

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)  # also between two runs of it
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _kill(post: WorkerSlot, life: WorkerProcess, why: str) -> None:
    os.kill(life.pid, signal.SIGKILL)
    log.error(why, worker=post.number, pid=life.pid)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)


def _ignore() -> None:
    """A worker's end is told by the kernel."""
