from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswapd.config.macros import expand, go_text
from llamaswapd.config.report import Report
from llamaswapd.config.tree import Map, Scalar, text

if TYPE_CHECKING:
    from conftest import Complain, Load


def model(load_text: Load, body: str, top: str = "") -> dict[str, object]:
    """Load one model `m` given by the lines of its body; return its fields."""
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    return dict(load_text(f"{top}\nmodels:\n  m:\n    proxy: http://h\n{indented}").config.models["m"])


# ---- declarations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("n" * 64, "1", f"macro name '{'n' * 64}' exceeds maximum length of 63 characters"),
        ("a.b", "1", "macro name 'a.b' contains invalid characters, must match pattern ^[a-zA-Z0-9_-]+$"),
        ("N", "[1]", "macro 'N' has invalid type []interface {}, must be a scalar type (string, int, float, or bool)"),
        ("N", "{}", "macro 'N' has invalid type map[string]interface {}, must be a scalar type"),
        ("N", "~", "macro 'N' has invalid type <nil>, must be a scalar type"),
        ("N", "2024-01-02", "macro 'N' has invalid type time.Time, must be a scalar type"),
        ("N", "'x ${N} y'", "macro 'N' contains self-reference"),
        ("PID", "1", "macro name 'PID' is reserved"),
        ("PORT", "1", "macro name 'PORT' is reserved"),
        ("MODEL_ID", "1", "macro name 'MODEL_ID' is reserved"),
    ],
)
def test_a_wrong_declaration_is_refused_and_its_uses_are_not(
    complaints: Complain, name: str, value: str, problem: str
) -> None:
    use = f"x ${{{name}}}" if name not in ("PID", "PORT", "MODEL_ID", "a.b") else "x"
    (found,) = complaints(f"macros: {{{name}: {value}}}\nmodels: {{m: {{cmd: '{use}', proxy: http://h}}}}")
    assert found.startswith(f"a.yaml: macros.{name}: {problem}")
    (found,) = complaints(f"models: {{m: {{macros: {{{name}: {value}}}, cmd: '{use}', proxy: http://h}}}}")
    assert found.startswith(f"a.yaml: models.m.macros.{name}: model m: {problem}")


def test_names_of_63_characters_and_other_case_are_fine(load_text: Load) -> None:
    name = "n" * 63
    fields = model(load_text, f"cmd: ${{{name}}} ${{pid}}", f"macros: {{{name}: 1, pid: 2}}")
    assert fields["cmd"] == "1 2"


def test_macros_must_be_a_mapping(complaints: Complain) -> None:
    (found,) = complaints("macros: [a]")
    assert "macros must be a mapping" in found
    (found,) = complaints("models: {m: {cmd: x, proxy: http://h, macros: 5}}")
    assert "model m: macros must be a mapping" in found


# ---- where they apply ----------------------------------------------------------------------------------------------


def test_macros_apply_to_every_value_and_to_no_key(load_text: Load) -> None:
    source = """
        macros: {x: v}
        logLevel: ${level}
        apiKeys: ["${x}"]
        hooks: {on_startup: {preload: ["${x}"]}}
        models:
          v:
            cmd: ${x}
            proxy: http://${x}
            aliases: ["a-${x}"]
            metadata: {"${x}": ["${x}", {a: "${x}"}]}
            filters: {setParams: {"${x}": "${x}"}, setParamsByID: {"id-${MODEL_ID}": {"${x}": "${x}"}}}
    """
    config = load_text(source.replace("{x: v}", "{x: v, level: warn}")).config
    fields = config.models["v"]
    assert (config.log_level, config.api_keys, config.hooks.on_startup.preload) == ("warn", ("v",), ("v",))
    assert (fields.cmd, fields.proxy, fields.aliases) == ("v", "http://v", ("a-v",))
    assert fields.metadata == {"${x}": ["v", {"a": "v"}]}
    assert fields.filters.set_params == {"${x}": "v"}
    assert fields.filters.set_params_by_id == {"id-v": {"${x}": "v"}}


def test_macro_blocks_are_not_rewritten(load_text: Load) -> None:
    assert load_text("macros: {a: 1, b: 'x${a}'}").config.macros == {"a": 1, "b": "x${a}"}


# ---- order ---------------------------------------------------------------------------------------------------------


