"""When have files changed, and are finished?

inotify(7) tells, by way of the watchdog library; nothing here knows what the files are for. What makes a file another
one is seldom a write to it: editors rename a new file over it, Kubernetes repoints a symbolic link two directories
away, `docker -v` mounts it. So the directories on the way to it are watched, and in them the names that matter. Nothing
is taken from a file that is still being written: inotify reports when it is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import logging
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import ObservedWatch
from watchdog.observers.inotify import InotifyFullEmitter, InotifyObserver

from llamaswapd.links import steps

log = logging.getLogger(__name__)

SETTLED_AFTER_S = 0.1  # a deployment writes several files, and an editor does several things to one
PATIENCE_S = 30.0  # a file that looks unfinished for so long, and unchanged, was changed behind inotify's back

# Where the kernel keeps the limit that each error of inotify_add_watch(2) and inotify_init(2) stands for.
_LIMITS = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}
_MOUNT_POINT = re.compile(rb"^(?:\S+ ){4}(\S+)", re.MULTILINE)  # proc_pid_mountinfo(5)


class Content(NamedTuple):
    """What tells one state of a file from another."""

    path: str  # without symbolic links
    device: int
    inode: int
    changed_ns: int
    size_bytes: int

    def is_same_file(self, other: Content | None) -> bool:
        return other is not None and self[:3] == other[:3]


@dataclass(frozen=True)
class Scene:
    """What there is to see at one moment; paths are without symbolic links."""

    watched: frozenset[str]  # directories, and files that are mounted by themselves
    whole: frozenset[str]  # the directories in which every name matters
    telling: frozenset[str]  # the paths that matter besides
    files: Mapping[Path, Content]  # those that exist

    def is_told_by(self, path: str) -> bool:
        return path in self.telling or os.path.dirname(path) in self.whole


def look(paths: Callable[[], Iterable[Path]]) -> Mapping[Path, Content]:
    """Return what the files are now, for a `Watcher` that begins later. Blocks for as long as the file system does."""
    return _scene(paths).files


class Watcher:
    """Calls `changed` when some of the files are others than at its last call, at first than `since`, or at the start.

    `paths` returns the files, and the directories in which files may come and go. It is asked in another thread, after
    each event, and may block but not raise. `changed` is called in the event loop's thread, when nothing has happened
    for SETTLED_AFTER_S and no file is half written, or nobody has gone on with it for `patience_s`. A file that has
    gone is no reason to call it; when it comes back, that is. Where the kernel's limits do not allow to watch
    something, a warning says so.
    """

    def __init__(
        self,
        paths: Callable[[], Iterable[Path]],
        changed: Callable[[], None],
        since: Mapping[Path, Content] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._paths = paths
        self._patience_s = patience_s
        self._changed = changed
        self._inotify = _Inotify(self._notice_from_thread)
        self._happened = asyncio.Event()
        self._open: set[str] = set()  # files that were made and not yet closed
        self._closed: set[str] = set()  # paths at which something was finished since `_seen`
        self._renewed: set[str] = set()  # the same since the last look
        self._since = since
        self._seen: Mapping[Path, Content] = {}
        self._held: Collection[Content] = ()  # what the last look found half written

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._inotify.start)
            files = (await self._look()).files
            self._seen = files if self._since is None else self._since
            if files != self._seen:
                self._closed.update(content.path for content in files.values())  # as far as anybody can know
                self._happened.set()
        except BaseException:
            await asyncio.to_thread(self._inotify.stop)
            raise
        self._task = asyncio.create_task(self._run(), name="watch files")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await asyncio.to_thread(self._inotify.stop)

    async def _run(self) -> None:
        try:
            while True:
                is_patient = await self._something_happened()
                self._compare((await self._look()).files, is_patient=is_patient)
        except Exception:
            log.exception("files are no longer watched")

    async def _something_happened(self) -> bool:
        """Wait for it, and until it is over; False if the time is over that unfinished files are waited for."""
        try:
            async with asyncio.timeout(self._patience_s if self._held else None):
                await self._happened.wait()
        except TimeoutError:
            return False
        while self._happened.is_set():
            self._happened.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLED_AFTER_S):
                    await self._happened.wait()
        return True

    async def _look(self) -> Scene:
        """See what there is now, and have all of it watched.

        Looked at again until it is what was watched before: whatever changes later leads to an event.
        """
        while True:
            renewed, self._renewed = self._renewed, set()
            scene = await asyncio.to_thread(_scene, self._paths)
            if not await asyncio.to_thread(self._inotify.watch, scene, renewed):
                return scene

    def _compare(self, files: Mapping[Path, Content], *, is_patient: bool) -> None:
        """Call `changed` if there is a reason to; put it off if more is happening, or a file is half written."""
        if self._happened.is_set():
            return
        new = {path: content for path, content in files.items() if content != self._seen.get(path)}
        half = [content for path, content in new.items() if self._is_half_written(content, self._seen.get(path))]
        if half and (is_patient or half != self._held):
            log.info("%s is being written; waiting until it is closed", half[0].path)
            self._held = half
            return
        self._seen, self._held = files, ()
        self._closed.clear()
        self._open.difference_update(content.path for content in half)
        if new:
            self._changed()

    def _is_half_written(self, content: Content, before: Content | None) -> bool:
        """Whether a file was made, or changed where it is, and has not been closed since."""
        return content.path in self._open or (content.is_same_file(before) and content.path not in self._closed)

    def _notice_from_thread(self, path: str, is_open: bool) -> None:
        self._loop.call_soon_threadsafe(self._notice, path, is_open)

    def _notice(self, path: str, is_open: bool) -> None:
        """Take note that something is finished at a path, or that a file there has only begun to be one."""
        if is_open:
            self._open.add(path)
            return
        self._open.discard(path)
        self._closed.add(path)
        self._renewed.add(path)
        self._happened.set()


# ---- what there is -------------------------------------------------------------------------------------------------


def _scene(paths: Callable[[], Iterable[Path]]) -> Scene:
    watched, whole, telling = set(), set(), set()
    files = {}
    mounted = _mount_points()
    for path in paths():
        real = ""
        for real in _way(os.fspath(path)):
            for directory, name in _places(real):
                watched.add(directory)
                telling.add(os.path.join(directory, name))
        try:
            found = os.stat(real)
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode):
            watched.add(real)
            whole.add(real)
            continue
        if real in mounted:  # what is written to it by its other name does not happen in this directory
            watched.add(real)
        files[path] = Content(real, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
    return Scene(frozenset(watched), frozenset(whole), frozenset(telling), files)


def _way(path: str) -> Iterator[str]:
    """Yield each symbolic link on the way to a path, and at last where it leads, which need not exist."""
    step = ""
    for step, is_link in steps(os.path.join(os.getcwd(), path)):
        if is_link:
            yield step
    yield step


def _places(path: str) -> Iterator[tuple[str, str]]:
    """Yield directories and the names in them that decide what is at a path: its own, and its directory's.

    Of a directory that does not exist the nearest one above that does.
    """
    directory, name = os.path.split(path)
    while not os.path.isdir(directory):
        directory, name = os.path.split(directory)
    yield directory, name
    if directory != "/":
        yield os.path.split(directory)


def _mount_points() -> set[str]:
    try:
        text = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return set()
    return {
        os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), point))
        for point in _MOUNT_POINT.findall(text)
    }


# ---- what happens --------------------------------------------------------------------------------------------------


class _Inotify:
    """What is watched at present; its methods block."""

    def __init__(self, notice: Callable[[str, bool], None]) -> None:
        self._events = _Events(notice)
        self._observer: InotifyObserver | None = None
        self._watches: dict[str, ObservedWatch | None] = {}  # None: refused

    def start(self) -> None:
        try:
            self._observer = _Observer()
            self._observer.start()
        except OSError as error:
            self._observer = None
            _warn("files", error)

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()

    def watch(self, scene: Scene, renewed: Collection[str]) -> bool:
        """Watch what is to be watched and nothing else; tell whether something is watched that was not before.

        At `renewed` paths something else may be by now, which has to be watched in place of what was there.
        """
        self._events.scene = scene
        for path in [path for path in self._watches if path in renewed or path not in scene.watched]:
            self._end(path)
        new = scene.watched - self._watches.keys()
        for path in new:
            self._begin(path)
        return any(self._watches.get(path) for path in new)

    def _begin(self, path: str) -> None:
        if self._observer is None:
            return
        self._watches[path] = None
        try:
            if not os.access(path, os.R_OK):  # the library would watch nothing, and not say so
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._watches[path] = self._observer.schedule(self._events, path, **_FILTER)
        except OSError as error:
            if os.path.exists(path):
                _warn(path, error)

    def _end(self, path: str) -> None:
        watch = self._watches.pop(path)
        if watch is not None and self._observer is not None:
            self._observer.unschedule(watch)


def _warn(what: str, error: OSError) -> None:
    limit = _LIMITS.get(error.errno or 0)
    remedy = f"raise the limit {limit} by sysctl" if limit else "make it readable for llamaswapd"
    log.warning("cannot watch %s: %s; %s, and reload by hand (SIGHUP) until then", what, error.strerror, remedy)


class _Events(FileSystemEventHandler):
    """Passes on what happens at paths that matter; called in the library's thread."""

    def __init__(self, notice: Callable[[str, bool], None]) -> None:
        self._notice = notice
        self.scene = Scene(frozenset(), frozenset(), frozenset(), {})

    def dispatch(self, event: FileSystemEvent) -> None:
        if event.event_type not in ("created", "closed", "moved", "deleted"):
            return
        for path in (event.src_path, getattr(event, "dest_path", "")):
            if path and self.scene.is_told_by(name := os.fsdecode(path)):
                self._notice(name, event.event_type == "created" and _is_begun(name))


def _is_begun(path: str) -> bool:
    """Whether what was created is still to be written; a link, a directory and a second name are complete."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


_KINDS = [
    FileClosedEvent, FileCreatedEvent, FileMovedEvent, FileDeletedEvent, DirCreatedEvent, DirMovedEvent, DirDeletedEvent
]  # fmt: skip
# An old library, such as Debian 12's, cannot leave out the others.
_CAN_FILTER = "event_filter" in inspect.signature(InotifyObserver.schedule).parameters
_FILTER: dict[str, Any] = {"event_filter": _KINDS} if _CAN_FILTER else {}


class _Emitter(InotifyFullEmitter):
    """Tells files that were moved in from those that were made, and watches a file itself if asked for it."""

    def on_thread_start(self) -> None:
        watch = vars(self.watch)
        if watch.get("is_file"):  # from 7.0 on the library watches its directory, where nothing is seen of a mount
            watch["path"] = watch["raw_path"]
        super().on_thread_start()


class _Observer(InotifyObserver):
    def __init__(self) -> None:
        super().__init__()
        self._emitter_class = _Emitter
