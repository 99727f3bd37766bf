"""What is recorded of sessions: fields, order, bounds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from gateway.core.events import (
    CLOSED,
    DELIVERED,
    FIELDS,
    MAX_KEPT,
    MAX_REFUSED,
    MAX_TEXT,
    REFUSED,
    REGISTERED,
    Delivery,
    EventLog,
    SessionEvents,
)
from gateway.messages import SLOW_CONSUMER
from gateway.wire import stomp

from ..fakes import Clock

ID = b"12345678"
BROWSER = {"Origin": "https://bank.example", "User-Agent": "Mozilla/5.0"}


def entries(log: EventLog) -> list[dict[str, Any]]:
    """What waits, as a reader of the stream gets it."""
    flat = [
        [part.decode() if isinstance(part, bytes) else part for part in log.fields(e)] for e in log.take(99)
    ]
    return [dict(zip(each[::2], each[1::2], strict=True)) for each in flat]


def new_log(size: int = 10) -> EventLog:
    return EventLog("node-1", "run", Clock(1_700_000_000.1234), size)


def registered(log: EventLog) -> SessionEvents:
    session = log.session()
    session.request(BROWSER)
    session.registered(ID, "192.0.2.1", "json", "websocket", resumed=False)
    log.take(1)
    return session


def delivery(message_id: str | None = "m-1", *, retained: bool = False) -> Delivery:
    return Delivery(ID, message_id, "CONFIRMED", retained)


def test_a_registration_tells_of_the_browser() -> None:
    log = new_log()
    session = log.session()
    session.request(BROWSER)
    session.registered(ID, "192.0.2.1", "json", "websocket", resumed=True)
    assert entries(log) == [
        {
            "event": "registered",
            "webSocketId": "12345678",
            "session": "run-1",
            "node": "node-1",
            "at": "1700000000123",
            "address": "192.0.2.1",
            "origin": "https://bank.example",
            "userAgent": "Mozilla/5.0",
            "protocol": "json",
            "transport": "websocket",
            "resumed": "true",
        }
    ]


def test_what_a_client_says_about_itself_is_bounded_and_printable() -> None:
    log = new_log()
    session = log.session()
    session.request({"User-Agent": "é\n\x1b[31m" + "a" * 10_000})
    session.registered(ID, "192.0.2.1", "json", "websocket", resumed=False)
    (entry,) = entries(log)
    assert entry["origin"] == ""
    assert entry["userAgent"] == "???[31m" + "a" * (MAX_TEXT - 7)


def test_sessions_have_different_names_and_every_entry_the_fields_of_its_kind() -> None:
    log = new_log()
    first, second = registered(log), registered(log)
    first.delivered(delivery())
    second.refused("other", "already_registered", "192.0.2.1")
    second.closed(1012, "service restart", 1.5)
    found = entries(log)
    assert [each["session"] for each in found] == ["run-1", "run-2", "run-2"]
    for each in found:
        assert tuple(each)[5:] == FIELDS[each["event"]]
    assert log.recorded == {REGISTERED: 2, DELIVERED: 1, REFUSED: 1, CLOSED: 1}


def test_a_delivery_says_whether_the_result_was_retained() -> None:
    log = new_log()
    session = registered(log)
    session.delivered(delivery(retained=True))
    session.delivered(delivery(None))
    first, second = entries(log)
    assert (first["messageId"], first["authResult"], first["retained"]) == ("m-1", "CONFIRMED", "true")
    assert (second["messageId"], second["retained"]) == ("", "false")


@pytest.mark.parametrize(
    ("code", "reason", "of_client", "expected"),
    [
        (1006, "connection lost", 0, ("1006", "network")),
        (1006, "heartbeat unanswered", 0, ("1006", "network")),
        (1006, SLOW_CONSUMER, 0, ("1006", "gateway")),
        (1008, SLOW_CONSUMER, 0, ("1008", "gateway")),
        (1012, "service restart", 0, ("1012", "gateway")),
        (1000, "closed by the client", 1000, ("1000", "client")),
        (0, "closed by the client", 4000, ("4000", "client")),
    ],
)
def test_a_close_says_who_has_closed(
    code: int, reason: str, of_client: int, expected: tuple[str, str]
) -> None:
    log = new_log()
    session = registered(log)
    if of_client:
        session.closed_by_client(of_client)
    session.closed(code, reason, 12.3456)
    (entry,) = entries(log)
    assert (entry["code"], entry["by"]) == expected
    assert (entry["reason"], entry["seconds"]) == (reason, "12.346")


def test_closed_follows_registered_once_and_nothing_comes_after_it() -> None:
    log = new_log()
    session = log.session()
    session.closed(1006, "connection lost", 0)
    session.delivered(delivery())
    assert entries(log) == []
    session = registered(log)
    session.closed(1006, "connection lost", 1)
    session.closed(1006, "connection lost", 1)
    session.delivered(delivery())
    assert [each["event"] for each in entries(log)] == [CLOSED]


@pytest.mark.parametrize(
    ("name", "shown"), [("other", "other"), ("a b", ""), ("a" * 300, ""), (None, ""), (7, "")]
)
def test_a_refused_id_of_the_wrong_form_is_not_repeated(name: object, shown: str) -> None:
    log = new_log()
    log.session().refused(name, "invalid_id", "192.0.2.1")
    (entry,) = entries(log)
    assert entry["webSocketId"] == shown
    assert (entry["code"], entry["address"]) == ("invalid_id", "192.0.2.1")


def test_one_client_cannot_fill_the_stream_with_refusals() -> None:
    log = new_log(100)
    session = log.session()
    for _ in range(50):
        session.refused(None, "missing_id", "192.0.2.1")
    assert len(log) == MAX_REFUSED


def test_what_the_wire_has_kept_is_told_when_it_is_sent() -> None:
    log = new_log(100)
    session = registered(log)
    for number in range(MAX_KEPT + 1):
        session.kept(delivery(f"m-{number}"))
    assert len(log) == 0
    # The wire has dropped all but the newest two, for their size.
    told = [session.take_kept(number) for number in (2, 1)]
    assert [each and each.message_id for each in told] == [f"m-{MAX_KEPT - 1}", f"m-{MAX_KEPT}"]
    assert session.take_kept(1) is None
    assert MAX_KEPT == stomp.MAX_KEPT


def test_what_the_transport_has_kept_is_told_when_it_is_sent() -> None:
    log = new_log()
    session = registered(log)
    session.unsent(delivery("a"))
    session.unsent(delivery("b"))
    assert len(log) == 0
    session.sent()
    session.sent()
    assert [each["messageId"] for each in entries(log)] == ["a", "b"]


def test_when_too_many_wait_the_oldest_are_dropped_and_counted() -> None:
    log = new_log(3)
    session = registered(log)
    for number in range(5):
        session.delivered(delivery(str(number)))
    assert log.dropped == 2
    assert [each["messageId"] for each in entries(log)] == ["2", "3", "4"]
    assert log.recorded[DELIVERED] == 5


def test_what_could_not_be_written_waits_again_before_all_others() -> None:
    log = new_log(4)
    session = registered(log)
    for number in range(4):
        session.delivered(delivery(str(number)))
    taken = log.take(3)
    assert len(log) == 1
    session.delivered(delivery("4"))
    log.put_back(taken)
    assert log.dropped == 1, "there is room for four"
    found = [each["messageId"] for each in entries(log)]
    assert found == ["1", "2", "3", "4"]
    assert all(a < b for a, b in pairwise(found))
    log.put_back([])
    log.put_back(taken)
    log.drop_all()
    assert (log.dropped, len(log)) == (4, 0)


def test_there_is_no_room_for_what_is_put_back() -> None:
    log = new_log(2)
    session = registered(log)
    session.delivered(delivery("0"))
    taken = log.take(1)
    for number in (1, 2):
        session.delivered(delivery(str(number)))
    log.put_back(taken)
    assert log.dropped == 1
    assert [each["messageId"] for each in entries(log)] == ["1", "2"]


def test_the_owner_is_told_of_the_next_event_once() -> None:
    log = new_log()
    told: list[int] = []
    session = registered(log)
    log.on_next(lambda: told.append(len(log)))
    session.delivered(delivery())
    session.delivered(delivery())
    assert told == [1]
