"""Programs that cannot be run, and what is said about them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from llamaswapd.errors import NotStarted, StartError
from llamaswapd.systemd import program


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with one program in it."""
    (tmp_path / "server").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_a_bare_name_is_looked_up_in_our_path(folder: Path) -> None:
    assert program.find("server", "/") == f"{folder}/server"


def test_a_relative_path_starts_in_the_working_directory(folder: Path) -> None:
    assert program.find("./server", str(folder)) == f"{folder}/server"


def test_an_absolute_path_is_taken_as_it_is(folder: Path) -> None:
    assert program.find("/opt/server", str(folder)) == "/opt/server"


def test_a_name_that_is_not_found_stays_as_it_is(folder: Path) -> None:
    assert program.find("nowhere", str(folder)) == "nowhere"


def test_a_program_that_can_be_run_passes(folder: Path) -> None:
    program.check(["server", "--port", "1"], str(folder), ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "unable to get sanitized command: empty command"),
        (["nowhere", "-x"], "failed to start command 'nowhere -x': executable file not found in $PATH"),
        (["./nowhere", "-x"], "failed to start command './nowhere -x': no such file or directory"),
        (["./text"], "failed to start command './text': permission denied"),
        (["./folder"], "failed to start command './folder': is a directory"),
        (["./server/x"], "failed to start command './server/x': not a directory"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_systems_reason(folder: Path, words: list[str], message: str) -> None:
    (folder / "text").touch(mode=0o644)
    (folder / "folder").mkdir()
    with pytest.raises(StartError) as refused:
        program.check(words, str(folder), ())
    assert str(refused.value) == f"unspecific error: {message}"


def test_a_program_in_a_root_directory_of_the_units_own_is_not_looked_for_here(folder: Path) -> None:
    program.check(["/in/the/image/server"], str(folder), {"RootImage"})


def test_what_only_the_model_may_see_is_left_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(program.os, "stat", refuse)
    program.check(["/home/alice/server"], "/", (), is_for_others=True)
    with pytest.raises(NotStarted, match="permission denied"):
        program.check(["/home/alice/server"], "/", ())


def test_what_nobody_may_execute_is_said_of_others_programs_too(folder: Path) -> None:
    (folder / "server").chmod(0o644)
    with pytest.raises(NotStarted, match="permission denied"):
        program.check([f"{folder}/server"], "/", (), is_for_others=True)
    (folder / "server").chmod(0o641)
    program.check([f"{folder}/server"], "/", (), is_for_others=True)
