from __future__ import annotations

import pytest

from llamaswapd.config.schema import Config, Filters, ModelConfig


def test_names_resolve_ids_first() -> None:
    a = ModelConfig(id="a", aliases=("b", "x"), filters=Filters(set_params_by_id={"y": {}}))
    config = Config(models={"a": a, "b": ModelConfig(id="b")})
    found = {name: model.id for name in ("a", "b", "x", "y", "X", "") if (model := config.resolve(name))}
    assert found == {"a": "a", "b": "b", "x": "a", "y": "a"}


def test_a_changed_copy_resolves_its_own_names() -> None:
    config = Config(models={"a": ModelConfig(id="a", aliases=("x",))})
    config = config.having(models={"b": ModelConfig(id="b", aliases=("y",))})
    assert config.resolve("x") is None
    assert config.resolve("y") is config.models["b"]


def test_equal_configurations_are_equal_whether_or_not_asked_for_names() -> None:
    one, two = (Config(models={"a": ModelConfig(id="a", aliases=("x",))}) for _ in range(2))
    one.resolve("x")
    assert one == two
    assert one != one.having(start_port=1)


def test_what_is_loaded_does_not_change() -> None:
    with pytest.raises((TypeError, ValueError)):
        Config().start_port = 1  # type: ignore[misc]


def test_macros_keep_their_types() -> None:
    macros = {"n": 5, "f": 1.5, "b": True, "s": "5"}
    assert {name: type(value) for name, value in Config(macros=macros).macros.items()} == {
        "n": int,
        "f": float,
        "b": bool,
        "s": str,
    }
