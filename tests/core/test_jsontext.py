"""Whatever the shortcut reads or edits is what a full parse would say, wherever the text is cut."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamaswapd.core import jsontext
from llamaswapd.core.jsontext import (
    COPY_LIMIT_BYTES,
    DEPTH_LIMIT,
    TEXT_LIMIT_BYTES,
    Scanner,
    beginning,
    edit,
    first_model,
    quick_model,
)

NAMES = st.sampled_from(
    ["model", "stream", "models", "Model", "mod", "", "a", 'quo"te', "back\\slash", "bräce}", "x.y"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["true", "qwen/coder:7b", '","model":"no', "\\", '\\"', "\\\\", "}]", "\n", "\U0001f600"])
)


class Pairs(list[tuple[str, Any]]):
    """An object whose keys may repeat."""


VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(NAMES, inner), max_size=4).map(Pairs),
    max_leaves=12,
)
OBJECTS = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(Pairs)


@st.composite
def texts(draw: st.DrawFn, values: st.SearchStrategy[Any] = OBJECTS) -> str:
    """JSON in every spelling: blanks anywhere, letters as escapes, keys that repeat."""

    chance = random.Random(draw(st.integers(0, 2**16)))  # much faster than drawing each choice

    def blank() -> str:
        return chance.choice(["", "", " ", "\n\t", "\r\n  "])

    def string(value: str) -> str:
        style = chance.choice(["plain", "ascii", "escaped"])
        if style == "escaped":
            return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0xD800 else json.dumps(c)[1:-1] for c in value) + '"'
        return json.dumps(value, ensure_ascii=style == "ascii")

    def write(value: Any) -> str:
        if isinstance(value, Pairs):
            members = [f"{blank()}{string(k)}{blank()}:{blank()}{write(v)}{blank()}" for k, v in value]
            return "{" + (",".join(members) or blank()) + "}"
        if isinstance(value, list):
            return "[" + (",".join(f"{blank()}{write(v)}{blank()}" for v in value) or blank()) + "]"
        return string(value) if isinstance(value, str) else json.dumps(value)

    return blank() + write(draw(values)) + blank()


def cut(data: st.DataObject, body: bytes) -> list[bytes]:
    if data.draw(st.booleans()):
        return [body[i : i + 1] for i in range(len(body))]
    places = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    return [body[i:j] for i, j in zip([0, *places], [*places, len(body)], strict=True)]


def scan(*pieces: bytes) -> Scanner:
    scanner = Scanner()
    for piece in pieces:
        scanner.feed(piece)
    return scanner


class Number(str):
    """A number as it stands in the text."""


def plain(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return value.encode("utf-16", "replace").decode("utf-16") if isinstance(value, str) else None


def first_members(text: str) -> tuple[str | None, bool]:
    """What a full parse says about the first `model` and the first `stream`."""
    members = json.loads(text, object_pairs_hook=Pairs, parse_int=Number, parse_float=Number)
    first = dict(reversed(members))
    return plain(first.get("model")), plain(first.get("stream")) == "true"


@pytest.mark.timeout(300)
@settings(max_examples=2000, deadline=None)
@given(texts(), st.data())
def test_scanner_finds_what_a_full_parse_finds_however_the_body_is_cut(text: str, data: st.DataObject) -> None:
    scanner = scan(*cut(data, text.encode("utf-8", "replace")))
    assert (scanner.model, scanner.stream) == first_members(text.encode("utf-8", "replace").decode())
    assert scanner.done


@settings(max_examples=1000, deadline=None)
@given(texts(VALUES), st.integers(0, 400), st.binary(max_size=3), st.data())
def test_scanner_reads_damaged_text_alike_whole_and_in_pieces(
    text: str, place: int, damage: bytes, data: st.DataObject
) -> None:
    body = text.encode("utf-8", "replace")
    body = body[:place] + damage + body[place + 1 :]
    whole, pieces = scan(body), scan(*cut(data, body))
    assert (whole.model, whole.stream, whole.done) == (pieces.model, pieces.stream, pieces.done)


@pytest.mark.timeout(300)
@settings(max_examples=1500, deadline=None)
@given(texts(st.lists(st.tuples(NAMES, VALUES | st.lists(OBJECTS, max_size=4)), max_size=6).map(Pairs)))
def test_what_is_found_quickly_is_what_a_full_parse_finds(text: str) -> None:
    body = text.encode("utf-8", "replace")
    expected = first_members(body.decode())[0]
    assert quick_model(body) in (None, expected)
    assert all(first_model(body[:size]) in (None, expected) for size in range(min(len(body), 40)))


@pytest.mark.timeout(300)
@settings(max_examples=1500, deadline=None)
@given(
    texts(st.lists(st.tuples(NAMES, VALUES | st.lists(OBJECTS, max_size=4)), max_size=6).map(Pairs)),
    st.integers(1, 20),
    st.integers(0, 2**16),
)
def test_and_the_same_where_the_text_comes_in_pieces(text: str, longest: int, chance: int) -> None:
    body = text.encode("utf-8", "replace")
    expected = first_members(body.decode())[0]
    for size in (1, 16, 64):
        pieces = cut_at_random(body, longest, chance)
        with quick_member_bytes(size):
            assert quick_model(*pieces) in (None, expected)
        assert b"".join(pieces) == body


def cut_at_random(body: bytes, longest: int, chance: int) -> list[bytes | bytearray]:
    choose, pieces, at = random.Random(chance), list[bytes | bytearray](), 0
    while at < len(body) or not pieces:
        piece = body[at : at + choose.randint(1, longest)]
        pieces.append(bytearray(piece) if choose.random() < 0.3 else piece)
        at += len(piece)
    return pieces


@contextmanager
def quick_member_bytes(size: int) -> Iterator[None]:
    before, jsontext.QUICK_MEMBER_BYTES = jsontext.QUICK_MEMBER_BYTES, size
    try:
        yield
    finally:
        jsontext.QUICK_MEMBER_BYTES = before


@pytest.mark.parametrize(
    ("body", "begun"),
    [
        (b'{"model":"m"}', b'{"model":"m"}'),
        (b' \r\n{ "model" : "m" \n, "x":1}', b' \r\n{ "model" : "m" \n,'),
        (b'{"model":"m","model":"no"}', b'{"model":"m",'),
        (b'{"model":"m"', b""),
        (b'{"model":"m"x', b""),
        (b'{"model":7}', b""),
        (b'{"model":"m\\u0065"}', b""),
        (b'{"x":1,"model":"m"}', b""),
        (b"", b""),
    ],
)
def test_the_beginning_of_a_body_goes_as_far_as_what_makes_the_name_certain(body: bytes, begun: bytes) -> None:
    assert beginning(body) == begun
    assert first_model(begun) == first_model(body)


MESSAGES = b'{"messages":[{"content":[1],"model":"no","role":"]"},{"content":"],\\"model\\":1"}]'


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"model":"m"}', "m"),
        (b' { "stream" : true , "model" : "m" , "x":[1,2] }', "m"),
        (b'{"stream":true,"mod\\u0065l":"m"}', "m"),
        (b'{"n":1,"model":7}', "7"),
        (MESSAGES + b',"model":"m"}', "m"),
        (MESSAGES + b' , "stream":true,"model":"m","tools":[{"a":[1],"b":2}]} \n', "m"),
        (MESSAGES + b',"model":"m","model":"no"}', "m"),
        (
            rb'{"messages":["a],", ":{" ],"model":"m","x":{"\"":1}, "model":"no"}',
            None,
        ),  # quotes read the wrong way round
        # What cannot be told quickly:
        (MESSAGES + b',"x":1' * jsontext.QUICK_MEMBERS + b',"model":"m"}', None),
        (b"{" + b'"x":1,' * jsontext.QUICK_MEMBERS + b'"model":"m"}', None),
        (b'{"a":[' + b'{"b":[],"c":1},' * jsontext.GUESSES + b'0],"model":"m"}', None),
        (MESSAGES + b"}", None),
        (MESSAGES + b',"stream":true}', None),
        (MESSAGES + b',"model":"m"', None),
        (MESSAGES + b',"model":"m"}}', None),
        (b'{"a":[{"b":[],"model":"no"}]}', None),
        (b'{"a":[{"b":[],"model":"no"}],"model":null}', None),
        (b'{"model":["x"],"model":"no"}', None),
        (b'{"stream":true}', None),
        (b'["model"]', None),
        (b"", None),
    ],
)
def test_the_end_of_a_list_is_told_from_what_looks_like_it(body: bytes, found: str | None) -> None:
    assert quick_model(body) == found
    assert all(quick_model(body[:at], bytearray(body[at:])) == found for at in range(len(body)))


BEFORE = b'{"messages":["%b"' % (b"x" * 100)
BEHIND = b' ] , "model":"m" , "n":[1] , "model" : "no" } '


@pytest.mark.parametrize("at", range(len(BEHIND)))
def test_the_end_of_a_list_is_found_between_two_pieces(at: int) -> None:
    with quick_member_bytes(50):
        assert quick_model(BEFORE, BEHIND[:at], BEHIND[at:]) == "m"
        assert quick_model(BEFORE[:9], BEFORE[9:], BEHIND[:at], BEHIND[at:]) == "m"
        assert quick_model(BEFORE + BEHIND[:at], BEHIND[at:]) == "m"
        assert quick_model(BEFORE, BEHIND[:at] + b" " * 200 + BEHIND[at:]) in (None, "m")
        assert quick_model(BEFORE, BEHIND[:at], b" " * 200, BEHIND[at:]) in (None, "m")


def test_what_stands_far_from_the_end_is_not_taken_for_it() -> None:
    with quick_member_bytes(50):
        pieces = (BEFORE, b'],"model":"m","tools":[', b'"x",' * 20, b'""],"model":"no"}')
        assert quick_model(*pieces) is None
        assert quick_model(BEFORE, b'],"model":"m"}', b" " * 60) is None  # nor is it known what comes behind
        assert quick_model(BEFORE, b'],"model":"m"}', b" " * 20) == "m"


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]":,\\ am', max_size=40).map(str.encode))
def test_random_bytes_are_neither_an_error_nor_changed(body: bytes) -> None:
    scan(body)
    assert edit(body, [], []) == body
    edit(body, ["a", "a.0", "0"], [("m", 1), ("a.m", 2), ("0.-1", 3)])


@pytest.mark.parametrize(
    ("text", "model", "stream"),
    [
        ('{"mod\\u0065l":"a","str\\u0065am":true}', "a", True),
        ('{"model":"first","model":"second"}', "first", False),
        ('{"messages":[{"model":"no"}],"options":{"model":"no","stream":true},"model":"yes"}', "yes", False),
        ('{"model":1.50,"stream":"true"}', "1.50", True),
        ('{"model":-1e3,"stream":1}', "-1e3", False),
        ('{"model":false}', "false", False),
        ('{"model":null,"model":"late"}', None, False),
        ('{"model":["a"]}', None, False),
        ('{"model":{"a":1}}', None, False),
        ('{"model":""}', "", False),
        ('{"model":"half \\ud83d pair"}', "half \ufffd pair", False),
        ('\ufeff {"model":"a"}', "a", False),
        ('{"model":"a"} and more', "a", False),
        ('{"model":"a",broken', "a", False),
        ('{"broken","model":"a"}', None, False),
        ('["model","a"]', None, False),
        ("model=a", None, False),
        ('{"model":bare}', None, False),
        ('{"model":"bad \\x escape"}', None, False),
        ("", None, False),
    ],
)
def test_scanner_reads(text: str, model: str | None, stream: bool) -> None:
    scanner = scan(text.encode())
    assert (scanner.model, scanner.stream) == (model, stream)
    assert [scan(*(bytes([b]) for b in text.encode())).model] == [model]


def test_bytes_that_are_not_utf8_become_replacement_characters() -> None:
    assert scan(b'{"model":"a\xff"}').model == "a\ufffd"


def test_scanner_knows_the_model_before_the_rest_has_come() -> None:
    scanner = scan(b'{"model": "a", "messages": [{"content": "')
    assert (scanner.model, scanner.done) == ("a", False)
    scanner.feed(b'"}], "stream": true,')
    assert (scanner.stream, scanner.done) == (True, True)


@pytest.mark.parametrize("escape", [b"", b"\\n", b"\\\\", b'\\"'])
def test_megabytes_in_one_string_are_passed_and_not_kept(escape: bytes) -> None:
    scanner = scan(b'{"messages":[{"content":"')
    for _ in range(64):
        scanner.feed((escape + b"A" * 4093) * 16)
        assert len(scanner._text) - scanner._at <= 1
    scanner.feed(b'"}],"model":"m"}')
    assert scanner.model == "m"


def test_a_name_of_the_limit_is_read_and_a_longer_one_is_none() -> None:
    limit = b"x" * TEXT_LIMIT_BYTES
    assert scan(b'{"model":"', limit, b'"}').model == limit.decode()
    assert scan(b'{"model":"%bx","stream":true}' % limit).model is None
    assert scan(b'{"model":"', limit, b'x","stream":true}').model is None


def test_nesting_beyond_the_limit_is_not_json() -> None:
    deep, deeper = DEPTH_LIMIT, DEPTH_LIMIT + 10
    assert scan(b'{"a":' + b"[" * deep + b"]" * deep + b',"model":"m"}').model == "m"
    assert scan(b'{"a":' + b"[" * deeper + b"]" * deeper + b',"model":"m"}').model is None


@settings(max_examples=300, deadline=None)
@given(texts(VALUES))
def test_a_body_taken_apart_and_joined_is_the_same_text(text: str) -> None:
    body = text.encode("utf-8", "replace")
    assert edit(body, [], []) == body


PARTS = st.sampled_from(["a", "b", "model", "0", "1", "3", "-1"])
PATHS = st.lists(PARTS, min_size=1, max_size=3)
TREES = st.dictionaries(
    PARTS,
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PARTS, inner, max_size=3), max_leaves=8
    ),
    max_size=4,
)


def in_list(part: str, length: int) -> int | None:
    return None if part not in ("-1", "0", "1", "3") else length if part == "-1" else int(part)


def deleted(tree: Any, path: list[str]) -> Any:
    """The same on a parsed tree."""
    part, rest = path[0], path[1:]
    if isinstance(tree, list):
        place = len(tree) - 1 if part == "-1" and not rest else in_list(part, len(tree))
        if place is None or not 0 <= place < len(tree):
            return tree
        return [*tree[:place], *([deleted(tree[place], rest)] if rest else []), *tree[place + 1 :]]
    if not isinstance(tree, dict) or part not in tree:
        return tree
    return {k: deleted(v, rest) if k == part else v for k, v in tree.items() if k != part or rest}


def with_set(tree: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    part, rest = path[0], path[1:]
    if not isinstance(tree, list | dict):
        tree = {} if in_list(part, 0) is None else []
    if isinstance(tree, dict):
        return {**tree, part: with_set(tree.get(part), rest, value)}
    place = in_list(part, len(tree))
    if place is None:
        return tree
    padded = tree + [None] * (place + 1 - len(tree))
    return [*padded[:place], with_set(padded[place], rest, value), *padded[place + 1 :]]


@settings(max_examples=800, deadline=None)
@given(TREES, st.lists(PATHS, max_size=3), st.lists(st.tuples(PATHS, SCALARS | TREES), max_size=3), st.data())
def test_edit_does_to_the_text_what_it_means_for_the_parsed_body(
    tree: dict[str, Any], deletes: list[list[str]], sets: list[tuple[list[str], Any]], data: st.DataObject
) -> None:
    text = json.dumps(tree, indent=data.draw(st.sampled_from([None, 2])), ensure_ascii=data.draw(st.booleans()))
    edited = edit(text.encode("utf-8", "replace"), [".".join(p) for p in deletes], [(".".join(p), v) for p, v in sets])
    expected: Any = json.loads(text.encode("utf-8", "replace"))
    for path in deletes:
        expected = deleted(expected, path)
    for path, value in sets:
        expected = with_set(expected, path, json.loads(json.dumps(value).encode("utf-8", "replace")))
    assert json.loads(edited) == expected
    assert list(json.loads(edited)) == list(expected)


@pytest.mark.parametrize(
    ("text", "deletes", "sets", "edited"),
    [
        ('{"a":1}', [], [("b", [True, None])], '{"a":1,"b":[true,null]}'),
        ('{ "a" : 1 , "b":2}', [], [("a", "ü")], '{ "a" : "ü" , "b":2}'),
        ('{\n  "a": 1,\n  "b": 2\n}\n', ["b"], [], '{\n  "a": 1\n}\n'),
        ('{\n  "a": 1,\n  "b": 2\n}\n', ["a"], [], '{\n  "b": 2\n}\n'),
        ('{\n  "a": 1\n}', [], [("b", 2)], '{\n  "a": 1,"b":2\n}'),
        ('{"a":1}', ["a"], [], "{}"),
        ('{ "a":1.0e0, "k": {"x": 1 ,"y":2}}', ["k.x"], [], '{ "a":1.0e0, "k": {"y":2}}'),
        ("{}", [], [("k.enable_thinking", False)], '{"k":{"enable_thinking":false}}'),
        ('{"k":"scalar"}', [], [("k.x", 1)], '{"k":{"x":1}}'),
        ('{"k":{"x":1,"z":2}}', [], [("k", {"y": 1})], '{"k":{"y":1}}'),
        ('{"a.b":1,"a":{"b":2}}', ["a\\.b"], [], '{"a":{"b":2}}'),
        ("{}", [], [("a\\.b", 1)], '{"a.b":1}'),
        ('{"l":[1, 2 ,3]}', ["l.1"], [("l.0", 9), ("l.-1", 4)], '{"l":[9,3,4]}'),
        ('{"l":[1,2]}', ["l.-1"], [], '{"l":[1]}'),
        ('{"l":[1]}', [], [("l.3", 4), ("l.name", 5)], '{"l":[1,null,null,4]}'),
        ('{"\\u0061":1}', ["a"], [], "{}"),
        ('{"a":1,"b":0,"a":2}', ["a"], [], '{"b":0}'),
        ('{"a":1,"b":0,"a":2}', [], [("a", 3)], '{"a":3,"b":0}'),
        ('{"a":1', ["a"], [("b", 1)], '{"a":1'),
        ("not json", ["a"], [("b", 1)], "not json"),
        ('"string"', ["a"], [("b", 1)], '"string"'),
    ],
)
@pytest.mark.parametrize("limit", [0, COPY_LIMIT_BYTES])
def test_edit_changes_only_the_members_concerned(
    text: str, deletes: list[str], sets: list[tuple[str, Any]], edited: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsontext, "COPY_LIMIT_BYTES", limit)
    assert edit(text.encode(), deletes, sets).decode() == edited


def test_a_key_may_be_there_as_often_as_there_is_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with each compared, 250 kB of it would hold everybody up for ten seconds."""
    compared = 0

    def compare(one: object, other: object) -> bool:
        nonlocal compared
        compared += 1
        return one is other

    monkeypatch.setattr(jsontext._Item, "__eq__", compare)
    text = b'{"model":"m"' + b',"":0' * 2000 + b',"b":1}'
    assert edit(text, [], [("", 2)]) == b'{"model":"m","":2,"b":1}'
    assert edit(text, [""], []) == b'{"model":"m","b":1}'
    assert compared < 2000


