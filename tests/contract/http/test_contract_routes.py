"""Contract: every route, what it wants and where it ends (http.md, 5)."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from blackbox import Program, Received

pytestmark = pytest.mark.private

JSON_ROUTES = [
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/rerank",
    "/reranking",
    "/v1/rerank",
    "/v1/reranking",
    "/infill",
    "/completion",
    "/v1/audio/speech",
    "/v1/audio/voices",
    "/v1/images/generations",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
]

REWRITTEN_ROUTES = {
    "/audioapi/v1/tasks/run": "/v1/tasks/run",
    "/v/chat/completions": "/chat/completions",
    "/v/responses": "/responses",
    "/v/completions": "/completions",
    "/v/messages": "/messages",
    "/v/messages/count_tokens": "/messages/count_tokens",
    "/v/embeddings": "/embeddings",
    "/v/rerank": "/rerank",
    "/v/reranking": "/reranking",
}

BODY = {"model": "m", "input": ["a", 1], "prompt": "ä"}


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_a_post_with_json_reaches_its_model(house: Program, path: str) -> None:
    got = house.received("POST", f"{path}?q=1", BODY)
    assert (got.method, got.path, got.json()) == ("POST", f"{path}?q=1", BODY)


@pytest.mark.parametrize(("path", "forwarded"), REWRITTEN_ROUTES.items())
def test_the_path_of_some_is_rewritten(house: Program, path: str, forwarded: str) -> None:
    got = house.received("POST", f"{path}?q=1", BODY)
    assert (got.method, got.path, got.json()) == ("POST", f"{forwarded}?q=1", BODY)


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/images/edits"])
def test_forms_with_files_reach_their_model(house: Program, path: str) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        b"\x00\xff\r\n--bb\r\n"
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    got = house.received("POST", path, body, headers)
    assert (got.path, got.body, got.values("content-type")) == (path, body, [headers["Content-Type"]])


@pytest.mark.parametrize("path", ["/v1/audio/voices", "/sdapi/v1/loras", "/props"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_get_names_its_model_in_the_query(house: Program, method: str, path: str) -> None:
    answer = house.ask(method, f"{path}?model=m&x=%2F+y")
    assert answer.status == 200
    if method == "GET":
        got = Received.told_by(answer)
        assert (got.method, got.path) == ("GET", f"{path}?model=m&x=%2F+y")


@pytest.mark.parametrize("path", [*JSON_ROUTES, *REWRITTEN_ROUTES, "/v1/audio/transcriptions", "/v1/images/edits"])
def test_a_post_without_a_model_is_404(house: Program, path: str) -> None:
    answer = house.post(path, {"messages": []})
    assert (answer.status, "no model id could be identified" in answer.message) == (404, True)


@pytest.mark.parametrize(
    ("path", "status", "location"),
    [("/", 302, "/ui"), ("/upstream", 302, "/ui/models")],
)
def test_some_lead_to_the_pages(house: Program, path: str, status: int, location: str) -> None:
    answer = house.get(path)
    assert (answer.status, answer.header("Location")) == (status, location)


def test_ui_leads_to_its_folder(house: Program) -> None:
    answer = house.get("/ui")
    assert (answer.status in (301, 302, 307, 308), answer.header("Location")) == (True, "/ui/")


@pytest.mark.parametrize("path", ["/health", "/wol-health"])
def test_health_says_ok_and_starts_nothing(house: Program, path: str) -> None:
    before = house.running()
    answer = house.get(path)
    assert (answer.status, answer.body) == (200, b"OK")
    assert house.running() == before


# ---- finding the model (http.md, 6)


def test_numbers_and_booleans_name_a_model_by_their_text(house: Program) -> None:
    for text in ("5", "1.50", "true"):
        answer = house.post("/v1/embeddings", f'{{"model": {text}}}', {"Content-Type": "application/json"})
        assert (answer.status, "no router for requested model" in answer.message) == (404, True), text


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ('{"model":"m"}', True),
        (' {\n"x": {"model": "nobody"}, "model" : "m" } ', True),
        ('{"model":"m","model":"nobody"}', True),
        ('{"\\u006dodel":"m"}', True),
        ('{"model":"\\u006d"}', True),
        ('{"model":""}', False),
        ('{"model":null}', False),
        ('{"x":{"model":"m"}}', False),
        ('[{"model":"m"}]', False),
        ("not json", False),
        ("", False),
    ],
)
def test_json_is_read_leniently_and_its_first_model_counts(house: Program, body: str, found: bool) -> None:
    answer = house.post("/v1/embeddings", body, {"Content-Type": "application/json"})
    assert answer.status == (200 if found else 404)
    if found:
        assert Received.told_by(answer).body == body.encode()
    else:
        assert "no model id could be identified" in answer.message


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "text/x, application/json"]
)
def test_the_content_type_need_only_contain_json(house: Program, content_type: str) -> None:
    assert house.post("/v1/embeddings", '{"model":"m"}', {"Content-Type": content_type}).status == 200


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
def test_json_of_another_type_has_no_model(house: Program, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = house.post("/v1/embeddings", '{"model":"m"}', headers)
    assert (answer.status, "no model id could be identified" in answer.message) == (404, True)


def test_the_query_does_not_count_for_json(house: Program) -> None:
    answer = house.post("/v1/embeddings?model=m", {})
    assert (answer.status, "no model id could be identified" in answer.message) == (404, True)


def form(*fields: tuple[str, str]) -> bytes:
    parts = (f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields)
    return ("".join(parts) + "--b--\r\n").encode()


@pytest.mark.parametrize(
    ("content_type", "path", "body", "found"),
    [
        ("multipart/form-data; boundary=b", "/v1/images/edits", form(("x", "1"), ("model", "m")), True),
        ("multipart/form-data; boundary=b", "/v1/images/edits?model=m", form(("x", "1")), True),
        ("multipart/form-data; boundary=b", "/v1/images/edits", form(("x", "1")), False),
        ("application/x-www-form-urlencoded", "/v1/embeddings", b"x=1&model=m", True),
        ("application/x-www-form-urlencoded", "/v1/embeddings?model=nobody", b"model=m", True),
        ("application/x-www-form-urlencoded", "/v1/embeddings?model=m", b"x=1", True),
        (None, "/v1/embeddings?model=m", b"\x00\x01", True),
        ("application/octet-stream", "/v1/embeddings?model=m", b"\x00", True),
    ],
)
def test_forms_and_queries_name_models_too(
    house: Program, content_type: str | None, path: str, body: bytes, found: bool
) -> None:
    answer = house.post(path, body, {"Content-Type": content_type} if content_type else {})
    assert answer.status == (200 if found else 404)
    if found:
        got = Received.told_by(answer)
        assert (got.path, got.body) == (path, body)


@pytest.mark.parametrize(
    "path", ["/props", "/props?model=", "/sdapi/v1/loras?modell=m", "/v1/audio/voices?stream=true"]
)
def test_a_get_without_a_model_is_404(house: Program, path: str) -> None:
    answer = house.get(path)
    assert (answer.status, "no model id could be identified" in answer.message) == (404, True)


def test_names_may_hold_slashes_colons_and_blanks(house: Program) -> None:
    name = "author/model:Q4_K M"
    assert house.chat(name).status == 200
    assert house.get(f"/props?{urlencode({'model': name})}").status == 200


@pytest.mark.parametrize("name", ["M", " m", "m ", "alias2", "other", "far", "far/shared/x", "p"])
def test_an_unknown_model_is_404_and_names_are_compared_exactly(house: Program, name: str) -> None:
    answer = house.chat(name)
    assert (answer.status, "no router for requested model" in answer.message) == (404, True)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("m", "m"),
        ("alias", "alias"),
        ("other/alias", "other/alias"),
        ("renamed", "real-name"),
        ("filtered:hot", "filtered:hot"),
        ("first", "m"),
        ("far/p/q", "p/q"),
        ("p/q", "p/q"),
        ("far/shared", "shared"),
        ("near/shared", "shared"),
        ("plain", "plain"),
    ],
)
def test_a_name_leads_to_its_model_which_gets_the_name_it_knows(house: Program, name: str, sent: str) -> None:
    assert house.received("POST", "/v1/embeddings", {"model": name}).json()["model"] == sent


def test_a_bare_name_that_two_peers_have_is_unknown(house: Program) -> None:
    assert "no router for requested model" in house.chat("shared").message
