from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from llamaswapd.activity import store as module
from llamaswapd.activity.query import SORT_COLUMNS, Query
from llamaswapd.activity.rows import COLUMNS, Row
from llamaswapd.activity.store import STEPS, WAITING_ROWS, Store
from llamaswapd.activity.usage import NO_TOKENS, Tokens
from llamaswapd.errors import ConfigError
from tests.activity.ended import until

ALL = Query(limit=999, is_descending=False)


def row(id_: int, model_id: str = "m", second: int = 0, **tokens: Any) -> Row:
    created, counts = 1_700_000_000 + second, NO_TOKENS._replace(**tokens)
    return Row(id_, created, model_id, "/x", "t", 200, counts, 0.0, 1.0, 0.0, 1.0, 1.0, 2.0, "", {})


@asynccontextmanager
async def opened(path: Path | str = "", rows: int = 1000) -> AsyncIterator[Store]:
    store = Store(str(path), rows)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def add(store: Store, count: int) -> None:
    for _ in range(count):
        store.add(row(store.last_id + 1))


async def ids(store: Store, query: Query = ALL) -> list[object]:
    return [each[0] for each in (await store.page(query))[0]]


def in_file(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as sql:
        return [id_ for (id_,) in sql.execute("SELECT id FROM activity ORDER BY id")]


# ---- in memory


async def test_the_newest_rows_are_kept_in_memory() -> None:
    async with opened(rows=3) as store:
        assert await store.page(Query()) == ([], 0)
        add(store, 2)
        assert await ids(store) == [1, 2]
        add(store, 2)
        assert await ids(store) == [2, 3, 4]
        add(store, 10)
        assert await ids(store) == [12, 13, 14]
        assert [each[0] for each in await store.newest()] == [12, 13, 14]
        store.set_limit(2)
        assert await ids(store) == [13, 14]
        add(store, 1)
        assert await ids(store) == [14, 15]


async def test_pages_follow_one_another() -> None:
    async with opened() as store:
        add(store, 5)
        pages = [await store.page(Query(limit=2, page=page)) for page in (1, 2, 3, 4, 2**62)]
    assert [([each[0] for each in rows], total) for rows, total in pages] == [
        ([5, 4], 5), ([3, 2], 5), ([1], 5), ([], 5), ([], 5),
    ]  # fmt: skip


async def test_rows_are_chosen_by_model_id_and_time() -> None:
    async with opened() as store:
        for id_, (model, second) in enumerate([("a", 0), ("b", 1), ("a", 2), ("c'", 3)], 1):
            store.add(row(id_, model, second))
        at = 1_700_000_000
        for query, expected in (
            (Query(models=("a",)), [3, 1]),
            (Query(models=("b", "c'")), [4, 2]),
            (Query(models=("A",)), []),
            (Query(min_id=2, max_id=3), [3, 2]),
            (Query(start=at + 1, end=at + 2), [3, 2]),
            (Query(start=at + 4), []),
            (Query(models=("a",), max_id=2), [1]),
        ):
            assert await ids(store, query) == expected


async def test_rows_are_sorted_by_every_key_and_ties_by_id_in_the_same_direction() -> None:
    async with opened() as store:
        for id_ in range(1, 8):
            store.add(row(id_, f"m{id_ % 2}", id_ % 3, speed=float(id_ % 2), input=-id_))
        for key in SORT_COLUMNS:
            up, down = [await ids(store, Query(sort=key, is_descending=down)) for down in (False, True)]
            assert up == down[::-1]
        assert await ids(store, Query(sort="gen_speed", is_descending=False)) == [2, 4, 6, 1, 3, 5, 7]
        assert await ids(store, Query(sort="prompt", is_descending=False)) == [7, 6, 5, 4, 3, 2, 1]


# ---- statistics


def described(values: Sequence[float]) -> dict[str, object] | None:
    """What llama-swap makes of speeds, the slow and obvious way."""
    values = sorted(value for value in values if value > 0)
    if not values:
        return None

    def percentile(share: float) -> float:
        rank = (len(values) - 1) * share
        low, high = values[math.floor(rank)], values[math.ceil(rank)]
        return low + (high - low) * (rank - math.floor(rank))

    shares = {"p50": percentile(0.5), "p95": percentile(0.95), "p99": percentile(0.99)}
    if values[0] == values[-1]:
        return {"bins": [len(values)], "min": values[0], "max": values[0], "binSize": 0.0, **shares}
    number = min(max(math.ceil(math.log2(len(values))) + 1, 5), 20)
    size = (values[-1] - values[0]) / number
    bins = [0] * number
    for value in values:
        bins[min(int((value - values[0]) / size), number - 1)] += 1
    return {"bins": bins, "min": values[0], "max": values[-1], "binSize": size, **shares}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9, 700])
