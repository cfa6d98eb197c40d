"""What only root may read, and how long it is there."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from llamaswapd.config.schema import Config
from llamaswapd.launcher.secrets import KEY_BYTES, Secrets, Told


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_key_is_the_same_for_the_next_launcher(tmp_path: Path) -> None:
    key = Secrets(tmp_path).key()
    assert len(key) == KEY_BYTES
    assert Secrets(tmp_path).key() == key
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_half_a_key_is_none(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"short")
    assert len(Secrets(tmp_path).key()) == KEY_BYTES


def test_what_a_launcher_had_half_written_when_it_was_killed_is_cleared_away(tmp_path: Path) -> None:
    Secrets(tmp_path).key()
    for folder in (tmp_path, tmp_path / "env"):
        (folder / ".0123456789abcdef").write_text("half of a secret")
    Secrets(tmp_path)
    assert names(tmp_path) == ["env", "key"]
    assert names(tmp_path / "env") == []


def test_what_another_version_was_told_is_not_gone_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Secrets(tmp_path).keep_configs([Told(Config(), 1.0)])
    assert len(Secrets(tmp_path).kept_configs()) == 1
    monkeypatch.setattr("llamaswapd.launcher.secrets.__version__", "9.9")
    assert Secrets(tmp_path).kept_configs() == []