def test_a_macro_may_use_earlier_ones(load_text: Load) -> None:
    assert model(load_text, "cmd: ${c}", "macros: {a: 1, b: 'b${a}', c: 'c${b}'}")["cmd"] == "cb1"


def test_a_macro_may_not_use_later_ones(complaints: Complain) -> None:
    (found,) = complaints("macros: {b: 'b${a}', a: 1}\nmodels: {m: {cmd: '${b}', proxy: http://h}}")
    assert "unknown macro '${a}' found in m.cmd" in found


def test_overriding_a_macro_changes_later_ones_built_on_it(load_text: Load) -> None:
    fields = model(load_text, "macros: {ctx: 16}\ncmd: ${args}", "macros: {ctx: 4, args: '--ctx ${ctx}'}")
    assert fields["cmd"] == "--ctx 16"


def test_a_model_macro_takes_the_place_of_the_global_one(complaints: Complain) -> None:
    source = "macros: {a: 1, b: 2}\nmodels: {m: {macros: {a: 'x${b}'}, cmd: '${a}', proxy: http://h}}"
    assert any("unknown macro '${b}'" in problem for problem in complaints(source))


def test_a_global_macro_cannot_use_what_only_models_define(complaints: Complain) -> None:
    source = "macros: {a: 'x${own}'}\nmodels: {m: {macros: {own: 1}, cmd: '${a}', proxy: http://h}}"
    assert any("unknown macro '${own}'" in problem for problem in complaints(source))


def test_a_model_macro_may_use_global_ones(load_text: Load) -> None:
    assert model(load_text, "macros: {own: 'x${a}'}\ncmd: ${own}", "macros: {a: 1}")["cmd"] == "x1"


def test_model_id_and_port_may_be_used_in_any_macro(load_text: Load) -> None:
    fields = model(load_text, "macros: {b: '${a} ${PORT}'}\ncmd: ${b}", "macros: {a: 'id=${MODEL_ID} p=${PORT}'}")
    assert fields["cmd"] == "id=m p=5800 5800"


NAMES = [f"n{i}" for i in range(6)]


@given(st.permutations(NAMES), st.dictionaries(st.sampled_from(NAMES), st.sampled_from(NAMES)))
def test_a_reference_resolves_exactly_when_it_points_back(order: list[str], uses: dict[str, str]) -> None:
    """Each macro is a word, or its name and another macro; a chain resolves if every step leads to an earlier one."""
    bodies = {name: f"{name}(${{{uses[name]}}})" if name in uses else name for name in order}

    def value(name: str) -> str | None:
        used = uses.get(name)
        if used is None:
            return name
        inner = value(used) if order.index(used) < order.index(name) else None
        return f"{name}({inner})" if inner is not None else None

    for name in order:
        if f"${{{name}}}" in bodies[name]:
            bodies[name] = name  # a self-reference is refused at its declaration
            uses = {key: used for key, used in uses.items() if key != name}
    root = Map({"macros": Map({name: text(bodies[name]) for name in order}), "logLevel": text("")})
    for name in order:
        report = Report()
        done = expand(root.having(logLevel=text(f"<${{{name}}}>")), ["logLevel"], 1, report).root.items["logLevel"]
        assert isinstance(done, Scalar)
        expected = value(name)
        assert done.text == ("" if expected is None else f"<{expected}>")
        assert bool(report.errors) == (expected is None)


# ---- types ---------------------------------------------------------------------------------------------------------


def test_a_value_that_is_one_macro_takes_its_type(load_text: Load) -> None:
    top = "macros: {n: 30, b: true, f: 0.70, s: 'x', y: yes}"
    metadata = "{n: '${n}', b: '${b}', f: '${f}', s: '${s}', y: '${y}'}"
    fields = model(load_text, f"cmd: x\nttl: '${{n}}'\nunlisted: ${{b}}\nname: ${{f}}\nmetadata: {metadata}", top)
    assert (fields["ttl"], fields["unlisted"], fields["name"]) == (30, True, "0.7")
    assert fields["metadata"] == {"n": 30, "b": True, "f": 0.7, "s": "x", "y": "yes"}


