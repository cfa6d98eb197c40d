from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswapd.config.commandline import split, without_comments


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("a b\tc\nd", ["a", "b", "c", "d"]),
        ("  a   b  ", ["a", "b"]),
        ("", []),
        (" \n\t", []),
        (r"a\ b \\ \"", ["a b", "\\", '"']),
        (r"a\nb", ["anb"]),
        ("a\\\nb", ["a", "b"]),
        ("a \\\n  -b \\  \n  -c", ["a", "-b", "-c"]),
        ("a\\", ["a"]),
        ("\\", []),
        (r"'a \n $x \' b", ["a \\n $x \\", "b"]),
        (r'"\" \\ \$ \` \n \x"', ['" \\ $ ` \\n \\x']),
        ("\"a 'b' c\"", ["a 'b' c"]),
        ("\"\" '' x", ["", "", "x"]),
        ("a\"b c\"'d'", ["ab cd"]),
        ("a 'b c", ["a", "b c"]),
        ('a "b c', ["a", "b c"]),
        ("a '", ["a", ""]),
        ("a # b #c", ["a", "#", "b", "#c"]),
        ("a\n  # comment 'open\nb", ["a", "b"]),
        ("a $VAR * ~ ; | > x", ["a", "$VAR", "*", "~", ";", "|", ">", "x"]),
        ("a 'x\ny'", ["a", "x\ny"]),
    ],
)
def test_a_command_splits_into_words(command: str, words: list[str]) -> None:
    assert split(command) == words


def test_comment_lines_are_removed_and_line_breaks_kept() -> None:
    assert without_comments("a \\\n  # b\n  c # d\n#\n") == "a \\\n  c # d\n"


@given(st.text())
def test_any_text_splits(command: str) -> None:
    assert all(isinstance(word, str) for word in split(command))


def quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


@given(st.lists(st.text(st.characters(exclude_characters="\n"))))
def test_single_quotes_bring_any_word_through(words: list[str]) -> None:
    # A line that begins with # or ends in a backslash is touched before quotes are looked at.
    assert split("x " + " ".join(map(quoted, words)) + " x") == ["x", *words, "x"]


@given(st.lists(st.text(st.characters(exclude_characters="\n"))))
def test_double_quotes_bring_any_word_through(words: list[str]) -> None:
    escaped = ["".join("\\" + char if char in '"\\$`' else char for char in word) for word in words]
    assert split("x " + " ".join(f'"{word}"' for word in escaped) + " x") == ["x", *words, "x"]
