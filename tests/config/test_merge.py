from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Complain, Load


def test_keys_of_one_file_are_kept_and_mappings_merge(load_text: Load) -> None:
    config = load_text(
        "globalTTL: 1\nmacros: {a: 1}\nmodels: {x: {cmd: '${a} ${b}', proxy: http://h}}",
        "startPort: 7000\nmacros: {b: 2}\nmodels: {y: {cmd: '${PORT}'}}",
    ).config
    assert (config.global_ttl, config.start_port) == (1, 7000)
    assert config.models["x"].cmd == "1 2"
    assert config.models["y"].port == 7000


def test_lists_are_joined_earlier_file_first(load_text: Load) -> None:
    config = load_text("apiKeys: [b]", "apiKeys: [a]", "apiKeys: [b]", "apiKeys: [c]").config
    assert config.api_keys == ("b", "a", "b", "c")


def test_the_order_of_macros_is_the_order_of_files(complaints: Complain, load_text: Load) -> None:
    use = "models: {m: {cmd: '${b}', proxy: http://h}}"
    assert load_text("macros: {a: 1}", "macros: {b: '${a}'}", use).config.models["m"].cmd == "1"
    assert "unknown macro '${a}'" in complaints("macros: {b: '${a}'}", "macros: {a: 1}", use)[0]


def test_equal_scalars_are_fine(load_text: Load) -> None:
    assert load_text("globalTTL: 5", "globalTTL: 5").config.global_ttl == 5


@pytest.mark.parametrize(("first", "second"), [("5", "6"), ("5", '"5"'), ("5", "~"), ("null", "5"), ("5", "5.0")])
def test_different_scalars_conflict(complaints: Complain, first: str, second: str) -> None:
    (found,) = complaints(f"globalTTL: {first}", f"globalTTL: {second}")
    assert found.startswith(
        'b.yaml: globalTTL: conflict at "globalTTL": b.yaml sets a different value than a previous source'
    )


@pytest.mark.parametrize(("first", "second"), [("", "5"), ("5", "")])
def test_an_empty_value_yields(load_text: Load, first: str, second: str) -> None:
    assert load_text(f"globalTTL: {first}", f"globalTTL: {second}").config.global_ttl == 5


def test_an_empty_value_yields_to_a_mapping(load_text: Load) -> None:
    assert list(load_text("models:", "models: {m: ~}", "models:").config.models) == ["m"]


@pytest.mark.parametrize(("first", "second"), [("[a]", "{a: 1}"), ("5", "[a]"), ("{a: 1}", "5")])
def test_different_kinds_conflict(complaints: Complain, first: str, second: str) -> None:
    (found,) = complaints(f"hooks: {{on_startup: {first}}}", f"hooks: {{on_startup: {second}}}")
    assert 'conflict at "hooks.on_startup": incompatible YAML node kinds (' in found
    assert found.endswith(" introduced by b.yaml")


@pytest.mark.parametrize(
    "path",
    [
        "models", "groups", "profiles", "selectors", "peers", "matrix", "routing.router.settings.groups",
        "routing.router.settings.matrix",
    ],
)  # fmt: skip
def test_one_thing_may_not_be_split_over_files(complaints: Complain, path: str) -> None:
    body = "{same: {a: 1}}"
    for key in reversed(path.split(".")):
        body = f"{{{key}: {body}}}"
    (found,) = complaints(body, body)
    last = path.split(".")[-1]
    text = f'duplicate {last} "same" found in b.yaml (already defined in another config source)'
    assert found.startswith(f"b.yaml: {path}.same: {text}")


def test_all_conflicts_are_reported(complaints: Complain) -> None:
    found = complaints("globalTTL: 1\nmodels: {m: {}}", "globalTTL: 2\nmodels: {m: {}}", "globalTTL: 3")
    assert len(found) == 3


def test_a_problem_names_the_file_that_its_value_is_in(complaints: Complain) -> None:
    found = complaints(
        "models: {a: {cmd: x, proxy: http://h, ttl: x}}", "models: {b: {cmd: y, proxy: http://h, ttl: x}}"
    )
    assert [problem.split(": ")[0:2] for problem in found] == [["a.yaml", "models.a.ttl"], ["b.yaml", "models.b.ttl"]]
