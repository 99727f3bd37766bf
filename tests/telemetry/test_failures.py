"""What bugs leave in the log: where they are, and nothing that a client has sent."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from gateway.telemetry.failures import log_loop_failure

SECRET = "Bearer a-token"


def fails(data: bytes) -> NoReturn:
    raise ValueError(data)


async def callback() -> None:
    asyncio.get_running_loop().call_soon(fails, SECRET.encode())
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def task() -> None:
    async def work() -> None:
        fails(SECRET.encode())

    failing = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    del failing
    gc.collect()


async def protocol() -> None:
    class Reads(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            fails(data)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Reads, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(SECRET.encode())
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("scenario", [callback, task, protocol], ids=lambda case: case.__name__)
def test_what_nobody_has_handled(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(log_loop_failure)
        await scenario()

    with capture_logs() as lines:
        asyncio.run(run())
    (line,) = lines
    assert (line["event"], line["log_level"], line["error"]) == ("callback failed", "error", "ValueError")
    assert "in fails" in line["exception"]
    assert line["what"], "asyncio says where it has happened"
    assert SECRET not in repr(line)


def test_what_has_no_exception() -> None:
    loop = asyncio.new_event_loop()
    with capture_logs() as lines:
        log_loop_failure(loop, {"message": "Task was destroyed but it is pending!"})
        log_loop_failure(loop, {})
    loop.close()
    assert [line["what"] for line in lines] == ["Task was destroyed but it is pending!", ""]
