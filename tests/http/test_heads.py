"""Whatever is read of a request's head here, aiohttp's parser reads alike."""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from differential import MARKER, mutated, read_requests, some_request

from llamaswapd.http.heads import FIELDS_LIMIT, HEAD_LIMIT, Headers, Shape, parse_head
from llamaswapd.http.wire import Templates

ROUNDS = int(os.environ.get("LLAMASWAPD_TEST_HEADS", "100000"))

PLAIN = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: models\r\nContent-Type: application/json\r\n"
    b"Content-Length: 13\r\n\r\n"
)


def read(request: bytes) -> tuple[Shape, bytes, bytes] | None:
    """What a head says, its digits, and what comes behind it."""
    head, blank, rest = request.partition(b"\r\n\r\n")
    found = parse_head(head + blank) if blank else None
    return None if found is None else (*found, rest)


@pytest.mark.timeout(600)
async def test_a_head_that_is_read_means_the_same_to_aiohttp() -> None:
    loop = asyncio.get_running_loop()
    accepted = 0
    for seed in range(ROUNDS):
        chance = random.Random(seed)
        request = mutated(chance, some_request(chance))
        found = read(request)
        if found is None:
            continue
        accepted += 1
        shape, digits, rest = found
        size = int(digits or b"0")
        body = (rest + b"x" * size)[:size]
        whole = request[: len(request) - len(rest)] + body
        both = read_requests(loop, whole + (MARKER if shape.keep_alive else b""))
        assert both is not None, (seed, whole)
        assert [each.message.path for each in both[1:]] == ["/the-next-one"] * shape.keep_alive, (seed, whole)
        first = both[0]
        message = first.message
        target = shape.path + (f"?{shape.query}" if shape.query else "")
        assert (message.method, message.path) == (shape.method, target), (seed, whole)
        assert message.version == (1, 1), (seed, whole)
        assert message.should_close == (not shape.keep_alive), (seed, whole)
        assert not message.chunked
        assert not message.upgrade
        assert first.headers == [(field.name, field.value) for field in shape.fields], (seed, whole)
        assert (first.body, first.is_complete) == (body, True), (seed, whole)
    assert accepted > ROUNDS // 4, "what is generated is of no use"


