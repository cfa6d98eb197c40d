"""Secrets of systemd's in a configuration: how they are read, where they may stand, and that nothing tells them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from test_fuzz import Maker

from llamaswapd.config import credentials
from llamaswapd.config.load import Loaded, load
from llamaswapd.config.schema import Config
from llamaswapd.errors import ConfigError

SECRET = "s3cr3t"

Read = Callable[..., Loaded]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function that loads a text with credentials given by name."""

    def read(text: str, *, environ: Mapping[str, str] | None = None, **given: Any) -> Loaded:
        file = tmp_path / "a.yaml"
        file.write_text(dedent(text), encoding="utf-8")
        options = {key: given.pop(key) for key in ("defers", "is_strict", "checks_store") if key in given}
        return load([file], environ=environ or {}, credentials=given, **options)

    return read


def refusals(read: Read, text: str, **given: Any) -> list[str]:
    """The problems of a text that is refused, without the file; none of them may tell the secret."""
    with pytest.raises(ConfigError) as caught:
        read(text, **given)
    told = [str(each) for each in (*caught.value.problems, *caught.value.warnings)]
    assert SECRET not in repr(caught.value) + "".join(told)
    return [problem.partition("a.yaml: ")[2] for problem in told]


def private_places(config: Config) -> list[object]:
    model, peer = config.models["m"], config.peers["p"]
    return [
        config.api_keys[0],
        model.env[0],
        model.filters.set_params["a"],
        model.filters.set_params_by_id["fast"]["b"],
        peer.api_key,
        peer.filters.set_params["c"],
    ]


PLACES = """
    apiKeys: [{0}]
    models:
      m:
        cmd: serve
        proxy: http://h:1
        env: [{1}]
        filters: {{setParams: {{a: {0}}}, setParamsByID: {{fast: {{b: [{{x: {0}}}]}}}}}}
    peers:
      p: {{proxy: "http://h:2", models: [x], apiKey: {0}, filters: {{setParams: {{c: {0}}}}}}}
"""


# ---- reading


def test_a_file_is_known_by_its_name_without_the_prefix_that_systemd_gave_it(tmp_path: Path) -> None:
    for name, content in {"A": "1\n", "llamaswapd.B": "2\n\n", "env_C": "3", "env_": "", "x-y": "", "D~": ""}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "directory").mkdir()
    assert credentials.read(tmp_path) == {"A": "1", "B": "2\n", "C": "3", "env_C": "3", "env_": ""}


def test_the_file_of_the_service_itself_wins_over_one_that_was_imported(tmp_path: Path) -> None:
    (tmp_path / "llamaswapd.A").write_text("imported")
    assert credentials.read(tmp_path)["A"] == "imported"
    (tmp_path / "env_A").write_text("loaded")
    assert credentials.read(tmp_path)["A"] == "loaded"
    (tmp_path / "A").write_text("named")
    assert credentials.read(tmp_path)["A"] == "named"


def test_without_a_directory_there_are_no_credentials(tmp_path: Path) -> None:
    assert credentials.read("") == credentials.read(tmp_path / "gone") == credentials.given({}) == {}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "A").write_text("")
    with pytest.raises(ConfigError, match=r"cannot read the credentials: .*/A: Not a directory"):
        credentials.read(tmp_path / "A")


def test_the_service_finds_its_credentials_by_its_environment(tmp_path: Path) -> None:
    (tmp_path / "KEY").write_text(f"{SECRET}\n")
    (tmp_path / "c.yaml").write_text("apiKeys: ['${env.KEY}']")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "KEY": "of the environment"}
    assert load([tmp_path / "c.yaml"], environ=environ).config.api_keys == (SECRET,)


# ---- where they may stand


@pytest.mark.parametrize("quoted", ["${{env.X}}", '"${{env.X}}"', "'${{env.X}}'"])
@pytest.mark.parametrize(
    "value", [SECRET, 'a"b\\c', "a:", "-", "&a", "*a", "%", "a#b", "#", "[", "{}", "true", "5", "${macro}", "üñ"]
)
def test_a_credential_stands_for_itself_whatever_it_holds(read: Read, quoted: str, value: str) -> None:
    reference = quoted.replace("{{", "{").replace("}}", "}")
    variable = reference.replace("${", "T=${")
    config = read(PLACES.format(reference, variable), X=value).config
    assert private_places(config) == [value, f"T={value}", value, [{"x": value}], value, value]


