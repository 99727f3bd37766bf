"""The parent of workers that the test plays: idle processes, and ends of their lines."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.admin.port import AdminPort
from gateway.config import build
from gateway.errors import ConfigError
from gateway.node import EXIT_DRAIN_CUT, StopOrder
from gateway.telemetry import logs
from gateway.workers import supervisor as module
from gateway.workers.control import Control, Message
from gateway.workers.supervisor import Supervisor
from gateway.workers.worker_slots import WorkerSlot

pytestmark = pytest.mark.real

SECONDS = 5.0
HANDLED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
WHERE = {"host": "127.0.0.1", "port": 0, "admin_port": 0, "redis": "redis://127.0.0.1:1"}
ENDS = (
    "import os, signal; signal.signal(signal.SIGTERM, lambda *_: os._exit(0)); "
    "signal.signal(signal.SIGUSR2, lambda *_: os._exit(1)); "
)
IDLE = [sys.executable, "-I", "-S", "-c", ENDS + "print(flush=True); signal.pause()"]


class Played:
    """A worker: a process that does nothing, and what the test says in its name."""

    def __init__(self, slot: WorkerSlot) -> None:
        self.slot = slot
        self.process = subprocess.Popen(IDLE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        with self.process.stdout as said:
            said.readline()  # it handles signals now
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.control = Control(self._hear, lambda: None)

    def _hear(self, message: Message) -> None:
        if message.get("ask") == "state":
            self.control.answer(message, {"of": self.slot.number})
        else:
            self.heard.put_nowait(message)

    async def next(self) -> Message:
        async with asyncio.timeout(SECONDS):
            return await self.heard.get()

    def end_as_told(self) -> None:
        """The process ends with 0."""
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """The process is killed."""
        self.control.close()
        self.process.kill()


class Scene:
    """A parent of two."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.played: list[Played] = []

    async def next_vacant(self) -> WorkerSlot | None:
        async with asyncio.timeout(SECONDS):
            return await self.supervisor.next_vacant()

    async def start_worker(self) -> Played:
        """Fill the next vacant slot."""
        slot = await self.next_vacant()
        assert slot is not None
        worker = Played(slot)
        self.played.append(worker)
        ours, theirs = socket.socketpair()
        self.supervisor.started(slot, worker.process.pid, ours)
        await worker.control.open(theirs)
        return worker

    async def both(self) -> tuple[Played, Played]:
        """Two workers that listen."""
        one, two = await self.start_worker(), await self.start_worker()
        for worker in (one, two):
            worker.control.send({"listening": True})
        await self.until_answers({"of": 1}, {"of": 2})
        return one, two

    async def until_answers(self, *expected: object) -> None:
        """Ask the workers until they answer so."""
        async with asyncio.timeout(SECONDS):
            while await self.supervisor.workers.ask("state") != list(expected):
                pass


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Scene]:
    supervisor = await module.build(build(WHERE | {"workers": 2, "max_sessions": 101}))
    await supervisor.start()
    scene = Scene(supervisor)
    try:
        yield scene
    finally:
        await scene.supervisor.close()
        for worker in scene.played:
            worker.end()
            worker.process.wait()
        for number in HANDLED:
            asyncio.get_running_loop().remove_signal_handler(number)


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    with capture_logs() as lines:
        yield lines


def events(lines: list[Any]) -> list[str]:
    return [line["event"] for line in lines]


async def test_it_listens_once_all_workers_do(logged: list[Any]) -> None:
    async with opened() as scene:
        one = await scene.start_worker()
        two = await scene.start_worker()
        one.control.send({"listening": True})
        await scene.until_answers({"of": 1}, None)
        assert "listening" not in events(logged)
        two.control.send({"listening": True})
        await scene.until_answers({"of": 1}, {"of": 2})
        assert events(logged).count("listening") == 1
        assert [account["pid"] for account in scene.supervisor.workers.accounts()] == [
            one.process.pid,
            two.process.pid,
        ]


