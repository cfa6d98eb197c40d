from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Complain, Load

M = "models: {m: {proxy: http://h}}\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("startPort: 0", "startPort: startPort must be greater than 1"),
        ("globalTTL: -1", "globalTTL: globalTTL must be >= 0"),
        ("unloadTimeout: -1", "unloadTimeout: unloadTimeout must be >= 0"),
        ("overtakeLimit: -1", "overtakeLimit: overtakeLimit must be >= 0"),
        ("drainTimeout: -1", "drainTimeout: drainTimeout must be >= 0; it is -1, write 0 to cut requests at once"),
        ("onStop: later", 'onStop: onStop must be one of: auto, keep, stop; "later" is none of them'),
        ('apiKeys: [a, ""]', "apiKeys[1]: empty api key found in apiKeys"),
        ('apiKeys: [a, "b c"]', "apiKeys[1]: apiKeys[1]: api key cannot contain spaces"),
        (M + "groups: {g: {members: [m, m]}}", "groups.g.members[1]: duplicate model member m found in group: g"),
        (
            M + "groups: {g: {members: [m]}, h: {members: [m]}}",
            "groups.h.members[0]: model member m is used in multiple groups: g and h",
        ),
        (M + "groups: {g: {members: [x]}}", 'groups.g.members[0]: no model config for "x"'),
        (
            M + "groups: {(default): {members: [m]}}",
            "groups.(default): (default) is the group of the models in no other",
        ),
        (M + "groups: {g: {members: [m]}}\nmatrix: {sets: {a: m}}", "config cannot use both 'groups' and 'matrix'"),
        ("systemd: {MemoryMaximum: 5}", "systemd.MemoryMaximum: "),
        ("performance: {every: 4s}", "performance.every: performance: every must be at least 5s, got 4s"),
        ("performance: {every: 4999ms}", "performance: every must be at least 5s, got 4.999s"),
        ("performance: {every: -1m}", "performance: every must be at least 5s, got -1m0s"),
        ("performance: {every: 15}", "cannot unmarshal !!int `15` into time.Duration"),
        ("performance: {every: soon}", "cannot unmarshal !!str `soon` into time.Duration"),
        ("store: {}", "store.path: store.path must not be empty"),
        ("store: {path: ' '}", "store.path: store.path must not be empty"),
        (
            "upstream: {ignorePaths: [a, '(?=b)']}",
            'upstream.ignorePaths[1]: upstream.ignorePaths: invalid regular expression "(?=b)": error parsing regexp: '
            "invalid or unsupported Perl syntax: `(?=`",
        ),
    ],
)
def test_the_whole_file(complaints: Complain, body: str, expected: str) -> None:
    (found,) = complaints(body)
    assert expected in found


@pytest.mark.parametrize(
    "body",
    [
        "startPort: 1", "globalTTL: 0", "unloadTimeout: 0", "overtakeLimit: 0", "drainTimeout: 0",
        "groups: {(default): {}}",
        "performance: {every: 5s}", "performance: {every: 0s}", "performance: {every: }", "performance:", "store:",
        "upstream: {ignorePaths: []}",
        "models: {m: {proxy: http://h, capabilities: {context: 0, in: [], out: [image]}}}",
    ],
)  # fmt: skip
def test_limits_are_themselves_allowed(load_text: Load, body: str) -> None:
    load_text(body)


def test_no_secret_is_repeated(complaints: Complain) -> None:
    assert "hush" not in complaints('apiKeys: ["hush hush"]')[0]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("ttl: -2", "models.m.ttl: model m: invalid TTL value -2"),
        ("unloadTimeout: -1", "models.m.unloadTimeout: model m: invalid unloadTimeout value -1"),
        ("aliases: [a, b, a]", "models.m.aliases[2]: duplicate alias a found in model: m"),
        ("readyLog: 'a('", 'models.m.readyLog: "a(" is no regular expression: '),
        ("readyLog: '[[a('", 'models.m.readyLog: "[[a(" is no regular expression: '),  # and nothing is said of the "[["
        ("systemd: {MemoryMax: lots}", "models.m.systemd.MemoryMax: "),
        (
            "capabilities: {in: [text, video]}",
            'models.m.capabilities.in[1]: model m: capabilities.in: invalid modality "video", '
            "must be one of: text, audio, image",
        ),
        (
            "capabilities: {out: [Text]}",
            'models.m.capabilities.out[0]: model m: capabilities.out: invalid modality "Text", must be one of: text',
        ),
        ("capabilities: {context: -1}", "models.m.capabilities.context: model m: capabilities.context: must be >= 0"),
        ("checkEndpoint: /%zz", 'models.m.checkEndpoint: "/%zz" is no path: invalid URL escape "%zz"'),
        ('checkEndpoint: "/a\\tb"', "models.m.checkEndpoint: "),
        *[
            (f"proxy: '{proxy}'", f"models.m.proxy: model m: invalid proxy URL: {why}")
            for proxy, why in [
                ("localhost", '"localhost" does not start with http:// or https://'),
                ("localhost:8080", '"localhost:8080" does not start with'),
                ("ftp://h", '"ftp://h" does not start with'),
                ("http://", '"http://" names no host'),
                ("http:///path", '"http:///path" names no host'),
                ("http://a b/", '"http://a b/" names no host'),
                ("http://h}/", '"http://h}/": invalid character "}" in host name'),
                ("http://h:port", '"http://h:port": '),
                ("http://h:70000", '"http://h:70000": '),
                ("http://[::1", '"http://[::1": '),
                ("http://h/%z", 'invalid URL escape "%z"'),
            ]
        ],
    ],
)
def test_one_model(complaints: Complain, body: str, expected: str) -> None:
    base = "" if body.startswith("proxy") else "proxy: http://h, "
    (found,) = complaints(f"models: {{m: {{{base}{body}}}}}")
    assert found.startswith(f"a.yaml: {expected}")


