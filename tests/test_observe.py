from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from multidict import CIMultiDict

from llamaswapd.observe.access import took
from llamaswapd.observe.batch import Batch
from llamaswapd.observe.feed import QUEUE_CHARACTERS, Event, Feed
from llamaswapd.observe.inflight import BYTE_UPDATES_S, Inflight, InflightEntry, canonical, remote_ip, shown_headers
from llamaswapd.observe.log import LineFormat, LogRing

MOMENT = 1136239445.123456  # 2006-01-02 22:04:05 UTC, the time in Go's layouts


@pytest.fixture
def in_denver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "MST7")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def record(text: str, level: int = logging.INFO, created: float = MOMENT) -> logging.LogRecord:
    made = logging.LogRecord("name", level, "file.py", 1, text, None, None)
    made.created = created
    return made


def ring(limit_bytes: int = 1000) -> LogRing:
    made = LogRing(limit_bytes)
    made.setFormatter(LineFormat())
    return made


# ---- batches


class Worked(list[list[int]]):
    """What has been worked on; of what is negative nothing is, the first time."""

    def __init__(self, size: int = 3, delay_s: float = 60) -> None:
        super().__init__()
        self.changed = asyncio.Event()
        self.batch: Batch[int] = Batch(self._work, size, delay_s)

    def _work(self, items: list[int]) -> None:
        self.append(items)
        self.changed.set()
        if items[0] < 0:
            self.batch.put_back([-item for item in items], 0.0)


async def test_what_is_collected_is_worked_on_when_there_is_enough_of_it() -> None:
    worked = Worked()
    for number in range(7):
        worked.batch.add(number)
    assert worked == [[0, 1, 2], [3, 4, 5]]
    worked.batch.flush()
    worked.batch.flush()
    assert worked == [[0, 1, 2], [3, 4, 5], [6]]
    assert worked.batch.take() == []


async def test_what_is_collected_is_worked_on_in_time() -> None:
    worked = Worked(delay_s=0.01)
    worked.batch.add(1)
    worked.batch.add(2)
    await worked.changed.wait()
    assert worked == [[1, 2]]


async def test_what_there_was_no_time_for_comes_before_what_is_added_later() -> None:
    worked = Worked(size=2)
    worked.batch.add(-1)
    worked.batch.add(-2)
    worked.changed.clear()
    await worked.changed.wait()
    assert worked == [[-1, -2], [1, 2]]
    worked.batch.add(-3)
    worked.batch.flush()
    worked.batch.add(4)
    assert worked[2:] == [[-3], [3, 4]]


# ---- the access log


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.000ms"),
        (0.0000004, "0.000ms"),
        (0.000417, "0.417ms"),
        (0.05, "50.000ms"),
        (0.999, "999.000ms"),
        (1.0, "1.000s"),
        (12.3456, "12.346s"),
        (86400.25, "86400.250s"),
    ],
)
def test_a_duration_is_logged_in_a_fitting_unit(seconds: float, text: str) -> None:
    assert took(seconds) == text


# ---- feeds


async def test_every_subscription_gets_every_item_in_order() -> None:
    feed: Feed[int] = Feed()
    feed.publish(0)
    with feed.subscribe() as one, feed.subscribe() as two:
        feed.publish(1)
        feed.publish(2)
        assert await one.items() == [1, 2]
        feed.publish(3)
        assert await one.items() == [3]
        assert await two.items() == [1, 2, 3]
        assert [one.has_lost, two.has_lost] == [False, False]


async def test_a_feed_members_while_there_are_subscriptions() -> None:
    feed: Feed[int] = Feed()
    assert not feed.members
    with feed.subscribe():
        with feed.subscribe():
            pass
        assert feed.members
    assert not feed.members


async def test_a_full_subscription_loses_what_it_held_and_nobody_else_does() -> None:
    feed: Feed[int] = Feed()
    with feed.subscribe(limit=3) as slow, feed.subscribe() as other:
        for number in range(8):
            feed.publish(number)
        assert slow.has_lost
        assert await slow.items() == [6, 7]
        assert await other.items() == list(range(8))


async def test_a_subscription_that_holds_much_text_loses_it() -> None:
    feed: Feed[str] = Feed()
    line = "x" * 100_000
    with feed.subscribe() as slow:
        for _ in range(2):  # what has been read does not count any more
            published = 0
            while not slow.has_lost:
                feed.publish(line)
                published += 1
            assert QUEUE_CHARACTERS < published * len(line) <= QUEUE_CHARACTERS + len(line)
            assert await slow.items() == [line]
            slow.has_lost = False


