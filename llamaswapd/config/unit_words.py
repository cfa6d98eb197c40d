"""How texts are written in unit files: words, quotes, escapes and percent signs, in both directions.

See systemd.syntax(7), "Quoting", and systemd.unit(5), "Specifiers".
"""

from __future__ import annotations

import re


class BadValue(ValueError):
    """The text is not written as it must be; the message, often empty, adds what is wrong with it."""


PIECE = re.compile(
    r"""\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)  # an escape sequence
      | ["'] | [ \t\r\n]+ | [^\\"' \t\r\n]+ | \\""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
_ESCAPES |= {char: char for char in "\\\"'"}


def words(text: str, *, unescape: bool = True) -> list[str]:
    """Split at blanks; quotes of both kinds keep them, C escapes work inside and outside of quotes.

    Without `unescape` a backslash stays what it is, as in unit names.
    """
    found: list[str] = []
    word: bytearray | None = None
    quote = ""
    for piece in PIECE.findall(text):
        if piece == quote:
            quote = ""
        elif piece in ('"', "'") and not quote:
            quote, word = piece, word or bytearray()
        elif piece.isspace() and not quote:
            if word is not None:
                found.append(_decoded(word))
            word = None
        else:
            word = word or bytearray()
            word += unescaped(piece) if unescape and piece.startswith("\\") else piece.encode()
    if quote:
        raise BadValue(f"a {quote} is not closed")
    return found if word is None else [*found, _decoded(word)]


def unescaped(sequence: str) -> bytes:
    kind, digits = sequence[1:2], sequence[2:]
    if kind in _ESCAPES:
        return _ESCAPES[kind].encode()
    if kind == "x" and digits:
        return bytes.fromhex(digits)
    if kind in ("u", "U") and digits:
        try:
            return chr(int(digits, 16)).encode()
        except ValueError:
            raise BadValue(f"{sequence} is no character") from None
    if digits and int(sequence[1:], 8) < 256:
        return bytes([int(sequence[1:], 8)])
    raise BadValue(f"{sequence} is no escape sequence; write \\\\ for a backslash")


def _decoded(word: bytearray) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        raise BadValue("its escape sequences do not make UTF-8") from None


def quote(word: str) -> str:
    """Write a word so that `words` and `literal` read it back, in quotes only if it needs them."""
    escaped = "".join(_escape(char) for char in word).replace("%", "%%")
    return escaped if re.fullmatch(r"[^\s\"'\\;]+", escaped) else f'"{escaped}"'


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char == "\n":
        return "\\n"
    return f"\\x{ord(char):02x}" if ord(char) < 0x20 or char == "\x7f" else char


def literal(text: str) -> str:
    """Undo `%%`; refuse specifiers.

    systemd expands specifiers only when it reads a unit file; a transient unit would get `%h` itself.
    """
    if match := re.search(r"%(?!%).?", text.replace("%%", "")):
        raise BadValue(f"transient units do not expand {match[0]}; write what it stands for, or %% for a percent sign")
    return text.replace("%%", "%")


def literals(text: str) -> list[str]:
    return [literal(word) for word in words(text)]
