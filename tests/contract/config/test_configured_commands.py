"""config.md §3 to §6: environment, macros, command lines and ports, as they reach a running model."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from daemon_support import MARK, Daemon, Json, daemon, free_ports
from live import MIRROR, Live, load, mirror, told

pytestmark = pytest.mark.private

SERVER = f"{sys.executable} -I -S {MIRROR}"


async def words(live: Live, rest: str, **top: object) -> list[str]:
    """Return the words that a model gets which runs the mirror with `rest` behind the port."""
    proxy = "http://127.0.0.1:${PORT}"
    model = {"cmd": f"{SERVER} ${{PORT}} {rest}", "proxy": proxy, **top.pop("model", {})}  # type: ignore[dict-item]
    it = await live.configure({**top, "models": {"a": model}})
    return list((await told(it, "a"))["argv"])


# ---- §5 command lines

SPLIT = {
    "blanks, tabs and newlines separate": ("a  b\tc\nd", ["a", "b", "c", "d"]),
    "an unquoted backslash": (r"a\ b \"c \\d \'", ["a b", '"c', r"\d", "'"]),
    "backslash and newline vanish": ("a \\\nb", ["a", "b"]),
    "single quotes": (r"""'a b\n"$x"'""", [r'a b\n"$x"']),
    "double quotes": (r'''"a \" \\ \$ \` \n b"''', [r'a " \ $ ` \n b']),
    "a backslash at the end of a line becomes a blank": ('"a\\\nb"', ["a \nb"]),
    "empty arguments": ("\"\" '' x", ["", "", "x"]),
    "adjoining parts": ("""a"b c"'d e'f""", ["ab cd ef"]),
    "an unclosed double quote": ('x "a b', ["x", "a b"]),
    "an unclosed single quote": ("x 'a b", ["x", "a b"]),
    "no trailing comments": ("a # b", ["a", "#", "b"]),
    "no shell": ("$HOME ${} * ~ ; | > && $(x) `y`", ["$HOME", "${}", "*", "~", ";", "|", ">", "&&", "$(x)", "`y`"]),
    "percent signs and dollars": ("100%% %h $$ $${x", ["100%%", "%h", "$$", "$${x"]),
    "comment lines vanish": ("a\n# b 'c\n   # ${nope}\nd", ["a", "d"]),
    "json": ("""--kwargs '{"a": [1, 2], "b": "c d"}'""", ["--kwargs", '{"a": [1, 2], "b": "c d"}']),
    "unicode": ("größe 日本 🙂", ["größe", "日本", "🙂"]),
    "a trailing backslash": ("a b\\", ["a", "b"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), SPLIT.values(), ids=SPLIT)
async def test_a_command_line_is_split_without_a_shell(live: Live, text: str, expected: list[str]) -> None:
    assert await words(live, text) == expected


async def test_a_folded_scalar_makes_arguments_of_comment_lines(live: Live) -> None:
    text = f"""
startPort: {live.first_port}
models:
  a:
    proxy: http://127.0.0.1:${{PORT}}
    cmd: >
      {SERVER}
      ${{PORT}}
      # two
      three
