"""Who can read a model's environment, and how long it is there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from llamaswapd.errors import NotStarted
from llamaswapd.systemd.environments import Environments

UNIT = r"llamaswapd-model-org\x2fqwen.service"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_environment_is_roots_alone_and_goes_with_its_unit(tmp_path: Path) -> None:
    environments = Environments(tmp_path / "env")
    environments.keep(UNIT, "A=1\n")
    environments.keep(UNIT, "A=2\n")
    assert (tmp_path / "env" / UNIT).read_text() == "A=2\n"
    assert stat.S_IMODE((tmp_path / "env" / UNIT).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "env").stat().st_mode) == 0o700
    environments.forget(UNIT)
    environments.forget(UNIT)
    assert names(tmp_path / "env") == []


def test_what_somebody_who_died_left_is_cleared_away(tmp_path: Path) -> None:
    environments = Environments(tmp_path / "env")
    for name in (UNIT, "other"):
        environments.keep(name, "A=1\n")
    environments.forget_others([UNIT])
    assert names(tmp_path / "env") == [UNIT]


def test_the_directory_stays_as_long_as_a_unit_needs_it(tmp_path: Path) -> None:
    environments = Environments(tmp_path / "env")
    environments.keep(UNIT, "A=1\n")
    environments.remove_if_empty()
    assert names(tmp_path / "env") == [UNIT]
    environments.forget(UNIT)
    environments.remove_if_empty()
    assert names(tmp_path) == []


def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments = Environments(tmp_path / "env")

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(NotStarted, match=r"cannot be written to .*/env: No space left on device; see what fills it"):
        environments.keep(UNIT, "A=1\n")
    assert names(tmp_path / "env") == []
