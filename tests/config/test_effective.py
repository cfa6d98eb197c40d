from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llamaswapd.config.schema import ModelConfig, UpstreamSection

if TYPE_CHECKING:
    from conftest import Load


def model(load_text: Load, body: str, top: str = "") -> ModelConfig:
    return load_text(f"{top}\nmodels: {{m: {{proxy: http://h, {body}}}}}").config.models["m"]


@pytest.mark.parametrize(("own", "expected"), [("", 60), ("ttl: -1", 60), ("ttl: 0", 0), ("ttl: 5", 5)])
def test_ttl(load_text: Load, own: str, expected: int) -> None:
    assert model(load_text, own, "globalTTL: 60").ttl == expected


@pytest.mark.parametrize(("top", "own", "expected"), [("", "0", 10), ("0", "0", 10), ("7", "0", 7), ("7", "3", 3)])
def test_unload_timeout(load_text: Load, top: str, own: str, expected: int) -> None:
    assert model(load_text, f"unloadTimeout: {own}", f"unloadTimeout: {top}").unload_timeout == expected


@pytest.mark.parametrize(("top", "expected"), [("", 120), ("14", 15), ("-1", 15), ("600", 600)])
def test_health_check_timeout_is_the_global_one(load_text: Load, top: str, expected: int) -> None:
    assert model(load_text, "healthCheckTimeout: 33", f"healthCheckTimeout: {top}").health_check_timeout == expected


@pytest.mark.parametrize(
    ("top", "own", "expected"), [("", "", False), ("true", "", True), ("true", "off", False), ("", "true", True)]
)
def test_send_loading_state(load_text: Load, top: str, own: str, expected: bool) -> None:
    assert model(load_text, f"sendLoadingState: {own}", f"sendLoadingState: {top}").send_loading_state is expected


@pytest.mark.parametrize(("written", "slots"), [("0", 10), ("-3", 10), ("1", 1), ("50", 50)])
def test_slots(load_text: Load, written: str, slots: int) -> None:
    assert model(load_text, f"concurrencyLimit: {written}").slots == slots


@pytest.mark.parametrize(
    ("written", "effective"),
    [
        ("/health", "/health"), ("health", "/health"), ("' none '", "none"), ("'/a/?b=c#d'", "/a/?b=c"), ("''", "/"),
        ("'http://other:1/x?y'", "/x?y"), ("~", "/health"),
    ],
)  # fmt: skip
def test_check_endpoint(load_text: Load, written: str, effective: str) -> None:
    assert model(load_text, f"checkEndpoint: {written}").check_endpoint == effective


def test_unit_settings_of_the_model_replace_the_default_ones(load_text: Load) -> None:
    top = "systemd: {manager: user, MemoryMax: 1G, BindPaths: [/a, /b]}"
    assert model(load_text, "systemd: {BindPaths: /c, CPUWeight: 5}", top).systemd == {
        "MemoryMax": ("1G",),
        "BindPaths": ("/c",),
        "CPUWeight": ("5",),
    }


@pytest.mark.parametrize(
    ("body", "stripped"),
    [
        ("stripParams: ' b, a ,,b,model'", ("a", "b")),
        ("strip_params: a", ("a",)),
        ("stripParams: '', strip_params: a", ("a",)),
        ("stripParams: b, strip_params: a", ("b",)),
        ("stripParams: ${x}", ("a", "b")),
    ],
)
def test_strip_params(load_text: Load, body: str, stripped: tuple[str, ...]) -> None:
    body = body.replace("${x}", "'${x}'")
    assert model(load_text, f"filters: {{{body}}}", "macros: {x: 'b,a'}").filters.strip_params == stripped


def test_params_are_sorted_and_never_the_model(load_text: Load) -> None:
    filters = model(
        load_text, "filters: {setParams: {b: 1, model: x, a: {c: [1]}}, setParamsByID: {k: {model: y}}}"
    ).filters
    assert list(filters.set_params.items()) == [("a", {"c": [1]}), ("b", 1)]
    assert filters.set_params_by_id == {"k": {}}


def test_preloaded_names_become_ids(load_text: Load) -> None:
    top = "hooks: {on_startup: {preload: [' x ', '', nobody, m]}}"
    config = load_text(f"{top}\nmodels: {{m: {{proxy: http://h, aliases: [x]}}}}").config
    assert config.hooks.on_startup.preload == ("m", "m")


def test_ids_may_look_like_anything(load_text: Load) -> None:
    config = load_text("models: {123: {proxy: http://h}, true: {proxy: http://h}, a/b:c d.e: {proxy: http://h}}").config
    assert list(config.models) == ["123", "a/b:c d.e", "true"]
    assert [model.id for model in config.models.values()] == list(config.models)


def test_names_stay_as_written_for_those_who_show_them_so(load_text: Load) -> None:
    found = model(load_text, "name: ' A model ', description: ' the  best '")
    assert (found.name, found.description) == (" A model ", " the  best ")


@pytest.mark.parametrize(("written", "slots"), [("", 50), ("concurrencyLimit: 3", 50), ("concurrencyLimit: 80", 80)])
def test_the_comfyui_model_has_room_for_its_page(load_text: Load, written: str, slots: int) -> None:
    loaded = load_text(f"models: {{comfyui_auto: {{proxy: http://h, {written}}}}}")
    found = loaded.config.models["comfyui_auto"]
    assert (found.concurrency_limit, found.slots) == (slots, slots)
    assert found.compat.ignore_websockets
    assert found.ignores_websockets
    assert not loaded.warnings


@pytest.mark.parametrize(("written", "effective"), [("-1", 0), ("0", 0), ("7", 7), ("", 5)])
def test_capture_buffer(load_text: Load, written: str, effective: int) -> None:
    assert load_text(f"captureBuffer: {written}").config.capture_buffer == effective


@pytest.mark.parametrize(("written", "seconds"), [("0s", 5), ("5s", 5), ("1m30s", 90), ("", 5)])
def test_the_time_between_samples(load_text: Load, written: str, seconds: int) -> None:
    assert load_text(f"performance: {{every: {written}}}").config.performance.every == seconds


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("", ("X-Session-ID", "X-Litellm-Session-Id")),
        ("[]", ()),
        ("[' X-A ', '', x-a, X-B]", ("X-A", "X-B")),
    ],
)
def test_session_headers(load_text: Load, written: str, names: tuple[str, ...]) -> None:
    assert load_text(f"ui: {{activity: {{session_id: {written}}}}}").config.ui.activity.session_id == names


@pytest.mark.parametrize(("written", "paths"), [("['^/x']", ("^/x",)), ("[]", None), ("", None)])
def test_ignored_paths(load_text: Load, written: str, paths: tuple[str, ...] | None) -> None:
    found = load_text(f"upstream: {{ignorePaths: {written}}}").config.upstream.ignore_paths
    assert found == (paths or UpstreamSection().ignore_paths)


def test_models_of_peers_are_not_preloaded(load_text: Load) -> None:
    source = """
        hooks: {on_startup: {preload: [far, p/far, m]}}
        peers: {p: {proxy: http://h, models: [far]}}
        models: {m: {proxy: http://h}}
    """
    assert load_text(source).config.hooks.on_startup.preload == ("m",)