def test_what_several_paths_lead_into_is_taken_apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken_apart = 0

    class Container(jsontext._Container):
        def __init__(self, text: bytes) -> None:
            nonlocal taken_apart
            taken_apart += 1
            super().__init__(text)

    monkeypatch.setattr(jsontext, "_Container", Container)
    text = b'{"a":{"b":{"c":1,"d":2, "e":3}}}'
    assert edit(text, ["a.b.c", "a.b.d", "a.f"], [("a.b.g", 4), ("a.b.e", 5)]) == b'{"a":{"b":{ "e":5,"g":4}}}'
    assert taken_apart == 3


def test_what_stays_as_it_was_is_one_piece() -> None:
    text = b"{%b}" % b", ".join(b'"k%d": 0' % number for number in range(1000))
    pieces = jsontext.edited(text, ["k500"], [("k700", 1), ("new", 2)])
    assert b"".join(pieces) == text.replace(b', "k500": 0', b"").replace(b'"k700": 0', b'"k700": 1')[:-1] + b',"new":2}'
    assert len(pieces) < 20


def test_the_small_members_of_a_long_text_do_not_take_a_view_each() -> None:
    text = b"{" + b",".join([b'"":0'] * (COPY_LIMIT_BYTES // 4)) + b"}"
    tracemalloc.start()
    try:
        pieces = jsontext.edited(text, [], [("a", 1)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert b"".join(pieces) == text[:-1] + b',"a":1}'
    assert peak < 80 * len(text)


@given(st.lists(st.text(min_size=1), min_size=1))
@example(["a\\", "b"])
def test_escaped_paths_split_into_their_parts(parts: list[str]) -> None:
    path = ".".join(p.replace("\\", "\\\\").replace(".", "\\.") for p in parts)
    assert jsontext.split(path) == parts