"""
    it = await live.reload_text(text)
    assert (await told(it, "a"))["argv"] == ["#", "two", "three"]


async def test_running_reports_cmd_after_expansion_and_comment_removal_with_line_breaks(live: Live) -> None:
    cmd = f"{SERVER} ${{PORT}}\n# a comment\n  --x ${{MODEL_ID}}\n"
    it = await live.configure({"models": {"a": {"cmd": cmd, "proxy": "http://127.0.0.1:${PORT}"}}})
    await load(it, "a")
    [row] = (await it.ask("/running")).json()["running"]
    assert row["cmd"].rstrip("\n") == f"{SERVER} {live.first_port}\n  --x a"


# ---- §4 macros


async def test_macros_reach_every_field_of_a_model(live: Live) -> None:
    model = {
        "macros": {"x": "value", "n": 7},
        "env": ["E=${x}", "P=${PORT}", "M=${MODEL_ID}"],
        "aliases": ["${x}-alias"],
        "name": "${x} of ${MODEL_ID}",
        "description": "${n}",
        "metadata": {"deep": [{"list": ["${x}", "${n}", "n=${n}", "${PORT}"]}]},
        "ttl": "${n}",
        "useModelName": "real-${x}",
        "filters": {"setParams": {"p": "${n}", "q": {"r": "${x}"}}},
    }
    got = await words(live, "${x} ${n} ${MODEL_ID}", model=model)
    assert got == ["value", "7", "a"]
    facts = await told(live.it, "value-alias")
    assert {name: facts["env"][name] for name in "EPM"} == {"E": "value", "P": str(live.first_port), "M": "a"}
    assert json.loads(facts["body"]) == {"model": "real-value", "p": 7, "q": {"r": "value"}}
    [row] = (await live.it.ask("/running")).json()["running"]
    assert (row["name"], row["description"], row["ttl"]) == ("value of a", "7", 7)
    meta = await metadata(live.it, "a")
    assert meta["deep"] == [{"list": ["value", 7, "n=7", live.first_port]}]


async def metadata(it: Daemon, model: str) -> Json:
    rows = (await it.ask("/v1/models")).json()["data"]
    return next(dict(row["meta"]["llamaswap"]) for row in rows if row["id"] == model)


ORDER: dict[str, tuple[Json, Json, str, str]] = {
    "a macro may use earlier ones": ({"a": "1", "b": "${a}2"}, {}, "${b}", "12"),
    "a model's macro replaces a global one": ({"a": "1"}, {"a": "2"}, "${a}", "2"),
    "and changes later ones built on it": ({"a": "1", "b": "x${a}"}, {"a": "2"}, "${b}", "x2"),
    "model macros use globals": ({"a": "1"}, {"c": "c${a}"}, "${c}", "c1"),
    "the id anywhere": ({"a": "${MODEL_ID}"}, {}, "${a}", "m"),
    "numbers and booleans as text": ({"i": 4096, "t": True, "f": False}, {}, "${i}${t}${f}", "4096truefalse"),
}  # fmt: skip


@pytest.mark.parametrize(("globally", "own", "text", "expected"), ORDER.values(), ids=ORDER)
async def test_the_order_of_macros(live: Live, globally: Json, own: Json, text: str, expected: str) -> None:
    model = {"cmd": f"x ${{PORT}} {text}", "macros": own, "metadata": {"text": f"<{text}>"}}
    it = await live.reload({"macros": globally, "models": {"m": model}})
    assert (await metadata(it, "m"))["text"] == f"<{expected}>"


FLOATS = {"0.70": "0.7", "1e3": "1000", "1000000.0": "1e+06", "12345678.9": "1.23456789e+07", "0.00001": "1e-05",
          "123456.0": "123456", ".5": "0.5", "1e21": "1e+21"}  # fmt: skip


@pytest.mark.parametrize(("written", "shown"), FLOATS.items())
async def test_floats_are_written_as_go_does(live: Live, written: str, shown: str) -> None:
    model = "{cmd: 'x ${PORT}', metadata: {m: '<${f}>'}}"
    it = await live.reload_text(f"startPort: {live.first_port}\nmacros: {{f: {written}}}\nmodels: {{a: {model}}}\n")
    assert (await metadata(it, "a"))["m"] == f"<{shown}>"


TYPED = {"text": "text", "'7'": "7", "7": 7, "1.5": 1.5, "true": True, "yes": "yes", "0x10": 16, "1_000": 1000,
         "010": 8, "1:30": "1:30", "on": "on"}  # fmt: skip


@pytest.mark.parametrize(("written", "value"), TYPED.items())
async def test_a_whole_value_takes_the_type_of_the_macro(live: Live, written: str, value: object) -> None:
    model = "{cmd: 'x ${PORT}', metadata: {m: '${v}', direct: WRITTEN}}".replace("WRITTEN", written)
    it = await live.reload_text(f"startPort: {live.first_port}\nmacros: {{v: {written}}}\nmodels: {{a: {model}}}\n")
    meta = await metadata(it, "a")
    assert (meta["m"], type(meta["m"])) == (value, type(value))
    assert meta["direct"] == value


async def test_macros_apply_outside_models_too(live: Live) -> None:
    top = {
        "macros": {"key": "k1", "peer": "http://127.0.0.1:9", "ttl": 11},
        "apiKeys": ["${key}"],
        "globalTTL": "${ttl}",
        "peers": {"p": {"proxy": "${peer}", "models": ["${key}-model"]}},
    }
    it = await live.configure({**top, "models": {"a": mirror()}})
    headers = {"Authorization": "Bearer k1"}
    try:
        rows = (await it.ask("/v1/models", headers=headers)).json()["data"]
        assert "p/k1-model" in [row["id"] for row in rows]
        await it.ask("/upstream/a/", headers=headers)
        [row] = (await it.ask("/running", headers=headers)).json()["running"]
        assert row["ttl"] == 11
    finally:
        await live.reload({})


async def test_what_looks_like_a_macro_and_is_none_is_plain_text(live: Live) -> None:
    assert await words(live, "${a.b} $x $$ {y} ${}") == ["${a.b}", "$x", "$$", "{y}", "${}"]


# ---- §3 the environment


async def test_the_environment_is_put_into_the_text_of_the_file(live: Live) -> None:
    """It works in keys and flow lists, and can yield numbers."""
    assert "HOME" in os.environ
    text = f"""
