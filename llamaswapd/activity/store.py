"""Keeps the rows in SQLite, off the event loop: in memory, or in a file that survives restarts.

Rows wait in memory until somebody asks for them or, if there is a file, for a second at most. A disk that is full,
locked or broken never holds up a request: the newest rows stay in memory, and are written once that is possible.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from llamaswapd.activity.query import MOST_NUMBER, SORT_COLUMNS, Query
from llamaswapd.activity.rows import COLUMNS, Stored
from llamaswapd.errors import ConfigError, Problem

WRITE_AFTER_S = 1.0
WRITE_ROWS = 1000  # at once, if they come before that time is over
RETRY_AFTER_S = 5.0  # while the file cannot be written
WAITING_ROWS = 10_000  # kept in memory meanwhile
OPEN_TIMEOUT_S = 5.0  # for a file that somebody else has locked; everything is still starting
BUSY_TIMEOUT_MS = 250  # later, when queries wait behind a write
INSERTED_ROWS = 100  # by one statement: SQLite keeps the interpreter's lock only between statements

# What makes a file of one version of the next; its number is in `PRAGMA user_version`. The first one is llama-swap's
# table, which may be there already: then its rows are ours from now on.
STEPS: Sequence[Sequence[str]] = (
    (
        """
        CREATE TABLE IF NOT EXISTS file.activity (
            id INTEGER PRIMARY KEY AUTOINCREMENT, ts_created INTEGER NOT NULL, model_id TEXT NOT NULL,
            req_path TEXT NOT NULL DEFAULT '', resp_content_type TEXT NOT NULL DEFAULT '',
            resp_status_code INTEGER NOT NULL DEFAULT 0, cache_tokens INTEGER NOT NULL DEFAULT 0,
            draft_tokens INTEGER NOT NULL DEFAULT 0, draft_acc_tokens INTEGER NOT NULL DEFAULT 0,
            input_tokens INTEGER NOT NULL DEFAULT 0, output_tokens INTEGER NOT NULL DEFAULT 0,
            prompt_per_second REAL NOT NULL DEFAULT 0, tokens_per_second REAL NOT NULL DEFAULT 0,
            duration_ms INTEGER NOT NULL DEFAULT 0, error_msg TEXT NOT NULL DEFAULT '',
            metadata_json TEXT NOT NULL DEFAULT ''
        )
        """,
        "CREATE INDEX IF NOT EXISTS file.idx_activity_created_id ON activity (ts_created DESC, id DESC)",
        "CREATE INDEX IF NOT EXISTS file.idx_activity_model_created_id"
        " ON activity (model_id, ts_created DESC, id DESC)",
    ),
    tuple(
        f"ALTER TABLE file.activity ADD COLUMN {name} INTEGER"
        for name in ("queued_ms", "loading_ms", "first_byte_ms", "streaming_ms")
    ),
)

NAMES = ", ".join(COLUMNS)
RECENT, IN_FILE = "main.recent", "file.activity"

log = logging.getLogger(__name__)

T = TypeVar("T")


class Keepable(Protocol):
    """What a row is made of when it is wanted."""

    @property
    def number(self) -> int: ...

    def stored(self) -> Stored: ...


class Store:
    """The rows. `add` costs next to nothing and may be called at any time; `open` first, `close` in the end."""

    def __init__(self, path: str, rows: int) -> None:
        """`path`: of the file, "" if there is none. `rows`: how many are kept in memory if there is none."""
        self.path = path
        self.last_id = 0  # that was ever used
        self._rows = rows
        self._added: deque[Keepable] = deque(maxlen=self._limit)
        self._writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._worker = ThreadPoolExecutor(1, "activity")
        self._file = Database(path, self._limit)

    @property
    def _limit(self) -> int:
        return max(self._rows, WAITING_ROWS) if self.path else self._rows

    async def open(self) -> None:
        """Open the file, if there is one, and bring it up to date; raises ConfigError."""
        try:
            self.last_id = await self._run(self._file.open)
        except (sqlite3.Error, OSError, Unusable) as error:
            self._worker.shutdown(wait=False)
            remedy = "move the file away or set store.path to another one"
            message = f'store cannot be opened: "{self.path}": {error}; {remedy}'
            raise ConfigError([Problem("", "store.path", message)]) from error

    async def close(self) -> None:
        """Write what is not written yet, and let go of the file."""
        self._closed = True
        self._stop_timer()
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await self._run(self._file.close, self._taken())
        self._worker.shutdown(wait=False)

    def set_limit(self, rows: int) -> None:
        """Keep so many rows in memory from now on, the newest ones."""
        self._rows = rows
        self._added = deque(self._added, self._limit)
        self._file.limit = self._limit

    def add(self, row: Keepable) -> None:
        """Keep a row; its number, the id that clients see, is higher than that of any other."""
        self._added.append(row)
        self.last_id = row.number
        if self.path:
            if self._timer is None:
                self._write_later()
            elif len(self._added) == WRITE_ROWS and not self._file.trouble:
                self._write_soon()

    def extend(self, rows: Sequence[Keepable]) -> None:
        """Keep rows, whose numbers are higher than that of any other and in order."""
        self._added.extend(rows)
        self.last_id = rows[-1].number
        if self.path:
            if self._timer is None:
                self._write_later()
            elif len(self._added) >= WRITE_ROWS and not self._file.trouble:
                self._write_soon()

    # ---- questions

    async def page(self, query: Query) -> tuple[list[Stored], int]:
        """Return the rows asked for, in the order of COLUMNS, and how many there are on all pages."""
        return await self._run(self._file.page, self._taken(), query)

    async def newest(self) -> list[Stored]:
        """Return as many rows as would be kept in memory, oldest first."""
        return await self._run(self._file.newest, self._taken(), self._rows)

    async def stats(self, model_id: str) -> dict[str, object]:
        """Return the sums and speeds of all rows, or of one model's if `model_id` is not empty."""
        return await self._run(self._file.stats, self._taken(), model_id)

    # ---- writing

    def _taken(self) -> list[Keepable]:
        rows = list(self._added)
        self._added.clear()
        return rows

    def _write_later(self) -> None:
        if self._timer is None and not self._closed:
            after_s = RETRY_AFTER_S if self._file.trouble else WRITE_AFTER_S
            self._timer = asyncio.get_running_loop().call_later(after_s, self._write_soon)

    def _write_soon(self) -> None:
        self._stop_timer()
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="activity store")

    async def _write(self) -> None:
        try:
            await self._run(self._file.take, self._taken())
        except Exception:  # the end of a task; the next write is another chance
            log.exception("the activity could not be written to %s", self.path)
        self._writing = None
        if self._added or self._file.trouble:
            self._write_later()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    async def _run(self, work: Callable[..., T], *values: object) -> T:
        # Shielded: rows that have been handed over must arrive, whether or not anybody waits for an answer any more.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._worker, work, *values))


