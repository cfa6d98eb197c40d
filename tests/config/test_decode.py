from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llamaswapd.config.decode import fields_by_key
from llamaswapd.config.schema import Config, Filters, ModelConfig

if TYPE_CHECKING:
    from conftest import Complain, Load


def test_keys_are_the_camel_cased_fields() -> None:
    assert set(fields_by_key(Filters)) == {"stripParams", "setParams", "setParamsByID"}
    assert {"globalTTL", "healthCheckTimeout", "apiKeys", "systemd.manager"} < set(fields_by_key(Config))
    assert {"cmdStop", "readyLog"} < set(fields_by_key(ModelConfig))
    assert not {"id", "port", "healthCheckTimeout"} & set(fields_by_key(ModelConfig))


# ---- scalars by type -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "y", "Y", "yes", "Yes", "YES", "on", "On", "ON", '"yes"'])
def test_words_that_mean_true(load_text: Load, word: str) -> None:
    assert load_text(f"includeAliasesInList: {word}").config.include_aliases_in_list is True


@pytest.mark.parametrize("word", ["false", "False", "FALSE", "n", "N", "no", "No", "NO", "off", "Off", "OFF"])
def test_words_that_mean_false(load_text: Load, word: str) -> None:
    group = load_text(f"groups: {{g: {{swap: {word}}}}}").config.groups["g"]
    assert group.swap is False


@pytest.mark.parametrize(
    ("written", "number"),
    [("30", 30), ("30.0", 30), ("30.5", 30), ("0x10", 16), ("1e18", 10**18), ("1_000", 1000), ("1e2", 100)],
)
def test_whole_numbers(load_text: Load, written: str, number: int) -> None:
    assert load_text(f"globalTTL: {written}").config.global_ttl == number


def test_text_is_taken_as_written(load_text: Load) -> None:
    source = "models: {m: {cmd: x, proxy: http://h, aliases: [123, 1.50, on, 0x10, ~, true], name: 2024-01-02}}"
    model = load_text(source).config.models["m"]
    assert model.aliases == ("123", "1.50", "on", "0x10", "true")
    assert model.name == "2024-01-02"


