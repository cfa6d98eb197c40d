from __future__ import annotations

import math

import pytest

from llamaswapd.config import dialect
from llamaswapd.config.report import Report
from llamaswapd.config.tree import Map, Scalar, plain
from llamaswapd.errors import ConfigError


def parse(source: str) -> Map:
    report = Report()
    node = dialect.parse(source, "c.yaml", report)
    report.raise_errors()
    assert node is not None
    return node


def complaint(source: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "kind", "value"),
    [
        *[(word, "str", word) for word in ("yes", "no", "on", "off", "y", "n", "Yes", "NO")],
        *[(word, "bool", True) for word in ("true", "True", "TRUE")],
        *[(word, "bool", False) for word in ("false", "False", "FALSE")],
        *[(word, "null", None) for word in ("~", "null", "Null", "NULL", "")],
        ('"true"', "str", "true"),
        ("'30'", "str", "30"),
        ("30", "int", 30),
        ("-7", "int", -7),
        ("+7", "int", 7),
        ("07", "int", 7),
        ("0", "int", 0),
        ("00", "int", 0),
        ("0o17", "int", 15),
        ("0x10", "int", 16),
        ("0b11", "int", 3),
        ("1_000", "int", 1000),
        ("18446744073709551615", "int", 2**64 - 1),
        ("18446744073709551616", "float", float(2**64)),
        ("9" * 300, "float", float("9" * 300)),
        ("9" * 5000, "str", "9" * 5000),
        ("08", "float", 8.0),
        ("30.5", "float", 30.5),
        ("1e3", "float", 1000.0),
        (".5", "float", 0.5),
        ("1000000.0", "float", 1e6),
        (".inf", "float", math.inf),
        ("1e999", "str", "1e999"),
        ("1:30", "str", "1:30"),
        ("1.2.3", "str", "1.2.3"),
        ("2024-01-02", "timestamp", "2024-01-02T00:00:00Z"),
        ("2024-13-02", "str", "2024-13-02"),
        ("!!str 5", "str", "5"),
        ("!!float 5", "float", 5.0),
        ("!!float 0x10", "float", 16.0),
        ("!!float -0o17", "float", -15.0),
        ("!!binary aGVsbG8=", "str", "hello"),
        ("!!binary |\n  aGVs\n  bG8=\n", "str", "hello"),
        ("!!int 5", "int", 5),
        ("!other 5", "str", "5"),
    ],
)
def test_a_scalar_means_what_it_means_in_yaml_v3(written: str, kind: str, value: object) -> None:
    scalar = parse(f"k: {written}").items["k"]
    assert isinstance(scalar, Scalar)
    assert (scalar.kind, scalar.value) == (kind, value)


@pytest.mark.parametrize("written", ["1.50", "on", "0x10", "123", "2024-01-02"])
def test_a_scalar_keeps_its_text_as_written(written: str) -> None:
    scalar = parse(f"k: {written}").items["k"]
    assert isinstance(scalar, Scalar)
    assert scalar.text == written


def test_keys_are_text_whatever_they_look_like() -> None:
    assert list(parse("{123: a, true: b, ~: c, 1.5: d}").items) == ["123", "true", "~", "1.5"]


def test_merge_keys_bring_in_what_is_not_written() -> None:
    source = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {y: 0, <<: *b}\nd: {<<: [*a, *b], w: 9}\n"
    node = parse(source)
    assert plain(node.items["c"]) == {"y": 0, "z": 2}
    assert plain(node.items["d"]) == {"x": 1, "y": 1, "z": 2, "w": 9}
    assert next(iter(node.items["d"].items)) in "xyz"  # at its place: before what follows it


@pytest.mark.parametrize("written", ["aGVsbG8", "?", "/w=="])
def test_what_is_no_text_in_base64_is_refused(written: str) -> None:
    assert "yaml: line 2: !!binary value contains invalid base64 data" in complaint(f"a: 1\nb: !!binary '{written}'")


