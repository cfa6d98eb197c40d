"""config.md §8 to §10: keys of a model, filters, and what a name means."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from daemon_support import Json, command
from live import MIRROR, Live, load, mirror, ready, told

pytestmark = pytest.mark.private


async def sent(live: Live, model: Json, body: str, path: str = "/v1/chat/completions") -> str:
    """Return the body that a model with these keys gets when a client sends this one."""
    it = await live.configure({"models": {"a": mirror(aliases=["short"], **model)}})
    answer = await it.ask(path, method="POST", data=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status == 200, answer.body
    facts: Any = answer.json()
    assert facts["headers"]["content-length"] == str(len(facts["body"].encode("latin-1")))
    return str(facts["body"].encode("latin-1").decode())


# ---- §9 filters, byte for byte

ODD = ' {"model" :"a","b":  1.50, "é":"\\u00e9" ,"n":null,"l":[1 ,2], "o":{"p": {"q":1}, "r":2 } }\n'

FILTERS: dict[str, tuple[Json, str, str]] = {
    "nothing": ({}, ODD, ODD),
    "an alias is not rewritten": ({}, '{"model":"short"}', '{"model":"short"}'),
    "useModelName": ({"useModelName": "real/x"}, '{ "model": "short" ,"x":1}', '{ "model": "real/x" ,"x":1}'),
    "strip": ({"filters": {"stripParams": " b ,, n,b,nothere "}}, '{"model":"a","b":1, "c":2 ,"n":3}',
              '{"model":"a", "c":2 }'),
    "strip_params": ({"filters": {"strip_params": "b"}}, '{"model":"a","b":1}', '{"model":"a"}'),
    "stripParams wins over the old name": ({"filters": {"strip_params": "b", "stripParams": "c"}},
                                           '{"model":"a","b":1,"c":2}', '{"model":"a","b":1}'),
    "model can be neither stripped nor set": ({"filters": {"stripParams": "model", "setParams": {"model": "z"}}},
                                              '{"model":"a"}', '{"model":"a"}'),
    "set replaces the whole value": ({"filters": {"setParams": {"o": {"n": 1}}}}, '{"model":"a","o":{"m":2}, "x":3}',
                                     '{"model":"a","o":{"n":1}, "x":3}'),
    "set by path": ({"filters": {"setParams": {"k.e": False}}}, '{"model":"a","k":{"d": 1}}',
                    '{"model":"a","k":{"d": 1,"e":false}}'),
    "set by path creates objects": ({"filters": {"setParams": {"k.e.f": "x"}}}, '{"model":"a"}',
                                    '{"model":"a","k":{"e":{"f":"x"}}}'),
    "strip by path": ({"filters": {"stripParams": "o.p.q"}}, '{"model":"a","o":{"p":{"q":1,"r":2}}}',
                      '{"model":"a","o":{"p":{"r":2}}}'),
    "a number indexes a list": ({"filters": {"setParams": {"l.1": 9}}}, '{"model":"a","l":[1, 2]}',
                                '{"model":"a","l":[1, 9]}'),
    "-1 appends": ({"filters": {"setParams": {"l.-1": 9}}}, '{"model":"a","l":[1]}', '{"model":"a","l":[1,9]}'),
    "a literal dot": ({"filters": {"setParams": {r"a\.b": 1}}}, '{"model":"a"}', '{"model":"a","a.b":1}'),
    "stripped, then set": ({"filters": {"stripParams": "t", "setParams": {"t": 1}}}, '{"model":"a","t":0}',
                           '{"model":"a","t":1}'),
    "by id overrides": ({"filters": {"setParams": {"t": 1, "u": 1}, "setParamsByID": {"fast": {"t": 2}}}},
                        '{"model":"fast"}', '{"model":"fast","t":2,"u":1}'),
    "by its own id": ({"filters": {"setParamsByID": {"a": {"t": 2}}}}, '{"model":"a"}', '{"model":"a","t":2}'),
    "not by another id": ({"filters": {"setParamsByID": {"fast": {"t": 2}}}}, '{"model":"a"}', '{"model":"a"}'),
    "by the id used with useModelName": ({"useModelName": "real", "filters": {"setParamsByID": {"fast": {"t": 2}}}},
                                         '{"model":"fast"}', '{"model":"real","t":2}'),
    "any value": ({"filters": {"setParams": {"v": [1, 2.5, "x", None, True, {"y": []}]}}}, '{"model":"a"}',
                  '{"model":"a","v":[1,2.5,"x",null,true,{"y":[]}]}'),
}  # fmt: skip


@pytest.mark.parametrize(("model", "body", "expected"), FILTERS.values(), ids=FILTERS)
async def test_bodies_are_changed_as_the_filters_say_and_no_further(
    live: Live, model: Json, body: str, expected: str
) -> None:
    assert await sent(live, model, body) == expected


async def test_filters_do_not_apply_below_upstream(live: Live) -> None:
    model = {"useModelName": "real", "filters": {"setParams": {"x": 1}}}
    body = '{"model":"a"}'
    assert await sent(live, model, body, "/upstream/a/v1/chat/completions") == body


async def test_filters_apply_to_json_only(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(filters={"setParams": {"x": 1}})}})
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await it.ask("/v1/completions", method="POST", data=b"model=a&y=2", headers=form)
    assert answer.json()["body"] == "model=a&y=2"


async def test_use_model_name_applies_to_multipart_too(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(useModelName="real")}})
    parts = b'--X\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--X\r\n'
    parts += b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n\x00\xff\r\n--X--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=X"}
    answer = await it.ask("/v1/audio/transcriptions", method="POST", data=parts, headers=headers)
    body = answer.json()["body"].encode("latin-1")
    assert b"\r\n\r\nreal\r\n" in body
    assert b"\r\n\r\n\x00\xff\r\n" in body


async def test_keys_of_set_params_by_id_are_aliases_and_listed(live: Live) -> None:
    model = mirror(aliases=["x"], filters={"setParamsByID": {"fast": {"t": 1}, "a": {"t": 2}}})
    it = await live.configure({"includeAliasesInList": True, "models": {"a": model}})
    rows = {row["id"]: row["meta"]["llamaswap"] for row in (await it.ask("/v1/models")).json()["data"]}
    assert {*rows} == {"a", "x", "fast"}
    assert rows["a"]["aliases"] == ["x", "fast"]
    assert rows["fast"] == {"type": "alias", "modelID": "a"}
    assert (await told(it, "fast"))["served"] == 1


# ---- §8 keys of a model


async def test_an_id_may_be_any_text_and_is_case_sensitive(live: Live) -> None:
    names = ["author/model:Q4_K_M", "with blank", "größe", "a.b-c_d", "A", "a", "123", "true"]
    group = {"g": {"swap": False, "members": names}}
    it = await live.configure({"models": {name: mirror(name.replace(" ", "_")) for name in names}, "groups": group})
    for name in names:
        assert (await told(it, name))["argv"] == [name.replace(" ", "_")]
    assert (await it.chat("Author/model:Q4_K_M")).status == 404
    assert await ready(it) == {*names}


async def test_a_path_of_the_proxy_is_a_prefix(live: Live) -> None:
    it = await live.configure({"models": {"a": {**mirror(), "proxy": "http://127.0.0.1:${PORT}/base"}}})
    assert (await told(it, "a"))["line"] == "POST /base/v1/chat/completions HTTP/1.1"
    answer = await it.ask("/upstream/a/x?y=z")
    assert answer.json()["line"] == "GET /base/x?y=z HTTP/1.1"


async def test_an_alias_equal_to_a_model_id_is_accepted_and_never_used(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror("one", aliases=["b"]), "b": mirror("two")}})
    assert (await told(it, "b"))["argv"] == ["two"]


async def test_an_unlisted_model_is_hidden_and_usable(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(unlisted=True), "b": mirror()}})
    assert [row["id"] for row in (await it.ask("/v1/models")).json()["data"]] == ["b"]
    assert (await it.chat("a")).status == 200


async def test_aliases_may_be_numbers_and_booleans_as_written(live: Live) -> None:
    text = f"""
