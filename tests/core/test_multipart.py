"""The form field is found wherever it stands, however the body is cut, and its place in the body is exact."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaswapd.core.multipart import HEADER_LIMIT_BYTES, VALUE_LIMIT_BYTES, MultipartScanner, parameter

BOUNDARY = "----form-b0"
MARK = b"--" + BOUNDARY.encode()


@dataclass
class Part:
    name: str
    content: bytes
    filename: str | None = None

    @property
    def head(self) -> bytes:
        filename = "" if self.filename is None else f'; filename="{self.filename}"'
        return (
            f'content-type: text/plain\r\nCONTENT-DISPOSITION: form-data; name="{self.name}"{filename}\r\n\r\n'.encode()
        )


def form(parts: list[Part], preamble: bytes = b"", newline: bytes = b"\r\n") -> bytes:
    lines = [MARK + b"\r\n" + part.head + part.content + b"\r\n" for part in parts]
    return preamble + b"".join(lines).replace(b"\r\n", newline) + MARK + b"--" + newline


def scan(*pieces: bytes, boundary: str = BOUNDARY) -> MultipartScanner:
    scanner = MultipartScanner(boundary)
    for piece in pieces:
        scanner.feed(piece)
    return scanner


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(p % (len(body) + 1) for p in places), len(body)]
    return [body[i:j] for i, j in itertools.pairwise(edges)]


LONGER = MARK + b"x"  # a word that only begins like the boundary is content
ALMOST = [b"\r\n--", b"\n-", b"\r", b"\r\n", b"\r\n" + MARK[:-1], b"\r\n\r\n", LONGER, b"\r\n" + LONGER]
CONTENTS = (
    st.lists(st.binary(max_size=8) | st.sampled_from(ALMOST), max_size=6)
    .map(lambda pieces: b"".join(pieces) + b".")
    .filter(lambda content: content.count(MARK) == content.count(LONGER))
)
PARTS = st.builds(
    Part,
    st.sampled_from(["model", "file", "Model", "models", ""]),
    CONTENTS,
    st.none() | st.sampled_from(["a.wav", "; name=model", "model"]),
)


@settings(max_examples=1500, deadline=None)
@given(st.lists(PARTS, max_size=4), st.sampled_from([b"", b"preamble\r\n"]), st.lists(st.integers(0), max_size=6))
def test_the_first_field_is_found_and_its_bytes_can_be_replaced(
    parts: list[Part], preamble: bytes, places: list[int]
) -> None:
    body = form(parts, preamble)
    scanner = scan(*cut(body, places))
    bytewise = scan(*(body[i : i + 1] for i in range(len(body))))
    assert (scanner.value, scanner.span, scanner.done) == (bytewise.value, bytewise.span, True)
    field = next((p for p in parts if p.name == "model" and p.filename is None), None)
    assert scanner.value == (field and field.content.decode("utf-8", "replace"))
    if field:
        assert scanner.span
        start, end = scanner.span
        renamed = body[:start] + b"renamed" + body[end:]
        field.content = b"renamed"
        assert renamed == form(parts, preamble)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.binary(max_size=20)
        | st.sampled_from(
            [b"\n--" + BOUNDARY.encode() + b"\r\n", b'content-disposition: x; name="model"\r\n', *ALMOST]
        ),
        max_size=12,
    ),
    st.lists(st.integers(0), max_size=6),
)
def test_random_bytes_are_never_an_error_and_read_alike_in_pieces(noise: list[bytes], places: list[int]) -> None:
    body = b"".join(noise)
    whole, pieces = scan(body), scan(*cut(body, places))
    assert (whole.value, whole.span, whole.done) == (pieces.value, pieces.span, pieces.done)


def test_forms_with_bare_line_feeds_are_read() -> None:
    body = form([Part("file", b"x", "a"), Part("model", b"whisper")], newline=b"\n")
    scanner = scan(body)
    assert scanner.value == "whisper"
    assert scanner.span
    assert body[slice(*scanner.span)] == b"whisper"


def test_a_file_called_model_is_not_the_field() -> None:
    assert scan(form([Part("model", b"weights", "model.gguf")])).value is None


def test_the_first_of_two_fields_counts() -> None:
    assert scan(form([Part("model", b"a"), Part("model", b"b")])).value == "a"


def test_an_empty_field_is_found_empty() -> None:
    scanner = scan(form([Part("model", b"")]))
    assert scanner.value == ""
    assert scanner.span
    assert scanner.span[0] == scanner.span[1]


def test_a_part_without_a_body_does_not_hide_the_next() -> None:
    body = b"--B\r\ncontent-disposition: form-data; name=a\r\n\r\n--B\r\n" + Part("model", b"m").head + b"m\r\n--B--"
    assert scan(body, boundary="B").value == "m"


def test_the_field_is_known_as_soon_as_its_delimiter_has_come() -> None:
    body = form([Part("model", b"whisper"), Part("file", b"audio", "a.wav")])
    delimited = b"whisper\r\n" + MARK + b"\r\n"
    end = body.index(delimited) + len(delimited)
    assert scan(body[: end - 1]).value is None
    assert scan(body[:end]).value == "whisper"
    assert scan(body[:end]).done


def test_megabytes_before_the_field_are_passed_and_not_kept() -> None:
    scanner = scan(MARK + b"\r\n" + Part("file", b"", "a.wav").head)
    piece = bytes(range(256)) * 1024
    for _ in range(100):
        scanner.feed(piece)
        assert len(scanner._text) <= 64 * 1024 + len(BOUNDARY) + 4
    scanner.feed(b"\r\n" + form([Part("model", b"whisper")]))
    assert scanner.value == "whisper"
    assert scanner.span
    assert scanner.span[0] > 100 * len(piece)


@pytest.mark.parametrize(
    "endless",
    [b"a" * (HEADER_LIMIT_BYTES + 1), b"x-header: 1\r\n" * HEADER_LIMIT_BYTES],
    ids=["one line", "many lines"],
)
def test_a_part_header_longer_than_the_limit_ends_the_search(endless: bytes) -> None:
    scanner = scan(MARK + b"\r\n", endless)
    assert scanner.done
    scanner.feed(form([Part("model", b"late")]))
    assert scanner.value is None


def test_a_value_of_the_limit_is_read_and_a_longer_one_is_none() -> None:
    assert scan(form([Part("model", b"x" * VALUE_LIMIT_BYTES)])).value == "x" * VALUE_LIMIT_BYTES
    longer = scan(form([Part("model", b"x" * (VALUE_LIMIT_BYTES + 1))]))
    assert (longer.value, longer.span) == (None, None)


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ("multipart/form-data; boundary=abc", "abc"),
        ('multipart/form-data; charset=utf-8; Boundary = "a b;c"', "a b;c"),
        (r'multipart/form-data; boundary="a\"b"', 'a"b'),
        ('multipart/form-data; x="; boundary=no"; boundary=yes ', "yes"),
        ("multipart/form-data", None),
    ],
)
def test_boundary_of_a_content_type(header: str, boundary: str | None) -> None:
    assert parameter(header, "boundary") == boundary
