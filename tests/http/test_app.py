from __future__ import annotations

import base64
import json
import logging

import pytest
from standins import Engine, house, model

from llamaswapd.config.schema import Config
from llamaswapd.core.routing import MODEL_ROUTES
from llamaswapd.errors import Error
from llamaswapd.http import app

UNAUTHORIZED = "unauthorized: invalid or missing API key"


def basic(credentials: bytes) -> str:
    return "Authorization: Basic " + base64.b64encode(credentials).decode()


class BrokenEngine(Engine):
    def statuses(self) -> list[object]:
        raise ZeroDivisionError


# ---- errors


async def test_an_error_is_an_openai_error_object_marked_as_the_proxys() -> None:
    async with house(Engine()) as it:
        answer = await it.ask("/api/models/unload/none", method="POST")
    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    error = {"message": "model not found", "type": "invalid_request_error", "param": None, "code": "not_found"}
    assert answer.json() == {"src": "llama-swap", "error": error}
    assert not answer.body.endswith(b"\n")


@pytest.mark.parametrize(
    ("accept", "content_type", "body"),
    [
        ("text/plain", "text/plain", b"llama-swap: model not found"),
        ("text/html, text/plain", "text/plain", b"llama-swap: model not found"),
        ("text/html", "text/html", b"<html><body><h1>llama-swap</h1><p>model not found</p></body></html>"),
    ],
)
async def test_an_error_is_text_or_a_page_for_who_accepts_those(accept: str, content_type: str, body: bytes) -> None:
    async with house(Engine()) as it:
        answer = await it.ask("/api/models/unload/none", f"Accept: {accept}", method="POST")
    assert (answer.status, answer.headers["content-type"], answer.body) == (404, content_type, body)


async def test_an_unexpected_exception_is_a_500_with_its_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with house(BrokenEngine()) as it:
        answer = await it.ask("/running")
    assert answer.status == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "ZeroDivisionError" in answer.json()["error"]["message"]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


async def test_too_many_requests_is_json_whatever_is_accepted_and_says_when_to_retry() -> None:
    from llamaswapd.errors import TooManyRequests
    from llamaswapd.http.answers import error_answer

    answer = error_answer(TooManyRequests(), "text/plain")
    assert (answer.status, answer.headers["Content-Type"], answer.headers["Retry-After"]) == (
        429,
        "application/json",
        "1",
    )
    assert json.loads(answer.body)["error"] == {  # type: ignore[arg-type]
        "message": "Too many requests",
        "type": "rate_limit_error",
        "param": None,
        "code": "concurrency_limit",
    }


async def test_a_message_in_a_page_cannot_hold_markup() -> None:
    from llamaswapd.http.answers import error_body

    assert b"<p>&lt;script&gt; &amp;</p>" in error_body(Error("<script> &"), "text/html")[1]


# ---- routes


async def test_no_answer_names_the_library_behind_it() -> None:
    async with house(Engine()) as it:
        assert "server" not in (await it.ask("/health")).headers
        assert "server" not in (await it.ask("/none")).headers


