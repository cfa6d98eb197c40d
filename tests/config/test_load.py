from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamaswapd.config.load import load, sources
from llamaswapd.config.schema import Config, Store
from llamaswapd.errors import ConfigError

if TYPE_CHECKING:
    from conftest import Complain, Load


def refusal(*arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*arguments)  # type: ignore[arg-type]
    return str(caught.value)


# ---- sources -------------------------------------------------------------------------------------------------------


def test_a_directory_is_read_by_file_name_after_the_file(tmp_path: Path) -> None:
    directory = tmp_path / "conf.d"
    (directory / "sub.yaml").mkdir(parents=True)
    for name in ("b.yaml", "a.yml", "Z.yaml", "c.txt", "d.yaml.bak", ".yaml"):
        (directory / name).touch()
    (tmp_path / "main.yaml").touch()
    found = sources([tmp_path / "main.yaml"], directory)
    assert [path.name for path in found] == ["main.yaml", ".yaml", "Z.yaml", "a.yml", "b.yaml"]


def test_a_link_that_cannot_be_followed_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    (file := tmp_path / "a.yaml").symlink_to("n" * 300)
    assert sources([], tmp_path) == [file]
    assert refusal([], tmp_path).endswith(f"failed to read config {file}: open {file}: file name too long")


def test_something_must_be_given() -> None:
    assert refusal([]) == "at least one of -config or -config-dir must be provided"


def test_an_empty_directory_is_no_source(tmp_path: Path) -> None:
    assert "no configuration sources found" in refusal([], tmp_path)


def test_a_directory_must_exist(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    assert refusal([], folder) == f"-config-dir {folder}: open {folder}: no such file or directory"


def test_a_file_may_not_come_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").touch()
    monkeypatch.chdir(tmp_path)
    text = f"-config path a.yaml is also present in -config-dir {tmp_path}; remove it from one"
    assert text in refusal(["a.yaml"], tmp_path)


def test_every_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"a: \xff")
    missing = tmp_path / "missing"
    text = refusal([missing, tmp_path, tmp_path / "binary"])
    assert f"failed to read config {missing}: open {missing}: no such file or directory" in text
    assert f"failed to read config {tmp_path}: read {tmp_path}: is a directory" in text
    assert "byte 3 is no UTF-8" in text


def test_every_file_that_is_no_yaml_is_named(complaints: Complain) -> None:
    found = complaints("a: [", "b: {", "- c")
    assert [problem.split(":")[0] for problem in found] == ["a.yaml", "b.yaml", "c.yaml"]


@pytest.mark.parametrize("text", ["", "# comment\n", "---\n", "{}", "models:\n"])
def test_empty_files_make_an_empty_configuration(load_text: Load, text: str) -> None:
    loaded = load_text(text, text)
    assert loaded.config == Config()
    assert not loaded.warnings


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfglobalTTL: 3\n")
    assert load([tmp_path / "c.yaml"]).config.global_ttl == 3


# ---- the whole -----------------------------------------------------------------------------------------------------


def test_a_model_gets_its_defaults(load_text: Load) -> None:
    model = load_text("models: {m: {cmd: 'x --port ${PORT}'}}").config.models["m"]
    assert model.id == "m"
    assert model.cmd == "x --port 5800"
    assert model.proxy == "http://localhost:5800"
    assert model.check_endpoint == "/health"
    assert (model.ttl, model.unload_timeout, model.health_check_timeout) == (0, 10, 120)
    assert (model.send_loading_state, model.unlisted, model.slots) == (False, False, 10)
    assert (model.aliases, model.env, model.systemd, model.metadata) == ((), (), {}, {})