async def test_speeds_are_described_as_by_llama_swap(count: int) -> None:
    random_ = random.Random(count)
    speeds = [random_.choice([-1.0, 0.0, random_.uniform(1, 50)]) for _ in range(count * 2)]
    async with opened(rows=5000) as store:
        for id_, speed in enumerate(speeds, 1):
            store.add(row(id_, "m", prompt_speed=speed, speed=7.5))
        found = await store.stats("")
        assert found["total_requests"] == len(speeds)
        assert found["gen_histogram"] == described([7.5] * len(speeds))
        expected = described(speeds)
        if expected is None:
            assert found["prompt_histogram"] is None
        else:
            assert found["prompt_histogram"] == {name: pytest.approx(value) for name, value in expected.items()}


async def test_sums_are_of_all_rows_or_of_one_models() -> None:
    async with opened() as store:
        store.add(row(1, "a", input=1, output=10, cached=-1))
        store.add(row(2, "a", input=2, output=20, cached=5))
        store.add(row(3, "b", input=4, output=40, cached=6))
        sums = {model: list((await store.stats(model)).values())[:4] for model in ("", "a", "x")}
    assert sums == {"": [3, 7, 70, 11], "a": [2, 3, 30, 5], "x": [0, 0, 0, 0]}


# ---- in a file


async def test_a_file_keeps_everything_and_survives_restarts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "activity.db"
    async with opened(path, rows=3) as store:
        add(store, 10)
        assert await ids(store) == list(range(1, 11))
        add(store, 1)
    async with opened(path, rows=3) as store:
        assert store.last_id == 11
        add(store, 1)
        assert await ids(store) == list(range(1, 13))
        assert (await store.stats(""))["total_requests"] == 12
        assert [each[0] for each in await store.newest()] == [10, 11, 12]


async def test_an_id_is_not_used_again_though_its_row_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "activity.db"
    async with opened(path) as store:
        add(store, 5)
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("DELETE FROM activity")
        sql.commit()
    async with opened(path) as store:
        assert store.last_id == 5


async def test_rows_are_written_without_being_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_AFTER_S", 0.01)
    async with opened(tmp_path / "a.db") as store:
        for _ in range(3):
            add(store, 2)
            await until(lambda: in_file(tmp_path / "a.db")[-2:] == [store.last_id - 1, store.last_id])


async def test_many_rows_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_AFTER_S", 3600.0)
    async with opened(tmp_path / "a.db") as store:
        add(store, module.WRITE_ROWS)
        await until(lambda: len(in_file(tmp_path / "a.db")) == module.WRITE_ROWS)


async def test_a_question_given_up_loses_no_rows(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        add(store, 3)
        first = asyncio.create_task(store.page(Query()))
        second = asyncio.create_task(store.page(Query()))
        await asyncio.sleep(0)
        add(store, 3)
        third = asyncio.create_task(store.page(Query()))
        await asyncio.sleep(0)
        for task in (first, second, third):
            task.cancel()
        await asyncio.wait([first, second, third])
        assert len(await ids(store)) == 6


# ---- trouble


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == module.__name__]


async def test_a_locked_file_holds_up_nothing_and_is_spoken_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "a.db"
    async with opened(path) as store:
        add(store, 2)
        assert await ids(store) == [1, 2]
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(3):
                add(store, 1)
                assert len(await ids(store)) == store.last_id
            assert in_file(path) == [1, 2]
            assert messages(caplog) == [
                f"the activity cannot be kept in {path}: database is locked;"
                f" the newest {WAITING_ROWS} rows are kept in memory meanwhile"
            ]
            other.execute("ROLLBACK")
        assert await ids(store) == [1, 2, 3, 4, 5]
        assert in_file(path) == [1, 2, 3, 4, 5]
        assert messages(caplog)[1:] == [f"the activity is kept in {path} again"]


