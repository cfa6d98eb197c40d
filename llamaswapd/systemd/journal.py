"""What models say: the lines that their units write to the journal.

Read through libsystemd by ctypes: it is there wherever systemd is, while the Python binding for it must be compiled,
and `journalctl -f` is a process for each follower that wakes up late. `Reader` is sd_journal(3) and no more; `Journal`
knows which entries are a model's.

journald finds out whose a line is when it reads it. A process that is gone by then leaves a line without unit and
invocation, and often it is the line that says why it failed. Such a line still has its SYSLOG_IDENTIFIER, which is the
model's id, with the name of the instance if it has one, so it is asked for by that as well.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import math
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import aclosing, closing
from pathlib import Path
from typing import Literal

from llamaswapd.errors import Error, ManagerUnavailable, UnitError
from llamaswapd.systemd.unit import identifier, model_id_of, slice_name, unit_name

LOCAL_ONLY = 1  # SD_JOURNAL_LOCAL_ONLY, sd_journal_open(3)

# New entries can be read at once, but journald announces them only every 250 ms: ask.
POLL_S = 0.015
# Entries read in a row before the event loop has its turn.
BATCH = 100
# Characters of a line in which something is searched: that may take time with the square of their number.
SEARCHED = 8192
# How long the last lines of a process may be on their way after its end.
SETTLE_S = 0.25

Match = tuple[str, ...]  # FIELD=value, all of which an entry must have


class Reader:
    """A handle on the journal, see sd_journal(3). For one thread; close it. Errors are raised as UnitError."""

    def __init__(self, directory: Path | None = None) -> None:
        """Open the machine's journal, or the one in a directory; raises ManagerUnavailable where none can be read."""
        self._library = library()
        handle = ctypes.c_void_p()
        if directory:
            opened = self._library.sd_journal_open_directory(ctypes.byref(handle), os.fsencode(directory), 0)
        else:
            opened = self._library.sd_journal_open(ctypes.byref(handle), LOCAL_ONLY)
        if opened < 0:
            raise ManagerUnavailable(
                f"cannot open the journal{f' in {directory}' if directory else ''}: {os.strerror(-opened)}"
            )
        self._handle = handle
        try:
            if not directory and not self._call("has_runtime_files") and not self._call("has_persistent_files"):
                raise ManagerUnavailable(
                    "no journal can be read; add the user to the group systemd-journal, and see that systemd-journald "
                    "runs"
                )
            self._call("set_data_threshold", ctypes.c_size_t(0))  # whole lines, however long
            self._call("get_fd")  # from here on `process` notices files that come and go
        except Error:  # of inotify there is little: fs.inotify.max_user_instances
            self.close()
            raise

    def match_any(self, matches: Iterable[Match]) -> None:
        """Show only entries that have every field of at least one of the matches."""
        for match in matches:
            self._call("add_disjunction")
            for field in match:
                data = field.encode()
                self._call("add_match", data, ctypes.c_size_t(len(data)))

    def seek_head(self) -> None:
        self._call("seek_head")

    def seek_tail(self) -> None:
        self._call("seek_tail")

    def seek_cursor(self, cursor: bytes) -> None:
        """Go to before the entry of the cursor, or to where it would be."""
        self._call("seek_cursor", cursor)

    def next(self) -> bool:
        """Go to the next entry; return whether there is one."""
        return self._call("next") > 0

    def previous(self) -> bool:
        return self._call("previous") > 0

    def process(self) -> None:
        """Take notice of journal files that were added, rotated or removed."""
        self._call("process")

    def get(self, field: str) -> str:
        """Return a field of this entry, "" if it has none of that name."""
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        name = field.encode()
        if self._call("get_data", name, ctypes.byref(data), ctypes.byref(size), absent=-errno.ENOENT) < 0:
            return ""
        return ctypes.string_at(data.value or 0, size.value)[len(name) + 1 :].decode(errors="replace")

    def received_us(self) -> int:
        """Return when journald received this entry, in microseconds since the epoch."""
        received = ctypes.c_uint64()
        self._call("get_realtime_usec", ctypes.byref(received))
        return received.value

    def cursor(self) -> bytes:
        """Return what names this entry, for `seek_cursor`."""
        text = ctypes.c_void_p()
        self._call("get_cursor", ctypes.byref(text))
        try:
            return ctypes.string_at(text.value or 0)
        finally:
            self._library.free(text)

    def close(self) -> None:
        self._library.sd_journal_close(self._handle)

    def _call(self, name: str, *arguments: object, absent: int = 0) -> int:
        """Call a function of sd_journal; any error but `absent` is raised."""
        result: int = getattr(self._library, f"sd_journal_{name}")(self._handle, *arguments)
        if result < 0 and result != absent:
            raise UnitError(f"the journal cannot be read: sd_journal_{name}: {os.strerror(-result)}")
        return result