def test_a_block_scalar_is_never_one_macro(load_text: Load) -> None:
    assert model(load_text, "cmd: x\nmetadata:\n  n: |\n    ${n}", "macros: {n: 30}")["metadata"] == {"n": "30\n"}


@pytest.mark.parametrize(
    ("written", "inserted"),
    [
        ("0.70", "0.7"), ("1e3", "1000"), ("1000000.0", "1e+06"), ("12345678.9", "1.23456789e+07"), ("0x10", "16"),
        ("123456.5", "123456.5"), ("0.0001", "0.0001"), ("0.00001", "1e-05"), ("-0.5", "-0.5"), ("0.0", "0"),
        ("1e100", "1e+100"), ("True", "true"), ("FALSE", "false"), ("yes", "yes"), ("'1e3'", "1e3"),
        (".inf", "+Inf"), ("-.inf", "-Inf"), (".nan", "NaN"),
    ],
)  # fmt: skip
def test_inserted_values_are_written_as_go_writes_them(load_text: Load, written: str, inserted: str) -> None:
    assert model(load_text, "cmd: x ${v}", f"macros: {{v: {written}}}")["cmd"] == f"x {inserted}"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_written_float_reads_back_as_itself(value: float) -> None:
    written = go_text(value)
    assert float(written) == value
    assert ("e" in written) == (value != 0 and not 1e-4 <= abs(value) < 1e6)
    assert math.copysign(1, float(written)) == math.copysign(1, value)


def test_other_dollars_are_plain_text(load_text: Load) -> None:
    assert model(load_text, "cmd: $x $$ ${a.b} ${} $(c)")["cmd"] == "$x $$ ${a.b} ${} $(c)"


# ---- ports ---------------------------------------------------------------------------------------------------------


def test_ports_count_in_byte_order_of_the_ids_that_use_one(load_text: Load) -> None:
    source = """
        macros: {first: 6000, server: "x ${PORT}"}
        startPort: ${first}
        models:
          é: {cmd: "x ${PORT}"}
          b: {cmd: "${server}"}
          Z: {cmd: "x ${PORT}"}
          a: {cmd: x, proxy: http://h:1}
    """
    models = load_text(source).config.models
    assert {id_: model.port for id_, model in models.items()} == {"Z": 6000, "a": None, "b": 6001, "é": 6002}
    assert list(models) == ["Z", "a", "b", "é"]
    assert models["b"].cmd == "x 6001"
    assert models["b"].proxy == "http://localhost:6001"


def test_the_port_is_known_everywhere_in_the_model(load_text: Load) -> None:
    source = """
        models:
          m:
            cmd: x ${PORT}
            cmdStop: y ${PORT} ${PID}
            aliases: ["m-${PORT}"]
            env: ["P=${PORT}"]
            metadata: {p: "${PORT}", q: "q${PORT}"}
            filters: {setParamsByID: {"k${PORT}": {}}}
    """
    model = load_text(source).config.models["m"]
    assert model.cmd_stop == "y 5800 ${PID}"
    assert model.aliases == ("m-5800",)
    assert model.env == ("P=5800",)
    assert model.metadata == {"p": 5800, "q": "q5800"}
    assert model.listed_aliases == ("m-5800", "k5800")


def test_a_proxy_without_port_in_the_command_is_refused_once(complaints: Complain) -> None:
    why = "model m: proxy uses ${PORT} but cmd does not - ${PORT} is only available when used in cmd"
    (found,) = complaints("models: {m: {cmd: x}}")
    assert why in found
    (found,) = complaints("models: {m: {cmd: 'x\n\n# ${PORT}', proxy: 'http://h:${PORT}'}}")
    assert why in found