startPort: {live.first_port}
models:
  a:
    cmd: {sys.executable} -I -S {MIRROR} ${{PORT}}
    proxy: http://127.0.0.1:${{PORT}}
    aliases: [123, 1.50, on, 0x10]
"""
    it = await live.reload_text(text)
    for alias in ("123", "1.50", "on", "0x10"):
        assert (await it.chat(alias)).status == 200, alias


async def test_a_response_header_that_is_late_is_a_502(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(timeouts={"responseHeader": 1})}})
    await load(it, "a")
    assert (await it.chat("a", until="/never")).status == 502
    assert (await it.chat("a")).status == 200


async def test_names_and_descriptions_are_listed_trimmed_and_not_at_all_if_blank(live: Live) -> None:
    models = {"a": mirror(name="  A name ", description=" Text "), "b": mirror(name=" ", description="")}
    it = await live.configure({"models": models})
    a, b = (await it.ask("/v1/models")).json()["data"]
    assert (a["name"], a["description"]) == ("A name", "Text")
    assert not {"name", "description"} & {*b}


async def test_a_name_stands_in_running_as_it_is(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(name="  A name ")}})
    await load(it, "a")
    [running] = (await it.ask("/running")).json()["running"]
    assert running["name"] == "  A name "


async def test_capabilities_and_metadata_are_shown(live: Live) -> None:
    capabilities = {"in": ["text", "image"], "out": ["text"], "tools": True, "context": 4096}
    it = await live.configure({"models": {"a": mirror(capabilities=capabilities, metadata={"k": [1], "type": "x"})}})
    [row] = (await it.ask("/v1/models")).json()["data"]
    assert row["capabilities"] == {"vision": True, "function_calling": True}
    assert row["architecture"] == {
        "input_modalities": ["text", "image"], "output_modalities": ["text"], "modality": "text+image->text",
    }  # fmt: skip
    assert row["context_length"] == row["meta"]["n_ctx"] == 4096
    assert row["meta"]["llamaswap"] == {"k": [1], "type": "model"}


async def test_unknown_keys_at_any_level_and_those_without_effect_change_nothing(live: Live) -> None:
    config = {"logRequests": True, "nonsense": {"x": "${nope}"}, "models": {"a": mirror(healthCheckTimeout=1, fast=1)}}
    it = await live.configure(config)
    assert (await it.chat("a")).status == 200
    assert "nonsense" in it.log  # in a warning


async def test_truth_is_read_as_go_does(live: Live) -> None:
    for written, is_hidden in {"yes": True, "on": True, "Y": True, "no": False, "n": False, "off": False}.items():
        text = f"startPort: {live.first_port}\nmodels: {{a: {{cmd: 'x ${{PORT}}', unlisted: {written}}}}}\n"
        it = await live.reload_text(text)
        assert ((await it.ask("/v1/models")).json()["data"] == []) is is_hidden, written


async def test_anchors_and_merge_keys_work_everywhere(live: Live) -> None:
    text = f"""
