from __future__ import annotations

import random

import pytest

from llamaswapd.http import wire
from llamaswapd.http.wire import (
    HEAD_LIMIT,
    LINE_LIMIT,
    Chunked,
    Framing,
    Length,
    Malformed,
    Shape,
    UntilClose,
    names_in,
    values_of,
)


def parse_head(head: bytes) -> tuple[Shape, bytes]:
    return wire.parse_head(head + b"\r\n\r\n")


def framing_of(head: tuple[Shape, bytes], *, to_head_request: bool) -> Framing:
    return wire.framing_of(*head, to_head_request=to_head_request)


CHUNKED = b'5;name="v"\r\nhello\r\nA \r\n0123456789\r\n1\r\n\n\r\n00\r\nTrailer: x\r\n\r\n'


def test_a_head_is_read_with_its_fields_in_order() -> None:
    shape, digits = parse_head(b"HTTP/1.1 404 Not Found\r\nX-A: 1\r\nContent-Type:text/plain \r\nX-A:2")
    assert (shape.status, shape.is_http11) == (404, True)
    assert values_of(shape.fields, b"x-a") == [b"1", b"2"]
    assert list(shape.pairs(digits)) == [("x-a", "1"), ("content-type", "text/plain"), ("x-a", "2")]


def test_blanks_around_a_value_are_none_of_it_however_many_they_are() -> None:
    """To look for them in each way there is would take years."""
    blanks = b" \t" * 20_000
    assert wire.parse_field(b"X:%bx%by%b" % (blanks, blanks, blanks)).value == b"x%by" % blanks
    assert wire.parse_field(b"X:%b" % blanks).value == b""
    with pytest.raises(Malformed):
        wire.parse_field(b"X:%b\0" % blanks)


def test_list_fields_give_their_members_in_lower_case() -> None:
    shape, _ = parse_head(b"HTTP/1.0 200 OK\r\nConnection: Close, X-Trace\r\nconnection: te")
    assert not shape.is_http11
    assert names_in(shape.fields, b"connection") == {b"close", b"x-trace", b"te"}


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1  200 OK",
        b"ICY 200 OK",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nspace : x",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded",
        b"HTTP/1.1 200 OK\r\nX: a\nY: b",
        b"HTTP/1.1 200 OK\r\nX: a\rb",
        b"HTTP/1.1 200 OK\r\nX: a\0b",
        b"HTTP/1.1 200 OK\r\n: x",
    ],
)
def test_what_is_not_a_head_is_refused(head: bytes) -> None:
    with pytest.raises(Malformed):
        parse_head(head)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10", Length),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 10", Length),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 3", Chunked),
        (b"HTTP/1.1 200 OK", UntilClose),
    ],
)
def test_the_head_says_how_the_body_ends(head: bytes, kind: type) -> None:
    framing = framing_of(parse_head(head), to_head_request=False)
    assert type(framing) is kind
    assert not framing.ended


@pytest.mark.parametrize("status", [b"103", b"204", b"304"])
def test_some_answers_have_no_body_whatever_their_head_says(status: bytes) -> None:
    head = parse_head(b"HTTP/1.1 %b X\r\nContent-Length: 10" % status)
    assert framing_of(head, to_head_request=False).ended


def test_an_answer_to_head_has_no_body() -> None:
    assert framing_of(parse_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"), to_head_request=True).ended


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 1\r\nContent-Length: 2",
        b"Content-Length: 1, 1",
        b"Content-Length: -1",
        b"Content-Length: +1",
        b"Content-Length: 1_0",
        b"Content-Length: ",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked\t",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ],
)
def test_a_body_whose_end_cannot_be_told_is_refused(fields: bytes) -> None:
    with pytest.raises(Malformed):
        framing_of(parse_head(b"HTTP/1.1 200 OK\r\n" + fields), to_head_request=False)


@pytest.mark.parametrize("first", range(len(CHUNKED) + 1))
def test_chunks_end_at_the_same_byte_wherever_they_are_cut(first: int) -> None:
    for second in range(first, len(CHUNKED) + 1):
        framing, content, taken = Chunked(), [], 0
        for piece in (CHUNKED[:first], CHUNKED[first:second], CHUNKED[second:] + b"HTTP/1.1"):
            taken += framing.take(piece, content)
        assert framing.ended
        assert taken == len(CHUNKED)
        assert b"".join(content) == b"hello0123456789\n"


def test_between_chunks_is_only_where_a_chunk_could_begin() -> None:
    places = []
    for size in range(len(CHUNKED)):
        framing = Chunked()
        framing.take(CHUNKED[:size])
        if framing.between_chunks:
            places.append(size)
    ends = [CHUNKED.index(b"hello\r\n") + 7, CHUNKED.index(b"789\r\n") + 5, CHUNKED.index(b"\n\r\n00") + 3]
    assert places == [0, *ends]


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"\r\n",
        b"0x5\r\n",
        b"1_0\r\n",
        b" 5\r\n",
        b"5\nhello",
        b"5\r\nhelloX\r\n",
        b"5\r\nhello\n",
        b"0\r\nbad trailer\r\n",
    ],
)
def test_broken_chunks_are_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        Chunked().take(body)


def taken(body: bytes, content: list[bytes] | None) -> tuple[int, bool] | str:
    framing = Chunked()
    try:
        return framing.take(body, content), framing.ended
    except Malformed as error:
        return str(error)


def test_whole_chunks_are_passed_over_as_they_are_read() -> None:
    """Where nobody asks for the content, the chunks that are all there are not taken apart."""
    chance = random.Random(5)
    for _ in range(20_000):
        sizes = [chance.choice([1, 2, 9, 10, 15, 16, 31, 200]) for _ in range(chance.randrange(4))]
        spelled = [chance.choice([b"%x", b"%X", b"00%x", b"0000000%x", b"%x;a=b", b"%x "]) % size for size in sizes]
        chunks = [b"%b\r\n%b\r\n" % (size, b"x" * n) for size, n in zip(spelled, sizes, strict=True)]
        body = b"".join(chunks) + chance.choice([b"", b"0\r\n\r\n", b"0\r\n\r\nmore", b"1", b"1\r", b"1\r\n"])
        at = chance.randrange(len(body) + 1)
        damage = chance.choice(
            [b"", b"\r", b"\n", b"g", b"G", b"f", b"/", b":", b"@", b"`", b"0", b"-", b"\x16", b"\xff"]
        )
        body = body[:at] + damage + body[at + chance.randrange(2) :]
        assert taken(body, None) == taken(body, []), body
    for digit in range(256):
        for size in range(17):
            body = b"%c\r\n%b\r\n" % (digit, b"x" * size)
            assert taken(body, None) == taken(body, []), body


def test_size_lines_and_trailers_are_bounded() -> None:
    with pytest.raises(Malformed):
        Chunked().take(b"5;" + b"x" * LINE_LIMIT)
    with pytest.raises(Malformed):
        Chunked().take(b"0\r\n" + b"X: y\r\n" * HEAD_LIMIT)


def test_a_body_of_known_length_takes_no_more_than_that() -> None:
    framing = Length(5)
    assert [framing.take(b"abc"), framing.ended, framing.take(b"defg"), framing.ended] == [3, False, 2, True]
