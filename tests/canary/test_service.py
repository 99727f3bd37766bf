"""Checks again and again, and the port with their metrics."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import aiohttp
import pytest

from gateway.admin.metrics import CONTENT_TYPE
from gateway.canary.check import Outcome
from gateway.canary.service import repeat, serve
from gateway.config import build
from gateway.server.listeners import open_sockets, port_of

from ..fakes import virtual

WELL = Outcome({"connect": 0.003, "registration": 0.004, "delivery": 0.2})


@pytest.fixture
def handlers_as_before() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@virtual
async def test_a_check_begins_every_so_many_seconds_and_none_before_the_last_has_ended() -> None:
    loop = asyncio.get_running_loop()
    began: list[float] = []
    takes = iter([1.0, 40.0, 0.0])

    async def run() -> Outcome:
        began.append(loop.time())
        await asyncio.sleep(next(takes))
        return WELL

    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 3:
            repeating.cancel()

    repeating = asyncio.create_task(repeat(run, 30, note))
    await asyncio.gather(repeating, return_exceptions=True)
    assert [later - began[0] for later in began] == [0, 30, 70]
    assert outcomes == [WELL] * 3


@pytest.mark.usefixtures("handlers_as_before")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_metrics_until_a_signal(number: signal.Signals) -> None:
    (listeners,) = open_sockets(("127.0.0.1",), 0, 10)
    url = f"http://127.0.0.1:{port_of(listeners)}"
    checked, stopped = asyncio.Event(), asyncio.Event()
    outcomes: list[Outcome] = []

    async def run() -> Outcome:
        if not outcomes:
            return WELL
        checked.set()
        try:
            await asyncio.Event().wait()  # a check that hangs when the signal comes
        finally:
            stopped.set()
        return WELL

    serving = asyncio.create_task(serve(run, 0.01, outcomes.append, build({}), listeners))
    await checked.wait()
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{url}/metrics") as answer:
            assert answer.headers["Content-Type"] == CONTENT_TYPE
            assert "gateway_canary_up 1.0" in await answer.text()
        async with http.get(f"{url}/publish") as answer:
            assert answer.status == 404
        os.kill(os.getpid(), number)
        await serving
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(f"{url}/metrics")
    assert stopped.is_set()
    assert outcomes == [WELL]


@pytest.mark.usefixtures("handlers_as_before")
async def test_without_a_port_it_only_checks() -> None:
    async def run() -> Outcome:
        return WELL

    def stop(_outcome: Outcome) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    await serve(run, 30, stop, build({}), ())


@pytest.mark.usefixtures("handlers_as_before")
async def test_what_breaks_it_is_told() -> None:
    async def run() -> Outcome:
        return WELL

    def fail(_outcome: Outcome) -> None:
        raise BrokenPipeError("nobody reads the output")

    with pytest.raises(BrokenPipeError):
        await serve(run, 30, fail, build({}), ())
