"""Questions and answers over a Redis that is a dict, and what must not be believed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import hiredis
import pytest
from structlog.testing import capture_logs

from gateway.nodes.survey import (
    MAX_ANSWERS_PER_SECOND,
    MAX_MESSAGE,
    MAX_OPEN_QUESTIONS,
    NOT_CONNECTED,
    SURVEY_TIMEOUT,
    Survey,
    SurveyAnswers,
)
from gateway.redis.connection import ConnectionLost, ReplyError
from gateway.redis.subscriber import SubscriberConnection

from ..fakes import Clock, turns, virtual

SHARED = b"websocket::{nodes}"
NOPERM = "NOPERM this user has no permissions"

Heard = Callable[[bytes], object]


class Bus:
    """A Redis that passes on what is published, in a later turn of the loop."""

    def __init__(self) -> None:
        self.links: list[FakeLink] = []
        self.published: list[tuple[bytes, bytes]] = []

    def publish(self, channel: bytes, message: bytes) -> int:
        self.published.append((channel, message))
        hearing = [link for link in self.links if channel in link.service_channels]
        for link in hearing:
            asyncio.get_running_loop().call_soon(link.service_channels[channel], message)
        return len(hearing)


class FakeLink:
    """As much of a link as the survey uses."""

    commands = SubscriberConnection.commands

    def __init__(self, bus: Bus) -> None:
        bus.links.append(self)
        self._bus = bus
        self.service_channels: dict[bytes, Heard] = {}
        self.forbidden = False
        self.hangs = self.lost = False

    async def subscribe_service(self, name: bytes, heard: Heard) -> None:
        if self.forbidden:
            raise ReplyError("SUBSCRIBE", NOPERM)
        self.service_channels[name] = heard

    async def execute(self, _command: str, channel: bytes, message: bytes) -> int:
        if self.lost:
            raise ConnectionLost("reset by peer")
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        return self._bus.publish(channel, message)

    def send(self, reply: Callable[[Any], object], _command: str, channel: bytes, message: bytes) -> None:
        if self.forbidden:
            reply(hiredis.ReplyError(NOPERM))
        else:
            self._bus.publish(channel, message)


class Peer:
    """A node with a survey; without a link it has lost Redis."""

    def __init__(self, bus: Bus, name: str, clock: Clock) -> None:
        self.link: FakeLink | None = FakeLink(bus)
        self.questions: list[Mapping[str, Any]] = []
        self.name = name
        self.survey = Survey(self, "websocket:", self.answer, clock)
        self._hearing = asyncio.create_task(self.survey.run())

    def connection_for(self, name: bytes) -> SubscriberConnection | None:
        assert name == SHARED
        return cast("SubscriberConnection | None", self.link)

    def answer(self, question: Mapping[str, Any]) -> Mapping[str, object]:
        self.questions.append(question)
        return {"node": self.name}

    async def stop(self) -> None:
        self._hearing.cancel()
        await asyncio.gather(self._hearing, return_exceptions=True)


class Scene:
    """So many nodes that hear each other."""

    def __init__(self, count: int) -> None:
        self.bus = Bus()
        self.clock = Clock()
        self.peers = [Peer(self.bus, f"node-{number}", self.clock) for number in range(1, count + 1)]

    async def __aenter__(self) -> list[Peer]:
        await turns()
        return self.peers

    async def __aexit__(self, *_: object) -> None:
        for peer in self.peers:
            await peer.stop()


def names(answers: SurveyAnswers) -> list[str]:
    return sorted(answer["node"] for answer in answers.answers)


@virtual
async def test_asks_all_others_and_not_itself() -> None:
    async with Scene(3) as (one, two, three):
        answers = await one.survey.ask({"ask": "report"})
        assert names(answers) == ["node-2", "node-3"]
        assert answers[1:] == (0, "")
        assert not one.questions
        assert [question["ask"] for question in (*two.questions, *three.questions)] == ["report"] * 2
        assert {answer["from"] for answer in answers.answers} == {two.survey.name, three.survey.name}


@virtual
async def test_a_node_alone_has_nobody_to_wait_for() -> None:
    async with Scene(1) as (one,):
        before = asyncio.get_running_loop().time()
        assert await one.survey.ask({}) == ([], 0, "")
        assert asyncio.get_running_loop().time() == before


@virtual
async def test_nothing_is_published_while_nobody_asks() -> None:
    scene = Scene(3)
    async with scene:
        await asyncio.sleep(60)
        assert not scene.bus.published


@virtual
async def test_counts_those_that_hear_and_say_nothing() -> None:
    async with Scene(3) as (one, _two, three):
        assert three.link is not None
        three.link.service_channels[SHARED] = lambda _message: None
        start = asyncio.get_running_loop().time()
        answers = await one.survey.ask({})
        assert names(answers) == ["node-2"]
        assert answers[1:] == (1, "")
        assert asyncio.get_running_loop().time() - start == pytest.approx(SURVEY_TIMEOUT)


@virtual
async def test_without_redis_it_says_so_at_once() -> None:
    async with Scene(2) as (one, _two):
        one.link = None
        assert await one.survey.ask({}) == ([], 0, NOT_CONNECTED)


@virtual
async def test_a_redis_that_hangs_is_not_waited_for() -> None:
    async with Scene(2) as (one, _two):
        assert one.link is not None
        one.link.hangs = True
        assert await one.survey.ask({}) == ([], 0, "Redis gave no answer in 0.5 s")


@virtual
async def test_what_redis_forbids_is_the_reason() -> None:
    async with Scene(2) as (one, _two):
        assert one.link is not None
        one.link.forbidden = True
        answers = await one.survey.ask({})
        assert not answers.answers
        assert NOPERM in answers.reason


@virtual
async def test_a_node_that_may_not_answer_says_so_once_in_its_log() -> None:
    async with Scene(2) as (one, two):
        assert two.link is not None
        two.link.forbidden = True
        with capture_logs() as logs:
            assert [(await one.survey.ask({})).silent for _ in range(3)] == [1, 1, 1]
        assert [line["event"] for line in logs] == ["survey failed"]
        assert NOPERM in logs[0]["reason"]


@virtual
async def test_a_new_link_hears_within_a_second() -> None:
    scene = Scene(2)
    async with scene as (one, two):
        two.link = FakeLink(scene.bus)  # the old one is still counted, as by a Redis that has not noticed
        assert names(await one.survey.ask({})) == ["node-2"]
        await asyncio.sleep(1)
        scene.bus.links.remove(scene.bus.links[1])
        assert names(await one.survey.ask({})) == ["node-2"]


@virtual
async def test_a_channel_that_cannot_be_had_is_asked_for_again() -> None:
    async with Scene(2) as (one, two):
        assert two.link is not None
        del two.link.service_channels[SHARED]
        two.link.forbidden = True
        with capture_logs() as logs:
            await asyncio.sleep(5)
        assert len(logs) == 1
        two.link.forbidden = False
        await asyncio.sleep(1)
        assert names(await one.survey.ask({})) == ["node-2"]


@virtual
async def test_a_failure_is_told_and_nothing_ends_with_it() -> None:
    async with Scene(2) as (one, two):
        assert two.link is not None
        two.link.service_channels = cast("dict[bytes, Heard]", None)
        with capture_logs() as logs:
            await asyncio.sleep(1)
        assert [line["event"] for line in logs] == ["survey: not subscribed"]
        two.link.service_channels = {}
        await asyncio.sleep(1)
        assert names(await one.survey.ask({})) == ["node-2"]


@virtual
async def test_only_so_many_rounds_at_a_time() -> None:
    async with Scene(2) as (one, two):
        assert two.link is not None
        two.link.service_channels[SHARED] = lambda _message: None
        rounds = [asyncio.create_task(one.survey.ask({})) for _ in range(MAX_OPEN_QUESTIONS)]
        await turns()
        assert "too many open questions" in (await one.survey.ask({})).reason
        assert {(await task).silent for task in rounds} == {1}
        assert (await one.survey.ask({})).reason == ""


# What others publish on these channels


@virtual
async def test_answers_only_where_nodes_await_answers() -> None:
    scene = Scene(2)
    async with scene as (one, _two):
        for asker in ("someid", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef\n", 7, None):
            scene.bus.publish(SHARED, json.dumps({"asker": asker, "token": "t"}).encode())
        await turns()
        assert not one.questions
        assert {channel for channel, _ in scene.bus.published} == {SHARED}


@pytest.mark.parametrize("noise", [b"", b"{", b"[]", b"7", b"\xff", b'"' + b"x" * MAX_MESSAGE + b'"', b"{}"])
def test_noise_is_ignored(noise: bytes) -> None:
    @virtual
    async def ignored() -> None:
        scene = Scene(2)
        async with scene as (one, two):
            for channel in (SHARED, one.survey.channel(one.survey.name)):
                scene.bus.publish(channel, noise)
            await turns()
            assert not one.questions
            assert names(await one.survey.ask({})) == ["node-2"]
            assert len(two.questions) == 1

    ignored()


@virtual
async def test_an_answer_to_no_question_is_ignored() -> None:
    scene = Scene(2)
    async with scene as (one, _two):
        await one.survey.ask({})
        forged = {"token": "t", "from": "f", "node": "forged"}
        scene.bus.publish(one.survey.channel(one.survey.name), json.dumps(forged).encode())
        await turns()
        assert names(await one.survey.ask({})) == ["node-2"]


@virtual
async def test_answers_so_many_in_a_second_and_no_more() -> None:
    scene = Scene(1)
    async with scene as (one,):
        question = json.dumps({"asker": "0" * 16, "token": "t"}).encode()
        for _ in range(2 * MAX_ANSWERS_PER_SECOND):
            scene.bus.publish(SHARED, question)
        await turns()
        assert len(one.questions) == MAX_ANSWERS_PER_SECOND
        scene.clock.now += 1
        scene.bus.publish(SHARED, question)
        await turns()
        assert len(one.questions) == MAX_ANSWERS_PER_SECOND + 1


@virtual
async def test_an_answer_that_fails_harms_nothing_else() -> None:
    async with Scene(2) as (one, two):

        def fails(_question: Mapping[str, Any]) -> Mapping[str, object]:
            raise KeyError("missing")

        two.survey._answer = fails
        with capture_logs() as logs:
            assert (await one.survey.ask({})).silent == 1
        assert [line["event"] for line in logs] == ["survey: not answered"]


@virtual
async def test_a_link_that_ends_meanwhile_is_the_reason() -> None:
    async with Scene(2) as (one, _two):
        assert one.link is not None

        one.link.lost = True
        assert await one.survey.ask({}) == ([], 0, "reset by peer")
