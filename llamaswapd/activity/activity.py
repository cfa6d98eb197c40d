"""Makes of each request that has ended a row, counts, and a capture: a little later, many at once.

What it costs while requests go by is one append for each of them, and every so often a few microseconds for each of
those that came since. What takes longer (unpacking, long bodies, compression, SQLite) is done in other threads.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence

from llamaswapd.activity import plain, usage
from llamaswapd.activity.captures import Capture, Captures
from llamaswapd.activity.content import Undecodable, unframed, unpacked
from llamaswapd.activity.counts import Counts, ModelCounts
from llamaswapd.activity.glance import at_a_glance, at_a_glance_in_chunks
from llamaswapd.activity.query import Query
from llamaswapd.activity.record import SUCCESS, Record
from llamaswapd.activity.rows import Row, shown
from llamaswapd.activity.store import Store
from llamaswapd.activity.usage import NO_TOKENS, Tokens
from llamaswapd.config.schema import Config
from llamaswapd.errors import NotFound
from llamaswapd.observe.batch import Batch
from llamaswapd.observe.feed import Event, Feed

BATCH = 512  # requests at once: what that costs delays one request in as many
AT_ONCE_S = 0.001  # how long a part of a batch may take: hundreds of streams may end together
SPREAD_S = 0.005  # from one part to the next, if no more are waiting than make a batch
DELAY_S = 0.05  # how late a row may be
LONG_BYTES = 64 * 1024  # of an answer that is read in another thread
LONG_WAITING_BYTES = 64 * 1024 * 1024  # of such answers; of what comes beyond, only the ends are kept
STREAM_ENDS_BYTES = 8 * 1024
ENDS_BYTES = 16 * 1024
COMPRESSION_SHARE = 20  # at most every so many seconds, one is spent on compressing captures: tokens come first

_tuple = tuple.__new__  # a third of what it costs to call a named tuple's class

log = logging.getLogger(__name__)


class Activity:
    """What has been answered. `open` it first, `close` it in the end; `add` from the way of every request."""

    def __init__(self, config: Config, events: Feed[Event]) -> None:
        self.counts: Mapping[str, ModelCounts]
        self.counts = self._counts = Counts()
        self._counts.configured = _configured(config)
        self._events = events
        self._store = _store_of(config)
        self._captures = Captures(_capture_bytes(config))
        self._ended: Batch[Record] = Batch(self._work_on, BATCH, DELAY_S)
        self.add = self._ended.add  # on the way of every request: a record belongs to the activity from then on
        self._long: list[Record] = []
        self._long_bytes = 0
        self._reading: asyncio.Task[None] | None = None
        self._compressing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the store; raises ConfigError if that cannot be done."""
        await self._store.open()

    async def close(self) -> None:
        """Put away all that has been added; what is added later is lost."""
        await self._settled()
        if self._compressing is not None:
            self._compressing.cancel()
            await asyncio.wait([self._compressing])
        await self._store.close()

    async def reconfigure(self, config: Config) -> None:
        """Follow a new configuration: captures are lost, rows stay unless the store is another one.

        Raises ConfigError, with nothing changed, if the new store cannot be opened.
        """
        new = _store_of(config)
        if new.path != self._store.path:
            await new.open()
            await self._settled()
            old, self._store = self._store, new
            new.last_id = max(new.last_id, old.last_id)
            await old.close()
        else:
            self._store.set_limit(config.metrics_max_in_memory)
            self.flush()
        self._captures = Captures(_capture_bytes(config))
        self._counts.configured = _configured(config)

    # ---- what has ended

    def flush(self) -> None:
        """Work on what has been added. What takes long is only begun."""
        self._work_on(self._ended.take(), math.inf)

    def _work_on(self, entries: list[Record], within_s: float = AT_ONCE_S) -> None:
        """Work on them for so long, and on the rest when others have had their turn."""
        if entries and plain.are_plain(entries):
            self._record_plain(entries)
            return
        deadline = time.monotonic() + within_s
        for count, record in enumerate(entries):
            if time.monotonic() >= deadline:
                rest = entries[count:]
                self._ended.put_back(rest, SPREAD_S if len(rest) <= BATCH else 0.0)
                break
            if len(record.response) > LONG_BYTES or record.content_encoding:
                self._read_later(record)
            else:
                self._record(record, *read(record))
        if self._captures.uncompressed and self._compressing is None:
            self._compressing = asyncio.create_task(self._compress(), name="compress captures")

    def _record(self, record: Record, tokens: Tokens, took_ms: float, error: str) -> None:
        """Make all that is made of a request."""
        began, granted, first_byte, ended = record.began, record.granted, record.first_byte, record.ended
        model_id, status = record.model_id, record.outcome
        counts = self._counts[model_id]
        counts.add(
            status, ended - began, granted - began if granted else None, first_byte - began if first_byte else None
        )
        if tokens is not NO_TOKENS:
            counts.input += tokens.input
            counts.output += tokens.output
            counts.cached += max(tokens.cached, 0)
        if record.method != "POST":  # llama-swap has no rows of other requests
            return
        store, captures = self._store, self._captures
        id_ = store.last_id + 1
        created = int(ended + _wall_ahead())
        row = (
            id_, created, model_id, record.sent_path, record.content_type, status, tokens, took_ms, began,
            record.load_began, granted, first_byte, ended, error, record.about,
        )  # fmt: skip
        store.add(_tuple(Row, row))
        if captures.limit and not record.is_cut:
            captures.add(id_, Capture.of(record))
        if self._events.members:
            self._events.publish(Event("activity", {"id": id_}))

    def _record_plain(self, entries: list[Record]) -> None:
        """Make the same of many plain requests at once, for a third of the time.

        Their rows and captures are not made before somebody asks for them.
        """
        store, captures = self._store, self._captures
        for model_id, group in plain.understand(entries, store.last_id + 1, _wall_ahead(), read).items():
            self._counts[model_id].add_all(group)
        store.extend(entries)
        if captures.limit:
            captures.extend(entries)
        plain.forget_bodies(entries)  # what is kept of them is kept by the captures
        if self._events.members:
            for record in entries:
                self._events.publish(Event("activity", {"id": record.number}))

    # ---- what takes longer

    def _read_later(self, record: Record) -> None:
        body = record.response
        if self._long_bytes + len(body) > LONG_WAITING_BYTES:
            record.shorten(body[:ENDS_BYTES] + body[-ENDS_BYTES:])
        self._long.append(record)
        self._long_bytes += len(record.response)
        self._begin_reading()

    async def _read_long(self) -> None:
        batch, self._long = self._long, []
        try:
            results = await asyncio.to_thread(_read_all, batch)
            for record, result in zip(batch, results, strict=True):
                self._record(record, *result)
        except Exception:  # the end of a task; the next long answer begins another one
            log.exception("answers could not be read for the activity")
        finally:
            self._long_bytes -= sum(len(record.response) for record in batch)
            self._reading = None
            if self._long:
                self._begin_reading()

    def _begin_reading(self) -> None:
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_long(), name="read long answers")

    async def _compress(self) -> None:
        now = asyncio.get_running_loop().time
        try:
            while (captures := self._captures).uncompressed:
                id_ = captures.uncompressed.popleft()
                capture = captures.get(id_)
                if capture is None:
                    continue
                began = now()
                captures.compressed(id_, await asyncio.to_thread(capture.compressed))
                await asyncio.sleep((now() - began) * (COMPRESSION_SHARE - 1))
        except Exception:  # as above
            log.exception("captures could not be compressed")
        finally:
            self._compressing = None

    async def _settled(self) -> None:
        """Wait until all that has been added can be found."""
        self.flush()
        for _ in range(2):  # what is being read, and what came meanwhile
            if self._reading is not None:
                await asyncio.wait([self._reading])

    # ---- questions

    async def page(self, query: Query) -> dict[str, object]:
        """Return one page of rows, as llama-swap shows it."""
        await self._settled()
        rows, total = await self._store.page(query)
        return {
            "data": [self._shown(row) for row in rows],
            "page": query.page,
            "limit": query.limit,
            "total": total,
            "total_pages": -(-total // query.limit),
        }

    async def rows(self) -> list[dict[str, object]]:
        """Return the newest rows, oldest first: as many as are kept in memory, be there a file or not.

        llama-swap knew no file when it answered with all of them.
        """
        await self._settled()
        return [self._shown(row) for row in await self._store.newest()]

    async def stats(self, model_id: str | None = None) -> dict[str, object]:
        """Return sums and speeds of all rows, or of one model's."""
        await self._settled()
        return await self._store.stats(model_id or "")

    async def capture(self, id_: int) -> dict[str, object]:
        """Return what was said in one exchange; raises NotFound if it is not kept, or no longer."""
        await self._settled()
        capture = self._captures.get(id_)
        if capture is None:
            raise NotFound("capture not found")
        return await asyncio.to_thread(capture.shown, id_)

    def _shown(self, row: tuple[int | float | str | None, ...]) -> dict[str, object]:
        return shown(row, has_capture=row[0] in self._captures)


def _wall_ahead() -> float:
    """Return by how many seconds the wall clock is ahead of the monotonic clock."""
    return time.time() - time.monotonic()


def _read_all(batch: Sequence[Record]) -> list[tuple[Tokens, float, str]]:
    return [read(record) for record in batch]


def read(record: Record) -> tuple[Tokens, float, str]:
    """Return what an answer's body tells: tokens, how many ms it took by its server's account, what went wrong."""
    error, body = record.error, record.response
    is_success = record.outcome == SUCCESS
    if error and not is_success:
        return NO_TOKENS, 0.0, error
    content_type, encoding, is_chunked, is_cut = (
        record.content_type, record.content_encoding, record.is_chunked, record.is_cut,
    )  # fmt: skip
    is_stream = "text/event-stream" in content_type
    if is_success and not is_stream and not encoding:
        found = at_a_glance_in_chunks(body) if is_chunked else at_a_glance(body)
        if found:
            return *found, error
    if is_success and is_stream and not encoding:
        return *_of_stream(body, is_chunked=is_chunked, is_cut=is_cut), error
    if is_chunked:
        body = unframed(body, is_cut=is_cut)
    if encoding:
        try:
            body = unpacked(body, encoding, is_cut=is_cut)
        except Undecodable as problem:
            # A client may leave when it has heard the last event, before all that ends the packing has come.
            found = usage.of_stream(problem.begun) if is_stream and is_success else usage.NOTHING
            return *found, error or ("" if found[0] is not NO_TOKENS else str(problem))
    if not is_success:
        return NO_TOKENS, 0.0, usage.error_message(body, record.outcome)
    if is_stream:
        return *usage.of_stream(body), error
    is_infill = record.sent_path.startswith("/infill")
    return *usage.of_json(body, is_infill=is_infill, is_cut=is_cut), error


def _of_stream(body: bytes, *, is_chunked: bool, is_cut: bool) -> tuple[Tokens, float]:
    """Read a stream, of a long one the beginning and the end first: there they say what they took."""
    ends = body
    if len(body) > 2 * STREAM_ENDS_BYTES:
        ends = body[: STREAM_ENDS_BYTES // 2] + b"\n\n" + body[-STREAM_ENDS_BYTES:]
    found = usage.of_framed_stream(ends) if is_chunked or ends is not body else None
    if found is None:
        whole = unframed(body, is_cut=is_cut) if is_chunked else body
        found = usage.of_stream(whole)
        if is_cut and found[0] is NO_TOKENS:
            found = usage.of_cut_stream(whole)
    return found


def _store_of(config: Config) -> Store:
    return Store(config.store.path if config.store is not None else "", config.metrics_max_in_memory)


def _configured(config: Config) -> frozenset[str]:
    return frozenset((*config.models, *(each.id for each in config.peer_models)))


def _capture_bytes(config: Config) -> int:
    return max(config.capture_buffer, 0) * 1024 * 1024