@pytest.mark.parametrize(
    ("body", "path", "text"),
    [
        ('globalTTL: "30"', "globalTTL", "line 1: cannot unmarshal !!str `30` into int"),
        ("apiKeys: hush", "apiKeys", "cannot unmarshal !!str into []string"),
        ("models: {m: {env: A=hush}}", "models.m.env", "cannot unmarshal !!str into []string"),
        ("globalTTL: yes", "globalTTL", "cannot unmarshal !!str `yes` into int"),
        ("globalTTL: true", "globalTTL", "cannot unmarshal !!bool `true` into int"),
        ("globalTTL: 1e30", "globalTTL", "cannot unmarshal !!float `1e30` into int"),
        ("globalTTL: .inf", "globalTTL", "cannot unmarshal !!float `.inf` into int"),
        ("globalTTL: 12345678901234567890", "globalTTL", "cannot unmarshal !!int `1234567...` into int"),
        ("globalTTL: [1]", "globalTTL", "cannot unmarshal !!seq into int"),
        ('sendLoadingState: "true"', "sendLoadingState", "cannot unmarshal !!str `true` into bool"),
        ("sendLoadingState: yES", "sendLoadingState", "cannot unmarshal !!str `yES` into bool"),
        ("sendLoadingState: 1", "sendLoadingState", "cannot unmarshal !!int `1` into bool"),
        ("apiKeys: [a, [b]]", "apiKeys[1]", "cannot unmarshal !!seq into string"),
        ("models: [m]", "models", "cannot unmarshal !!seq into map"),
        ("models: {m: x}", "models.m", "cannot unmarshal !!str `x` into map"),
        ("models: {m: {cmd: [x]}}", "models.m.cmd", "cannot unmarshal !!seq into string"),
        ("models: {m: {env: {A: b}}}", "models.m.env", "cannot unmarshal !!map into []string"),
        ("models: {m: {filters: {stripParams: [a]}}}", "models.m.filters.stripParams", "!!seq into string"),
        ("models: {m: {metadata: [a]}}", "models.m.metadata", "cannot unmarshal !!seq into map"),
        ("models: {m: {systemd: {MemoryMax: {a: 1}}}}", "models.m.systemd.MemoryMax", "!!map into string"),
        ("hooks: {on_startup: {preload: m}}", "hooks.on_startup.preload", "cannot unmarshal !!str `m` into []string"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(complaints: Complain, body: str, path: str, text: str) -> None:
    body = body.replace("{m: {", "{m: {proxy: http://h, ")
    (found,) = complaints(body)
    assert found.startswith(f"a.yaml: {path}: yaml: unmarshal errors: ")
    assert text in found


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("globalTTL", 0),
        ("startPort", 5800),
        ("apiKeys", ()),
        ("logLevel", "info"),
        ("groups", {}),
        ("includeAliasesInList", False),
    ],
)
def test_null_means_the_default(load_text: Load, key: str, default: object) -> None:
    config = load_text(f"{key}:").config
    field, _hint = fields_by_key(Config)[key]
    assert getattr(config, field) == default


def test_null_inside_a_mapping_of_anything_stays(load_text: Load) -> None:
    source = "models: {m: {proxy: http://h, metadata: {a: ~}, filters: {setParams: {stop: ~}, setParamsByID: {k: ~}}}}"
    model = load_text(source).config.models["m"]
    assert model.metadata == {"a": None}
    assert model.filters.set_params == {"stop": None}
    assert model.filters.set_params_by_id == {"k": {}}


# ---- choices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "level"), [("debug", "debug"), ("' WARN '", "warn"), ("Error", "error")])
def test_case_and_blanks_of_the_log_level_do_not_count(load_text: Load, written: str, level: str) -> None:
    assert load_text(f"logLevel: {written}").config.log_level == level


def test_an_unknown_log_level_or_time_format_means_the_default(load_text: Load) -> None:
    loaded = load_text("logLevel: chatty\nlogTimeFormat: sundial")
    assert (loaded.config.log_level, loaded.config.log_time_format) == ("info", "")
    assert len(loaded.warnings) == 2


@pytest.mark.parametrize("written", ["rfc3339", "RFC3339", "Kitchen", "stampNano"])
def test_log_time_formats(load_text: Load, written: str) -> None:
    loaded = load_text(f"logTimeFormat: {written}")
    assert loaded.config.log_time_format == written.lower()
    assert not loaded.warnings


@pytest.mark.parametrize("written", ["Proxy", "all", "''"])
def test_log_to_stdout_is_one_of_four(complaints: Complain, written: str) -> None:
    assert "logToStdout must be one of: proxy, upstream, both, none" in complaints(f"logToStdout: {written}")[0]


def test_the_manager_stands_in_the_systemd_block(load_text: Load, complaints: Complain) -> None:
    assert load_text("systemd: {manager: private}").config.manager == "private"
    (found,) = complaints("systemd: {manager: docker}")
    assert found.startswith("a.yaml: systemd.manager: manager must be one of: auto, system, user, private")


# ---- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "path", "nearest"),
    [
        ("globalTtl: 5", "globalTtl", "globalTTL"),
        ("model: {}", "model", "models"),
        ("models: {m: {proxy: http://h, checkEndPoint: /}}", "models.m.checkEndPoint", "checkEndpoint"),
        ("models: {m: {proxy: http://h, filters: {stripParam: x}}}", "models.m.filters.stripParam", "stripParams"),
        ("groups: {g: {member: []}}", "groups.g.member", "members"),
        ("hooks: {onStartup: {}}", "hooks.onStartup", "on_startup"),
    ],
)
def test_an_unknown_key_is_a_warning_with_the_nearest_known_one(
    load_text: Load, body: str, path: str, nearest: str
) -> None:
    (warning,) = load_text(body).warnings
    assert warning.path == path
    assert f'unknown key, ignored; did you mean "{nearest}"?' in warning.message


def test_an_unknown_key_like_no_other_is_a_warning_too(load_text: Load) -> None:
    (warning,) = load_text("x-anchors: {a: 1}").warnings
    assert warning.message == "unknown key, ignored"


@pytest.mark.parametrize("key", ["id", "port"])
def test_what_the_loader_fills_in_cannot_be_written(load_text: Load, key: str) -> None:
    loaded = load_text(f"models: {{m: {{proxy: http://h, {key}: 5}}}}")
    assert [warning.path for warning in loaded.warnings] == [f"models.m.{key}"]
    assert (loaded.config.models["m"].id, loaded.config.models["m"].port) == ("m", None)