async def test_an_unknown_path_is_not_found() -> None:
    async with house(Engine()) as it:
        answer = await it.ask("/nothing/here")
    assert (answer.status, answer.body) == (404, b"404 page not found\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_a_known_path_with_another_method_is_not_allowed() -> None:
    async with house(Engine()) as it:
        post = await it.ask("/running", method="POST")
        get = await it.ask("/v1/chat/completions")
        head = await it.ask("/v1/chat/completions", method="HEAD")
    assert (post.status, post.headers["allow"], post.body) == (405, "GET, HEAD", b"Method Not Allowed\n")
    assert (get.status, get.headers["allow"], get.headers["content-type"]) == (405, "POST", "text/plain; charset=utf-8")
    assert head.status == 405


@pytest.mark.parametrize(
    "path", ["/health", "/wol-health", "/v1/models", "/models", "/running", "/logs", "/api/version", "/", "/upstream"]
)
async def test_get_routes_answer_head_alike(path: str) -> None:
    async with house(Engine()) as it:
        get, head = await it.ask(path), await it.ask(path, method="HEAD")
    assert head.status == get.status < 400
    for answer in (get, head):
        answer.headers.pop("date")
    assert {"content-length": "0"} | head.headers == {"content-length": "0"} | get.headers


@pytest.mark.parametrize("path", ["/api/events", "/logs/stream", "/logs/stream/proxy"])
async def test_head_of_a_stream_ends_at_once(path: str) -> None:
    async with house(Engine()) as it:
        client = await it.connect()
        await client.send(path, "Connection: close", method="HEAD")
        assert (await client.head()).status == 200
        assert await client.reader.read() == b""


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("//running", "/running"),
        ("/v1//models?a=%20b", "/v1/models?a=%20b"),
        ("/v1/./models", "/v1/models"),
        ("/api/../v1/models/", "/v1/models/"),
        ("/..", "/"),
        ("//host.example/..", "/"),
        ("//host.example", "/host.example"),
        ("/\\host.example//x", "/%5Chost.example/x"),
        ("/upstream/a%2Fb//c", "/upstream/a%2Fb/c"),
    ],
)
async def test_a_path_that_is_not_clean_redirects_to_the_clean_one_on_this_host(path: str, location: str) -> None:
    async with house(Engine()) as it:
        answer = await it.ask(path)
    assert (answer.status, answer.headers["location"]) == (307, location)


async def test_dots_in_names_are_no_reason_to_redirect() -> None:
    async with house(Engine()) as it:
        assert (await it.ask("/.well-known/x..y")).status == 404


async def test_every_model_route_leads_to_the_proxy() -> None:
    async with house(Engine()) as it:
        answers = {(await it.ask(path, method=method)).body for method, path in MODEL_ROUTES}
    assert not any(b"page not found" in body or b"Not Allowed" in body for body in answers)


async def test_the_bare_paths_lead_to_the_web_interface() -> None:
    async with house(Engine()) as it:
        root, upstream = await it.ask("/"), await it.ask("/upstream")
    assert (root.status, root.headers["location"]) == (302, "/ui")
    assert (upstream.status, upstream.headers["location"]) == (302, "/ui/models")


async def test_a_target_may_be_a_whole_address_or_an_asterisk() -> None:
    async with house(Engine()) as it:
        assert (await it.ask("http://elsewhere.example/running")).json() == {"running": []}
        assert (await it.ask("*", method="OPTIONS")).status == 204


# ---- keys