def test_a_real_file_loads_whole(load_text: Load) -> None:
    source = r"""
        healthCheckTimeout: 300
        logLevel: debug
        macros:
          llama: /opt/llama-server --port ${PORT} -ngl 99
          models: ${env.MODELS}
        groups:
          chat: {members: [author/chat:Q4, coder]}
          small: {swap: false, exclusive: false, persistent: true, members: [emb]}
        hooks: {on_startup: {preload: [embeddings]}}
        models:
          author/chat:Q4:
            cmd: |
              ${llama}
              # the big one
              -m ${models}/chat.gguf \
              --jinja
            aliases: [gpt-4o, gpt-4o-mini]
            ttl: 600
            filters: {stripParams: "top_k, temperature,,top_k", setParams: {model: x, seed: 7}}
          coder:
            cmd: podman run --name ${MODEL_ID} -p ${PORT}:8080 vllm
            cmdStop: podman stop ${MODEL_ID}
            useModelName: Qwen/Qwen3
            checkEndpoint: v1/models
            concurrencyLimit: 2
            systemd: {MemoryMax: 24G}
          emb: {cmd: "${llama} -m emb.gguf --embeddings", aliases: [embeddings], unlisted: true}
    """
    loaded = load_text(source, environ={"MODELS": "/srv/models"})
    config = loaded.config
    assert not loaded.warnings
    chat = config.resolve("gpt-4o")
    assert chat is not None
    assert chat.cmd == "/opt/llama-server --port 5800 -ngl 99\n-m /srv/models/chat.gguf \\\n--jinja\n"
    assert chat.filters.strip_params == ("temperature", "top_k")
    assert chat.filters.set_params == {"seed": 7}
    assert config.models["coder"].cmd_stop == "podman stop coder"
    assert config.models["coder"].slots == 2
    assert config.hooks.on_startup.preload == ("emb",)
    assert config.groups["small"].persistent


def test_all_kinds_of_problems_are_reported_together(complaints: Complain) -> None:
    source = """
        startPort: 0
        globalTTL: many
        logToStdout: everything
        macros: {PORT: 1}
        apiKeys: [""]
        groups: {g: {members: [nobody], swap: perhaps}}
        models:
          a: {cmd: [x], proxy: ftp://h, ttl: -2}
          b: {cmd: "${none} ${PORT}", aliases: x}
    """
    paths = [problem.split(": ")[1] for problem in complaints(source)]
    assert sorted(paths) == sorted(
        [
            "startPort", "globalTTL", "logToStdout", "macros.PORT", "apiKeys[0]", "groups.g.swap",
            "groups.g.members[0]", "models.a.cmd", "models.a.proxy", "models.a.ttl", "models.b.cmd", "models.b.aliases",
        ]
    )  # fmt: skip


def test_problems_come_in_the_order_of_validation(complaints: Complain) -> None:
    source = """
        apiKeys: [""]
        groups: {g: {members: [nobody]}}
        models:
          b: {cmd: "${none}", proxy: http://h}
          a: {cmd: x, proxy: http://h, ttl: -2, aliases: [n, n]}
        globalTTL: -1
        macros: {PORT: 1}
        startPort: x
    """
    paths = [problem.split(": ")[1] for problem in complaints(source)]
    assert paths == [
        "macros.PORT", "models.b.cmd", "startPort", "globalTTL", "models.a.aliases[1]", "models.a.ttl",
        "groups.g.members[0]", "apiKeys[0]",
    ]  # fmt: skip


# ---- the store -----------------------------------------------------------------------------------------------------


def store_problem(complaints: Complain, path: Path) -> str:
    (found,) = complaints(f"store: {{path: {path}}}")
    return found.partition(": ")[2]


def test_a_store_may_be_new_or_there(load_text: Load, tmp_path: Path) -> None:
    path = tmp_path / "activity.db"
    load_text(f"store: {{path: {path}}}")
    assert not path.exists()  # nothing is made before it is used
    path.touch()
    assert load_text(f"store: {{path: {path}}}").config.store == Store(path=str(path))


