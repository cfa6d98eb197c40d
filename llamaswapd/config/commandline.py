"""How a `cmd` becomes words. There is no shell: no variables, no globs, no pipes.

The rules are POSIX quoting as llama-swap's splitter has them. `shlex.split` will not do: it raises on an open quote,
keeps the backslash in `"\\$"` and does not know that a backslash continues a line.
"""

from __future__ import annotations

_BLANKS = " \t\n"


def without_comments(command: str) -> str:
    """Drop every line whose first non-blank character is `#`."""
    return "\n".join(line for line in command.split("\n") if not line.lstrip().startswith("#"))


def split(command: str) -> list[str]:
    """Return the words of a command; an open quote ends with the text. Empty when there are none."""
    lines = without_comments(command).split("\n")
    return _words("\n".join(_continued(line) for line in lines))


def _continued(line: str) -> str:
    stripped = line.strip()
    return stripped[:-1] + " " if stripped.endswith("\\") else line


def _words(line: str) -> list[str]:
    words: list[str] = []
    word: str | None = None  # None between words: `""` is a word, a blank is none
    quote = ""
    characters = iter(line)
    for char in characters:
        if not quote and char in _BLANKS:
            words += [word] if word is not None else []
            word = None
            continue
        if char == "\\" and quote != "'":
            escaped = next(characters, "")
            if escaped in ("", "\n"):
                continue
            char = escaped if not quote or escaped in '"\\$`' else "\\" + escaped
        elif char == quote:
            quote = char = ""
        elif not quote and char in "'\"":
            quote, char = char, ""
        word = (word or "") + char
    return words + ([word] if word is not None else [])