def test_a_head_is_read_alike_by_way_of_a_template() -> None:
    templates = Templates(parse_head)
    last: Shape | None = None
    fitted = 0
    for seed in range(ROUNDS // 5):
        chance = random.Random(seed // 20)  # runs of requests that are nearly the same
        request = some_request(chance)
        chance = random.Random(seed)
        if chance.random() < 0.5:
            request = request.replace(b"Content-Length: ", b"Content-Length: %d" % chance.choice((1, 20, 300)))
        request = mutated(chance, request)
        head, blank, _ = request.partition(b"\r\n\r\n")
        if not blank:
            continue
        fresh, again = parse_head(head + blank), templates.read(head + blank)
        assert (fresh is None) == (again is None), (seed, request)
        if last is not None and (digits := last.fit(request)) is not None:
            fitted += 1
            assert fresh is not None, (seed, request)
            assert says(last, digits) == says(*fresh), (seed, request)
            assert last.fixed + len(digits) == len(head) + 4
        if fresh is not None and again is not None:
            assert says(*fresh) == says(*again), (seed, request)
            last = again[0]
    assert fitted > ROUNDS // 100


def says(shape: Shape, digits: bytes) -> object:
    return shape.method, shape.path, shape.query, shape.keep_alive, digits, list(Headers(shape, digits).items())


@pytest.mark.parametrize(
    "change",
    [
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"POST /", b"POST http://models/"),
        (b"POST ", b"POST  "),
        (b"POST ", b"CONNECT "),
        (b"completions ", b"completions? "),
        (b"completions ", b"completions#x "),
        (b"completions ", b"comple\xc3\xa4tions "),
        (b"Host: models\r\n", b""),
        (b"Host: models\r\n", b"Host: models\r\nHost: models\r\n"),
        (b"Host: models", b"Host: "),
        (b"Host: models", b"Host : models"),
        (b"Host: models", b"Host: models "),
        (b"Host: models", b"Host: models\r\n folded"),
        (b"Host: models", b"Host: mod\0els"),
        (b"Host: models", b"Host: mod\rels"),
        (b"Host: models\r\n", b"Host: models\n"),
        (b"Host: models", b"Host: m\xc3\xb6dels"),
        (b"Host: models", b"Host: models\r\nX: a\r\nx: b"),
        (b"Host: models", b"Host: models\r\n: x"),
        (b"Host: models", b"Host: models\r\nno colon"),
        (b"Host: models", b"Host: models\r\nTransfer-Encoding: chunked"),
        (b"Host: models", b"Host: models\r\nTransfer-Encoding: identity"),
        (b"Host: models", b"Host: models\r\nExpect: 100-continue"),
        (b"Host: models", b"Host: models\r\nUpgrade: websocket"),
        (b"Host: models", b"Host: models\r\nConnection: upgrade"),
        (b"Host: models", b"Host: models\r\nConnection: close, x-a"),
        (b"Host: models", b"Host: models\r\nTE: trailers"),
        (b"Host: models", b"Host: models\r\nTrailer: x"),
        (b"Length: 13", b"Length: 13\r\nContent-Length: 13"),
        (b"Length: 13", b"Length: 13, 13"),
        (b"Length: 13", b"Length: +13"),
        (b"Length: 13", b"Length: 0x13"),
        (b"Length: 13", b"Length: 1_3"),
        (b"Length: 13", b"Length: \xc2\xb2"),
        (b"Length: 13", b"Length: "),
        (b"Length: 13", b"Length: 1000000000000000000"),
        (b"Host: models", b"Host: models" + b"".join(b"\r\nX-%d: x" % n for n in range(FIELDS_LIMIT))),
        (b"Host: models", b"Host: models\r\nX: " + b"x" * HEAD_LIMIT),
    ],
)
def test_nothing_is_said_of_a_head_in_doubt(change: tuple[bytes, bytes]) -> None:
    assert parse_head(PLAIN) is not None
    assert parse_head(PLAIN.replace(*change)) is None


def test_a_head_says_what_stands_in_it() -> None:
    found = parse_head(PLAIN.replace(b"completions ", b"completions?a=%20&b ").replace(b"models", b" two\twords"))
    assert found is not None
    shape, digits = found
    assert (shape.method, shape.path, shape.query, shape.keep_alive) == (
        "POST",
        "/v1/chat/completions",
        "a=%20&b",
        True,
    )
    assert (shape.value(b"host"), shape.value(b"accept"), digits) == ("two\twords", "", b"13")


@pytest.mark.parametrize("head", [PLAIN.replace(b"Content-Length", b"CONTENT-LENGTH"), PLAIN.replace(b": 13", b":13")])
def test_a_head_whose_length_stands_elsewhere_is_no_template(head: bytes) -> None:
    found = parse_head(head)
    assert found is not None
    assert found[1] == b"13"
    assert not found[0].is_reusable
    assert found[0].fit(head) is None


@pytest.mark.parametrize(
    "data", [b"", b"POST", PLAIN[:-5], PLAIN[:-7], PLAIN.replace(b"13", b"x"), PLAIN.replace(b"13", b"")]
)
def test_what_is_no_such_head_does_not_fit(data: bytes) -> None:
    found = parse_head(PLAIN)
    assert found is not None
    assert found[0].fit(data) is None


def test_headers_are_shown_with_the_length_of_their_own_request() -> None:
    templates = Templates(parse_head)
    templates.read(PLAIN)
    found = templates.read(PLAIN.replace(b"13", b"7"))
    assert found is not None
    headers = Headers(*found)
    assert dict(headers.items())["Content-Length"] == "7"
    assert (headers.get("content-type", ""), headers.get("X", "none")) == ("application/json", "none")