def test_a_store_cannot_be_a_directory(complaints: Complain, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert store_problem(complaints, tmp_path / "there") == "store.path: store.path: there is a directory, not a file"


def test_a_store_needs_its_directory(complaints: Complain, tmp_path: Path) -> None:
    found = store_problem(complaints, tmp_path / "none" / "activity.db")
    assert found.startswith("store.path: store.path: directory ")
    assert "is not writable: no such file or directory" in found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_must_be_writable(complaints: Complain, tmp_path: Path) -> None:
    (path := tmp_path / "activity.db").touch(mode=0o400)
    assert "activity.db is not writable: " in store_problem(complaints, path)


# ---- ports of running models ---------------------------------------------------------------------------------------


def ports(tmp_path: Path, text: str, running: Mapping[str, int]) -> dict[str, int | None]:
    (tmp_path / "c.yaml").write_text(text)
    return {id_: model.port for id_, model in load([tmp_path / "c.yaml"], ports=running).config.models.items()}


def with_ports(*ids: str) -> str:
    models = ", ".join(f"'{id_}': {{cmd: 'x ${{PORT}}'}}" for id_ in ids)
    return f"startPort: 6000\nmodels: {{{models}}}\n"


def test_a_running_model_keeps_its_port_and_the_others_count_past_it(tmp_path: Path) -> None:
    found = ports(tmp_path, with_ports("a", "b", "c", "d"), {"b": 6000, "d": 7000})
    assert found == {"a": 6001, "b": 6000, "c": 6002, "d": 7000}


def test_the_kept_port_is_the_one_that_macros_get(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("models: {m: {cmd: 'x ${PORT}', env: ['P=${PORT}']}}")
    model = load([tmp_path / "c.yaml"], ports={"m": 7000}).config.models["m"]
    assert (model.cmd, model.env, model.proxy) == ("x 7000", ("P=7000",), "http://localhost:7000")


def test_the_port_of_a_unit_that_has_left_the_file_is_nobodys(tmp_path: Path) -> None:
    assert ports(tmp_path, with_ports("b"), {"gone": 6000}) == {"b": 6001}


def test_a_model_that_uses_no_port_any_more_gets_none_and_leaves_it_to_nobody(tmp_path: Path) -> None:
    text = with_ports("b").replace("models: {", "models: {a: {cmd: x, proxy: http://h}, ")
    assert ports(tmp_path, text, {"a": 6000}) == {"a": None, "b": 6001}


IDS = st.sets(st.sampled_from("abcdefgh"), min_size=1)
RUNNING = st.dictionaries(st.sampled_from("abcdefghxyz"), st.integers(5998, 6010))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(IDS, RUNNING)
def test_no_two_models_share_a_port(tmp_path: Path, ids: set[str], running: dict[str, int]) -> None:
    found = ports(tmp_path, with_ports(*ids), running)
    assert len(set(found.values())) == len(ids)
    holders: dict[int, list[str]] = {}
    for id_ in sorted(ids & set(running)):
        holders.setdefault(running[id_], []).append(id_)
    kept = {first: port for port, (first, *_) in holders.items()}
    assert found == {**found, **kept}
    others = [found[id_] for id_ in sorted(ids - set(kept))]
    assert others == [port for port in range(6000, 6100) if port not in running.values()][: len(others)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(IDS)
def test_loading_again_with_the_ports_there_are_changes_none(tmp_path: Path, ids: set[str]) -> None:
    found = ports(tmp_path, with_ports(*ids), {})
    assert list(found.values()) == list(range(6000, 6000 + len(ids)))
    assert ports(tmp_path, with_ports(*ids, "0"), {id_: port for id_, port in found.items() if port}) == {
        "0": 6000 + len(ids), **found,
    }  # fmt: skip


# ---- strict --------------------------------------------------------------------------------------------------------


def test_a_strict_load_takes_unknown_keys_for_errors(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("globalTtl: 5\nmodels: {m: {proxy: http://h, timeouts: {konnect: 1}}}\nqqq: 1\n")
    with pytest.raises(ConfigError) as caught:
        load([tmp_path / "c.yaml"], is_strict=True)
    assert [f"{problem.path}: {problem.message}" for problem in caught.value.problems] == [
        'globalTtl: unknown key; did you mean "globalTTL"?',
        'models.m.timeouts.konnect: unknown key; did you mean "connect"?',
        "qqq: unknown key",
    ]


def test_a_strict_load_lets_other_oddities_pass(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("logLevel: chatty\nlogRequests: true\n")
    assert len(load([tmp_path / "c.yaml"], is_strict=True).warnings) == 1