def test_it_may_be_a_part_of_a_value_and_come_by_way_of_a_macro(read: Read) -> None:
    text = """
        macros: {one: "${env.X}", both: "<${one}>"}
        models:
          m: {cmd: serve, proxy: "http://h:1", macros: {own: "${env.X}!"}, env: ["A=${both}", "B=x${own}y"]}
    """
    config = read(text, X=SECRET).config
    assert config.models["m"].env == (f"A=<{SECRET}>", f"B=x{SECRET}!y")
    assert SECRET not in f"{config.macros} {config.models['m'].macros} {config.models['m']!r} {config!r}"


def test_a_variable_may_refer_to_a_credential(read: Read) -> None:
    assert read('apiKeys: ["${env.A}"]', environ={"A": "${env.X}"}, X=SECRET).config.api_keys == (SECRET,)


def test_a_model_may_have_a_credential_of_several_lines_in_its_environment(read: Read) -> None:
    text = "models: {m: {cmd: serve, proxy: 'http://h:1', env: ['CERT=${env.X}']}}"
    assert read(text, X="a: b #\n\tb\n").config.models["m"].env == ("CERT=a: b #\n\tb\n",)


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ("cmd: 'serve --key ${env.X}'", "cmd"),
        ("cmd: serve, cmdStop: 'stop ${env.X}'", "cmdStop"),
        ("cmd: serve, proxy: 'http://u:${env.X}@h:1'", "proxy"),
        ("cmd: serve, name: '${env.X}'", "name"),
        ("cmd: serve, metadata: {a: [{b: '${env.X}'}]}", "metadata.a[0].b"),
        ("cmd: serve, aliases: ['${env.X}']", "aliases[0]"),
        ("cmd: serve, ttl: '${env.X}'", "ttl"),
        ("cmd: serve, env: '${env.X}'", "env"),
        ("cmd: serve, filters: '${env.X}'", "filters"),
        ("cmd: serve, filters: {setParams: '${env.X}'}", "filters.setParams"),
        ("cmd: serve, filters: {stripParams: '${env.X}'}", "filters.stripParams"),
        ("cmd: serve, filters: {setParams: {'${env.X}': 1}}", "filters.setParams.${env.X}"),
        ("cmd: serve, filters: {setParamsByID: {a: '${env.X}'}}", "filters.setParamsByID.a"),
        ("cmd: serve, filters: {setParamsByID: {'${env.X}': {}}}", "filters.setParamsByID.${env.X}"),
        ("cmd: serve, systemd: {Environment: 'A=${env.X}'}", "systemd.Environment"),
        ("podman: {image: i, args: ['${env.X}']}", "podman.args[0]"),
    ],
)
def test_where_others_could_read_it_a_credential_is_refused(read: Read, keys: str, path: str) -> None:
    remedy = "put it into the value of a variable in env, or hand it to the model by LoadCredential= in systemd"
    problem = f"credential 'X' could be read by others here; {remedy}"
    assert f"models.m.{path}: {problem}" in refusals(read, f"models: {{m: {{{keys}}}}}", X=SECRET)
    by_macro = f"macros: {{x: '${{env.X}}'}}\nmodels: {{m: {{{keys.replace('env.X', 'x')}}}}}"
    if "'${env.X}':" not in keys:
        assert f"models.m.{path}: {problem}" in refusals(read, by_macro, X=SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "models: {'${env.X}': {cmd: serve}}", "apiKeys: ${env.X}", "startPort: ${env.X}", "store: {path: '${env.X}'}",
        "peers: {p: {proxy: 'http://${env.X}', models: [x]}}", "peers: {p: {proxy: 'http://h', models: ['${env.X}']}}",
        "systemd: {Environment: 'A=${env.X}'}", "profiles: {p: {pins: {a: '${env.X}'}}}", "groups: {'${env.X}': {}}",
        "hooks: {on_startup: {preload: ['${env.X}']}}", "logLevel: ${env.X}", "models: '${env.X}'",
    ],
)  # fmt: skip
def test_nothing_else_at_the_top_may_hold_one(read: Read, text: str) -> None:
    assert [each for each in refusals(read, text, X=SECRET) if "credential 'X' could be read by others here; " in each]


def test_the_refusal_is_the_only_problem(read: Read) -> None:
    assert len(refusals(read, "models: {m: {cmd: 'a ${PORT}', proxy: 'x${env.X}', readyLog: '('}}", X=SECRET)) == 2