async def test_a_waiting_reader_is_woken_from_another_thread() -> None:
    feed: Feed[str] = Feed()
    with feed.subscribe() as subscription:
        reader = asyncio.create_task(subscription.items())
        await asyncio.sleep(0)
        asyncio.get_running_loop().set_debug(True)  # refuses what is not safe from another thread
        await asyncio.to_thread(feed.publish, "from afar")
        assert await reader == ["from afar"]


async def test_a_reader_that_gives_up_waiting_misses_nothing() -> None:
    feed: Feed[int] = Feed()
    with feed.subscribe() as subscription:
        reader = asyncio.create_task(subscription.items())
        await asyncio.sleep(0)
        feed.publish(1)
        reader.cancel()
        await asyncio.wait([reader])
        feed.publish(2)
        assert await subscription.items() == [1, 2]


# ---- our own log


def test_the_ring_keeps_the_end_of_the_log_in_whole_lines() -> None:
    kept = ring(limit_bytes=30)
    for text in ("first", "séc", "third"):
        kept.handle(record(text))
    assert kept.history() == "[INFO] séc\n[INFO] third\n"
    kept.handle(record("x" * 100))
    assert kept.history() == ""


async def test_a_follower_gets_each_line_once() -> None:
    kept = ring()
    kept.handle(record("one"))
    history, live = kept.follow()
    with live:
        kept.handle(record("two"))
        assert history == "[INFO] one\n"
        assert await live.items() == ["[INFO] two\n"]


def test_a_line_that_no_encoder_takes_is_kept() -> None:
    kept = ring()
    kept.handle(record("\udcff"))
    assert kept.history() == "[INFO] \udcff\n"


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (logging.DEBUG, "DEBUG"),
        (logging.INFO, "INFO"),
        (logging.WARNING, "WARN"),
        (logging.ERROR, "ERROR"),
        (logging.CRITICAL, "ERROR"),
    ],
)
def test_levels_have_llama_swaps_names(level: int, name: str) -> None:
    assert LineFormat().format(record("message", level)) == f"[{name}] message"


@pytest.mark.usefixtures("in_denver")
@pytest.mark.parametrize(
    ("name", "stamp"),
    [
        ("ansic", "Mon Jan  2 15:04:05 2006"),
        ("unixdate", "Mon Jan  2 15:04:05 MST 2006"),
        ("rubydate", "Mon Jan 02 15:04:05 -0700 2006"),
        ("rfc822", "02 Jan 06 15:04 MST"),
        ("rfc822z", "02 Jan 06 15:04 -0700"),
        ("rfc850", "Monday, 02-Jan-06 15:04:05 MST"),
        ("rfc1123", "Mon, 02 Jan 2006 15:04:05 MST"),
        ("rfc1123z", "Mon, 02 Jan 2006 15:04:05 -0700"),
        ("rfc3339", "2006-01-02T15:04:05-07:00"),
        ("rfc3339nano", "2006-01-02T15:04:05.123456-07:00"),
        ("kitchen", "3:04PM"),
        ("stamp", "Jan  2 15:04:05"),
        ("stampmilli", "Jan  2 15:04:05.123"),
        ("stampmicro", "Jan  2 15:04:05.123456"),
        (" StampNano ", "Jan  2 15:04:05.123456000"),
    ],
)
def test_a_time_is_written_in_the_layout_that_is_named(name: str, stamp: str) -> None:
    assert LineFormat(name).format(record("x")) == f"{stamp} [INFO] x"


@pytest.mark.parametrize("name", ["", "iso", "15:04"])
def test_an_unknown_layout_means_no_time(name: str) -> None:
    assert LineFormat(name).format(record("x")) == "[INFO] x"


def test_utc_is_written_as_z_and_a_whole_second_without_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC0")
    time.tzset()
    assert LineFormat("rfc3339nano").format(record("x", created=0)) == "1970-01-01T00:00:00Z [INFO] x"
    monkeypatch.undo()
    time.tzset()


# ---- requests in flight


class Entry(InflightEntry):
    """A request whose answer's headers the test sets."""

    answer_headers: tuple[tuple[str, str], ...] = ()

    def resp_headers(self) -> tuple[tuple[str, str], ...]:
        return self.answer_headers

    more: ClassVar[dict[str, str]] = {}

    def metadata(self) -> dict[str, str]:
        return self.more


def begin(table: Inflight, **headers: str) -> Entry:
    entry = Entry("m", "POST", "/v1/completions", CIMultiDict(headers), "10.0.0.1")
    table.add(entry)
    return entry