@functools.cache
def library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libsystemd.so.0")
    except OSError as error:
        raise ManagerUnavailable(f"no journal can be read without libsystemd; install it ({error})") from error


class Journal:
    """The log of the models of one instance."""

    def __init__(
        self,
        scope: Literal["system", "user", "private"],
        instance: str = "",
        directory: Path | None = None,
        model_ids: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`directory` is where a private manager has its journal; `model_ids` are those that "all models" means."""
        self._instance = instance
        self._directory = directory
        self._model_ids = model_ids
        # See systemd.journal-fields(7): what stands in a line of the unit, and, without underscore, about the unit.
        self._prefix = "" if scope == "system" else "USER_"
        self._unit_field = f"_SYSTEMD_{self._prefix}UNIT"
        # Another user's manager may have units of the same names.
        uid = os.getuid()
        self._of_manager: Match = () if scope == "system" else (f"_SYSTEMD_OWNER_UID={uid}",)
        self._of_user: Match = () if scope == "system" else (f"_UID={uid}",)

    async def follow(self, models: Collection[str] | None, history_bytes: int) -> AsyncGenerator[tuple[str, str], None]:
        """Yield (model id, line): the end of the history, ("", ""), then live lines, until it is closed.

        `models` None means all. At most `history_bytes` of history, whole lines, oldest first; 0 means live only.
        Raises ManagerUnavailable where there is no journal to read, UnitError when it cannot be read.
        """
        ids = set(self._model_ids() if models is None else models)
        names = {unit_name(model_id, self._instance): model_id for model_id in ids}
        identifiers = {identifier(model_id, self._instance): model_id for model_id in ids}
        matches = [match for name, model_id in names.items() for match in self._by_unit(name, model_id)]
        if models is None:
            slice_field = f"_SYSTEMD_{self._prefix}SLICE={slice_name(self._instance)}"
            matches.append((slice_field, *self._of_manager))

        def lines() -> list[tuple[str, str]]:
            """Return what this entry says, if it is one of these models that says it."""
            if name := reader.get(self._unit_field):
                model_id = names.get(name) or (model_id_of(name, self._instance) if models is None else None)
            else:
                model_id = identifiers.get(reader.get("SYSLOG_IDENTIFIER"))
            return [(model_id, line) for line in text_lines(reader.get("MESSAGE"))] if model_id else []

        if not matches:  # without one, every entry there is would be shown
            yield "", ""
            return
        with closing(Reader(self._directory)) as reader:
            reader.match_any(matches)
            async for past in history(reader, lines, history_bytes):
                yield past
            yield "", ""
            async with aclosing(live(reader)) as entries:
                async for _ in entries:
                    for line in lines():
                        yield line

    async def wait_for_line(self, invocation: str, pattern: re.Pattern[str]) -> str:
        """Return the first line of a run of a unit in which `pattern` is found, those already written included."""
        with closing(Reader(self._directory)) as reader:
            reader.match_any([(f"_SYSTEMD_INVOCATION_ID={invocation}",)])
            reader.seek_head()
            async with aclosing(live(reader)) as entries:
                async for _ in entries:
                    for line in text_lines(reader.get("MESSAGE")):
                        if pattern.search(line[:SEARCHED]):
                            return line
        raise AssertionError("live entries have no end")

    async def last_lines(self, unit: str, invocation: str, count: int) -> list[str]:
        """Return the last lines of a run of a unit, oldest first.

        Waits a moment for lines that are still on their way, so that it can be asked as soon as the process has ended.
        """
        deadline = asyncio.get_running_loop().time() + SETTLE_S
        lines: list[str] = []
        while True:
            before, lines = lines, await asyncio.to_thread(self._last_lines, unit, invocation, count)
            if (lines and lines == before) or asyncio.get_running_loop().time() > deadline:
                return lines
            await asyncio.sleep(POLL_S)

    def _last_lines(self, unit: str, invocation: str, count: int) -> list[str]:
        """Read back to the end of another run, which is told by systemd's own words about the unit."""
        lines: list[tuple[float, str]] = []  # newest first: when it was received, infinity if surely of this run
        began = 0.0
        with closing(Reader(self._directory)) as reader:
            about_unit = (f"{self._prefix}UNIT={unit}", *self._of_user)
            reader.match_any([*self._by_unit(unit, model_id_of(unit, self._instance)), about_unit])
            reader.seek_tail()
            while len(lines) < count and reader.previous():
                is_output = not reader.get(f"{self._prefix}UNIT")
                run = reader.get("_SYSTEMD_INVOCATION_ID" if is_output else f"{self._prefix}INVOCATION_ID")
                if run and run != invocation:
                    break
                if not is_output:
                    began = float(reader.get("_SOURCE_REALTIME_TIMESTAMP") or began)
                elif reader.get(self._unit_field) in (unit, ""):
                    received = math.inf if run else reader.received_us()
                    lines += [(received, line) for line in reversed(text_lines(reader.get("MESSAGE")))]
            else:
                began = 0.0 if len(lines) >= count else began  # not read back to the beginning
        # One without an invocation may be a late one of the run before: then it was there when this run began.
        return [line for received, line in reversed(lines[:count]) if received >= began]

    def _by_unit(self, name: str, model_id: str | None) -> list[Match]:
        """Return the matches for the output of a model's unit."""
        matches: list[Match] = [(f"{self._unit_field}={name}", *self._of_manager)]
        if model_id:
            said = f"SYSLOG_IDENTIFIER={identifier(model_id, self._instance)}"
            matches.append((said, "_TRANSPORT=stdout", *self._of_user))
        return matches


async def history(
    reader: Reader, lines: Callable[[], list[tuple[str, str]]], limit_bytes: int
) -> AsyncGenerator[tuple[str, str], None]:
    """Yield the last whole lines of at most `limit_bytes`, oldest first; leave the reader at the newest entry."""
    newest, past, size, read = b"", deque[tuple[str, str]](), 0, 0
    reader.seek_tail()
    while reader.previous():
        newest = newest or reader.cursor()
        entry = lines()
        size += sum(len(line.encode()) + 1 for _, line in entry)
        if size > limit_bytes:
            break
        past.extendleft(reversed(entry))
        read += 1
        if read % BATCH == 0:
            await asyncio.sleep(0)
    for line in past:
        yield line
    # Never onwards from the tail: where there was no entry, systemd 257 would stay there and see no new one either.
    if not newest:
        reader.seek_head()
        return
    reader.seek_cursor(newest)
    reader.next()


async def live(reader: Reader) -> AsyncGenerator[None, None]:
    """Go from entry to entry, without end, and wait for those that are not there yet."""
    while True:
        for _ in range(BATCH):
            if not reader.next():
                await asyncio.sleep(POLL_S)
                reader.process()
                break
            yield
        else:
            await asyncio.sleep(0)


def text_lines(message: str) -> list[str]:
    """Return the lines of a message as they would be left on a terminal: of a progress bar what it said last."""
    if not message:
        return []
    return [line.rstrip("\r").rpartition("\r")[2] for line in message.split("\n")]
