from __future__ import annotations

import gzip
import random
import zlib

import pytest

from llamaswapd.activity.content import MEMBERS_LIMIT, UNPACKED_LIMIT, Undecodable, is_packed, unframed, unpacked
from tests.activity.ended import chunked

TEXT = b'{"usage": 1}' * 50


def raw_deflated(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("body", "inside"),
    [
        (chunked(b"one", b"t\r\nw"), b"onet\r\nw"),
        (chunked(), b""),
        (b"", b""),
        (b"3;name=value\r\none\r\n0\r\nTrailer: x\r\n\r\n", b"one"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"3\r\none\r\n5\r\ntw", b"onetw"),
        (b"3\r\none\r\nnonsense\r\n", b"one"),
        (b"-3\r\none\r\n", b""),
    ],
)
def test_what_is_in_chunks_is_taken_out_as_far_as_it_goes(body: bytes, inside: bytes) -> None:
    assert unframed(body) == inside


def test_where_the_middle_is_missing_the_framing_is_found_by_its_looks() -> None:
    first, last = chunked(b"data: a\n\n", b"data: bbbbbbbb\n\n"), chunked(b"data: yyyyyyyy\n\n", b"data: z\n\n")
    assert unframed(first[:24] + last[10:], is_cut=True) == b"data: a\n\ndata: yyyyyyyy\n\ndata: z\n\n"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(TEXT)),
        (" GZIP ", gzip.compress(TEXT)),
        ("x-gzip", gzip.compress(TEXT)),
        ("gzip", gzip.compress(TEXT[:7]) + gzip.compress(TEXT[7:])),
        ("gzip", gzip.compress(TEXT) + b"\0\0\0"),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflated(TEXT)),
        ("identity", TEXT),
        ("br", TEXT),
        ("", TEXT),
    ],
)
def test_bodies_are_unpacked(encoding: str, body: bytes) -> None:
    assert unpacked(body, encoding) == TEXT
    assert is_packed(encoding) == (body != TEXT)


def test_a_long_body_is_unpacked_whole() -> None:
    body = random.Random(1).randbytes(200_000)
    assert unpacked(gzip.compress(body), "gzip") == body


def test_an_empty_body_is_empty_whatever_its_encoding() -> None:
    assert unpacked(b"", "gzip") == b""


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", b"no gzip"), ("gzip", gzip.compress(TEXT)[:-9]), ("deflate", b"\xff\xff"), ("deflate", b"x")],
)
def test_what_cannot_be_unpacked_says_why_in_llama_swaps_words(encoding: str, body: bytes) -> None:
    with pytest.raises(Undecodable, match=f"response decode failed: response decompression failed: {encoding}: ."):
        unpacked(body, encoding)


def test_of_a_cut_body_there_is_what_can_be_unpacked() -> None:
    packed = gzip.compress(random.Random(1).randbytes(100_000))
    assert len(unpacked(packed[:50_000] + packed[60_000:], "gzip", is_cut=True)) > 10_000
    assert unpacked(b"no gzip", "gzip", is_cut=True) == b""


def test_a_body_that_unpacks_to_too_much_is_given_up() -> None:
    bomb = gzip.compress(bytes(UNPACKED_LIMIT + 1), 1)
    with pytest.raises(Undecodable, match=f"more than {UNPACKED_LIMIT} bytes"):
        unpacked(bomb, "gzip")


def test_a_body_of_too_many_parts_is_given_up() -> None:
    with pytest.raises(Undecodable, match=f"more than {MEMBERS_LIMIT} parts"):
        unpacked(gzip.compress(b"") * (MEMBERS_LIMIT + 1), "gzip")