async def test_an_entry_says_what_is_known_of_a_request() -> None:
    table = Inflight(Feed())
    headers = CIMultiDict([("host", "h"), ("accept", "*/*"), ("ACCEPT", "second"), ("cookie", "secret")])
    before = time.time_ns()
    entry = Entry("m", "POST", "/p", headers, "10.0.0.1")
    entry.more = {"fifo_priority": "1"}
    table.add(entry)
    entry.answer_headers = (("content-type", "text/event-stream"), ("set-cookie", "secret"))
    entry.size = 7
    shown: Any = table.snapshot().data["requests"][0]
    assert before - 10**6 <= entry.unix_time_ns <= time.time_ns()
    assert shown.pop("timestamp") == shown_time(entry.unix_time_ns)
    assert shown.pop("elapsed_ms") in range(60_000)
    assert shown == {
        "id": "1",
        "model": "m",
        "req_path": "/p",
        "method": "POST",
        "req_headers": {"Accept": "*/*", "Cookie": "[REDACTED]"},
        "remote_ip": "10.0.0.1",
        "resp_headers": {"Content-Type": "text/event-stream", "Set-Cookie": "[REDACTED]"},
        "resp_bytes": 7,
        "metadata": {"fifo_priority": "1"},
    }


def shown_time(time_ns: int) -> str:
    seconds, nanos = divmod(time_ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos:09d}Z"


async def test_the_snapshot_holds_who_has_begun_and_not_ended() -> None:
    table = Inflight(Feed())
    entries = [begin(table) for _ in range(3)]
    assert [entry["id"] for entry in table.snapshot().data["requests"]] == ["1", "2", "3"]
    table.remove(entries[1])
    table.remove(entries[1])
    assert [entry["id"] for entry in table.snapshot().data["requests"]] == ["1", "3"]
    assert len(table) == 2
    table.remove(entries[0])
    table.remove(entries[2])
    assert table.snapshot() == Event("inflight", {"operation": "snapshot"})


async def test_bytes_are_told_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    feed: Feed[Event] = Feed()
    table = Inflight(feed)
    entry = begin(table)
    with feed.subscribe() as events:
        for size in range(1, 22):
            now += BYTE_UPDATES_S if size in (11, 21) else 0
            entry.size = size
            table.tell_size(entry)
        assert [event.data["request"]["resp_bytes"] for event in await events.items()] == [11, 21]


class RecordingFeed(Feed[Event]):
    def __init__(self) -> None:
        super().__init__()
        self.published: list[Event] = []

    def publish(self, item: Event) -> None:
        self.published.append(item)
        super().publish(item)


async def test_nothing_is_published_while_nobody_watches() -> None:
    feed = RecordingFeed()
    table = Inflight(feed)
    entry = begin(table)
    table.tell(entry)
    table.tell_size(entry)
    never_told = begin(table)
    with feed.subscribe():
        table.remove(never_told)
        table.snapshot()
        table.remove(entry)
    assert [event.data for event in feed.published] == [{"operation": "remove", "id": "1"}]


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ({}, "10.0.0.1"),
        ({"x-forwarded-for": "1.1.1.1, 2.2.2.2", "x-real-ip": "3.3.3.3"}, "1.1.1.1"),
        ({"x-forwarded-for": " ", "x-real-ip": " 3.3.3.3 "}, "3.3.3.3"),
        ({"x-forwarded-for": ",2.2.2.2"}, "10.0.0.1"),
    ],
)
def test_the_clients_address_is_the_one_proxies_tell(headers: dict[str, str], address: str) -> None:
    assert remote_ip(CIMultiDict(headers), "10.0.0.1") == address


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x-session-ID", "X-Session-Id"),
        ("ETAG", "Etag"),
        ("x--y-", "X--Y-"),
        ("a_b.c-d", "A_b.c-D"),
        ("bad name", "bad name"),
        ("bäd", "bäd"),
    ],
)
def test_header_names_are_written_as_go_does(name: str, shown: str) -> None:
    assert canonical(name) == shown


def test_secrets_are_hidden_and_bytes_that_are_no_text_do_not_break_json() -> None:
    names = ("authorization", "PROXY-Authorization", "cookie", "set-cookie", "x-api-key")
    assert set(shown_headers([(name, "secret") for name in names]).values()) == {"[REDACTED]"}
    text = json.dumps(shown_headers([("x-odd", "a\udcffb\ud800")]), ensure_ascii=False)
    assert text.encode().decode() == '{"X-Odd": "a' + "\ufffd" * 3 + "b" + "\ufffd" * 3 + '"}'