@pytest.mark.parametrize(
    "headers",
    [
        ["Authorization: Bearer key-1"],
        ["authorization: bEARER key-2"],
        ["x-api-key: key-1"],
        [basic(b"anybody:key-1")],
        [basic(b":key-1")],
        [basic("any:schlüssel:2".encode())],
        ["Authorization: Bearer schlüssel:2"],
        ["Authorization: Digest key", "x-api-key: key-1"],
        ["Authorization: Basic !!!", "x-api-key: key-1"],
        [basic(b"user:"), "x-api-key: key-1"],
        ["Authorization: Bearer", "x-api-key: key-1"],
    ],
)
async def test_a_key_is_taken_from_bearer_basic_or_its_own_header(headers: list[str]) -> None:
    async with house(Engine(api_keys=("key-1", "key-2", "schlüssel:2"))) as it:
        assert (await it.ask("/running", *headers)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Authorization: Bearer key-"],
        ["Authorization: Bearer key-11"],
        ["Authorization: Bearer  key-1"],
        ["Authorization: Bearer wrong", "x-api-key: key-1"],
        [basic(b"key-1:wrong"), "x-api-key: key-1"],
        [basic(b"key-1")],
        ["Authorization: key-1"],
        [basic(b"any:key-1").replace("YW55", "YW5!5")],
        ["Authorization: Basic \udcff\udcfe"],
        ["x-api-key: \udcff"],
        ["x-api-key:"],
        ["Cookie: key-1"],
    ],
)
async def test_anything_else_is_refused(headers: list[str]) -> None:
    async with house(Engine(api_keys=("key-1",))) as it:
        answer = await it.ask("/running?x-api-key=key-1", *headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Basic realm="llama-swap"')
    error = {"message": UNAUTHORIZED, "type": "authentication_error", "param": None, "code": "unauthorized"}
    assert answer.json()["error"] == error


async def test_open_routes_need_no_key_and_all_others_do() -> None:
    async with house(Engine(model("m"), api_keys=("key",))) as it:
        for path in ("/", "/health", "/wol-health", "/upstream", "/nothing"):
            assert (await it.ask(path)).status != 401, path
        assert (await it.ask("/running", method="POST")).status == 405
        assert (await it.ask("/running", method="OPTIONS")).status == 204
        guarded = ["/v1/models", "/models", "/running", "/unload", "/logs", "/logs/stream", "/logs/stream/m"]
        for path in (*guarded, "/api/events", "/api/version", "/upstream/m/", "/upstream/"):
            assert (await it.ask(path)).status == 401, path
            assert (await it.ask(path, method="HEAD")).status == 401, path
        for method, path in (*MODEL_ROUTES, ("POST", "/api/models/unload"), ("POST", "/api/models/unload/m")):
            assert (await it.ask(path, method=method)).status == 401, path


async def test_keys_are_those_of_the_configuration_of_now() -> None:
    engine = Engine(api_keys=("old",))
    async with house(engine) as it:
        assert (await it.ask("/running", "x-api-key: old")).status == 200
        engine.use(Config(api_keys=("new",)))
        assert (await it.ask("/running", "x-api-key: old")).status == 401
        assert (await it.ask("/running", "x-api-key: new")).status == 200
        engine.use(Config())
        assert (await it.ask("/running", "x-api-key: old")).status == 200


# ---- preflights


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nothing", "/a//b", "/upstream/x/y"])
async def test_options_on_any_path_is_a_cors_answer(path: str) -> None:
    async with house(Engine(api_keys=("key",))) as it:
        answer = await it.ask(path, method="OPTIONS")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-methods"] == "GET, POST, PUT, PATCH, DELETE, OPTIONS"
    assert answer.headers["access-control-allow-headers"] == "Content-Type, Authorization, Accept, X-Requested-With"
    assert answer.headers["access-control-max-age"] == "86400"


async def test_only_header_names_are_allowed_in_a_preflight() -> None:
    async with house(Engine()) as it:
        asked = "Access-Control-Request-Headers: x-one,  X-Two , bad name, <b>, \udcff, ,x_3"
        answer = await it.ask("/", asked, method="OPTIONS")
    assert answer.headers["access-control-allow-headers"] == "x-one, X-Two, x_3"


# ---- the access log


async def test_each_request_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamaswapd")
    async with house(Engine()) as it:
        await it.ask("/running?x=%0A", "User-Agent: \udcff tool", "X-Forwarded-For: 10.1.2.3, 10.0.0.1")
        await it.ask("/wol-health")
        await it.ask("/nothing", "X-Real-IP: 10.9.9.9", method="POST")
    lines = [line for record in caplog.records for line in record.getMessage().split("\n")]
    assert [line.rpartition(" ")[0] for line in lines] == [
        r'Request 10.1.2.3 "GET /running HTTP/1.1" 200 15 "\udcff tool"',
        'Request 10.9.9.9 "POST /nothing HTTP/1.1" 404 19 ""',
    ]


# ---- stopping


async def test_the_front_end_is_drained_when_the_last_stream_has_ended() -> None:
    async with house(Engine()) as it:
        client = await it.stream("/logs/stream")
        it.front.drain()
        await it.front.drained()
        assert await client.chunk() == b"llamaswapd is stopping\n"
        assert await client.chunk() == b""
        with pytest.raises(ConnectionError):
            await it.connect()


async def test_an_idle_connection_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "CUT_AFTER_S", 3600.0)
    async with house(Engine()) as it:
        client = await it.connect()
        await client.send("/health")
        assert (await client.answer()).status == 200
        await it.front.close()
        assert await client.reader.read() == b""
