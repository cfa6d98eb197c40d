"""What the launcher tells of the configuration, and what comes out of it at the other end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_fuzz import Maker

from llamaswapd.config.load import load
from llamaswapd.config.schema import Config, Container, Filters, ModelConfig, Peer, Store
from llamaswapd.config.wire import from_launcher, of_front, to_front
from llamaswapd.errors import ConfigError

PACKAGING = Path(__file__).parents[2] / "packaging"
SECRET = "s3cr3t"


def told(config: Config, **values: str) -> Config:
    return from_launcher(to_front(config), {}, values)


def refusals(config: Config, **values: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        told(config, **values)
    return [str(each) for each in caught.value.problems]


def made(tmp_path: Path) -> Iterator[Config]:
    """Some configurations with something of everything in them."""
    file = tmp_path / "a.yaml"
    for seed in range(120):
        file.write_text(json.dumps(Maker(seed).config()))
        try:
            yield load([file], environ={"SET": "5"}).config
        except ConfigError:
            continue


@pytest.mark.parametrize("name", [file.name for file in PACKAGING.glob("*.yaml")])
def test_what_comes_out_is_what_went_in(name: str) -> None:
    config = load([PACKAGING / name], environ={}, checks_store=False).config
    assert told(config) == of_front(config)


def test_whatever_the_configuration_what_comes_out_is_what_went_in(tmp_path: Path) -> None:
    configs = list(made(tmp_path))
    assert len(configs) > 5
    for config in configs:
        assert told(config) == of_front(config)


def test_only_what_units_need_is_kept_back(tmp_path: Path) -> None:
    kept_back = {"env", "systemd", "cmd_stop", "macros", "podman", "docker", "named_port"}
    for config in made(tmp_path):
        other = told(config)
        assert [*other.models] == [*config.models]
        for model, shown in zip(config.models.values(), other.models.values(), strict=True):
            changed = {name for name, value in model if value != getattr(shown, name)}
            assert changed <= kept_back
            assert shown.fingerprint == model.fingerprint != ""
        assert {name for name, value in config if value != getattr(other, name)} <= {"models", "systemd", "macros"}


def test_what_only_the_model_may_know_is_not_told() -> None:
    secret: dict[str, Any] = {
        "env": (f"A={SECRET}",), "systemd": {"Environment": (f"A={SECRET}",)}, "cmd_stop": SECRET,
        "macros": {"a": SECRET}, "podman": Container(image=SECRET), "docker": Container(args=(SECRET,)),
    }  # fmt: skip
    config = Config(
        models={"m": ModelConfig(id="m", cmd="serve", proxy="", **secret)},
        macros={"a": SECRET},
        systemd={"Environment": (SECRET,)},
    )
    assert SECRET not in to_front(config)
    assert json.loads(to_front(config)) == {"models": {"m": {"id": "m", "cmd": "serve", "proxy": ""}}}


@pytest.mark.parametrize(
    ("model", "is_named"),
    [
        ({"env": ("PORT=5800",), "proxy": "http://h:5800"}, True),
        ({"env": ("PORT=5801",), "proxy": "http://h:5800"}, False),
        ({"env": ("PORT=80",), "proxy": "http://h/x"}, True),
        ({"cmd": "serve 443", "proxy": "https://h"}, True),
        ({"proxy": ""}, False),
    ],
)
def test_whose_the_port_is_is_known_without_the_environment(model: dict[str, Any], is_named: bool) -> None:
    other = told(Config(models={"m": ModelConfig(id="m", **model)})).models["m"]
    assert [other.names_port(port) for port in (5800, 80, 443)].count(True) == is_named
    assert not other.names_port(5801)


# ---- what the launcher did not know


def deferred() -> Config:
    return Config(
        api_keys=("${env.X}", "plain"),
        models={"m": ModelConfig(id="m", proxy="", filters=Filters(set_params={"a": [{"b": "<${env.X}>", "c": 1}]}))},
        peers={"p": Peer(id="p", api_key="${env.X}", filters=Filters(set_params_by_id={"q": {"d": "${env.X}"}}))},
    )


def test_what_was_left_open_is_filled_in() -> None:
    config = told(deferred(), X="one")
    assert config.api_keys == ("one", "plain")
    assert config.models["m"].filters.set_params == {"a": [{"b": "<one>", "c": 1}]}
    assert (config.peers["p"].api_key, config.peers["p"].filters.set_params_by_id) == ("one", {"q": {"d": "one"}})


def test_a_credential_wins_over_a_variable() -> None:
    assert from_launcher(to_front(deferred()), {"X": "variable"}, {"X": "one"}).api_keys[0] == "one"
    assert from_launcher(to_front(deferred()), {"X": "variable"}, {}).api_keys[0] == "variable"


def test_what_is_missing_is_named_with_each_place_and_the_remedy() -> None:
    remedy = "write it to /etc/llamaswapd/credentials/X"
    problem = f"environment variable 'X' is not set, and there is no credential of that name; {remedy}"
    assert refusals(deferred()) == [
        f"apiKeys[0]: {problem}",
        f"models.m.filters.setParams.a[0].b: {problem}",
        f"peers.p.apiKey: {problem}",
        f"peers.p.filters.setParamsByID.q.d: {problem}",
    ]


@pytest.mark.parametrize("value", ["", f"{SECRET} ", f"{SECRET}\n", f"{SECRET}\udcff"])
def test_what_is_filled_in_is_judged_like_what_was_written(value: str) -> None:
    problems = refusals(Config(api_keys=("${env.X}",)), X=value)
    assert [problem for problem in problems if problem.startswith("apiKeys[0]: ")]
    assert SECRET not in str(problems)


def test_the_store_is_ours_to_write(tmp_path: Path) -> None:
    assert "create it" in refusals(Config(store=Store(path="/nowhere/at/all")))[0]
    assert told(Config(store=Store(path=str(tmp_path / "a")))).store is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        '{"models": 5}',
        f'{{"later": "{SECRET}"}}',
        f'{{"startPort": "{SECRET}"}}',
        '{"models":{"m":{"ttl":"s3cr3t"}}}',
    ],
)
def test_what_another_version_says_is_refused_without_telling_it(text: str) -> None:
    with pytest.raises(ConfigError, match="systemctl restart llamaswapd-launcher llamaswapd") as caught:
        from_launcher(text, {}, {})
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__  # else a traceback would tell it