@pytest.mark.parametrize(
    ("body", "path", "nearest"),
    [
        (
            "selectors: {s: {strategy: pin, targets: [m], settings: {spilover: 1}}}",
            "selectors.s.settings.spilover",
            "spillover",
        ),
        ("models: {m: {proxy: http://h, capabilities: {tool: true}}}", "models.m.capabilities.tool", "tools"),
        ("models: {m: {proxy: http://h, timeouts: {keepAlive: 1}}}", "models.m.timeouts.keepAlive", "keepalive"),
        (
            "models: {m: {proxy: http://h, compat: {ignoreWebSockets: on}}}",
            "models.m.compat.ignoreWebSockets",
            "ignoreWebsockets",
        ),
        ("peers: {p: {proxy: http://h, models: [x], api_key: k}}", "peers.p.api_key", "apiKey"),
        ("profiles: {p: {pins: {x: ~}, pin: 1}}", "profiles.p.pin", "pins"),
        (
            "routing: {scheduler: {settings: {fifo: {priorities: {}}}}}",
            "routing.scheduler.settings.fifo.priorities",
            "priority",
        ),
        ("ui: {activity: {sessionId: []}}", "ui.activity.sessionId", "session_id"),
        ("performance: {evry: 5s}", "performance.evry", "every"),
        ("upstream: {ignorepaths: []}", "upstream.ignorepaths", "ignorePaths"),
    ],
)
def test_an_unknown_key_deep_down_is_a_warning_too(load_text: Load, body: str, path: str, nearest: str) -> None:
    body = body if body.startswith("models") else f"models: {{m: {{proxy: http://h}}}}\n{body}"
    (warning,) = load_text(body).warnings
    assert (warning.path, warning.message) == (path, f'unknown key, ignored; did you mean "{nearest}"?')


@pytest.mark.parametrize(
    "body",
    [
        "logRequests: true",
        "models: {m: {proxy: http://h, healthCheckTimeout: 5}}",
        "models: {m: {proxy: http://h, filters: {strip_params: a}}}",
        "peers:",
    ],
)
def test_keys_without_effect_are_accepted_silently(load_text: Load, body: str) -> None:
    assert not load_text(body).warnings


def test_kept_numbers_are_validated(complaints: Complain) -> None:
    assert len(complaints("metricsMaxInMemory: x\ncaptureBuffer: x")) == 2


# ---- unit settings -------------------------------------------------------------------------------------------------


def test_unit_settings_are_text_as_written(load_text: Load) -> None:
    source = """
        models:
          m:
            proxy: http://h
            systemd: {MemoryMax: 24G, CPUWeight: 50, NoNewPrivileges: yes, PrivateTmp: true, MemorySwapMax: 0}
    """
    systemd = load_text(source).config.models["m"].systemd
    assert systemd == {
        "MemoryMax": ("24G",), "CPUWeight": ("50",), "NoNewPrivileges": ("yes",), "PrivateTmp": ("true",),
        "MemorySwapMax": ("0",),
    }  # fmt: skip


def test_unit_settings_may_be_lists_and_empty(load_text: Load) -> None:
    source = "models: {m: {proxy: http://h, systemd: {BindPaths: ['', /a, /b], MemoryMax: '', MemoryHigh: }}}"
    assert load_text(source).config.models["m"].systemd == {"BindPaths": ("", "/a", "/b"), "MemoryMax": ("",)}


def test_lower_case_keys_are_no_unit_settings(load_text: Load) -> None:
    loaded = load_text("systemd: {memoryMax: 1G}\nmodels: {m: {proxy: http://h, systemd: {manager: user}}}")
    assert sorted(warning.path for warning in loaded.warnings) == ["models.m.systemd.manager", "systemd.memoryMax"]
    assert loaded.config.models["m"].systemd == {}


@pytest.mark.parametrize(
    ("body", "meant"),
    [
        ("models: {m: {cmd: x, proxy: http://h, readyTimeout: 5}}", '"healthCheckTimeout", at the top level'),
        ("models: {m: {cmd: x, proxy: http://h, idleTimeout: 5}}", '"ttl"'),
        ("models: {m: {cmd: x, proxy: http://h, port: 9001}}", '"proxy"'),
        ("models: {m: {proxy: http://h, command: x}}", '"cmd"'),
        ("models: {m: {cmd: x, proxy: http://h}}\ngroups: {g: {models: [m]}}", '"members"'),
        ("peers: {p: {proxy: http://h, models: [m], host: h}}", '"proxy"'),
        ("port: 8080", "the option -listen"),
        ("readyTimeout: 60", '"healthCheckTimeout"'),
        ("idleTimeout: 60", '"globalTTL"'),
        ("ttl: 60", '"globalTTL"'),
    ],
)
def test_keys_of_other_programs_are_led_to_what_they_mean(load_text: Load, body: str, meant: str) -> None:
    [warning] = load_text(body).warnings
    assert warning.message.endswith(f"did you mean {meant}?")
