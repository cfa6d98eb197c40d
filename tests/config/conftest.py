"""Configurations as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from llamaswapd.config.load import Loaded, load
from llamaswapd.errors import ConfigError

Load = Callable[..., Loaded]
Complain = Callable[..., list[str]]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    """Return a function that loads texts as files a.yaml, b.yaml, ..."""

    def load_text(*texts: str, environ: Mapping[str, str] | None = None) -> Loaded:
        files = []
        for letter, content in zip("abcdef", texts, strict=False):
            files.append(tmp_path / f"{letter}.yaml")
            files[-1].write_text(dedent(content), encoding="utf-8")
        return load(files, environ=environ or {})

    return load_text


@pytest.fixture
def complaints(load_text: Load, tmp_path: Path) -> Complain:
    """Return a function that loads texts which must be refused, and returns the problems without the directory."""

    def complaints(*texts: str, environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_text(*texts, environ=environ)
        return [
            str(problem).replace(f"config {tmp_path}/", "").replace(f"{tmp_path}/", "")
            for problem in caught.value.problems
        ]

    return complaints