@pytest.mark.parametrize(
    "proxy", ["http://h", "https://h:1/base?q", "http://[::1]:80/", "http://u:p@h", "HTTP://h", "''"]
)
def test_proxies_that_are_fine(load_text: Load, proxy: str) -> None:
    load_text(f"models: {{m: {{proxy: {proxy!r}}}}}".replace('"', ""))


@pytest.mark.parametrize("endpoint", ["/health", "health", "''", "'/a?b=%zz'", "http://h/x", "/a%20b"])
def test_endpoints_that_are_fine(load_text: Load, endpoint: str) -> None:
    load_text(f"models: {{m: {{proxy: http://h, checkEndpoint: {endpoint}}}}}")


def test_an_empty_command_is_no_load_error(load_text: Load) -> None:
    assert load_text("models: {a: {proxy: http://h}, b: {cmd: '', proxy: ''}, c: }").config.models["c"].proxy == ""


def test_an_alias_belongs_to_one_model(complaints: Complain) -> None:
    source = "models: {b: {proxy: http://h, aliases: [x]}, a: {proxy: http://h, aliases: [x]}}"
    assert "models.b.aliases[0]: duplicate alias x found in model: b" in complaints(source)[0]


def test_an_alias_equal_to_an_id_is_never_used(load_text: Load) -> None:
    config = load_text("models: {a: {proxy: http://h, aliases: [b, a]}, b: {proxy: http://h}}").config
    assert {name: model.id for name in "ab" if (model := config.resolve(name))} == {"a": "a", "b": "b"}


# ---- setParamsByID -------------------------------------------------------------------------------------------------


def test_names_of_set_params_by_id_are_aliases(load_text: Load) -> None:
    source = "models: {m: {proxy: http://h, aliases: [x], filters: {setParamsByID: {m: {}, x: {}, m:low: {a: 1}}}}}"
    config = load_text(source).config
    assert config.models["m"].listed_aliases == ("x", "m:low")
    assert config.resolve("m:low") is config.models["m"]


def test_such_a_name_may_not_be_an_id(complaints: Complain) -> None:
    source = "models: {m: {proxy: http://h, filters: {setParamsByID: {n: {}}}}, n: {proxy: http://h}}"
    assert "model m filters.setParamsByID: key 'n' conflicts with an existing model ID" in complaints(source)[0]


@pytest.mark.parametrize("taken", ["aliases: [k]", "filters: {setParamsByID: {k: {}}}"])
def test_such_a_name_belongs_to_one_model(complaints: Complain, taken: str) -> None:
    source = (
        f"models: {{b: {{proxy: http://h, filters: {{setParamsByID: {{k: {{}}}}}}}}, a: {{proxy: http://h, {taken}}}}}"
    )
    (found,) = complaints(source)
    assert "duplicate alias 'k' in model b filters.setParamsByID, already used by model a" in found


# ---- warnings ------------------------------------------------------------------------------------------------------


def test_an_alias_as_group_member_is_ignored_with_a_warning(load_text: Load) -> None:
    loaded = load_text("models: {m: {proxy: http://h, aliases: [x]}}\ngroups: {g: {members: [x]}}")
    assert loaded.config.groups["g"].members == ()
    assert [(warning.path, '"m"' in warning.message) for warning in loaded.warnings] == [("groups.g.members[0]", True)]


def test_a_drain_that_outlasts_the_unit_is_a_warning(load_text: Load) -> None:
    assert not load_text("drainTimeout: 40").warnings
    (warning,) = load_text("drainTimeout: 41").warnings
    assert warning.path == "drainTimeout"
    assert "41 s may outlast the TimeoutStopSec of the daemon's unit, which is 45 s as shipped" in warning.message


def test_preloading_an_unknown_model_is_a_warning(load_text: Load) -> None:
    loaded = load_text("hooks: {on_startup: {preload: [x, ' ']}}")
    assert [warning.path for warning in loaded.warnings] == ["hooks.on_startup.preload[0]"]


def test_what_was_reported_leads_to_no_further_problems(complaints: Complain) -> None:
    assert len(complaints("peers: {p: {proxy: [a], models: x}}")) == 2
    assert len(complaints("selectors: {s: {strategy: pin, targets: x}}")) == 1
    assert len(complaints("store: {path: [a]}")) == 1
    assert len(complaints("profiles: {p: {pins: [a]}}")) == 1


def test_negative_times_are_accepted_with_a_warning(load_text: Load) -> None:
    loaded = load_text("models: {m: {proxy: http://h, timeouts: {connect: -1, idleConn: 3}}}")
    (warning,) = loaded.warnings
    assert (warning.path, warning.message) == ("models.m.timeouts", "a time of -1 s counts as 0 (connect)")
    assert (loaded.config.models["m"].timeouts.connect, loaded.config.models["m"].timeouts.idle_conn) == (0, 3)