startPort: {live.first_port}
defs:
  base: &base
    cmd: {sys.executable} -I -S {MIRROR} ${{PORT}} ${{MODEL_ID}}
    proxy: http://127.0.0.1:${{PORT}}
    ttl: 12
models:
  a:
    <<: *base
    ttl: 13
  b:
    <<: [*base]
---
models: {{c: nonsense}}
"""
    it = await live.reload_text(text)
    assert (await told(it, "b"))["argv"] == ["b"]
    await load(it, "a")
    [row] = (await it.ask("/running")).json()["running"]
    assert (row["model"], row["ttl"]) == ("a", 13)


async def test_a_command_that_is_empty_is_no_load_error(live: Live) -> None:
    it = await live.configure({"models": {"a": command("")}})
    assert "unable to get sanitized command: empty command" in (await it.chat("a")).message


# ---- §10 names


async def test_what_a_name_means_comes_in_this_order(live: Live) -> None:
    """Active pin, selector, model, alias, peer/model, bare peer model; each of the first two at most once."""
    models = {name: mirror(name, aliases=aliases) for name, aliases in {"a": ["alias"], "b": []}.items()}
    config = {
        "models": models,
        "selectors": {"any": {"strategy": "pin", "targets": ["alias"]}},
        "profiles": {"p": {"pins": {"b": "any", "chain": "b", "none": ""}}},
    }
    it = await live.configure(config)
    assert (await told(it, "any"))["argv"] == ["a"]
    assert (await told(it, "b"))["argv"] == ["b"]
    assert (await it.ask("/upstream/any/")).status == 404  # selectors do not work here
    await it.ask("/api/profiles/active", {"name": "p"}, method="PUT")
    facts = await told(it, "b")  # a pin may lead to a selector
    assert facts["argv"] == ["a"]
    assert json.loads(facts["body"])["model"] == "alias"
    assert (await told(it, "chain"))["argv"] == ["b"]  # and does not lead to another pin
    answer = await it.chat("none")
    assert answer.status == 404
    assert answer.message.startswith("no model id could be identified")
    assert (await it.chat("B")).status == 404
