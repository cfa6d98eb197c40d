"""The activity as a whole: what becomes of the requests that are handed over."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import random
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llamaswapd.activity import activity as module
from llamaswapd.activity.activity import BATCH, LONG_BYTES, Activity, read
from llamaswapd.activity.counts import MODELS_LIMIT, OTHERS
from llamaswapd.activity.query import Query
from llamaswapd.activity.record import Record
from llamaswapd.config.schema import Config, ModelConfig, Peer, Store
from llamaswapd.errors import ConfigError, NotFound
from llamaswapd.observe.feed import Event, Feed
from tests.activity.ended import USAGE, activity, chunked, finished, plain, until

STREAM = b"data: %b\n\ndata: [DONE]\n\n" % USAGE
LONG = b'{"data":"%b",' % (b"x" * LONG_BYTES) + USAGE[1:]


async def rows(it: Activity) -> list[Any]:
    return await it.rows()


# ---- rows


async def test_what_has_been_added_can_be_asked_for_at_once() -> None:
    async with activity() as it:
        it.add(finished(USAGE, model_id="a", about={"fifo_priority": "2"}))
        it.add(finished(LONG, model_id="b"))
        it.add(finished(b'{"error": "no luck"}', outcome=500, model_id="c"))
        page = await it.page(Query(sort="model", is_descending=False))
        assert (page["page"], page["limit"], page["total"], page["total_pages"]) == (1, 25, 3, 1)
        data: Any = page["data"]
        assert [(row["model"], row["tokens"]["input_tokens"]) for row in data] == [("a", 3), ("b", 3), ("c", 0)]
        assert (data[0]["metadata"], data[2]["error_msg"]) == ({"fifo_priority": "2"}, "no luck")
        assert sorted(row["id"] for row in data) == [1, 2, 3]
        assert (await it.stats())["total_requests"] == 3
        assert (await it.stats("b"))["total_output_tokens"] == 4
        assert [row["id"] for row in await rows(it)] == [1, 2, 3]


async def test_without_rows_there_are_no_pages() -> None:
    async with activity() as it:
        page = await it.page(Query())
        assert page == {"data": [], "page": 1, "limit": 25, "total": 0, "total_pages": 0}
        assert await rows(it) == []


async def test_pages_are_counted_up() -> None:
    async with activity() as it:
        for _ in range(5):
            it.add(finished())
        assert [(await it.page(Query(limit=limit)))["total_pages"] for limit in (1, 2, 5, 6)] == [5, 3, 1, 1]


async def test_only_posts_make_rows_but_all_are_counted() -> None:
    async with activity() as it:
        it.add(finished(method="GET"))
        assert await rows(it) == []
        assert it.counts["m"].requests == {200: 1}


@pytest.mark.parametrize(
    ("facts", "tokens", "error"),
    [
        ({"response": USAGE}, 3, ""),
        ({"response": chunked(USAGE), "is_chunked": True}, 3, ""),
        ({"response": chunked(*(USAGE[at : at + 1] for at in range(len(USAGE)))), "is_chunked": True}, 3, ""),
        ({"response": gzip.compress(USAGE), "content_encoding": "gzip"}, 3, ""),
        ({"response": chunked(gzip.compress(USAGE)), "content_encoding": "gzip", "is_chunked": True}, 3, ""),
        ({"response": b"data: " + USAGE, "content_type": "text/event-stream; charset=utf-8"}, 3, ""),
        ({"response": chunked(b"data: " + USAGE[:12], USAGE[12:]), "content_type": "text/event-stream",
          "is_chunked": True}, 3, ""),
        ({"response": USAGE, "content_type": ""}, 3, ""),
        ({"response": LONG[:5000] + LONG[-5000:], "is_cut": True}, 3, ""),
        ({"response": b'[{"timings": {"prompt_n": 3}}]', "sent_path": "/infill"}, 3, ""),
        ({"response": b""}, 0, ""),
        ({"response": USAGE, "error": "broke off"}, 3, "broke off"),
        ({"response": USAGE, "outcome": 201}, 0, "201 Created"),
        ({"response": USAGE, "outcome": 502, "error": "our words"}, 0, "our words"),
        ({"response": gzip.compress(b'{"detail": "why"}'), "outcome": 422, "content_encoding": "gzip"}, 0, "why"),
        ({"response": USAGE, "content_encoding": "gzip"}, 0,
         "response decode failed: response decompression failed: gzip: Error -3"
         " while decompressing data: incorrect header check"),
        ({"response": gzip.compress(STREAM)[:-8], "content_encoding": "gzip",
          "content_type": "text/event-stream"}, 3, ""),
        ({"response": chunked(zlib.compress(STREAM)[:-4]), "content_encoding": "deflate",
          "content_type": "text/event-stream", "is_chunked": True}, 3, ""),
        ({"response": gzip.compress(STREAM[:3])[:-8], "content_encoding": "gzip", "content_type": "text/event-stream"},
         0, "response decode failed: response decompression failed: gzip: unexpected end"),
        ({"response": gzip.compress(USAGE)[:-8], "content_encoding": "gzip"},
         0, "response decode failed: response decompression failed: gzip: unexpected end"),
    ],
)  # fmt: skip
async def test_tokens_and_errors_are_found_however_the_answer_came(
    facts: dict[str, Any], tokens: int, error: str
) -> None:
    async with activity() as it:
        it.add(finished(**facts))
        [row] = await rows(it)
    assert row["tokens"]["input_tokens"] == tokens
    assert row.get("error_msg", "") == error


async def test_llama_cpps_account_of_the_time_counts_if_it_is_longer() -> None:
    async with activity() as it:
        for total_ms in (10, 5000):
            it.add(finished(json.dumps({"timings": {"prompt_ms": total_ms}}).encode()))
        assert [row["duration_ms"] for row in await rows(it)] == [1000, 5000]


async def test_rows_stay_when_the_configuration_changes_and_captures_do_not() -> None:
    async with activity() as it:
        it.add(finished())
        assert [row["has_capture"] for row in await rows(it)] == [True]
        it.add(finished())
        await it.reconfigure(Config(metrics_max_in_memory=5))
        it.add(finished())
        assert [(row["id"], row["has_capture"]) for row in await rows(it)] == [(1, False), (2, False), (3, True)]
        await it.reconfigure(Config(metrics_max_in_memory=2, capture_buffer=0))
        it.add(finished())
        assert [(row["id"], row["has_capture"]) for row in await rows(it)] == [(3, False), (4, False)]


async def test_the_models_of_the_newest_configuration_are_counted_by_themselves() -> None:
    peer = Peer(id="p", proxy="http://p", models=("far",))
    async with activity() as it:
        for number in range(MODELS_LIMIT):
            it.add(finished(model_id=f"m{number}"))
        await it.reconfigure(Config(models={"new": ModelConfig(id="new")}, peers={"p": peer}))
        for name in ("new", "p/far", "nobody's"):
            it.add(finished(model_id=name))
        it.flush()
        assert {"new", "p/far", OTHERS} < set(it.counts)
        assert "nobody's" not in it.counts


async def test_another_store_begins_with_what_is_in_it_and_ids_go_on(tmp_path: Path) -> None:
    async with activity(tmp_path / "a.db") as it:
        it.add(finished())
        it.add(finished(LONG))
        await it.reconfigure(Config(store=Store(path=str(tmp_path / "b.db"))))
        assert await rows(it) == []
        it.add(finished())
        assert [row["id"] for row in await rows(it)] == [3]
        await it.reconfigure(Config(store=Store(path=str(tmp_path / "a.db"))))
        assert [row["id"] for row in await rows(it)] == [1, 2]
        it.add(finished())
        assert [row["id"] for row in await rows(it)] == [1, 2, 4]


async def test_a_store_that_cannot_be_opened_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("hello " * 1000)
    async with activity() as it:
        it.add(finished())
        with pytest.raises(ConfigError, match="store cannot be opened"):
            await it.reconfigure(Config(store=Store(path=str(tmp_path / "bad"))))
        assert [row["has_capture"] for row in await rows(it)] == [True]


async def test_what_was_added_last_is_written_in_the_end(tmp_path: Path) -> None:
    async with activity(tmp_path / "a.db") as it:
        it.add(finished())
        it.add(finished(LONG))
    async with activity(tmp_path / "a.db") as it:
        assert len(await rows(it)) == 2


# ---- when


async def test_a_full_batch_is_worked_on_at_once_and_a_part_of_one_a_little_later() -> None:
    async with activity() as it:
        for _ in range(BATCH):
            it.add(plain())
        assert it.counts["m"].requests == {200: BATCH}
        it.add(plain())
        assert it.counts["m"].requests == {200: BATCH}
        await until(lambda: it.counts["m"].requests == {200: BATCH + 1})


async def test_watchers_are_told_of_rows_that_can_be_asked_for() -> None:
    feed: Feed[Event] = Feed()
    async with activity(events=feed) as it:
        it.add(finished())
        it.flush()
        with feed.subscribe() as events:
            it.add(finished(LONG))
            it.add(finished())
            told = []
            while len(told) < 2:
                told += await events.items()
            assert told == [Event("activity", {"id": 2}), Event("activity", {"id": 3})]
            assert len(await rows(it)) == 3


async def test_long_answers_that_pile_up_are_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG_WAITING_BYTES", 2 * len(LONG))
    async with activity() as it:
        for _ in range(5):
            it.add(finished(LONG))
        it.flush()
        assert it._long_bytes < 4 * len(LONG)
        found = await rows(it)
        assert [row["tokens"]["input_tokens"] for row in found] == [3] * 5
        assert [row["has_capture"] for row in found] == [True, True, False, False, False]
        assert it._long_bytes == 0


async def test_random_bodies_are_taken_as_they_come() -> None:
    random_ = random.Random(11)
    pieces = [b'"usage"', b'{"usage":', b"}", b"\r\n", b"0\r\n\r\n", b"data: ", b"\n\n", USAGE, gzip.compress(USAGE)]
    async with activity() as it:
        for _ in range(1500):
            body = b"".join(random_.choices([*pieces, random_.randbytes(9)], k=random_.randrange(6)))
            made = finished(
                body,
                is_chunked=random_.random() < 0.5,
                is_cut=random_.random() < 0.2,
                outcome=random_.choice([200, 200, 404, 599]),
                content_type=random_.choice(["application/json", "text/event-stream", ""]),
                content_encoding=random_.choice(["", "", "gzip", "deflate", "br", "\udcff"]),
                sent_path=random_.choice(["/infill", "/x"]),
            )
            read(made)
            it.add(made)
        found = await rows(it)
        assert len(found) == 1000
        json.dumps(found, allow_nan=False)
        for row in found[::50]:
            if row["has_capture"]:
                json.dumps(await it.capture(row["id"]))


# ---- counts


async def test_requests_are_counted_by_model_and_status_with_their_times_and_tokens() -> None:
    async with activity() as it:
        it.add(finished(USAGE, granted=100.25))
        it.add(finished(b'{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":7}}}'))
        it.add(finished(outcome=502, granted=0.0, first_byte=0.0))
        it.flush()
        counts = it.counts["m"]
        assert counts.requests == {200: 2, 502: 1}
        assert (counts.input, counts.output, counts.cached) == (4, 4, 7)
        assert (counts.duration.sum, counts.waiting.sum, counts.first_byte.sum) == (3.0, 0.25, 1.0)
        assert [sum(each.counts) for each in (counts.duration, counts.waiting, counts.first_byte)] == [3, 2, 2]


# ---- captures


async def test_a_capture_is_there_until_it_had_to_make_room() -> None:
    noise = random.Random(1).randbytes(10_000)
    async with activity(capture_buffer=1) as it:
        for _ in range(150):
            it.add(finished(noise))
        found = await rows(it)
        kept = [row["id"] for row in found if row["has_capture"]]
        assert kept[-1] == 150
        assert 90 < len(kept) < 100
        capture = await it.capture(150)
        assert base64.b64decode(str(capture["resp_body"])) == noise
        with pytest.raises(NotFound, match="capture not found"):
            await it.capture(1)
        with pytest.raises(NotFound):
            await it.capture(151)


async def test_large_captures_are_kept_compressed() -> None:
    async with activity(capture_buffer=1) as it:
        for _ in range(30):
            it.add(finished(b"x" * 60_000, request=b"y" * 60_000))
            await rows(it)
            await until(lambda: it._compressing is None)
        assert all(row["has_capture"] for row in await rows(it))
        assert base64.b64decode(str((await it.capture(1))["req_body"])) == b"y" * 60_000


async def test_captures_may_be_off() -> None:
    async with activity(capture_buffer=0) as it:
        it.add(finished())
        assert [row["has_capture"] for row in await rows(it)] == [False]
        with pytest.raises(NotFound):
            await it.capture(1)


async def test_what_was_cut_is_no_capture() -> None:
    async with activity() as it:
        it.add(finished(is_cut=True))
        assert [row["has_capture"] for row in await rows(it)] == [False]


async def test_closing_waits_for_nothing_but_what_has_to_be_written() -> None:
    it = Activity(Config(), Feed())
    await it.open()
    it.add(finished(b"x" * 50_000))
    it.add(finished(LONG))
    it.flush()
    assert it._reading is not None
    assert it._compressing is not None
    await it.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---- many plain requests at once

CHAT = b'{"id":"1",%b"choices":[{"index":0,"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}]%b}'
ANSWERS = (
    b"{}",
    USAGE,
    b'{"id":"\\"usage\\":{","usage":{"prompt_tokens":5,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":2}}}',
    b'{"usage":{"prompt_tokens":1},"timings":{"prompt_n":7,"predicted_n":8,"prompt_ms":900.0,"predicted_ms":800.5}}',
    b"no json",
    b"",
    # A text, which is not looked through: what stands in front of it and behind it is.
    CHAT % (b"", b"hello", b',"usage":{"prompt_tokens":5,"completion_tokens":6}'),
    CHAT % (b"", b"a longer one", b',"usage":{"prompt_tokens":5,"completion_tokens":6}'),
    CHAT % (b"", b'\\"timings\\":{\\"prompt_n\\":1}', b',"usage":{"prompt_tokens":7}'),
    CHAT % (b"", b'\\"usage\\":{', b""),
    CHAT % (b"", b"", b',"timings":{"prompt_n":7,"predicted_n":8},"usage":{"prompt_tokens":9}'),
    CHAT % (b"", b"x", b',"logprobs":[%b],"usage":{"prompt_tokens":5}' % (b"0.5," * 200 + b"1")),
    CHAT % (b'"another":"one",', b"hello", b',"usage":{"prompt_tokens":5,"completion_tokens":6}'),
    CHAT[:40],
)

OPENAIS = tuple(CHAT % (b"", text, b',"usage":{"prompt_tokens":5}') for text in (b"hello", b"a longer one"))
IN_FRONT = (  # of the text
    CHAT % (b'"usage":{"prompt_tokens":3,"completion_tokens":4},', b"hello", b""),
    CHAT % (b'"timings":{"prompt_n":3,"predicted_n":4},', b"hello", b',"usage":{"prompt_tokens":9}'),
    CHAT % (b'"metrics":{"prompt_tokens":3},', b"hello", b',"usage":{"prompt_tokens":9}'),
)


def plain_requests(answers: Sequence[bytes] = ANSWERS) -> list[Record]:
    random_ = random.Random(3)
    return [
        plain(
            random_.choice(answers),
            model_id=random_.choice("ab"),
            request=random_.choice([b"{}", b"x" * 500]),
            sent_path=random_.choice(["/v1/chat/completions", "/v1/audio/speech", "/v1/images/edits"]),
            began=100.0 + number,
            lasted=random_.choice([0.0, 0.001, 0.3, 1.0, 700.0]),
            about={"fifo_priority": "0"},
            request_headers=[("X-A", "1")],
        )
        for number in range(300)
    ]


async def told(entries: list[Record], **config: int) -> tuple[object, ...]:
    async with activity(**config) as it:
        for each in entries:
            it.add(each)
        found = await rows(it)
        captures = [await it.capture(int(str(row["id"]))) for row in found if row["has_capture"]]
        counts = {
            model: [
                *(counts.requests, counts.input, counts.output, counts.cached),
                *((kind.counts, round(kind.sum, 6)) for kind in (counts.duration, counts.waiting, counts.first_byte)),
            ]
            for model, counts in it.counts.items()
        }
        return found, captures, counts, await it.stats("a")


@pytest.mark.parametrize("answers", [ANSWERS, *((*OPENAIS, each) for each in IN_FRONT), (*ANSWERS, *IN_FRONT)])
async def test_many_at_once_make_what_they_make_one_by_one(
    answers: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    at_once = await told(plain_requests(answers))
    others = plain_requests(answers)
    for each in others:
        each.is_plain = False
    assert at_once == await told(others)


async def test_the_oldest_plain_captures_make_room_and_their_rows_stay() -> None:
    async with activity(capture_buffer=1) as it:
        for number in range(400):
            it.add(plain(b"x" * 4000, request=b"y" * 4000))
            if number % 7 == 0:
                it.flush()
        found = await rows(it)
        kept = [row["id"] for row in found if row["has_capture"]]
        assert len(found) == 400
        assert kept == [*range(401 - len(kept), 401)]
        assert 2**20 // 9100 - 7 <= len(kept) <= 2**20 // 8000
        assert sum(len(each._bodies) for each in it._captures._plain) <= 2**20
        it.add(finished(b"z" * 600_000))  # a large one, later than all of these
        await rows(it)
        assert (await it.capture(401))["resp_body"]


async def test_of_a_batch_that_is_larger_than_all_the_room_the_newest_captures_stay() -> None:
    async with activity(capture_buffer=1) as it:
        for _ in range(BATCH):
            it.add(plain(b"x" * 6000, request=b"y" * 2000))
        found = await rows(it)
        assert (found[0]["has_capture"], found[-1]["has_capture"]) == (False, True)
        assert it._captures._bytes <= 2**20


# ---- long streams


def sse(*events: object) -> list[bytes]:
    return [b"data: %b\n\n" % json.dumps(event).encode() for event in events]


FILLER = [{"choices": [{"delta": {"content": "x" * 100}}]}] * 300
OPENAI = [*FILLER, {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}]
ANTHROPIC = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}},
    *FILLER,
    {"type": "message_delta", "usage": {"output_tokens": 4}},
]
RESPONSES = [
    *FILLER,
    {"response": {"output": "y" * 30_000, "usage": {"input_tokens": 3, "output_tokens": 4}, "z": "z" * 9000}},
]


@pytest.mark.parametrize("events", [OPENAI, ANTHROPIC, RESPONSES])
@pytest.mark.parametrize("split", [0, 37])
async def test_usage_is_found_in_long_streams(events: list[object], split: int) -> None:
    pieces = sse(*events)
    if split:  # chunks that end in the middle of events
        whole = b"".join(pieces)
        pieces = [whole[at : at + split] for at in range(0, len(whole), split)]
    for body, is_chunked in ((b"".join(pieces), False), (chunked(*pieces), True)):
        row = read(finished(body, content_type="text/event-stream", is_chunked=is_chunked))
        assert (row[0].input, row[0].output) == (3, 4)


async def test_usage_is_found_in_what_is_left_of_a_long_last_event() -> None:
    body = b"".join(sse(*RESPONSES))
    cut = body[:4096] + body[-16384:]
    row = read(finished(cut, content_type="text/event-stream", is_cut=True))
    assert (row[0].input, row[0].output) == (3, 4)


async def test_a_long_batch_lets_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE_S", 0.0)
    monkeypatch.setattr(Activity._work_on, "__defaults__", (0.0,))
    stream = b"".join(sse(*OPENAI))
    async with activity() as it:
        for _ in range(3):
            it.add(finished(stream, content_type="text/event-stream"))
        it._ended.flush()
        assert not it.counts  # no time; but nothing is lost
        assert [row["tokens"]["input_tokens"] for row in await rows(it)] == [3] * 3
