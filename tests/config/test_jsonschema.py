from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from llamaswapd.__main__ import main
from llamaswapd.config.decode import fields_by_key, known_keys
from llamaswapd.config.jsonschema import json_schema, sections_within
from llamaswapd.config.schema import Config, Section
from llamaswapd.errors import ConfigError

if TYPE_CHECKING:
    from conftest import Load

SCHEMA = json_schema()
EXAMPLE = Path(__file__).parents[2] / "packaging" / "config.example.yaml"


def properties(section: type[Section]) -> dict[str, Any]:
    found = SCHEMA if section is Config else SCHEMA["$defs"][section.__name__]
    return dict(found["properties"])


@pytest.mark.parametrize("section", sections_within(Config))
def test_every_key_of_a_section_is_described(section: type[Section]) -> None:
    described = properties(section)
    assert {key.partition(".")[0] for key in known_keys(section)} <= set(described)
    for key in fields_by_key(section):
        block, _, inner = key.rpartition(".")
        entry = (described[block]["properties"] if block else described)[inner]
        assert entry["description"]


def test_defaults_and_choices_are_told() -> None:
    top, model = properties(Config), SCHEMA["$defs"]["ModelConfig"]["properties"]
    assert top["startPort"]["default"] == 5800
    assert top["apiKeys"]["default"] == []
    assert top["logToStdout"]["anyOf"][0] == {"enum": ["proxy", "upstream", "both", "none"]}
    selector = SCHEMA["$defs"]["Selector"]["properties"]
    assert selector["strategy"]["anyOf"][0] == {"enum": ["pin", "warm", "spillover"]}
    assert SCHEMA["$defs"]["Router"]["properties"]["use"]["anyOf"][0] == {"enum": ["group", "matrix", ""]}
    assert top["systemd"]["properties"]["manager"]["default"] == "auto"
    assert SCHEMA["$defs"]["Performance"]["properties"]["every"]["default"] == "5s"
    assert model["filters"]["$ref"] == "#/$defs/Filters"
    assert "default" not in model["sendLoadingState"]
    assert top["logRequests"]["deprecated"]


def test_unknown_keys_stay_allowed() -> None:
    assert "additionalProperties" not in SCHEMA
    assert not any(each.get("additionalProperties") is False for each in SCHEMA["$defs"].values())


def test_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == SCHEMA


# ---- as a validator sees it ----------------------------------------------------------------------------------------


def is_valid(instance: Any) -> bool:
    jsonschema = pytest.importorskip("jsonschema")
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(instance))


def test_the_schema_is_one() -> None:
    pytest.importorskip("jsonschema").Draft202012Validator.check_schema(SCHEMA)


def test_the_example_is_valid() -> None:
    assert is_valid(yaml.safe_load(EXAMPLE.read_text()))


M = "models: {m: {proxy: http://h, "


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "globalTTL: 30.5",
        "globalTTL: 1_000",
        "startPort: 0x1000",
        "macros: {n: 5}\nglobalTTL: ${n}",
        "macros: {n: on}\nincludeAliasesInList: ${n}",
        "sendLoadingState: 'yes'",
        "logLevel: ' DEBUG '",
        "apiKeys: [123, key]",
        "performance: {every: 1m30s}",
        "systemd: {manager: user, MemoryMax: 5, BindPaths: [/a, /b]}",
        "matrix:",
        M + "aliases: [1, 2.5], name: 5, metadata: {a: [1, {b: ~}]}, ttl: }}",
        M + "sendLoadingState: ~, filters: {strip_params: a, setParamsByID: {k: }}}}",
        M + "unknown: {}}}\nfurther: [1]",
    ],
)
def test_what_it_accepts_is_accepted(load_text: Load, text: str) -> None:
    assert is_valid(yaml.safe_load(text))
    load_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "globalTTL: many",
        "globalTTL: [1]",
        "sendLoadingState: 'maybe'",
        "logToStdout: all",
        "apiKeys: key",
        "apiKeys: [[a]]",
        "performance: {every: 5}",
        "performance: {every: soon}",
        "macros: {PORT: 1}",
        "macros: {a: [1]}",
        "store: {}",
        "models: [a]",
        "models: {m: {cmd: [a]}}",
        "models: {m: {env: {A: b}}}",
        "selectors: {s: {targets: [a]}}",
        "profiles: {p: [a]}",
        "peers: {p: {models: [x]}}",
    ],
)
def test_what_it_refuses_is_refused(load_text: Load, text: str) -> None:
    assert not is_valid(yaml.safe_load(text))
    with pytest.raises(ConfigError):
        load_text(text)
