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
    assert diff(load_text(OLD).config, load_text(OLD).config) == Diff((), (), (), (), same, is_global_changed=False)


def test_models_come_go_and_change(load_text: Load) -> None:
    new = OLD.replace("gone", "new").replace("a: 1", "a: 2")
    assert diff(load_text(OLD).config, load_text(new).config) == Diff(
        ("new",), ("gone",), ("other",), ("other",), ("kept",), is_global_changed=False
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


@pytest.mark.parametrize(
    "change",
    [
        "peers: {p: {proxy: http://h, models: [x]}}",
        "selectors: {s: {strategy: pin, targets: [m]}}",
        "profiles: {p: {pins: {x: m}}}",
        "groups: {g: {members: [m]}}",
        "matrix: {sets: {s: m}}",
        "routing: {scheduler: {settings: {fifo: {priority: {m: 1}}}}}",
        "ui: {activity: {session_id: []}}",
        "captureBuffer: 0",
    ],
)
def test_what_stands_beside_the_models_changes_none_of_them(load_text: Load, change: str) -> None:
    models = "models: {m: {proxy: http://h}}\n"
    found = diff(load_text(models).config, load_text(models + change).config)
    assert (found.unchanged, found.is_global_changed) == (("m",), True)


def test_groups_that_move_to_routing_change_nothing(load_text: Load) -> None:
    models, groups = "models: {m: {proxy: http://h}}\n", "groups: {g: {members: [m]}}"
    moved = f"routing: {{router: {{settings: {{{groups}}}}}}}"
    assert not diff(load_text(models + groups).config, load_text(models + moved).config).is_global_changed


@pytest.mark.parametrize(
    ("setting", "is_outdated"),
    [
        ("cmd: y", True), ("proxy: http://i", True), ("env: [A=b]", True), ("cmdStop: y", True),
        ("checkEndpoint: /up", True), ("systemd: {Nice: 5}", True),
        ("ttl: 5", False), ("aliases: [m]", False), ("concurrencyLimit: 2", False),
        ("filters: {stripParams: a}", False),
        ("unloadTimeout: 3", False), ("readyLog: up", False), ("timeouts: {connect: 3}", False),
    ],
)  # fmt: skip
def test_only_what_makes_the_unit_outdates_a_model(load_text: Load, setting: str, is_outdated: bool) -> None:
    key = setting.partition(":")[0]
    new = OLD.replace("kept: {cmd: x, proxy: http://h}", f"kept: {{{'' if key == 'cmd' else 'cmd: x, '}"
                      f"{'' if key == 'proxy' else 'proxy: http://h, '}{setting}}}")  # fmt: skip
    found = diff(load_text(OLD).config, load_text(new).config)
    assert found.changed == ("kept",)
    assert found.outdated == (("kept",) if is_outdated else ())


def test_a_shifted_port_outdates_a_model(load_text: Load) -> None:
    model = "cmd: 'x ${PORT}'"
    found = diff(
        load_text(f"models: {{b: {{{model}}}}}").config, load_text(f"models: {{a: {{{model}}}, b: {{{model}}}}}").config
    )
    assert found.outdated == ("b",)
    assert found.added == ("a",)
