"""The parent of a node's workers: it starts them, keeps them alive, and answers the admin port for all.

Workers are forked once all is imported and the collector ignores what exists (gc.freeze), so that they share
those pages. A fork happens while no event loop runs: `run` leaves the loop for it.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import structlog

from ..admin.metrics import ParentMetrics
from ..admin.port import AdminPort
from ..admin.workers import WorkersHealth
from ..config import Config
from ..errors import ConfigError
from ..node import EXIT_DRAIN_CUT, StopOrder, WorkerShare, handle_stop_signals, reread, stop_orders
from ..node.node import log_listening
from ..server.listeners import ListenAddresses, listen, port_of
from ..server.requests import HTTP_SHUTDOWN
from ..system import admin_connections, raise_nofile_limit
from ..telemetry import logs
from ..telemetry.failures import log_loop_failure
from . import process_state
from .control import Control, Message
from .group import Workers
from .liveness import HEARTBEAT_INTERVAL, MAX_LATE
from .standby import StandbyAcceptor
from .worker import WorkerSpec, run_worker
from .worker_slots import WorkerProcess, WorkerSlot

STOP_MARGIN: Final = 5.0
"""Seconds that workers may take to end beyond what their own limits add up to; then they are killed."""

DIVIDED_LIMITS: Final = ("max_sessions", "max_handshakes")
"""Limits of which each worker has its part, since any connection may come to any worker."""

LoopFactory = Callable[[], asyncio.AbstractEventLoop] | None

log = structlog.get_logger()


def run(config: Config, loop_factory: LoopFactory) -> int:
    """Run a node of `config.workers` workers until SIGTERM or SIGINT; returns the exit code.

    The signals and the exit code mean the same as for `node.serve`; the code is EXIT_DRAIN_CUT if a worker
    ended before it had closed its sessions. Raises ConfigError if a port is taken. Workers get their loops
    from `loop_factory`; the parent, which has little to do, runs on asyncio's own.
    """
    runner = asyncio.Runner()
    try:
        supervisor = runner.run(build(config))
    except ConfigError as error:
        log.error("cannot start", reason=str(error))  # noqa: TRY400 - the reason says all
        runner.close()
        raise
    # From here on the runner stays open to the end of the process, which then still handles its signals.
    try:
        runner.run(supervisor.start())
        while (slot := runner.run(supervisor.next_vacant())) is not None:
            _fork(supervisor, slot, loop_factory)
    finally:
        runner.run(supervisor.close())
    return supervisor.exit_code


async def build(config: Config) -> Supervisor:
    """Make a supervisor, which listens from now on; `close` releases what it holds. Raises ConfigError."""
    groups = listen("port", config.host, config.port, config.backlog, config.workers)
    slots = [WorkerSlot(number, group) for number, group in enumerate(groups, 1)]
    try:
        (admin,) = listen("admin_port", config.admin_host, config.admin_port, config.backlog)
        addresses = ListenAddresses(config.host, port_of(groups[0]), config.admin_host, port_of(admin))
        workers = Workers(config.node_name(addresses.port), slots)
        published: Counter[str] = Counter()
        announced: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        metrics = ParentMetrics(workers.accounts, published, announced, rejected)
        health = WorkersHealth(workers, metrics.render)
        room = admin_connections(raise_nofile_limit())
        admin_port = await AdminPort.build(
            config, workers.name, admin, health, workers, published, announced, rejected, room
        )
    except BaseException:
        _release(slots)
        raise
    return Supervisor(config, addresses, workers, admin_port)


def _release(slots: Sequence[WorkerSlot]) -> None:
    for slot in slots:
        slot.inbox.close()
        for listener in slot.listeners:
            listener.close()


def _fork(supervisor: Supervisor, slot: WorkerSlot, loop_factory: LoopFactory) -> None:
    """Start a worker in `slot`. The child does not return from here."""
    parent = os.getpid()
    gc.collect()
    gc.freeze()
    with ExitStack() as opened, _signals_blocked():
        try:
            ours, theirs = (opened.enter_context(end) for end in socket.socketpair())
            pid = os.fork()
        except OSError as error:  # too many processes or descriptors at the moment
            supervisor.fork_failed(slot, error)
            return
        if not pid:
            code = 1
            try:
                code = run_worker(supervisor.spec(slot, theirs, parent, loop_factory))
                sys.stderr.flush()
            finally:
                os._exit(code)
        theirs.close()
        opened.pop_all()
    supervisor.started(slot, pid, ours)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A signal that comes during the fork is for the parent; the child must not run the parent's handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Supervisor:
    """Keeps a process in each slot until the node stops."""

    def __init__(
        self, config: Config, listening: ListenAddresses, workers: Workers, admin_port: AdminPort
    ) -> None:
        """`build` makes the parts, which `close` releases."""
        self.listening = listening
        self.workers = workers
        self.exit_code = 0
        self._use(config)
        self._admin_port = admin_port
        self._slots = workers.slots
        self._loop = asyncio.get_running_loop()
        self._standby = StandbyAcceptor(self._slots)
        self._vacant: asyncio.Queue[WorkerSlot | None] = asyncio.Queue()
        self._stops = 0
        self._complete = False  # every worker has listened
        self._tasks: set[asyncio.Task[None]] = set()

    # Starting

    async def start(self) -> None:
        """Answer the admin port, handle signals, and ask for a worker in each slot."""
        config = self._config
        logs.configure(config.log_level, config.log_format, self.workers.name)
        self._loop.set_exception_handler(log_loop_failure)
        await self._admin_port.open()
        handle_stop_signals(config, self._stop)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        self._spawn(self._check_heartbeats())
        for slot in self._slots:
            self._vacant.put_nowait(slot)

    def _reload(self) -> None:
        """SIGHUP: the files that settings name are read again, for this process and for all workers."""
        found = reread(self._config)
        if found is None:
            return
        self._use(found.config)
        self._admin_port.use(*found)
        for slot in self._slots:
            if slot.process is not None:
                slot.process.control.send({"reload": True})

    def _use(self, config: Config) -> None:
        """Take `config` for this process and for the workers that are started from now on."""
        self._config = config
        part = {name: math.ceil(getattr(config, name) / config.workers) for name in DIVIDED_LIMITS}
        self._workers_config = config.model_copy(update=part)

    async def next_vacant(self) -> WorkerSlot | None:
        """The next slot that needs a worker; None when the node has stopped."""
        while True:
            slot = await self._vacant.get()
            if slot is None or not self.workers.draining:
                return slot

    def spec(
        self, slot: WorkerSlot, control: socket.socket, parent: int, loop_factory: LoopFactory
    ) -> WorkerSpec:
        """What the next worker in `slot` needs."""
        share = WorkerShare(slot.number, slot.listeners, [each.inbox for each in self._slots])
        return WorkerSpec(self._workers_config, self.workers.name, share, control, parent, loop_factory)

    def started(self, slot: WorkerSlot, pid: int, connection: socket.socket) -> None:
        """A worker runs in `slot`; `connection` leads to it."""
        control = Control(lambda message: self._on_message(slot, message), _ignore)
        slot.process = WorkerProcess(pid, control)
        slot.heartbeat.restart()
        log.info("worker started", worker=slot.number, pid=pid)
        self._spawn(control.open(connection))

    def fork_failed(self, slot: WorkerSlot, error: OSError) -> None:
        """The system could not make a process for `slot`."""
        log.error("worker not started", worker=slot.number, reason=error.strerror or str(error))
        self._after_failed_start(slot, 0.0)

    # What workers say

    def _on_message(self, slot: WorkerSlot, message: Message) -> None:
        process = slot.process
        if process is None:
            return
        match message:
            case {"heartbeat": _}:
                slot.heartbeat.beat()
            case {"listening": _}:
                process.listening = True
                self._log_when_complete()
            case {"leave": _}:
                self._drain_one(slot, process)
            case {"stopped": _}:
                process.stopped = True
        self._adjust_standby()

    def _log_when_complete(self) -> None:
        if not self._complete and all(slot.process and slot.process.listening for slot in self._slots):
            self._complete = True
            log_listening(self.listening, workers=len(self._slots))

    def _drain_one(self, slot: WorkerSlot, process: WorkerProcess) -> None:
        """One worker has got a SIGTERM. Service managers send it to every process of a service."""
        if self.workers.draining or process.leaving:
            return
        log.info("worker draining", worker=slot.number, pid=process.pid)
        process.leaving = True
        process.control.send({"stop": list(stop_orders(self._config)[signal.SIGTERM])})

    def _adjust_standby(self) -> None:
        if not self.workers.draining:
            self._standby.adjust()

    # Keeping workers alive

    async def _check_heartbeats(self) -> None:
        """Check every worker's heartbeat for ever, and kill those that hang."""
        while True:
            due = self._loop.time() + HEARTBEAT_INTERVAL
            await asyncio.sleep(HEARTBEAT_INTERVAL)
            logs.flush()
            if self._loop.time() - due > MAX_LATE * HEARTBEAT_INTERVAL:
                continue  # the machine stood still or is overloaded, for the workers too
            for slot in self._slots:
                self._check_heartbeat(slot)
            self._adjust_standby()

    def _check_heartbeat(self, slot: WorkerSlot) -> None:
        process = slot.process
        if process is not None and process.stopped:
            return
        state = process_state.read(process.pid) if process is not None else None
        slot.heartbeat.check(state, HEARTBEAT_INTERVAL)
        if process is not None and slot.heartbeat.hung:
            _kill(slot, process, "no heartbeat", state=state.states if state else "unknown")

    def _reap(self) -> None:
        for slot in self._slots:
            if slot.process is None:
                continue
            pid, status = os.waitpid(slot.process.pid, os.WNOHANG)
            if pid:
                self._ended(slot, slot.process, os.waitstatus_to_exitcode(status))

    def _ended(self, slot: WorkerSlot, process: WorkerProcess, code: int) -> None:
        """The worker in `slot` has ended, by a signal if `code` is negative."""
        process.control.close()
        slot.process = None
        expected = code == 0 and (self.workers.draining or process.leaving)
        say = log.info if expected else log.error
        how = {"signal": _signal_name(-code)} if code < 0 else {"code": code}
        say("worker ended", worker=slot.number, pid=process.pid, **how)
        if self.workers.draining and (code > 0 or (code < 0 and not process.stopped)):
            # It crashed or was killed, so that browsers saw their connections break.
            self.exit_code = self.exit_code or EXIT_DRAIN_CUT
        if process.listening and not self.workers.draining:
            self._spawn(self._replace(slot, process.age))
        else:
            self._after_failed_start(slot, process.age)

    def _after_failed_start(self, slot: WorkerSlot, age: float) -> None:
        """The worker in `slot` has ended before it listened, or while the node drains."""
        if self.workers.draining:
            self._standby.reject_queued(slot, math.inf)
            self._end_when_empty()
        elif not self._complete:  # the first one could not start; neither will the next
            self.exit_code = 1
            self._stop(StopOrder(0, 0))
        else:
            self._spawn(self._replace(slot, age))

    async def _replace(self, slot: WorkerSlot, age: float) -> None:
        delay = slot.restart_delay(age)
        slot.restarts += 1
        self._adjust_standby()
        self._standby.reject_queued(slot, delay)
        log.warning("worker replaced", worker=slot.number, restarts=slot.restarts, in_seconds=delay)
        await asyncio.sleep(delay)
        self._standby.keep_queued(slot)
        self._vacant.put_nowait(slot)

    # Stopping

    def _stop(self, order: StopOrder) -> None:
        """Have all workers drain; the second time, have them end at once."""
        self._stops += 1
        if self._stops == 1:
            log.info("draining", workers=len(self._slots), delay=order.delay, seconds=order.seconds)
            self.workers.draining = True
            self._spawn(self._drain(order))
        for slot in self._slots:
            # To a worker that leaves already, another order would be the second.
            if slot.process is not None and (not slot.process.leaving or self._stops > 1):
                slot.process.control.send({"stop": list(order)})
        self._end_when_empty()

    async def _drain(self, order: StopOrder) -> None:
        """Close the port when the workers do, and kill workers that do not end."""
        await asyncio.sleep(order.delay)
        self._standby.close()
        self._close_port()
        for slot in self._slots:
            if slot.process is None:
                self._standby.reject_queued(slot, math.inf)
        await asyncio.sleep(order.seconds + self._config.close_timeout + HTTP_SHUTDOWN + STOP_MARGIN)
        for slot in self._slots:
            if slot.process is not None:
                _kill(slot, slot.process, "not ended in time")

    def _end_when_empty(self) -> None:
        if self.workers.draining and all(slot.process is None for slot in self._slots):
            self._vacant.put_nowait(None)

    def _close_port(self) -> None:
        for slot in self._slots:
            for listener in slot.listeners:
                listener.close()

    async def close(self) -> None:
        """Release everything. No worker runs by now; after a failure, workers end with their connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._standby.close()
        _release(self._slots)
        await self._admin_port.close()
        log.info("stopped")

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)  # also between two runs of the loop
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _kill(slot: WorkerSlot, process: WorkerProcess, reason: str, **about: object) -> None:
    os.kill(process.pid, signal.SIGKILL)
    log.error("worker killed", worker=slot.number, pid=process.pid, reason=reason, **about)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)


def _ignore() -> None:
    """The kernel tells of a worker's end, by SIGCHLD."""
