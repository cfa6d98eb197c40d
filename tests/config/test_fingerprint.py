"""Which changes of a model's definition make another unit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from llamaswapd.config.fingerprint import fingerprint
from llamaswapd.config.schema import Filters, ModelConfig

if TYPE_CHECKING:
    from conftest import Load


def model(**fields: Any) -> ModelConfig:
    return ModelConfig(**{"id": "qwen", "cmd": "/usr/bin/server --port 5800", "unload_timeout": 10, **fields})


@pytest.mark.parametrize(
    "change",
    [
        {"cmd": "/usr/bin/server --port 5801"}, {"cmd_stop": "kill ${PID}"}, {"proxy": "http://localhost:1"},
        {"port": 1}, {"env": ("A=1",)}, {"systemd": {"MemoryMax": ("1G",)}}, {"check_endpoint": "none"},
    ],
)  # fmt: skip
def test_what_changes_the_running_unit_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(model(**change)) != fingerprint(model())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Qwen"}, {"description": "x"}, {"aliases": ("q",)}, {"ttl": 5}, {"metadata": {"a": 1}},
        {"unlisted": True}, {"cmd": "# what it is\n/usr/bin/server \\\n  --port 5800"},
        {"unload_timeout": 20}, {"filters": Filters(set_params={"a": 1})}, {"fingerprint": "x"},
    ],
)  # fmt: skip
def test_what_leaves_the_running_unit_alone_leaves_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(model(**change)) == fingerprint(model())


def test_the_order_of_settings_does_not_matter() -> None:
    one, other = {"A": ("1",), "B": ("2",)}, {"B": ("2",), "A": ("1",)}
    assert fingerprint(model(systemd=one)) == fingerprint(model(systemd=other))


def test_a_setting_that_is_new_and_not_used_does_not_matter() -> None:
    class Newer(ModelConfig, frozen=True):
        further: ModelConfig = ModelConfig()

    newer = Newer(**dict(model()))
    assert fingerprint(newer) == fingerprint(model())
    assert fingerprint(newer.having(further=model())) != fingerprint(model())


def test_every_key_makes_a_fingerprint_of_its_own() -> None:
    found = {fingerprint(model(), key) for key in (b"", b"a", b"b" * 64)}
    assert len(found) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in found)


def test_loading_fills_the_fingerprints_in(load_text: Load) -> None:
    text = "models: {a: {cmd: 'run ${PORT}', ttl: 5}, b: {cmd: 'run', proxy: 'http://h:1'}}"
    models = load_text(text).config.models
    assert [each.fingerprint for each in models.values()] == [fingerprint(each) for each in models.values()]
    assert models["a"].fingerprint != models["b"].fingerprint
