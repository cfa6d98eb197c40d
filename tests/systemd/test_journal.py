"""The log of models, written by real units to a real journal."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from llamaswapd.errors import ManagerUnavailable
from llamaswapd.systemd.journal import Journal, text_lines
from llamaswapd.systemd.private import PrivateManager
from llamaswapd.systemd.unit import identifier, slice_name, unit_name

PLENTY = 1_000_000  # bytes of history
MARK = ("", "")

numbers = count()


class Models:
    """Runs programs as models would run, in a slice and under names that no other test uses."""

    def __init__(self, manager: PrivateManager) -> None:
        self.instance = f"j{next(numbers)}"
        self.ids: list[str] = []
        self._manager = manager
        self.journal = Journal("private", self.instance, manager.journal_dir, lambda: self.ids)

    def unit(self, model: str) -> str:
        return unit_name(model, self.instance)

    async def run(self, model: str, script: str, *options: str) -> str:
        """Run a script to its end as this model; return its invocation id."""
        shell = f'echo "$INVOCATION_ID" >&3; {script}'
        folder = self._manager.runtime_dir
        written = folder / f"invocation-{next(numbers)}"
        inside = Path("/run/user", str(os.getuid()), written.name)
        await self.systemd(
            "systemd-run", "--quiet", "--wait", "--collect", f"--unit={self.unit(model)}",
            f"--slice={slice_name(self.instance)}",
            f"--property=SyslogIdentifier={identifier(model, self.instance)}", *options,
            "bash", "-c", f"exec 3>{inside}; {shell}",
        )  # fmt: skip
        return written.read_text().strip()

    @asynccontextmanager
    async def late_journald(self) -> AsyncIterator[None]:
        """Let journald read what is said meanwhile when who said it is gone, so that it cannot know their units."""
        await self.systemd("systemctl", "kill", "--signal=SIGSTOP", "systemd-journald.service")
        try:
            yield
        finally:
            await self.systemd("systemctl", "kill", "--signal=SIGCONT", "systemd-journald.service")

    async def systemd(self, program: str, *arguments: str) -> None:
        environ = {**os.environ, **self._manager.environment}
        await (await asyncio.create_subprocess_exec(program, "--user", *arguments, env=environ)).wait()

    @asynccontextmanager
    async def following(self, *models: str, history_bytes: int = 0) -> AsyncIterator[AsyncIterator[tuple[str, str]]]:
        """Follow these models, or all of them, from the marker on."""
        async with aclosing(self.journal.follow(models or None, history_bytes)) as lines:
            async for line in lines:
                if line == MARK:
                    break
            yield lines

    async def past(self, *models: str, history_bytes: int = PLENTY) -> list[tuple[str, str]]:
        """Return the history."""
        async with aclosing(self.journal.follow(models or None, history_bytes)) as lines:
            return [line async for line in until_mark(lines)]


async def until_mark(lines: AsyncIterator[tuple[str, str]]) -> AsyncIterator[tuple[str, str]]:
    async for line in lines:
        if line == MARK:
            return
        yield line


async def take(lines: AsyncIterator[tuple[str, str]], number: int) -> list[tuple[str, str]]:
    return [await anext(lines) for _ in range(number)]


@pytest.fixture
def models(private: PrivateManager) -> Models:
    return Models(private)


pytestmark = pytest.mark.private


async def test_history_comes_before_the_mark_and_live_lines_after(models: Models) -> None:
    invocation = await models.run("a", "echo one; echo two")
    assert await models.journal.last_lines(models.unit("a"), invocation, 2) == ["one", "two"]
    async with aclosing(models.journal.follow(["a"], PLENTY)) as lines:
        assert await take(lines, 3) == [("a", "one"), ("a", "two"), MARK]
        await models.run("a", "echo three")
        assert await anext(lines) == ("a", "three")


async def test_live_lines_are_seen_where_there_was_none_before(models: Models) -> None:
    async with models.following("a") as lines:
        await models.run("a", "echo first")
        assert await anext(lines) == ("a", "first")


async def test_without_history_only_what_is_new_is_seen(models: Models) -> None:
    invocation = await models.run("a", "echo old")
    assert await models.journal.last_lines(models.unit("a"), invocation, 9) == ["old"]
    async with models.following("a", history_bytes=0) as lines:
        await models.run("a", "echo new")
        assert await anext(lines) == ("a", "new")


async def test_history_is_the_last_whole_lines_that_fit(models: Models) -> None:
    invocation = await models.run("a", "for i in 1 2 3 4 5; do echo line-$i; done")
    assert len(await models.journal.last_lines(models.unit("a"), invocation, 5)) == 5
    assert await models.past("a", history_bytes=20) == [("a", "line-4"), ("a", "line-5")]
    assert await models.past("a", history_bytes=21) == [("a", "line-3"), ("a", "line-4"), ("a", "line-5")]


async def test_a_model_is_not_given_the_lines_of_another_or_of_another_instance(
    models: Models, private: PrivateManager
) -> None:
    stranger = Models(private)
    async with models.following("a") as lines:
        async with models.late_journald():
            await models.run("b", "echo b")
            await stranger.run("a", "echo stranger")
            await models.run("a", "echo a")
        assert await anext(lines) == ("a", "a")


async def test_all_models_are_followed_at_once_also_those_not_known_yet(models: Models) -> None:
    async with models.following() as lines:
        await models.run("a", "echo 1; sleep 0.05")
        await models.run("org/b:7", "echo 2; sleep 0.05")
        assert await take(lines, 2) == [("a", "1"), ("org/b:7", "2")]


async def test_what_systemd_says_about_a_unit_is_no_line_of_the_model(models: Models) -> None:
    async with models.following("a") as lines:
        await models.run("a", "exit 3")
        await models.run("a", "echo own")
        assert await anext(lines) == ("a", "own")


async def test_no_line_of_a_process_that_is_gone_at_once_is_lost(models: Models) -> None:
    models.ids = [f"quick-{number}" for number in range(50)]
    units = [f"--unit={models.unit(model)}" for model in models.ids]
    async with models.following() as lines, asyncio.TaskGroup() as group:
        for model, unit in zip(models.ids, units, strict=True):
            options = (
                "--quiet",
                "--collect",
                unit,
                f"--slice={slice_name(models.instance)}",
                f"-pSyslogIdentifier={identifier(model, models.instance)}",
            )
            group.create_task(models.systemd("systemd-run", *options, "sh", "-c", "echo boo >&2; exit 3"))
        assert sorted(await take(lines, 50)) == sorted((model, "boo") for model in models.ids)


async def test_last_lines_are_those_of_this_run_even_if_they_lack_its_invocation(models: Models) -> None:
    await models.run("a", "echo earlier")
    for number in range(10):
        invocation = await models.run("a", f"echo start; echo cause {number} >&2; exit 3")
        assert await models.journal.last_lines(models.unit("a"), invocation, 9) == ["start", f"cause {number}"]
    assert await models.journal.last_lines(models.unit("a"), invocation, 1) == ["cause 9"]


async def test_last_lines_of_a_run_that_said_nothing_are_none(models: Models) -> None:
    await models.run("a", "echo earlier")
    invocation = await models.run("a", "exit 3")
    assert await models.journal.last_lines(models.unit("a"), invocation, 9) == []


async def test_a_line_is_found_whether_it_was_written_before_or_comes_later(models: Models) -> None:
    invocation = await models.run("a", "echo loading; echo listening on 1234; sleep 0.05")
    assert await models.journal.wait_for_line(invocation, re.compile(r"listening on \d+")) == "listening on 1234"
    waiting = asyncio.create_task(models.journal.wait_for_line("0" * 32, re.compile("never")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_bytes_that_are_no_text_and_lines_without_end_are_shown_all_the_same(models: Models) -> None:
    async with models.following("a") as lines:
        await models.run(
            "a", r"printf 'caf\351\n'; head -c 40000 /dev/zero | tr '\0' x; echo; printf '10%%\r20%%\r100%%\n'"
        )
        assert await take(lines, 3) == [("a", "caf\ufffd"), ("a", "x" * 40000), ("a", "100%")]


async def test_following_goes_on_when_the_journal_is_rotated(models: Models) -> None:
    async with models.following("a") as lines:
        for number in range(3):
            await models.run("a", f"echo {number}")
            await models.systemd("systemctl", "kill", "--signal=SIGUSR2", "systemd-journald.service")
            assert await anext(lines) == ("a", str(number))


async def test_a_flood_is_followed_without_a_gap_while_others_have_their_turn(models: Models) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with models.following("a") as lines:
        others = asyncio.create_task(count_turns())
        flood = asyncio.create_task(models.run("a", "seq 20000", "-pLogRateLimitBurst=1000000"))
        assert await take(lines, 20000) == [("a", str(number)) for number in range(1, 20001)]
        others.cancel()
        await flood
    assert turns > 100


async def test_a_follower_that_leaves_closes_its_files(models: Models) -> None:
    await models.run("a", "echo 1")
    before = len(os.listdir("/proc/self/fd"))
    async with models.following("a"):
        assert len(os.listdir("/proc/self/fd")) > before
    assert len(os.listdir("/proc/self/fd")) == before


async def test_no_model_means_no_line(models: Models) -> None:
    assert [line async for line in models.journal.follow([], PLENTY)] == [MARK]


async def test_a_journal_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManagerUnavailable, match=f"cannot open the journal in {tmp_path}/none: No such file"):
        await Journal("private", directory=tmp_path / "none").last_lines("m.service", "", 1)


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        ("one\ntwo", ["one", "two"]),
        ("10%\r99%\r", ["99%"]),
        ("\rspinner", ["spinner"]),
        ("", []),
        ("a\x0bb\u2028c", ["a\x0bb\u2028c"]),
    ],
)
def test_a_message_is_shown_as_a_terminal_would_leave_it(message: str, lines: list[str]) -> None:
    assert text_lines(message) == lines