def test_a_quoted_merge_key_is_an_ordinary_key() -> None:
    assert plain(parse('{"<<": {a: 1}}')) == {"<<": {"a": 1}}


def test_merging_something_else_is_refused() -> None:
    assert "map merge requires map or sequence of maps as the value" in complaint("a: {<<: 5}")


def test_every_repeated_key_is_refused_with_both_lines() -> None:
    text = complaint("m:\n  x: 1\n  x: 2\nn: 1\nn: 2\n")
    assert 'c.yaml: m.x: line 3: mapping key "x" already defined at line 2' in text
    assert 'c.yaml: n: line 5: mapping key "n" already defined at line 4' in text


def test_only_the_first_document_counts() -> None:
    assert plain(parse("a: 1\n---\nb: [unclosed")) == {"a": 1}


@pytest.mark.parametrize("source", ["", "# only a comment\n", "---\n", "~"])
def test_an_empty_text_holds_nothing(source: str) -> None:
    assert dialect.parse(source, "c.yaml", Report()) is None


def test_a_list_at_the_top_is_refused() -> None:
    assert "top-level YAML must be a mapping" in complaint("- a")


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("a:\n\tb: 1\n", "yaml: line 2: found character that cannot start any token; indent with blanks, not tabs"),
        ("a:\n  b: 1\n\tc: 1\n", "; indent with blanks, not tabs"),
        ("a: @b\n", "yaml: line 1: found character that cannot start any token; put quotes around the value"),
        (
            "a: b: c\n",
            'in this context; put quotes around a value with ": " in it, or look whether the line is indented like its '
            "neighbours",
        ),
        ("a: x\n b: y\n", "or look whether the line is indented like its neighbours"),
    ],
)
def test_the_usual_mistakes_are_told_with_a_remedy(source: str, remedy: str) -> None:
    assert complaint(source).endswith(remedy)


def test_tabs_as_indentation_are_refused_with_the_line() -> None:
    assert "yaml: line 2: found character" in complaint("a:\n\tb: 1\n")


@pytest.mark.skipif(dialect._Parser.__name__ != "CSafeLoader", reason="needs PyYAML with libyaml")
def test_a_tab_may_stand_after_a_colon() -> None:
    assert plain(parse("a:\tb\nc: 5\t# comment\n")) == {"a": "b", "c": 5}


def test_an_anchor_may_not_hold_itself() -> None:
    assert "contains itself" in complaint("a: &a [*a]")


def test_aliases_may_not_multiply_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    visits: list[object] = []
    visit = dialect._Reader.node
    monkeypatch.setattr(dialect._Reader, "node", lambda *them: visits.append(0) or visit(*them))
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "excessive aliasing" in complaint("\n".join(lines))
    assert len(visits) < 10_000  # not after seconds


def test_aliases_may_stand_for_much_less_than_is_written() -> None:
    lines = ["a: &a [x, x, x, x]", *(f"b{i}: [*a, y, y, y, y, y]" for i in range(1000))]
    assert len(parse("\n".join(lines)).items) == 1001


def test_an_alias_and_keys_count_as_what_is_written() -> None:
    models = [f"m{i}: *m" for i in range(2000)]  # yaml.v3 takes both
    assert len(parse("\n".join(["m: &m {cmd: x, ttl: 60, unlisted: false, aliases: []}", *models])).items) == 2001
    assert len(parse(f"a: &a x\nb: [{', '.join(['*a'] * 2000)}]").items) == 2


def test_nesting_has_a_bottom() -> None:
    assert "nested too deeply" in complaint("a: " + "[" * 150 + "]" * 150)


def test_a_key_must_be_text() -> None:
    assert "a mapping key must be text" in complaint("? [a, b]\n: 1")


def test_texts_come_in_order_without_comments() -> None:
    assert list(dialect.texts("a: [b, {c: d}] # e\nf: |\n  # g\n")) == ["a", "b", "c", "d", "f", "# g\n"]
