"""Patterns whose meaning to Go's regexp is known; the table was checked against Go itself."""

from __future__ import annotations

import random
import re

import pytest

from llamaswapd.config.regex import RegexError, compile_re2, without_start
from llamaswapd.config.schema import UpstreamSection

MEANINGS = [
    # pattern, what it is found in, what it is not found in
    ("a", ["a", "xax"], ["", "A"]),
    ("^a$", ["a"], ["a\n", "\na", "xa"]),
    (r"\Aa\z", ["a"], ["a\n"]),
    ("(?m)^a$", ["b\na\n", "a"], ["ab"]),
    ("(?m:a$)b?$", ["a"], ["a\n"]),
    ("a.b", ["a\rb", "aäb"], ["a\nb"]),
    ("(?s)a.b", ["a\nb"], []),
    ("(?s:a.)b.", ["a\nbc"], ["a\nb\n"]),
    (r"\d", ["5"], ["٣", "x"]),
    (r"\D", ["٣"], ["5"]),
    (r"^\w$", ["_", "a"], ["ä"]),
    (r"\s", ["\f", " "], ["\v", "\xa0", "\u2028"]),
    (r"[^\s]", ["\v"], ["\t "]),
    (r"ä\bb", ["äb"], []),
    (r"\B", ["", "ab", "ä"], ["a"]),
    ("[[:alpha:]]", ["q"], ["5", ":", "ä"]),
    ("[[:^alpha:]a]", ["5", "a"], ["b"]),
    ("[[:alpha]", [":", "[", "p"], ["]", "z"]),
    ("[]a]", ["]", "a"], ["["]),
    ("[^]a]", ["b"], ["]a"]),
    (r"[\d-z]", ["5", "-", "z"], ["y"]),
    ("[a-]", ["-"], ["b"]),
    ("[a&&b]", ["&"], ["c"]),
    (r"\pL", ["ä", "Z"], ["5"]),
    (r"\p{Lu}", ["Ä"], ["ä"]),
    (r"\P{Lu}", ["ä"], ["Ä"]),
    (r"\p{^Lu}", ["ä"], ["Ä"]),
    (r"\PN", ["a"], ["٣"]),
    (r"[^\pL]", ["5"], ["ä"]),
    (r"\p{Any}", ["\n"], [""]),
    (r"\Qa.b\Ec", ["a.bc"], ["axbc"]),
    (r"\Q(*", ["(*"], ["("]),
    (r"\Qab\E*$", ["abbb", "a"], ["abc"]),
    (r"\x41\x{e4}\101\07", ["AäA\a"], ["AA"]),
    (r"\a\f\n\r\t\v", ["\a\f\n\r\t\v"], []),
    (r"\_\-\/\#", ["_-/#"], []),
    ("a{2}", ["aa"], ["a"]),
    ("^a{,2}$", ["a{,2}"], ["aa"]),
    ("^a{02}$", ["a{02}"], ["aa"]),
    ("a{x", ["a{x"], ["a"]),
    ("{}", ["{}"], [""]),
    ("^a{0}$", [""], ["a"]),
    ("^*a", ["a"], [""]),
    (r"\b+a", ["a"], ["ba"]),
    ("()*|b", [""], []),
    ("a||b", ["", "c"], []),
    ("x(?i)a|b(?-i)c", ["xA", "Bc"], ["XA", "BC"]),
    ("(?:(?i)a)b", ["Ab"], ["AB"]),
    ("a(?i)*b", ["b", "aB"], ["c"]),
    ("a*(?i)*$", ["aa"], []),
    ("(?i)k", ["K", "k", "\u212a"], ["c"]),
    ("(?i)S", ["ſ"], []),
    ("(?i)i", ["I"], ["ı", "İ"]),
    ("(?i)ä", ["Ä"], ["a"]),
    ("(?i)ß", ["ẞ"], ["ss"]),
    ("(?i)[h-j]", ["J"], ["ı", "İ"]),
    ("(?i)[^k]", ["a"], ["kK\u212a"]),
    (r"(?i)\W", ["ı"], ["ſ"]),
    ("(?-i)a", ["a"], ["A"]),
    ("(?)a", ["a"], []),
    ("(?P<first>a)(?<2>b)", ["ab"], ["a"]),
    (r"[^\x00-\x{10FFFF}]", [], ["", "a"]),
    (r"[\]\\^-]", ["]", "\\", "^", "-"], ["a"]),
    ("#a b", ["#a b"], ["#ab"]),
    (UpstreamSection().ignore_paths[0], ["/a/b.js", "/x.ico"], ["/a.jsx", "/js", "/a.js\n"]),
]


@pytest.mark.parametrize(("pattern", "found", "not_found"), MEANINGS)
def test_a_pattern_means_what_it_means_in_go(pattern: str, found: list[str], not_found: list[str]) -> None:
    compiled = compile_re2(pattern)
    assert [text for text in found + not_found if compiled.search(text)] == found


