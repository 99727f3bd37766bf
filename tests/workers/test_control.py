"""Both ends of the line, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from gateway.workers.control import MAX_LINE, Control, Message

SECONDS = 5.0


class End:
    """One end, and what it hears."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.control = Control(self.heard.put_nowait, self.lost.set)

    async def next(self) -> Message:
        async with asyncio.timeout(SECONDS):
            return await self.heard.get()


@contextlib.asynccontextmanager
async def line() -> AsyncIterator[tuple[End, End, socket.socket]]:
    """Both ends, of which the second is not open yet, and its socket."""
    ours, theirs = socket.socketpair()
    here, there = End(), End()
    await here.control.open(ours)
    try:
        yield here, there, theirs
    finally:
        here.control.close()
        there.control.close()
        theirs.close()
        await asyncio.sleep(0)


async def test_what_one_says_the_other_hears_in_order() -> None:
    async with line() as (here, there, theirs):
        there.control.send({"said": "before it was open"})
        await there.control.open(theirs)
        for number in range(100):
            there.control.send({"number": number, "text": "ü\n" * number})
        assert await here.next() == {"said": "before it was open"}
        for number in range(100):
            assert await here.next() == {"number": number, "text": "ü\n" * number}


async def test_questions_have_their_answers_in_any_order() -> None:
    async with line() as (here, there, theirs):
        await there.control.open(theirs)
        asking = [asyncio.create_task(here.control.ask(what, SECONDS)) for what in ("one", "two")]
        questions = [await there.next() for _ in asking]
        for question in reversed(questions):
            there.control.answer(question, {"of": question["ask"]})
        assert await asyncio.gather(*asking) == [{"of": "one"}, {"of": "two"}]
        there.control.answer(questions[0], "again")
        there.control.send({"after": True})
        assert await here.next() == {"after": True}


async def test_no_answer_is_none() -> None:
    async with line() as (here, there, theirs):
        await there.control.open(theirs)
        assert await here.control.ask("anything", 0.0) is None
        asking = asyncio.create_task(here.control.ask("anything", SECONDS))
        await there.next()
        await there.next()
        there.control.close()
        assert await asking is None
        async with asyncio.timeout(SECONDS):
            await here.lost.wait()
        here.control.send({"to": "nobody"})


async def test_an_endless_line_is_the_end() -> None:
    async with line() as (here, _, theirs):
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(theirs, b"x" * (MAX_LINE + 1))
        async with asyncio.timeout(SECONDS):
            await here.lost.wait()
