from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llamaswapd.config.diff import Diff, diff

if TYPE_CHECKING:
    from conftest import Load

OLD = """
macros: {a: 1}
models:
  kept: {cmd: x, proxy: http://h}
  gone: {cmd: x, proxy: http://h}
  other: {cmd: "${a}", proxy: http://h}
"""


def test_nothing_changed(load_text: Load) -> None:
    same = ("gone", "kept", "other")
    assert diff(load_text(OLD).config, load_text(OLD).config) == Diff((), (), (), same, is_global_changed=False)


def test_models_come_go_and_change(load_text: Load) -> None:
    new = OLD.replace("gone", "new").replace("a: 1", "a: 2")
    assert diff(load_text(OLD).config, load_text(new).config) == Diff(
        ("new",), ("gone",), ("other",), ("kept",), is_global_changed=False
    )


def test_a_macro_that_changes_no_setting_changes_no_model(load_text: Load) -> None:
    new = OLD.replace("a: 1", "a: 1, b: 2").replace("kept: {", "kept: {macros: {c: 3}, ")
    assert diff(load_text(OLD).config, load_text(new).config).changed == ()
    assert diff(load_text(new).config, load_text(OLD).config).changed == ()


@pytest.mark.parametrize("line", ["logLevel: debug", "groups: {g: {members: [kept]}}", "apiKeys: [k]"])
def test_the_rest_changes(load_text: Load, line: str) -> None:
    found = diff(load_text(OLD).config, load_text(OLD + line).config)
    assert found.is_global_changed
    assert found.changed == ()


def test_a_global_default_changes_the_models_that_use_it(load_text: Load) -> None:
    new = OLD.replace("kept: {", "kept: {ttl: 0, ") + "globalTTL: 5"
    assert diff(load_text(OLD).config, load_text(new).config).changed == ("gone", "other")
