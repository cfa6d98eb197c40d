"""Which model a request means."""

from __future__ import annotations

import contextlib
import tracemalloc
from urllib.parse import parse_qs, quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswapd.config.schema import Config, ModelConfig, Peer
from llamaswapd.core.jsontext import TEXT_LIMIT_BYTES
from llamaswapd.core.routing import (
    FORM_LIMIT_BYTES,
    MODEL_ROUTES,
    MultipartReader,
    forwarded_path,
    reader,
    split_upstream,
    urlencoded_field,
)
from llamaswapd.errors import ModelNotFound, NoModel

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=B"
LONG_NAME = "a" * (TEXT_LIMIT_BYTES + 1)


def form(name: str, value: str) -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n--B--'.encode()


@pytest.mark.parametrize(
    ("method", "content_type", "query", "body", "name"),
    [
        ("GET", "", "model=a%20b", b"", "a b"),
        ("HEAD", "", "model=a", b"", "a"),
        ("GET", "application/json", "model=a", b'{"model":"b"}', "a"),
        ("POST", "application/json", "model=q", b'{"model":"org/a:7b"}', "org/a:7b"),
        ("POST", "Application/JSON; charset=utf-8", "", b'{"model":"a"}', "a"),
        ("POST", MULTIPART, "model=q", form("model", "a"), "a"),
        ("POST", MULTIPART, "model=q", form("file", "a"), "q"),
        ("POST", 'multipart/form-data; boundary="B"', "", form("model", "a"), "a"),
        ("POST", "multipart/form-data", "model=q", form("model", "a"), "q"),
        ("POST", FORM, "model=q", b"x=1&model=a+b%2Fc&model=d", "a b/c"),
        ("POST", FORM, "x=1&model=q", b"models=a", "q"),
        ("POST", "", "", b"model=a", "a"),
        ("PUT", "text/plain", "model=q", b"something else", "q"),
        ("POST", FORM, "model=q", b"model=a&x=" + b"x" * FORM_LIMIT_BYTES, "q"),
    ],
)
def test_name_is_read_from(method: str, content_type: str, query: str, body: bytes, name: str) -> None:
    whole = reader(method, content_type, query)
    whole.feed(body)
    assert whole.finish() == name
    bytewise = reader(method, content_type, query)
    for i in range(min(len(body), 1000)):
        bytewise.feed(body[i : i + 1])
    bytewise.feed(body[1000:])
    assert bytewise.finish() == name


@pytest.mark.parametrize(
    ("method", "content_type", "query", "body", "why"),
    [
        ("GET", "", "models=a", b"", "the query has no model"),
        ("GET", "", "model=", b"", "the query has no model"),
        ("POST", "application/json", "model=q", b"{}", "the JSON body has no model"),
        ("POST", "application/json", "", b"model=a", "the body is not valid JSON: Expecting value at line 1 column 1"),
        ("POST", "application/json", "", b'{"a":1,}', "the body is not valid JSON: "),
        ("POST", "application/json", "", b"\xff\xff", "the body is not valid JSON"),
        ("POST", "application/json", "", b'["model"]', "the JSON body is no object"),
        ("POST", "application/json", "", b'{"model":""}', "the JSON body has no model"),
        ("POST", MULTIPART, "", form("file", "a"), "neither the form nor the query has a model"),
        ("POST", MULTIPART, "model=q", form("model", ""), "neither the form nor the query has a model"),
        ("POST", "multipart/form-data", "", form("model", "a"), "has no boundary"),
        ("POST", FORM, "", b'{"model":"a"}', "JSON needs application/json"),
        ("POST", "", "", b"", "JSON needs application/json"),
        ("GET", "", f"model={LONG_NAME}", b"", "the name is too long"),
        ("POST", FORM, "", f"model={LONG_NAME}".encode(), "the name is too long"),
        ("POST", MULTIPART, f"model={LONG_NAME}", form("file", "a"), "the name is too long"),
        ("POST", "application/json", "", f'{{"model":"{LONG_NAME}"}}'.encode(), "the JSON body has no model"),
    ],
)
def test_without_a_name_the_reason_is_given(method: str, content_type: str, query: str, body: bytes, why: str) -> None:
    found = reader(method, content_type, query)
    found.feed(body)
    with pytest.raises(NoModel, match=f"no model id could be identified: .*{why}"):
        found.finish()


def test_a_query_needs_no_body() -> None:
    found = reader("GET", "", "stream=true&model=a")
    assert (found.done, found.name, found.stream) == (True, "a", True)
    assert not reader("GET", "", "model=a&stream=1").stream


def test_json_name_is_known_before_the_body_ends_and_stream_when_it_comes() -> None:
    found = reader("POST", "application/json", "")
    found.feed(b'{"model":"a",')
    assert (found.name, found.stream) == ("a", False)
    found.feed(b'"stream":true,')
    assert (found.name, found.stream) == ("a", True)


def test_what_follows_a_json_name_is_not_held() -> None:
    piece = 64 * 1024
    found = reader("POST", "application/json", "")
    found.feed(b'{"model":"llm","prompt":"')
    tracemalloc.start()
    for _ in range(64):
        found.feed(bytes([32]) * piece)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    found.feed(b'","stream":true}')
    assert (found.name, found.stream) == ("llm", True)
    assert held < 8 * piece


def test_place_of_a_multipart_name_is_told_unless_it_came_from_the_query() -> None:
    body = form("model", "name")
    found = reader("POST", MULTIPART, "model=q")
    assert isinstance(found, MultipartReader)
    found.feed(body)
    assert found.span
    assert body[slice(*found.span)] == b"name"
    other = reader("POST", MULTIPART, "model=q")
    assert isinstance(other, MultipartReader)
    other.feed(form("file", "x"))
    assert (other.finish(), other.span) == ("q", None)


