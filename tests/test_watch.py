"""Changes of files are noticed when they are finished, whichever way they come about."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from watchdog.utils import BaseThread

from llamaswapd import watch
from llamaswapd.watch import Watcher, look


class Reports:
    """Counts the calls of `changed`, and lets one wait for the next."""

    def __init__(self) -> None:
        self.count = 0
        self.threads: set[threading.Thread] = set()
        self._more = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.threads.add(threading.current_thread())
        self._more.set()

    async def one(self) -> None:
        """Wait for a report; fail if it was not the only one since the last time."""
        before = self.count if not self._more.is_set() else self.count - 1
        await self._more.wait()
        self._more.clear()
        assert self.count == before + 1


@asynccontextmanager
async def watching(*paths: Path, patience_s: float = 3600) -> AsyncIterator[Reports]:
    async with watching_all(lambda: paths, patience_s) as reports:
        yield reports


@asynccontextmanager
async def watching_all(paths: Callable[[], Iterable[Path]], patience_s: float = 3600) -> AsyncIterator[Reports]:
    reports = Reports()
    async with Watcher(paths, reports, patience_s=patience_s):
        yield reports
    assert not [thread for thread in threading.enumerate() if isinstance(thread, BaseThread)]
    assert reports.threads <= {threading.current_thread()}


def directory_and_files(directory: Path) -> Callable[[], list[Path]]:
    def paths() -> list[Path]:
        return [directory, *sorted(directory.glob("*.yaml"))] if directory.is_dir() else [directory]

    return paths


@contextmanager
def logged(text: str) -> Iterator[asyncio.Event]:
    """Yield an event that is set when a line of the watcher's log holds a text."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                loop.call_soon_threadsafe(event.set)

    handler = Handler()
    watch.log.addHandler(handler)
    level = watch.log.level
    watch.log.setLevel(logging.INFO)
    try:
        yield event
    finally:
        watch.log.setLevel(level)
        watch.log.removeHandler(handler)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "etc" / "c.yaml"
    file.parent.mkdir()
    file.write_text("a")
    return file


# ---- one file ------------------------------------------------------------------------------------------------------


async def test_a_write_is_reported_once(file: Path) -> None:
    async with watching(file) as reports:
        file.write_text("b")
        await reports.one()
        file.write_text("c")
        await reports.one()


async def test_a_burst_of_writes_is_reported_once(file: Path) -> None:
    async with watching(file) as reports:
        for number in range(20):
            file.write_text(str(number))
        await reports.one()
        file.write_text("the next")
        await reports.one()


async def test_a_file_that_is_renamed_over_it_is_reported(file: Path) -> None:
    async with watching(file) as reports:
        for content in "bcd":
            (new := file.with_suffix(".new")).write_text(content)
            new.rename(file)
            await reports.one()


async def test_a_file_that_comes_from_another_directory_is_reported(file: Path, tmp_path: Path) -> None:
    async with watching(file) as reports:
        (new := tmp_path / "new").write_text("b")
        new.rename(file)
        await reports.one()