async def test_a_full_disk_holds_up_nothing_and_rows_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as store:
        add(store, 1)
        assert await ids(store) == [1]
        database = store._file
        pages = await store._run(lambda: database._sql.execute("PRAGMA file.page_count").fetchone()[0])
        await store._run(lambda: database._sql.execute(f"PRAGMA file.max_page_count = {pages}"))
        add(store, 500)
        assert len(await ids(store)) == 501
        assert "full" in database.trouble
        monkeypatch.setattr(module, "RETRY_AFTER_S", 0.0)
        store._write_later()
        await until(lambda: len(in_file(path)) == 501)  # the limit goes with the connection


async def test_a_file_that_could_not_be_written_is_tried_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_AFTER_S", 0.0)
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.0)
    path = tmp_path / "a.db"
    async with opened(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            add(store, 2)
            await until(lambda: bool(store._file.trouble))
            other.execute("ROLLBACK")
        await until(lambda: in_file(path) == [1, 2])


async def test_what_waits_for_a_broken_disk_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_ROWS", 20)
    path = tmp_path / "a.db"
    async with opened(path, rows=10) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            add(store, 15)
            assert await ids(store) == list(range(1, 16))
            add(store, 15)
            assert await ids(store) == list(range(11, 31))
            add(store, 50)
            assert await ids(store) == list(range(61, 81))


async def test_a_file_that_breaks_while_it_is_used_leaves_what_is_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as store:
        add(store, 1)
        assert await ids(store) == [1]
        for name in os.listdir(tmp_path):
            (tmp_path / name).write_bytes(b"not a database" * 1000)
        add(store, 2)
        await ids(store)
        assert await ids(store) == [2, 3]
        for name in os.listdir(tmp_path):
            (tmp_path / name).unlink()
        assert await ids(store) == [2, 3]
        assert in_file(path) == [2, 3]


async def test_what_cannot_be_written_in_the_end_is_said_to_be_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.db"
    store = Store(str(path), 10)
    await store.open()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        add(store, 3)
        await store.close()
    assert messages(caplog)[-1] == f"3 rows of the activity are lost: {path}: database is locked"


# ---- opening


async def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        await Store(str(path), 10).open()
    return str(caught.value)


async def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_text("hello " * 1000)
    message = await refusal(path)
    assert message.startswith(f'store.path: store cannot be opened: "{path}": file is not a database')
    assert message.endswith("move the file away or set store.path to another one")
    assert path.read_text().startswith("hello")


async def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "store cannot be opened" in await refusal(tmp_path)
    assert "store cannot be opened" in await refusal(tmp_path / "file" / "a.db")


async def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as sql:
        sql.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    assert f"newer llamaswapd (version {len(STEPS) + 1}, known {len(STEPS)})" in await refusal(path)
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("PRAGMA user_version").fetchone() == (len(STEPS) + 1,)
        assert not sql.execute("SELECT * FROM sqlite_master").fetchall()


async def test_a_file_with_another_table_of_that_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("CREATE TABLE activity (what TEXT)")
        before = sql.execute("SELECT sql FROM sqlite_master").fetchall()
    assert "store cannot be opened" in await refusal(path)
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("SELECT sql FROM sqlite_master").fetchall() == before


@pytest.mark.parametrize("version", range(len(STEPS)))
async def test_a_file_of_an_older_version_is_brought_up_to_date(tmp_path: Path, version: int) -> None:
    """Version 0 with the table of version 1 is what llama-swap leaves behind."""
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("CREATE TABLE goose_db_version (id INTEGER)")
        for step in STEPS[: max(version, 1)]:
            for statement in step:
                sql.execute(statement.replace("file.", ""))
        sql.execute("INSERT INTO activity (id, ts_created, model_id, input_tokens) VALUES (41, 1700000000, 'old', 5)")
        sql.execute(f"PRAGMA user_version = {version}")
    async with opened(path) as store:
        assert store.last_id == 41
        add(store, 1)
        rows, total = await store.page(Query())
    assert total == 2
    assert dict(zip(COLUMNS, rows[1], strict=True))["model_id"] == "old"
    assert rows[1][-4:] == (None,) * 4
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
        assert sql.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_row_has_a_place_for_everything() -> None:
    assert len(row(1).stored()) == len(COLUMNS)
    assert len(Tokens()) == len(COLUMNS[6:13])