async def test_each_worker_gets_its_part_of_the_limits() -> None:
    async with opened() as scene:
        slot = await scene.next_vacant()
        assert slot is not None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            spec = scene.supervisor.spec(slot, theirs, 1, None)
            assert spec.config.max_sessions == 51
            assert spec.config.max_sessions_per_ip == 1_000
            assert len(spec.share.inboxes) == 2
            assert {theirs.fileno(), slot.listeners[0].fileno()} < spec.descriptors()


async def test_who_ends_is_replaced(logged: list[Any]) -> None:
    async with opened() as scene:
        one, _ = await scene.both()
        one.end()
        assert await scene.next_vacant() is one.slot
        assert [account["restarts"] for account in scene.supervisor.workers.accounts()] == [1, 0]
        (ended,) = [line for line in logged if line["event"] == "worker ended"]
        assert (ended["worker"], ended["signal"], ended["log_level"]) == (1, "SIGKILL", "error")


async def test_who_gives_no_sign_of_life_is_killed(
    monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_INTERVAL", 0.01)
    async with opened() as scene:
        one, two = await scene.both()

        async def beat() -> None:
            while True:
                two.control.send({"heartbeat": True})
                await asyncio.sleep(0.005)

        beating = asyncio.create_task(beat())
        assert await scene.next_vacant() is one.slot
        assert "worker killed" in events(logged)
        assert two.process.poll() is None
        beating.cancel()


async def test_a_parent_that_was_late_kills_nobody(
    monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    """The machine stood still, so the workers could not send heartbeats either."""
    monkeypatch.setattr(module, "HEARTBEAT_INTERVAL", 0.01)
    async with opened() as scene:
        one, two = await scene.both()
        for _ in range(50):  # intervals, none of which ends in time
            time.sleep(0.02)  # noqa: ASYNC251 - nobody else gets to run
            await asyncio.sleep(0)
        assert [slot.heartbeat.hung for slot in (one.slot, two.slot)] == [False, False]
        assert "worker killed" not in events(logged)


async def test_who_is_killed_amid_the_drain_makes_the_exit_code_say_so(logged: list[Any]) -> None:
    async with opened() as scene:
        one, two = await scene.both()
        scene.supervisor._stop(StopOrder(5, 20))
        one.process.kill()
        one.control.close()
        while one.slot.process is not None:  # noqa: ASYNC110 - the supervisor tells nobody
            await asyncio.sleep(0.01)
        two.end_as_told()
        assert await scene.next_vacant() is None
        assert scene.supervisor.exit_code == EXIT_DRAIN_CUT
        assert [line["log_level"] for line in logged if line["event"] == "worker ended"] == ["error", "info"]


@pytest.mark.parametrize(("how", "code"), [("crash", EXIT_DRAIN_CUT), ("kill", 0)])
async def test_a_worker_that_has_stopped_may_be_killed_but_must_not_have_crashed(how: str, code: int) -> None:
    """One that a bug ends drops its sessions too, before it says that it has stopped."""
    async with opened() as scene:
        one, two = await scene.both()
        scene.supervisor._stop(StopOrder(5, 20))
        one.control.send({"stopped": True})
        async with asyncio.timeout(SECONDS):
            while one.slot.process is not None and not one.slot.process.stopped:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        one.process.send_signal(signal.SIGUSR2 if how == "crash" else signal.SIGKILL)
        two.end_as_told()
        assert await scene.next_vacant() is None
        assert scene.supervisor.exit_code == code


async def test_files_are_read_again_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-that-is-long-enough")
    monkeypatch.setitem(WHERE, "publish_token_file", str(token))
    used: list[str] = []
    monkeypatch.setattr(AdminPort, "use", lambda _port, config, _redis: used.append(config.token()))
    async with opened() as scene:
        workers = await scene.both()
        token.write_text("another-token-that-is-long-enough\r\n")
        os.kill(os.getpid(), signal.SIGHUP)
        assert [await worker.next() for worker in workers] == [{"reload": True}] * 2
        assert used == ["another-token-that-is-long-enough"]
        token.unlink()
        scene.supervisor._reload()
        assert used == ["another-token-that-is-long-enough"]
        (line,) = [line for line in logged if line["event"] == "files not read again"]
        assert "--publish-token-file" in line["reason"]
        assert all(worker.heard.empty() for worker in workers)


async def test_who_never_could_ends_the_node(logged: list[Any]) -> None:
    async with opened() as scene:
        one, two = await scene.start_worker(), await scene.start_worker()
        one.end()
        assert await two.next() == {"stop": [0, 0]}
        two.end()
        assert await scene.next_vacant() is None
        assert scene.supervisor.exit_code == 1
        assert "worker replaced" not in events(logged)


async def test_when_the_system_has_no_process_to_spare_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    async with opened() as scene:
        one, _two = await scene.both()
        one.end()
        slot = await scene.next_vacant()
        assert slot is one.slot

        def fork() -> int:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        monkeypatch.setattr(os, "fork", fork)
        module._fork(scene.supervisor, slot, None)
        assert await scene.next_vacant() is slot
        (line,) = [line for line in logged if line["event"] == "worker not started"]
        assert (line["worker"], line["reason"]) == (1, "Resource temporarily unavailable")
        assert not scene.supervisor.workers.draining


async def test_when_it_has_none_from_the_start_the_node_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as scene:
        scene.supervisor.fork_failed(
            scene.supervisor._slots[0], OSError(errno.ENOMEM, "Cannot allocate memory")
        )
        assert scene.supervisor.workers.draining
        assert scene.supervisor.exit_code == 1


async def test_all_are_told_to_stop_and_then_to_end() -> None:
    async with opened() as scene:
        workers = await scene.both()
        for order in (StopOrder(5, 20), StopOrder(0, 0)):
            scene.supervisor._stop(order)
            assert [await worker.next() for worker in workers] == [{"stop": list(order)}] * 2
        assert scene.supervisor.workers.draining
        for worker in workers:
            worker.end_as_told()
        assert await scene.next_vacant() is None
        assert scene.supervisor.exit_code == 0


async def test_one_that_leaves_already_is_told_once(logged: list[Any]) -> None:
    async with opened() as scene:
        one, two = await scene.both()
        one.control.send({"leave": True})
        assert await one.next() == {"stop": [5.0, 20.0]}
        assert not one.slot.accepts
        scene.supervisor._stop(StopOrder(0, 0))
        assert await two.next() == {"stop": [0, 0]}
        assert one.heard.empty(), "a second order would end it at once"
        two.control.send({"leave": True})
        scene.supervisor._stop(StopOrder(0, 0))
        assert await one.next() == {"stop": [0, 0]}
        assert events(logged).count("worker draining") == 1


async def test_who_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, logged: list[Any]) -> None:
    monkeypatch.setattr(module, "STOP_MARGIN", -2.9)  # of the 3 s that there are besides
    async with opened() as scene:
        await scene.both()
        scene.supervisor._stop(StopOrder(0, 0))
        assert await scene.next_vacant() is None
        assert scene.supervisor.exit_code == EXIT_DRAIN_CUT
        assert events(logged).count("worker killed") == 2


async def test_a_port_that_is_taken() -> None:
    async with opened() as scene:
        port = scene.supervisor.listening.port
        with pytest.raises(ConfigError, match="is taken"):
            await module.build(build({"host": "127.0.0.1", "port": port, "workers": 2}))
        admin_port = scene.supervisor.listening.admin_port
        with pytest.raises(ConfigError, match="--admin-port"):
            await module.build(build(WHERE | {"admin_port": admin_port, "workers": 2}))