async def test_a_second_name_of_a_file_is_reported(file: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").write_text("b")
    async with watching(file) as reports:
        file.unlink()
        file.hardlink_to(other)
        await reports.one()


async def test_a_file_that_vanishes_is_not_reported_and_its_return_is(file: Path) -> None:
    loop, missed = asyncio.get_running_loop(), asyncio.Event()
    (other := file.with_name("d.yaml")).write_text("d")

    def paths() -> list[Path]:
        if not file.exists():
            loop.call_soon_threadsafe(missed.set)
        return [file, other]

    async with watching_all(paths) as reports:
        file.rename(file.with_suffix(".away"))
        await missed.wait()
        other.write_text("e")
        await reports.one()
        file.with_suffix(".away").rename(file)
        await reports.one()


async def test_a_file_that_was_not_there_is_reported_when_it_comes(tmp_path: Path) -> None:
    file = tmp_path / "not" / "yet" / "c.yaml"
    async with watching(file) as reports:
        file.parent.mkdir(parents=True)
        file.write_text("a")
        await reports.one()
        file.write_text("b")
        await reports.one()


async def test_what_happens_to_other_files_is_no_reason_to_look(file: Path) -> None:
    asked = 0

    def paths() -> list[Path]:
        nonlocal asked
        asked += 1
        return [file]

    async with watching_all(paths) as reports:
        at_start = asked
        for number in range(20):
            (file.parent / f"{number}.log").write_text("x")
        file.write_text("b")
        await reports.one()
        assert asked == at_start + 1


async def test_what_does_not_change_the_file_is_not_reported(file: Path) -> None:
    async with watching(file) as reports:
        with file.open("a"):
            pass
        file.chmod(0o600)
        assert file.read_text() == "a"
        (file.parent.parent / "link").symlink_to(file)
        file.write_text("b")
        await reports.one()


async def test_a_relative_path_will_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    async with watching(Path("../etc/./c.yaml")) as reports:
        file.write_text("b")
        await reports.one()


async def test_names_need_not_be_text(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff conf") / "c.yaml"
    file.parent.mkdir()
    async with watching(file) as reports:
        file.write_text("b")
        await reports.one()


# ---- files that are not finished -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["a", "r+", "w"])
async def test_a_file_that_is_written_to_is_reported_when_it_is_closed(file: Path, mode: str) -> None:
    other = file.with_name("d.yaml")
    async with watching(file, other) as reports:
        with logged(f"{file} is being written") as waits, file.open(mode) as half:
            half.write("half")
            half.flush()
            other.write_text("another")
            await waits.wait()
            assert reports.count == 0
            half.write("whole")
        await reports.one()


async def test_a_file_that_is_made_is_reported_when_it_is_closed(file: Path) -> None:
    new = file.with_name("d.yaml")
    async with watching(file, new) as reports:
        with logged(f"{new} is being written") as waits, new.open("w"):
            file.write_text("another")
            await waits.wait()
            assert reports.count == 0
        await reports.one()


async def test_a_file_that_was_open_at_the_start_is_reported_when_it_is_closed(file: Path) -> None:
    with file.open("w") as half:
        half.write("half")
        half.flush()
        async with watching(file) as reports:
            half.write("whole")
            half.close()
            await reports.one()


async def test_a_file_that_nobody_closes_is_waited_for_only_so_long(file: Path) -> None:
    other = file.with_name("d.yaml")
    async with watching(file, other, patience_s=0.01) as reports:
        os.utime(file, (1, 1))
        other.write_text("another")
        await reports.one()


# ---- links ---------------------------------------------------------------------------------------------------------


async def test_a_repointed_link_is_reported(file: Path, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("a")
    (link := tmp_path / "link.yaml").symlink_to(file)
    async with watching(link) as reports:
        link.unlink()
        link.symlink_to("b.yaml")
        await reports.one()
        (tmp_path / "b.yaml").write_text("b")
        await reports.one()


async def test_a_write_to_the_target_of_a_chain_of_links_is_reported(file: Path, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to("etc/../etc/c.yaml")
    async with watching(tmp_path / "one") as reports:
        file.write_text("b")
        await reports.one()


async def test_a_config_map_is_reported_when_its_data_is_swapped(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()

    def publish(version: str) -> None:
        """Do as kubelet's AtomicWriter does."""
        (volume / version).mkdir()
        (volume / version / "c.yaml").write_text(version)
        (volume / "..data_tmp").symlink_to(version)
        (volume / "..data_tmp").rename(volume / "..data")

    publish("..1")
    (volume / "c.yaml").symlink_to("..data/c.yaml")
    async with watching_all(directory_and_files(volume)) as reports:
        publish("..2")
        await reports.one()
        publish("..3")
        await reports.one()
    async with watching(volume / "c.yaml") as reports:
        publish("..4")
        await reports.one()


async def test_a_link_to_itself_harms_nobody(file: Path) -> None:
    (loop := file.with_name("loop")).symlink_to("loop")
    async with watching(loop, file) as reports:
        file.write_text("b")
        await reports.one()


# ---- directories ---------------------------------------------------------------------------------------------------


async def test_files_of_a_directory_come_change_and_are_renamed(file: Path) -> None:
    async with watching_all(directory_and_files(file.parent)) as reports:
        (new := file.with_name("d.yaml")).write_text("d")
        await reports.one()
        new.write_text("e")
        await reports.one()
        new.rename(file.with_name("f.yaml"))
        await reports.one()


async def test_the_change_of_one_file_counts_while_another_goes(file: Path) -> None:
    (other := file.with_name("d.yaml")).write_text("d")
    async with watching_all(directory_and_files(file.parent)) as reports:
        other.unlink()
        file.write_text("b")
        await reports.one()


async def test_a_directory_that_is_made_again_is_watched_again(file: Path) -> None:
    async with watching_all(directory_and_files(file.parent)) as reports:
        for content in "bc":
            file.unlink()
            file.parent.rmdir()
            file.parent.mkdir()
            file.write_text(content)
            await reports.one()


async def test_a_directory_that_is_put_in_place_of_another_is_reported(file: Path, tmp_path: Path) -> None:
    (new := tmp_path / "new").mkdir()
    (new / "c.yaml").write_text("b")
    async with watching(file) as reports:
        file.parent.rename(tmp_path / "old")
        new.rename(file.parent)
        await reports.one()
        file.write_text("c")
        await reports.one()


async def test_a_directory_is_noticed_when_it_comes(tmp_path: Path) -> None:
    directory = tmp_path / "conf.d"
    async with watching_all(directory_and_files(directory)) as reports:
        directory.mkdir()
        (directory / "a.yaml").write_text("a")
        await reports.one()


# ---- mounts --------------------------------------------------------------------------------------------------------


async def test_a_file_mounted_by_itself_may_be_written_by_its_other_name(file: Path, tmp_path: Path) -> None:
    """As with `docker run --volume ./c.yaml:/etc/c.yaml`."""
    inside = tmp_path / "in side" / "c.yaml"
    inside.parent.mkdir()
    inside.touch()
    mount = await asyncio.create_subprocess_exec("mount", "--bind", file, inside)
    if await mount.wait():
        pytest.skip("mount --bind needs root")
    try:
        async with watching(inside) as reports:
            for content in ("b", "c"):
                file.write_text(content)
                await reports.one()
    finally:
        await (await asyncio.create_subprocess_exec("umount", inside)).wait()


# ---- limits --------------------------------------------------------------------------------------------------------


async def test_what_changed_after_it_was_read_and_before_it_was_watched_is_reported(file: Path) -> None:
    before = look(lambda: [file])
    async with Watcher(lambda: [file], unchanged := Reports(), before):
        assert unchanged.count == 0
    file.write_text("another")
    async with Watcher(lambda: [file], changed := Reports(), before):
        await changed.one()


async def test_too_few_descriptors_are_a_warning(file: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with logged("raise the limit fs.inotify.max_user_instances by sysctl") as warned:
        descriptor = os.open("/dev/null", os.O_RDONLY)  # the lowest that is free
        os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor, hard))
        try:
            async with Watcher(lambda: [file], Reports()):
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await warned.wait()