@pytest.mark.parametrize(("pattern", "found", "not_found"), MEANINGS)
def test_a_pattern_is_found_in_the_same_texts_without_its_start(
    pattern: str, found: list[str], not_found: list[str]
) -> None:
    for start in ("", ".*", ".*?", ".*.*"):
        compiled, without = compile_re2(start + pattern), compile_re2(without_start(start + pattern))
        assert [bool(compiled.search(text)) for text in found + not_found] == [
            bool(without.search(text)) for text in found + not_found
        ]


@pytest.mark.parametrize(
    ("pattern", "rest"),
    [
        (".*listening", "listening"),
        (".*?.*x", "x"),
        (".*", ""),
        (".*a|b", "a|b"),
        (".*+x", ".*+x"),  # Python's, of readyLog
        ("a.*b", "a.*b"),
        (r"\.*x", r"\.*x"),
    ],
)
def test_a_start_that_is_anything_is_left_out(pattern: str, rest: str) -> None:
    assert without_start(pattern) == rest


def span(pattern: str, text: str) -> tuple[int, int]:
    match = compile_re2(pattern).search(text)
    assert match
    return match.span()


def test_greed_is_turned_round_by_a_flag() -> None:
    assert span("a+", "aaa") == span("(?U)a+?", "aaa") == (0, 3)
    assert span("a+?", "aaa") == span("(?U)a+", "aaa") == (0, 1)


REFUSED = [
    ("(?=a)", "invalid or unsupported Perl syntax"),
    ("(?!a)", "invalid or unsupported Perl syntax"),
    ("(?<=a)", "invalid or unsupported Perl syntax"),
    ("(?<!a)", "invalid or unsupported Perl syntax"),
    ("(?>a)", "invalid or unsupported Perl syntax"),
    ("(?P=n)", "invalid or unsupported Perl syntax"),
    ("(?#c)", "invalid or unsupported Perl syntax"),
    ("(?x)a", "invalid or unsupported Perl syntax"),
    ("(?a)a", "invalid or unsupported Perl syntax"),
    ("(?(1)a|b)", "invalid or unsupported Perl syntax"),
    ("(?-)", "invalid or unsupported Perl syntax"),
    ("(?", "invalid or unsupported Perl syntax"),
    ("(?P<a b>x)", "invalid named capture: `(?P<a b>`"),
    ("(?P<n>a)(?P<n>b)", "duplicate capture group name"),
    (r"(a)\1", r"invalid escape sequence: `\1`"),
    (r"a\Z", r"invalid escape sequence: `\Z`"),
    (r"\h", r"invalid escape sequence: `\h`"),
    (r"\C", r"invalid escape sequence: `\C`"),
    (r"\E", r"invalid escape sequence: `\E`"),
    (r"\u0041", r"invalid escape sequence: `\u`"),
    (r"\N{DIGIT ONE}", r"invalid escape sequence: `\N`"),
    (r"\x{110000}", r"invalid escape sequence: `\x`"),
    (r"[\b]", r"invalid escape sequence: `\b`"),
    (r"[a-\d]", r"invalid escape sequence: `\d`"),
    ("\\", "trailing backslash at end of expression"),
    ("[z-a]", "invalid character class range: `z-a`"),
    ("[[:foo:]]", "invalid character class range: `[:foo:]`"),
    (r"\p{Greek}", r"invalid character class range: `\p{Greek}`"),
    (r"\p", "invalid character class range"),
    ("[a", "missing closing ]: `[a`"),
    ("[]", "missing closing ]: `[]`"),
    ("(a", "missing closing ): `(a`"),
    ("a)", "unexpected ): `a)`"),
    ("*", "missing argument to repetition operator: `*`"),
    ("(|+)", "missing argument to repetition operator: `+`"),
    ("a**", "invalid nested repetition operator: `**`"),
    ("a{2}{3}", "invalid nested repetition operator: `{2}{3}`"),
    ("a*+", "invalid nested repetition operator: `*+`"),
    ("a{1001}", "invalid repeat count: `{1001}`"),
    ("a{3,2}", "invalid repeat count: `{3,2}`"),
    ("(a{500}){3}", "invalid repeat count: `{3}`"),
    ("(" * 2000 + ")" * 2000, "expression nests too deeply"),
]


@pytest.mark.parametrize(("pattern", "why"), REFUSED)
def test_what_go_refuses_is_refused_with_the_reason(pattern: str, why: str) -> None:
    with pytest.raises(RegexError) as caught:
        compile_re2(pattern)
    assert f"error parsing regexp: {why}" in str(caught.value)


def test_any_mixture_is_read_or_refused() -> None:
    pieces = [
        *"ab^$.|()[]{}*+?\\-",
        *(pattern for pattern, _, _ in MEANINGS),
        *(pattern for pattern, _ in REFUSED[:-1]),
    ]
    chance = random.Random(1)
    read = 0
    for _ in range(3000):
        pattern = "".join(chance.choices(pieces, k=chance.randint(1, 6)))
        try:
            assert isinstance(compile_re2(pattern), re.Pattern)
        except RegexError:
            continue
        read += 1
    assert read > 300
