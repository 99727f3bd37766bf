"""Nodes know nothing of each other; here one asks all of them, through Redis.

Every node hears one channel that they share. A question published there says on which channel of the asker
the answers are awaited, and each node publishes its own once. So a question costs a message to each node and
one back, and as long as nobody asks, nothing is sent. A node that is too old to know of this hears no
questions, and is not there.

Whoever may publish results may ask and answer as well. So a question can only lead to the channel of a node,
what comes is small or it is ignored, and a node answers so many in a second and no more.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import orjson
import structlog

from ..redis.connection import ConnectionLost, ReplyError
from ..redis.subscriber import SubscriberConnection

RESUBSCRIBE_INTERVAL: Final = 1.0
"""Seconds until it is looked whether the questions are still heard: there may be another link, or another
server for the channel."""

DISCONNECTED_INTERVAL: Final = 0.1
"""The same while there is no link."""

SURVEY_TIMEOUT: Final = 0.5
"""Seconds for the answers. A node takes a millisecond or two; one that takes this long is not well."""

MAX_MESSAGE: Final = 16_384
"""Bytes of a question or an answer; a report has some 1,000."""

MAX_ANSWERS: Final = 1_000
"""Nodes in one round; far more than anybody has."""

MAX_OPEN_QUESTIONS: Final = 32
"""Questions of this node that are open at a time; one a second is usual, and some that look for an id."""

MAX_ANSWERS_PER_SECOND: Final = 100
"""As many nodes could each have a page open. 100 answers are some 5 ms of work."""

NOT_CONNECTED: Final = "this node has no connection to Redis"

_ASKER: Final = re.compile(r"[0-9a-f]{16}")

log = structlog.get_logger()


class ServiceConnections(Protocol):
    """What is asked of the broker."""

    def connection_for(self, name: bytes) -> SubscriberConnection | None:
        """The link on which a channel is heard and published, if there is one at present."""


class SurveyAnswers(NamedTuple):
    """What has come of a question."""

    answers: list[dict[str, Any]]
    """By other nodes."""
    silent: int
    """Further nodes that have heard the question, as Redis says, and did not answer in time."""
    why: str
    """Why there may be nodes that were not even asked; empty if there are none."""


class Survey:
    """This node, as it asks the others and answers them."""

    def __init__(
        self,
        lines: ServiceConnections,
        channel_prefix: str,
        answer: Callable[[Mapping[str, Any]], Mapping[str, object]],
        clock: Callable[[], float],
    ) -> None:
        """`answer` makes the answer to a question; it must not wait. `clock` is monotonic, in seconds."""
        self._lines = lines
        self._answer = answer
        self._clock = clock
        self.name = secrets.token_hex(8)
        """Tells this node from all others, also from an earlier one of its name."""
        # No webSocketId has a colon, so no browser can register them. In a Cluster the part in braces puts
        # them all in one slot, and so on one server.
        self._shared = f"{channel_prefix}:{{nodes}}".encode()
        self._rounds: dict[str, _OpenQuestion] = {}
        self._second = (0, 0)  # which, and how many questions were answered in it
        self._said = ""

    def channel(self, name: str) -> bytes:
        """Where the node with this `name` awaits answers."""
        return b"%b:%b" % (self._shared, name.encode())

    async def run(self) -> None:
        """Hear the questions of others until cancelled."""
        while True:
            link = self._lines.connection_for(self._shared)
            if link is not None:
                await self._hear_questions(link)
            await asyncio.sleep(DISCONNECTED_INTERVAL if link is None else RESUBSCRIBE_INTERVAL)

    async def _hear_questions(self, link: SubscriberConnection) -> None:
        try:
            await self._hear(link, self._shared, self._asked)
        except ConnectionLost as why:
            self._complain(str(why))
        except Exception:  # whatever it is, no session may end for the sake of a page
            log.exception("questions of other nodes are not heard")

    async def ask(self, question: Mapping[str, object], seconds: float = SURVEY_TIMEOUT) -> SurveyAnswers:
        """What the other nodes answer, within `seconds`."""
        link = self._lines.connection_for(self._shared)
        if link is None:
            return SurveyAnswers([], 0, NOT_CONNECTED)
        if len(self._rounds) >= MAX_OPEN_QUESTIONS:
            return SurveyAnswers([], 0, "this node is asking too much at a time")
        token = secrets.token_hex(8)
        opened = self._rounds[token] = _OpenQuestion()
        why = ""
        try:
            async with asyncio.timeout(seconds):
                await self._hear(link, self._shared, self._asked)  # so that we are among who is counted
                await self._hear(link, self.channel(self.name), self._answered)
                message = orjson.dumps({**question, "asker": self.name, "token": token})
                opened.asked = await link.execute(link.commands.publish, self._shared, message) - 1
                await opened.complete()
        except TimeoutError:
            why = "" if opened.asked else f"Redis gave no answer in {seconds:g} s"
        except ConnectionLost as lost:
            why = str(lost)
        finally:
            del self._rounds[token]
        return SurveyAnswers(list(opened.answers.values()), opened.silent, why)

    async def _hear(
        self, link: SubscriberConnection, channel: bytes, heard: Callable[[bytes], object]
    ) -> None:
        """See to it that `heard` is told what is published on `channel`. Raises LinkLost."""
        if channel not in link.service_channels:
            await link.subscribe_service(channel, heard)

    # Called as messages come: none of it may raise or wait

    def _asked(self, message: bytes) -> None:
        question = _read(message)
        asker, token = question.get("asker"), question.get("token")
        if not isinstance(asker, str) or not _ASKER.fullmatch(asker) or asker == self.name:
            return
        link = self._lines.connection_for(self._shared)
        if link is None or not self._has_time():
            return
        try:
            answer = orjson.dumps({**self._answer(question), "token": token, "from": self.name})
            link.send(self._published, link.commands.publish, self.channel(asker), answer)
        except ConnectionLost:
            return
        except Exception:
            log.exception("no answer for another node")

    def _published(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._complain(str(ReplyError("PUBLISH", reply)))

    def _has_time(self) -> bool:
        """Whether another answer is within the limit."""
        second = int(self._clock())
        count = self._second[1] + 1 if self._second[0] == second else 1
        self._second = (second, count)
        return count <= MAX_ANSWERS_PER_SECOND

    def _answered(self, message: bytes) -> None:
        answer = _read(message)
        token, sender = answer.get("token"), answer.get("from")
        if isinstance(token, str) and isinstance(sender, str) and (opened := self._rounds.get(token)):
            opened.take(sender, answer)

    def _complain(self, why: str) -> None:
        if why != self._said:
            self._said = why
            log.warning("other nodes cannot be talked to", why=why)


class _OpenQuestion:
    """A question that is open, and the answers so far, by who gave them."""

    def __init__(self) -> None:
        self.asked = 0
        """How many nodes have heard it, once that is known."""
        self.answers: dict[str, dict[str, Any]] = {}
        self._news = asyncio.Event()

    @property
    def silent(self) -> int:
        return max(0, self.asked - len(self.answers))

    def take(self, sender: str, answer: dict[str, Any]) -> None:
        if len(self.answers) < MAX_ANSWERS:
            self.answers[sender] = answer
            self._news.set()

    async def complete(self) -> None:
        """Wait until all have answered."""
        while self.silent:
            self._news.clear()
            await self._news.wait()


def _read(message: bytes) -> dict[str, Any]:
    """The JSON object that came; an empty one if it is none."""
    if len(message) > MAX_MESSAGE:
        return {}
    try:
        body = orjson.loads(message)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}