# ---- left over -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        *[
            (f"{field}: '/${{x}}'", f"models.m.{field}: unknown macro '${{x}}' found in m.{field}")
            for field in ("cmd", "cmdStop", "proxy", "checkEndpoint", "name", "description")
        ],
        ("filters: {stripParams: '${x}'}", "unknown macro '${x}' found in m.filters.stripParams"),
        ("aliases: [a, '${x}']", "models.m.aliases[1]: model m aliases: unknown macro '${x}'"),
        ("env: ['A=${x}']", "model m env: unknown macro '${x}'"),
        ("metadata: {a: {b: '${x}'}}", "models.m.metadata.a.b: model m metadata: unknown macro '${x}'"),
        ("capabilities: {in: ['${x}']}", "model m capabilities: unknown macro '${x}'"),
        ("filters: {setParams: {p: '${x}'}}", "model m filters.setParams.p: unknown macro '${x}'"),
        ("filters: {setParamsByID: {'${x}': {}}}", "unknown macro '${x}' found in model m filters.setParamsByID key"),
        ("name: '${PID}'", "unknown macro '${PID}' found in m.name"),
        ("name: '${PORT}'", "unknown macro '${PORT}' found in m.name"),
        ("systemd: {MemoryMax: '${x}'}", "model m systemd.MemoryMax: unknown macro '${x}'"),
        ("ttl: '${x}'", "models.m.ttl: model m ttl: unknown macro '${x}'"),
    ],
)
def test_an_unknown_macro_in_a_model_is_refused_once(complaints: Complain, body: str, expected: str) -> None:
    base = "" if body.startswith("proxy") else "proxy: http://h, "
    (found,) = complaints(f"models: {{m: {{{base}{body}}}}}")
    assert expected in found


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("apiKeys: [a, '${x}']", "apiKeys[1]: unknown macro '${x}'"),
        ("hooks: {on_startup: {preload: ['${x}']}}", "hooks.on_startup.preload[0]: unknown macro '${x}'"),
        ("peers: {p: {proxy: 'http://${x}', models: [m]}}", "peers.p.proxy: unknown macro '${x}'"),
        ("selectors: {s: {strategy: pin, targets: ['${x}']}}", "selectors.s.targets[0]: unknown macro '${x}'"),
        ("globalTTL: ${x}", "globalTTL: unknown macro '${x}'"),
        ("systemd: {manager: '${x}'}", "systemd.manager: unknown macro '${x}'"),
        ("models: '${x}'", "models: unknown macro '${x}'"),
        ("models: {m: '${x}'}", "models.m: unknown macro '${x}'"),
    ],
)
def test_an_unknown_macro_elsewhere_is_refused_once(complaints: Complain, body: str, expected: str) -> None:
    (found,) = complaints(body)
    assert found.startswith(f"a.yaml: {expected}")


def test_an_unknown_macro_that_looks_like_a_variable_is_led_to_the_environment(complaints: Complain) -> None:
    (found,) = complaints("peers: {p: {proxy: http://h, models: [m], apiKey: '${OPENROUTER_API_KEY}'}}")
    assert found.endswith(", or write ${env.OPENROUTER_API_KEY}")
    assert not any("env." in found for found in complaints("models: {m: {cmd: 'x ${host}', name: '${PORT}'}}"))


def test_unknown_top_level_keys_are_not_checked(load_text: Load) -> None:
    assert load_text("defs: {a: '${x}'}").warnings


def test_every_unknown_macro_of_a_value_is_named(complaints: Complain) -> None:
    assert len(complaints("models: {m: {cmd: '${x} ${y} ${x} ${PID}', proxy: http://h}}")) == 3


def test_macros_in_comment_lines_of_commands_neither_expand_nor_fail(load_text: Load) -> None:
    fields = model(load_text, "cmd: |\n  x\n  # ${nope}\n  y\ncmdStop: |\n  # ${nope}\n  z")
    assert (fields["cmd"], fields["cmd_stop"]) == ("x\ny\n", "z\n")


def test_keys_of_set_params_by_id_may_not_become_the_same(complaints: Complain) -> None:
    source = "macros: {x: b}\nmodels: {m: {cmd: x, proxy: http://h, filters: {setParamsByID: {b: {}, '${x}': {}}}}}"
    (found,) = complaints(source)
    assert 'model m filters.setParamsByID: keys "b" and "${x}" resolve to the same value' in found


def test_an_error_in_one_model_does_not_hide_those_of_others(complaints: Complain) -> None:
    source = """
        models:
          a: {cmd: "${x}", proxy: http://h, ttl: "5"}
          b: {macros: {PORT: 1}, proxy: http://h}
          c: {cmd: x}
          d: {cmd: x, proxy: localhost}
    """
    found = "\n".join(complaints(source))
    for expected in ("models.a.cmd", "models.a.ttl", "models.b.macros.PORT", "models.c.proxy", "models.d.proxy"):
        assert f"a.yaml: {expected}: " in found