def test_a_body_larger_than_a_form_is_given_up_at_the_limit() -> None:
    found = reader("POST", "application/octet-stream", "model=q")
    found.feed(b"x" * FORM_LIMIT_BYTES)
    assert not found.done
    found.feed(b"x")
    assert found.done
    assert found.finish() == "q"


@given(
    st.sampled_from(["GET", "POST", "PUT"]),
    st.sampled_from(["", "application/json", MULTIPART, FORM, "multipart/form-data; boundary=\x00\u0119", "x/y"])
    | st.text(max_size=20),
    st.text(max_size=20),
    st.lists(st.binary(max_size=20)),
)
def test_random_requests_have_a_name_or_none(method: str, content_type: str, query: str, pieces: list[bytes]) -> None:
    found = reader(method, content_type, query)
    for piece in pieces:
        found.feed(piece)
    with contextlib.suppress(NoModel):
        assert found.finish()


@given(st.lists(st.tuples(st.sampled_from(["model", "mod", "a=", "stream", ""]), st.text(max_size=5))))
def test_urlencoded_field_is_what_a_full_parse_finds(fields: list[tuple[str, str]]) -> None:
    text = urlencode(fields, errors="replace")
    assert urlencoded_field(text, "model") == parse_qs(text, keep_blank_values=True).get("model", [None])[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [("m%6Fdel=a", "a"), ("%6d%6f%64%65%6c=a", "a"), ("model", ""), ("model&model=a", ""), ("xmodel=a&modelx=b", None)],
)
def test_urlencoded_field_spelled_unusually(text: str, value: str | None) -> None:
    assert urlencoded_field(text, "model") == value


def configured(*names: str, **aliases: tuple[str, ...]) -> Config:
    models = {name: ModelConfig(id=name, aliases=aliases.get(name, ())) for name in names}
    return Config(models=models)


@pytest.mark.parametrize(
    ("path", "model", "rest"),
    [
        ("/upstream/a", "a", None),
        ("/upstream/a/", "a", "/"),
        ("/upstream/a/v1/models", "a", "/v1/models"),
        ("/upstream/a/b", "a/b", None),
        ("/upstream/a%2Fb/x%2Fy%20z", "a/b", "/x%2Fy%20z"),
        ("/upstream/a/b/b/", "a/b", "/b/"),
        ("/upstream/x/y/z/w", "d", "/w"),
        ("/upstream/s%20p%C3%BC/x", "s pü", "/x"),
    ],
)
def test_upstream_path_is_split_after_the_longest_model_name(path: str, model: str, rest: str | None) -> None:
    config = configured("a", "a/b", "c", "d", "s pü", d=("x/y/z",))
    found, remaining = split_upstream(config, path)
    assert (found.id, remaining) == (model, rest)


@pytest.mark.parametrize("path", ["/upstream/", "/upstream/b/a", "/upstream/A/x", "/upstream/%FF", "/upstream//a"])
def test_upstream_path_without_a_model_is_not_found(path: str) -> None:
    with pytest.raises(ModelNotFound):
        split_upstream(configured("a"), path)
    with pytest.raises(ModelNotFound):
        split_upstream(Config(), path)


SEGMENT = st.text(min_size=1, max_size=4)


@given(st.lists(SEGMENT, min_size=1, max_size=3), st.lists(SEGMENT.map(lambda s: quote(s, safe="")), max_size=3))
def test_any_model_name_can_be_reached_and_the_rest_keeps_its_escapes(name: list[str], rest: list[str]) -> None:
    model = "/".join(name)
    raw_rest = "/" + "/".join(rest)
    for safe in ("", "/"):
        found, remaining = split_upstream(configured(model), "/upstream/" + quote(model, safe=safe) + raw_rest)
        assert (found.id, remaining) == (model, raw_rest)


def test_a_path_of_many_segments_is_compared_only_as_far_as_names_go() -> None:
    found, rest = split_upstream(configured("a/b"), "/upstream/a/b" + "/x" * 200_000)
    assert (found.id, len(rest or "")) == ("a/b", 400_000)


@pytest.mark.parametrize(
    ("path", "forwarded"),
    [
        ("/v/chat/completions", "/chat/completions"),
        ("/v/messages/count_tokens", "/messages/count_tokens"),
        ("/audioapi/v1/tasks/run", "/v1/tasks/run"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/props", "/props"),
    ],
)
def test_forwarded_path(path: str, forwarded: str) -> None:
    assert forwarded_path(path) == forwarded


def test_model_routes_are_listed_once_and_only_the_prefixed_ones_change() -> None:
    assert len(set(MODEL_ROUTES)) == len(MODEL_ROUTES) == 31
    changed = {path for _, path in MODEL_ROUTES if forwarded_path(path) != path}
    assert changed == {path for _, path in MODEL_ROUTES if path.startswith(("/v/", "/audioapi/"))}


def test_pins_and_peers_count_in_a_path_too_and_the_longest_pin_comes_first() -> None:
    config = configured("a", "a/b", "real").having(peers={"p": Peer(id="p", models=("org/x",))})
    pins = {"a": "real", "off": ""}
    assert [
        (target.id, rest)
        for target, rest in (
            split_upstream(config, "/upstream/a/b/c", pins),
            split_upstream(config, "/upstream/a/b/c"),
            split_upstream(config, "/upstream/p/org/x/v1"),
            split_upstream(config, "/upstream/org%2Fx/"),
        )
    ] == [("real", "/b/c"), ("a/b", "/c"), ("p/org/x", "/v1"), ("p/org/x", "/")]
    with pytest.raises(ModelNotFound):
        split_upstream(config, "/upstream/off/x", pins)