startPort: {live.first_port}
models:
  ${{env.{MARK}}}:
    cmd: {SERVER} ${{PORT}} "${{env.HOME}}" ${{env.EMPTY_OR_NOT}}
    proxy: http://127.0.0.1:${{PORT}}
    aliases: [a, "x${{env.HOME}}"]
    # ${{env.LLAMASWAPD_NOWHERE}}
"""
    assert "environment variable 'EMPTY_OR_NOT' is not set" in await live.refused(text)
    it = await live.reload_text(text.replace("${env.EMPTY_OR_NOT}", "$HOME ~"))
    assert (await told(it, "a"))["argv"] == [os.environ["HOME"], "$HOME", "~"]
    [row] = (await it.ask("/running")).json()["running"]
    assert row["model"] == str(it.runtime_dir)
    assert (await it.chat(f"x{os.environ['HOME']}")).status == 200


# ---- §6 ports


async def test_ports_are_given_in_byte_order_to_models_whose_expanded_cmd_names_it(live: Live) -> None:
    group = {"g": {"swap": False, "members": ["B", "a", "b", "x"]}}
    macros = {"server": f"{SERVER} ${{PORT}}"}
    fixed = {"cmd": f"{SERVER} {live.first_port + 9}", "proxy": f"http://127.0.0.1:{live.first_port + 9}"}
    by_macro = {"cmd": "${server}", "proxy": "http://127.0.0.1:${PORT}"}
    models = {"b": mirror(), "a": by_macro, "x": fixed, "B": mirror()}
    it = await live.configure({"macros": macros, "models": models, "groups": group})
    ports = {name: (await told(it, name))["port"] for name in models}
    first = live.first_port
    assert ports == {"B": first, "a": first + 1, "b": first + 2, "x": first + 9}


async def test_a_model_that_uses_no_port_must_set_proxy(live: Live) -> None:
    log = await live.refused("models: {a: {cmd: sleep 60}}")
    assert "model a: proxy uses ${PORT} but cmd does not - ${PORT} is only available when used in cmd" in log


async def test_the_port_may_stand_in_the_environment_and_keys_of_set_params_by_id(live: Live) -> None:
    filters = {"setParamsByID": {"p${PORT}": {"x": "${PORT}"}}}
    it = await live.configure({"models": {"a": mirror(env=["P=${PORT}"], filters=filters)}})
    facts = await told(it, f"p{live.first_port}")
    assert facts["env"]["P"] == str(live.first_port)
    assert json.loads(facts["body"])["x"] == live.first_port


# ---- §1 sources


async def test_sources_are_merged_and_a_macro_of_one_file_serves_another(folder: Path) -> None:
    port = free_ports()
    more = folder / "conf.d"
    more.mkdir()
    (more / "sub").mkdir()
    (more / "sub" / "x.yaml").write_text("models: {no: {cmd: 'x ${PORT}'}}")
    (more / "b.yml").write_text(f"models:\n  b:\n    cmd: ${{server}} b\n    aliases: [bee]\nstartPort: {port}\n")
    (more / "a.yaml").write_text(f"macros: {{server: '{SERVER} ${{PORT}}'}}\napiKeys: [second]\n")
    (more / "note.txt").write_text("not: [yaml")
    (more / "z.yaml").write_text("# nothing\n")
    config = {"startPort": port, "apiKeys": ["first"], "models": {"a": mirror()}}
    async with daemon(folder, config, "--config-dir", str(more)) as it:
        for key in ("first", "second"):
            rows = (await it.ask("/v1/models", headers={"x-api-key": key})).json()["data"]
            assert [row["id"] for row in rows] == ["a", "b"]
        answer = await it.ask("/upstream/bee/", headers={"x-api-key": "first"})
        assert answer.json()["argv"] == ["b"]

        # What cannot be merged is refused, and names the place.
        async def refused(text: str, message: str) -> None:
            (more / "z.yaml").write_text(text)
            times = it.log.count("failed to reload config: ")
            it.signal(signal.SIGHUP)
            await it.logged("failed to reload config: ", times + 1)
            await it.logged(message)

        await refused("startPort: 1234", 'conflict at "startPort": ')
        await refused("startPort: [1]", 'conflict at "startPort": incompatible YAML node kinds')
        await refused("models: {a: {cmd: 'x ${PORT}'}}", 'duplicate models "a" found in ')


async def test_values_of_the_environment_are_escaped_for_double_quotes_and_can_be_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMASWAPD_TEST_VALUE", r'a\b "c" ${x}')
    monkeypatch.setenv("LLAMASWAPD_TEST_TTL", "77")
    monkeypatch.setenv("LLAMASWAPD_TEST_EMPTY", "")
    monkeypatch.setenv("LLAMASWAPD_TEST_LINES", "a\nb")
    more = folder / "conf.d"
    more.mkdir()
    keys = 'description: "${env.LLAMASWAPD_TEST_VALUE}"\n    ttl: ${env.LLAMASWAPD_TEST_TTL}\n'
    keys += '    name: "<${env.LLAMASWAPD_TEST_EMPTY}>"\n'
    text = f"macros: {{x: y}}\nmodels:\n  a:\n    cmd: {SERVER} ${{PORT}}\n    {keys}"
    (more / "a.yaml").write_text(text)
    async with daemon(folder, {}, "-config-dir", str(more)) as it:
        [row] = (await it.ask("/v1/models")).json()["data"]
        assert (row["description"], row["name"]) == (r'a\b "c" y', "<>")
        await load(it, "a")
        [row] = (await it.ask("/running")).json()["running"]
        assert row["ttl"] == 77
        (more / "a.yaml").write_text(text + '    aliases: ["${env.LLAMASWAPD_TEST_LINES}"]\n')
        it.signal(signal.SIGHUP)
        wanted = "contains newlines or null bytes which are not allowed in YAML substitution"
        assert f"environment variable 'LLAMASWAPD_TEST_LINES' {wanted}" in await it.logged("failed to reload config: ")