class Unusable(Exception):
    """The file is a database, but none of ours."""


class Database:
    """Two tables with the same columns: `recent` in memory and, if there is a file, `activity` there.

    All rows come by way of `recent`, and leave it when they are in the file. All methods but the first belong to one
    thread, which they may block.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.limit = limit  # of the rows in `recent`
        self.trouble = ""  # why the file cannot be written, if so
        self._path = path
        self._is_attached = False
        self._sql: sqlite3.Connection

    def open(self) -> int:
        """Open the file; return the highest id that it has seen."""
        self._sql = sqlite3.connect(":memory:", timeout=OPEN_TIMEOUT_S, isolation_level=None)
        columns = NAMES.replace("id,", "id INTEGER PRIMARY KEY,", 1)
        self._sql.execute(f"CREATE TABLE {RECENT} ({columns})")
        if not self._path:
            return 0
        try:
            os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
            self._attach()
            [[last_id]] = self._sql.execute(
                "SELECT max(coalesce((SELECT seq FROM file.sqlite_sequence WHERE name = 'activity'), 0),"
                f" coalesce((SELECT max(id) FROM {IN_FILE}), 0))"
            )
        except BaseException:
            self._sql.close()
            raise
        self._sql.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        return int(last_id)

    def close(self, rows: Sequence[Keepable]) -> None:
        self.take(rows)
        if self.trouble:
            [[left]] = self._sql.execute(f"SELECT count(*) FROM {RECENT}")
            log.warning("%d rows of the activity are lost: %s: %s", left, self._path, self.trouble)
        self._sql.close()

    def take(self, rows: Sequence[Keepable]) -> None:
        """Take over rows and, if there is a file, write to it all that is not in there."""
        self._keep(rows)
        if self._path:
            self._save()

    def page(self, rows: Sequence[Keepable], query: Query) -> tuple[list[Stored], int]:
        self.take(rows)
        where, values = _conditions(query)
        direction = "DESC" if query.is_descending else "ASC"
        column = SORT_COLUMNS[query.sort]
        order = f"{column} {direction}" + (f", id {direction}" if column != "id" else "")
        offset = min((query.page - 1) * query.limit, MOST_NUMBER)

        def read(source: str) -> tuple[list[Stored], int]:
            [[total]] = self._sql.execute(f"SELECT count(*) FROM {source} {where}", values)
            text = f"SELECT {NAMES} FROM {source} {where} ORDER BY {order} LIMIT ? OFFSET ?"
            return self._sql.execute(text, (*values, query.limit, offset)).fetchall(), total

        return self._read(read)

    def newest(self, rows: Sequence[Keepable], count: int) -> list[Stored]:
        self.take(rows)

        def read(source: str) -> list[Stored]:
            return self._sql.execute(f"SELECT {NAMES} FROM {source} ORDER BY id DESC LIMIT ?", (count,)).fetchall()

        return self._read(read)[::-1]

    def stats(self, rows: Sequence[Keepable], model_id: str) -> dict[str, object]:
        self.take(rows)
        where, values = ("WHERE model_id = ?", (model_id,)) if model_id else ("WHERE true", ())

        def read(source: str) -> dict[str, object]:
            sums = self._sql.execute(
                "SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),"
                f" coalesce(sum(max(cache_tokens, 0)), 0) FROM {source} {where}",
                values,
            ).fetchone()
            names = ("total_requests", "total_input_tokens", "total_output_tokens", "total_cache_tokens")
            return {
                **dict(zip(names, sums, strict=True)),
                "prompt_histogram": self._histogram("prompt_per_second", source, where, values),
                "gen_histogram": self._histogram("tokens_per_second", source, where, values),
            }

        return self._read(read)

    def _histogram(self, column: str, source: str, where: str, values: Sequence[str]) -> dict[str, object] | None:
        """Return how the positive values of a column are spread, None if there are none.

        SQLite does the work, since it lets others run meanwhile.
        """
        rows = f"FROM {source} {where} AND {column} > 0"
        count, least, most = self._sql.execute(
            f"SELECT count(*), min({column}), max({column}) {rows}", values
        ).fetchone()
        if not count:
            return None

        def percentile(share: float) -> float:
            rank = share * (count - 1)
            text = f"SELECT {column} {rows} ORDER BY {column} LIMIT 2 OFFSET ?"
            found = [float(value) for (value,) in self._sql.execute(text, (*values, int(rank)))]
            return found[0] + (found[-1] - found[0]) * float(rank % 1)

        number = 1 if most == least else min(max((count - 1).bit_length() + 1, 5), 20)  # ceil(log2 count) + 1
        size = (most - least) / number
        bins = [0] * number
        if size > 0:
            text = f"SELECT min(CAST(({column} - ?) / ? AS INTEGER), ?) AS bin, count(*) {rows} GROUP BY bin"
            for place, found in self._sql.execute(text, (least, size, number - 1, *values)):
                bins[place] = found
        else:
            bins = [count]
        shares = {"p50": percentile(0.5), "p95": percentile(0.95), "p99": percentile(0.99)}
        return {"bins": bins, "min": least, "max": most, "binSize": size, **shares}

    # ---- the two tables

    def _read(self, read: Callable[[str], T]) -> T:
        """Read from wherever there are rows; from memory alone if the file cannot be read."""
        if not self._is_attached:
            return read(RECENT)
        try:
            if self._sql.execute(f"SELECT NOT EXISTS (SELECT 1 FROM {RECENT})").fetchone()[0]:
                return read(IN_FILE)
            return read(f"(SELECT {NAMES} FROM {RECENT} UNION ALL SELECT {NAMES} FROM {IN_FILE})")
        except sqlite3.Error as error:
            self._complain(error)
            return read(RECENT)

    def _keep(self, rows: Sequence[Keepable]) -> None:
        for at in range(0, len(rows), INSERTED_ROWS):
            stored = [row.stored() for row in rows[at : at + INSERTED_ROWS]]
            marks = ", ".join([f"({', '.join('?' * len(COLUMNS))})"] * len(stored))
            flat = [value for row in stored for value in row]
            self._sql.execute(f"INSERT INTO {RECENT} ({NAMES}) VALUES {marks}", flat)
        self._sql.execute(f"DELETE FROM {RECENT} WHERE id <= (SELECT max(id) FROM {RECENT}) - ?", (self.limit,))

    def _save(self) -> None:
        """Move the recent rows to the file; say so once if that cannot be done, and once when it can again."""
        try:
            if self.trouble:  # the file may be another one by now
                self._detach()
            if not self._is_attached:
                self._attach()
            # Two steps, so that nothing is lost between; should the second one fail, the first one does no harm again.
            self._sql.execute(f"INSERT OR IGNORE INTO {IN_FILE} ({NAMES}) SELECT {NAMES} FROM {RECENT}")
            self._sql.execute(f"DELETE FROM {RECENT}")
        except (sqlite3.Error, OSError, Unusable) as error:
            self._complain(error)
            return
        if self.trouble:
            log.info("the activity is kept in %s again", self._path)
            self.trouble = ""

    def _complain(self, error: Exception) -> None:
        if not self.trouble:
            log.error(
                "the activity cannot be kept in %s: %s; the newest %d rows are kept in memory meanwhile",
                *(self._path, error, self.limit),
            )
        self.trouble = str(error)

    # ---- the file

    def _attach(self) -> None:
        self._sql.execute("ATTACH ? AS file", (self._path,))
        try:
            self._migrate()
            self._sql.execute("PRAGMA file.journal_mode = WAL").fetchone()
            self._sql.execute("PRAGMA file.synchronous = NORMAL")
            self._sql.execute(f"SELECT {NAMES} FROM {IN_FILE} LIMIT 1").fetchone()
        except BaseException:
            self._is_attached = True
            self._detach()
            raise
        self._is_attached = True

    def _detach(self) -> None:
        if self._is_attached:
            self._sql.execute("DETACH file")
            self._is_attached = False

    def _version(self) -> int:
        [[version]] = self._sql.execute("PRAGMA file.user_version")
        if version > len(STEPS):
            raise Unusable(f"it was written by a newer llamaswapd (version {version}, known {len(STEPS)})")
        return int(version)

    def _migrate(self) -> None:
        if self._version() == len(STEPS):  # nothing to write: also if somebody else is writing
            return
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            for step in STEPS[self._version() :]:
                for statement in step:
                    self._sql.execute(statement)
            self._sql.execute(f"PRAGMA file.user_version = {len(STEPS)}")
            self._sql.execute("COMMIT")
        except BaseException:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise


def _conditions(query: Query) -> tuple[str, list[Any]]:
    """Return the WHERE clause of a query, and its values."""
    values: list[Any] = list(query.models)
    terms = [f"model_id IN ({', '.join('?' * len(values))})"] if values else []
    limits = {
        "id >= ?": query.min_id,
        "id <= ?": query.max_id,
        "ts_created >= ?": query.start,
        "ts_created <= ?": query.end,
    }
    for term, value in limits.items():
        if value is not None:
            terms.append(term)
            values.append(value)
    return ("WHERE " + " AND ".join(terms) if terms else ""), values