def test_the_name_of_a_variable_is_no_place_for_a_secret(read: Read) -> None:
    (problem,) = refusals(read, "models: {m: {cmd: s, proxy: 'http://h:1', env: ['${env.X}']}}", X=f"A={SECRET}")
    assert problem == "models.m.env[0]: credential 'X' may only be in the value of a variable; write NAME= before it"


@pytest.mark.parametrize(
    ("text", "value", "problem"),
    [
        ("apiKeys: ['${env.X}']", f"{SECRET}\n", "holds line breaks or other control characters, which no key may"),
        ("apiKeys: ['${env.X}']", f"{SECRET}\r", "holds line breaks or other control characters, which no key may"),
        ("apiKeys: ['${env.X}']", f"{SECRET}\udcff", "is not UTF-8; encode it, for example as base64"),
        ("apiKeys: ['${env.X}']", SECRET + "${env.Y}", "refers to another variable; write the value itself"),
        ("models: {m: {cmd: s, proxy: 'http://h:1', env: ['A=${env.X}']}}", f"{SECRET}\0",
         "holds control characters, which no variable may; use LoadCredential= in systemd"),
        ("models: {m: {cmd: s, proxy: 'http://h:1', env: ['A=${env.X}']}}", f"{SECRET}\udcff",
         "is not UTF-8; encode it, for example as base64"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named_not_told(read: Read, text: str, value: str, problem: str) -> None:
    (found,) = refusals(read, text, X=value, Y="")[:1]
    assert found.partition(": ")[2] == f"credential 'X' {problem}"


def test_an_empty_credential_is_no_key(read: Read) -> None:
    assert any("empty api key" in each for each in refusals(read, "apiKeys: ['${env.X}']", X=""))


def test_what_nobody_refers_to_may_hold_anything(read: Read) -> None:
    assert read("# ${env.X}\nglobalTTL: 1", X="\udcff\0", Y="").config.global_ttl == 1


def test_the_fingerprint_covers_the_value(read: Read) -> None:
    text = "models: {m: {cmd: serve, proxy: 'http://h:1', env: ['A=${env.X}']}}"
    assert len({read(text, X=value).config.models["m"].fingerprint for value in ("1", "2")}) == 2


def test_a_variable_that_is_not_set_says_how_to_check_a_file_with_credentials(read: Read) -> None:
    (problem,) = refusals(read, "apiKeys: ['${env.X}']")
    assert problem.endswith("llamaswapd check -credentials DIRECTORY")


def test_no_file_that_is_refused_or_loaded_tells_a_credential(tmp_path: Path) -> None:
    loaded = 0
    for seed in range(300):
        maker = Maker(seed)
        file = tmp_path / "a.yaml"
        file.write_text(maker.text(maker.damaged(maker.config())), encoding="utf-8", errors="surrogatepass")
        told: list[object] = []
        try:
            told.append(load([file], environ={}, credentials={"SET": SECRET, "UNSET": SECRET}))
            loaded += 1
        except ConfigError as refusal:
            told += [refusal, *refusal.warnings]
        assert SECRET not in f"{told}", seed
    assert loaded


# ---- what is not known yet


def test_what_is_for_requests_may_wait(read: Read) -> None:
    config = read(PLACES.format("${env.X}", "A=1"), defers=True).config
    reference = "${env.X}"
    assert private_places(config) == [reference, "A=1", reference, [{"x": reference}], reference, reference]


@pytest.mark.parametrize("keys", ["cmd: 's ${env.X}'", "cmd: s, env: ['A=${env.X}']", "cmd: s, name: '${m}'"])
def test_what_the_unit_needs_may_not_wait(read: Read, keys: str) -> None:
    text = f"macros: {{m: '${{env.X}}'}}\nmodels: {{m: {{proxy: 'http://h:1', {keys}}}}}"
    (problem,) = refusals(read, text, defers=True)
    assert problem.endswith(
        ": environment variable 'X' is not set, and there is no credential of that name; "
        "write it to /etc/llamaswapd/credentials/X"
    )


def test_the_store_is_not_looked_at_where_it_is_not_ours(read: Read) -> None:
    text = "store: {path: /nowhere/at/all}"
    assert read(text, checks_store=False).config.store is not None
    assert "create it" in refusals(read, text)[0]


def test_masked_credentials_keep_their_names() -> None:
    assert credentials.masked({"A": SECRET}) == {"A": "***"}
