"""One node asks all others, through Redis: nodes know nothing else of each other.

Every node subscribes to one channel that all share. A question published there names the channel for the
answers, and each node publishes one answer. So a question costs one message to each node and one back, and
nothing is sent while nobody asks. A node of an older version receives no questions and is not shown.

Whoever may publish results may also ask and answer here. So answers only go to channels of nodes, large
messages are ignored, and a node answers a limited number of questions a second.
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
"""Seconds until the subscription is checked again: there may be a new connection, or another server for the
channel."""

DISCONNECTED_INTERVAL: Final = 0.1
"""The same while there is no connection."""

SURVEY_TIMEOUT: Final = 0.5
"""Seconds for the answers. A healthy node takes a millisecond or two."""

MAX_MESSAGE: Final = 16_384
"""Bytes of a question or an answer; a node's report has about 1,000."""

MAX_ANSWERS: Final = 1_000
"""Answers to one question; far more than anybody has nodes."""

MAX_OPEN_QUESTIONS: Final = 32
"""Questions of this node that are open at a time. Usual is one a second, and some that look up an id."""

MAX_ANSWERS_PER_SECOND: Final = 100
"""One for each node with an open dashboard. 100 answers take about 5 ms."""

NOT_CONNECTED: Final = "this node has no connection to Redis"

_ASKER: Final = re.compile(r"[0-9a-f]{16}")

log = structlog.get_logger()


class ServiceConnections(Protocol):
    """What a survey needs from the broker."""

    def connection_for(self, name: bytes) -> SubscriberConnection | None:
        """The connection to the server of a channel; None while that is not connected."""


class SurveyAnswers(NamedTuple):
    """The outcome of a question."""

    answers: list[dict[str, Any]]
    """Of other nodes."""
    silent: int
    """Further nodes that received the question, as Redis says, and did not answer in time."""
    reason: str
    """Why some nodes may not have been asked; empty if all were."""


class Survey:
    """Asks the other nodes for this node, and answers their questions."""

    def __init__(
        self,
        connections: ServiceConnections,
        channel_prefix: str,
        answer: Callable[[Mapping[str, Any]], Mapping[str, object]],
        clock: Callable[[], float],
    ) -> None:
        """`answer` makes the answer to a question; it must not wait. `clock` is monotonic, in seconds."""
        self._connections = connections
        self._answer = answer
        self._clock = clock
        self.name = secrets.token_hex(8)
        """Distinguishes this process from all others, and from earlier ones of the same node."""
        # No webSocketId has a colon, so no browser can register these channels. In a Cluster the part in
        # braces puts all of them into one slot, and so on one server.
        self._shared = f"{channel_prefix}:{{nodes}}".encode()
        self._open: dict[str, _OpenQuestion] = {}
        self._second = (0, 0)  # a second, and how many questions were answered in it
        self._logged = ""

    def channel(self, name: str) -> bytes:
        """Where the process with this `name` expects answers."""
        return b"%b:%b" % (self._shared, name.encode())

    async def run(self) -> None:
        """Stay subscribed to the questions of others until cancelled."""
        while True:
            connection = self._connections.connection_for(self._shared)
            if connection is not None:
                await self._subscribe_questions(connection)
            await asyncio.sleep(DISCONNECTED_INTERVAL if connection is None else RESUBSCRIBE_INTERVAL)

    async def _subscribe_questions(self, connection: SubscriberConnection) -> None:
        try:
            await self._subscribe(connection, self._shared, self._on_question)
        except ConnectionLost as lost:
            self._log_unreachable(str(lost))
        except Exception:  # whatever it is, no session may end because of a dashboard
            log.exception("survey: not subscribed")

    async def ask(self, question: Mapping[str, object], seconds: float = SURVEY_TIMEOUT) -> SurveyAnswers:
        """The answers of the other nodes, within `seconds`."""
        connection = self._connections.connection_for(self._shared)
        if connection is None:
            return SurveyAnswers([], 0, NOT_CONNECTED)
        if len(self._open) >= MAX_OPEN_QUESTIONS:
            return SurveyAnswers([], 0, "this node has too many open questions")
        token = secrets.token_hex(8)
        question_open = self._open[token] = _OpenQuestion()
        reason = ""
        try:
            async with asyncio.timeout(seconds):
                # This node must be among the receivers that PUBLISH counts.
                await self._subscribe(connection, self._shared, self._on_question)
                await self._subscribe(connection, self.channel(self.name), self._on_answer)
                message = orjson.dumps({**question, "asker": self.name, "token": token})
                receivers = await connection.execute(connection.commands.publish, self._shared, message)
                question_open.asked = receivers - 1
                await question_open.complete()
        except TimeoutError:
            reason = "" if question_open.asked else f"Redis gave no answer in {seconds:g} s"
        except ConnectionLost as lost:
            reason = str(lost)
        finally:
            del self._open[token]
        return SurveyAnswers(list(question_open.answers.values()), question_open.silent, reason)

    async def _subscribe(
        self, connection: SubscriberConnection, channel: bytes, on_message: Callable[[bytes], object]
    ) -> None:
        """Subscribe `channel` if it is not subscribed yet. Raises ConnectionLost."""
        if channel not in connection.service_channels:
            await connection.subscribe_service(channel, on_message)

    # Called when messages come: none of it may raise or wait

    def _on_question(self, message: bytes) -> None:
        question = _read(message)
        asker, token = question.get("asker"), question.get("token")
        if not isinstance(asker, str) or not _ASKER.fullmatch(asker) or asker == self.name:
            return
        connection = self._connections.connection_for(self._shared)
        if connection is None or not self._may_answer():
            return
        try:
            answer = orjson.dumps({**self._answer(question), "token": token, "from": self.name})
            connection.send(self._on_published, connection.commands.publish, self.channel(asker), answer)
        except ConnectionLost:
            return
        except Exception:
            log.exception("survey: not answered")

    def _on_published(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._log_unreachable(str(ReplyError("PUBLISH", reply)))

    def _may_answer(self) -> bool:
        """Count an answer; False if it is beyond MAX_ANSWERS_PER_SECOND."""
        second = int(self._clock())
        count = self._second[1] + 1 if self._second[0] == second else 1
        self._second = (second, count)
        return count <= MAX_ANSWERS_PER_SECOND

    def _on_answer(self, message: bytes) -> None:
        answer = _read(message)
        token, sender = answer.get("token"), answer.get("from")
        if isinstance(token, str) and isinstance(sender, str) and (question := self._open.get(token)):
            question.add(sender, answer)

    def _log_unreachable(self, reason: str) -> None:
        if reason != self._logged:
            self._logged = reason
            log.warning("survey failed", reason=reason)


class _OpenQuestion:
    """A question that is open, and the answers so far, by sender."""

    def __init__(self) -> None:
        self.asked = 0
        """How many nodes have received the question, once Redis has said so."""
        self.answers: dict[str, dict[str, Any]] = {}
        self._added = asyncio.Event()

    @property
    def silent(self) -> int:
        return max(0, self.asked - len(self.answers))

    def add(self, sender: str, answer: dict[str, Any]) -> None:
        if len(self.answers) < MAX_ANSWERS:
            self.answers[sender] = answer
            self._added.set()

    async def complete(self) -> None:
        """Wait until all have answered."""
        while self.silent:
            self._added.clear()
            await self._added.wait()


def _read(message: bytes) -> dict[str, Any]:
    """The JSON object in a message; an empty one for anything else."""
    if len(message) > MAX_MESSAGE:
        return {}
    try:
        body = orjson.loads(message)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}
