"""`/comfyui` and `/upstream`: models that stand in the path, and what may load them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_model import OK, Call, FakeModel, chat, fixed, house_of, until
from standins import House, model

from llamaswapd.config.schema import COMFYUI_ID, UpstreamSection
from llamaswapd.core.lifecycle import State


@asynccontextmanager
async def comfy(
    answer: Any = None, state: State = State.READY, **settings: Any
) -> AsyncIterator[tuple[House, FakeModel]]:
    ui = model(COMFYUI_ID, proxy="", **settings)
    async with house_of(answer or fixed(OK), others=[ui]) as (it, server):
        it.engine.become(COMFYUI_ID, state)
        yield it, server


# ---- /comfyui


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        ("/comfyui/", "/"),
        ("/comfyui/?a=%2F&b", "/?a=%2F&b"),
        ("/comfyui/api/x%20y%2Fz?q=1", "/api/x%20y%2Fz?q=1"),
        ("/comfyui/comfyui/x", "/comfyui/x"),
        ("/comfyui/a/", "/a/"),
        ("/comfyui/v1/chat/completions", "/v1/chat/completions"),
        ("/comfyui/style.css", "/style.css"),
        ("http://models/comfyui/x?y", "/x?y"),
    ],
)
async def test_the_rest_of_the_path_goes_to_the_model(target: str, seen: str) -> None:
    async with comfy() as (it, server):
        assert (await it.ask(target)).body == b"ok"
    assert server.calls[0].request_line == f"GET {seen} HTTP/1.1"


async def test_an_escaped_name_is_the_same_name_to_whoever_decodes_it() -> None:
    async with comfy() as (it, server):
        answer = await it.ask("/comfyu%69/a%2Fb")
        assert answer.status in (200, 404)  # older versions of aiohttp do not
    assert [call.request_line for call in server.calls] == ["GET /a%2Fb HTTP/1.1"] * (answer.status == 200)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_any_method_passes_with_its_body(method: str) -> None:
    async with comfy() as (it, server):
        client = await it.connect()
        client.writer.write(chat(b'{"model":"m"}', path="/comfyui/prompt").replace(b"POST", method.encode(), 1))
        assert (await client.answer()).body == b"ok"
        assert not it.activity.ended
    assert server.calls[0].request_line == f"{method} /prompt HTTP/1.1"
    assert server.calls[0].body == b'{"model":"m"}'


async def test_it_is_not_shown_in_flight_and_holds_its_lease() -> None:
    proceed = asyncio.Event()

    async def answer(call: Call) -> None:
        await proceed.wait()
        await call.send(OK)

    async with comfy(answer) as (it, server):
        client = await it.connect()
        await client.send("/comfyui/history")
        await until(lambda: bool(server.calls))
        assert (it.engine.leases, len(it.observer.inflight)) == (1, 0)
        proceed.set()
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("state", [State.STOPPED, State.STARTING, State.STOPPING])
@pytest.mark.parametrize(
    "target", ["/comfyui/x", "/comfyui/%2F", "/comfyui/api/", "/comfyui/index.html?", "/comfyui/a%2F.."]
)
async def test_only_its_front_page_may_load_it(state: State, target: str) -> None:
    async with comfy(state=state) as (it, server):
        it.engine.ready.clear()
        answer = await it.ask(target)
        assert (answer.status, answer.json()["error"]["code"]) == (409, "conflict")
        message = answer.json()["error"]["message"]
        assert message == "model comfyui_auto is not loaded; only /comfyui/ can start it"
        client = await it.connect()
        await client.send("/comfyui/?x=1")
        await it.engine.waited.wait()
        it.engine.ready.set()
        assert (await client.answer()).body == b"ok"
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("method", "status"), [("GET", 301), ("HEAD", 301), ("POST", 308), ("PUT", 308), ("DELETE", 308)]
)
async def test_the_bare_path_leads_to_the_front_page(method: str, status: int) -> None:
    async with comfy(state=State.STOPPED) as (it, server):
        for query in ("", "?a=1&b=%2F"):
            answer = await it.ask(f"/comfyui{query}", "Content-Length: 0", method=method)
            assert (answer.status, answer.headers["location"]) == (status, f"/comfyui/{query}")
    assert not server.calls


@pytest.mark.parametrize("target", ["/comfyui/", "/comfyui/x"])
async def test_without_the_model_there_is_nothing(target: str) -> None:
    async with house_of(fixed(OK)) as (it, _):
        answer = await it.ask(target)
    assert (answer.status, answer.json()["error"]["message"]) == (404, "local model comfyui_auto not found")


async def test_it_needs_a_key() -> None:
    async with house_of(fixed(OK), {"api_keys": ("k",)}, others=[model(COMFYUI_ID, proxy="")]) as (it, server):
        for target in ("/comfyui", "/comfyui/", "/comfyui/x"):
            assert (await it.ask(target)).status == 401
        assert (await it.ask("/comfyui/", "x-api-key: k")).status == 200
    assert len(server.calls) == 1


async def test_a_websocket_neither_loads_it_nor_is_loaded_for() -> None:
    async with comfy(state=State.STOPPED) as (it, _):
        for target in ("/comfyui/", "/upstream/comfyui_auto/ws"):
            answer = await it.ask(target, "Connection: Upgrade", "Upgrade: websocket")
            assert answer.status == 409
            assert "ignored websocket requests cannot start it" in answer.json()["error"]["message"]


async def test_a_name_that_only_begins_like_it_is_unknown() -> None:
    async with comfy() as (it, _):
        assert (await it.ask("/comfyuix")).status == 404
        assert (await it.ask("/comfyuix/")).status == 404


# ---- upstream.ignorePaths

NOT_LOADED = "model m is not loaded; path matches upstream.ignorePaths"


async def is_ignored(it: House, target: str) -> bool:
    """Whether a request for a model that is not loaded is refused; that it is answered if it is."""
    it.engine.become("m", State.STOPPED)
    answer = await it.ask(target)
    if answer.status == 409:
        assert answer.json()["error"]["message"] == NOT_LOADED
        it.engine.become("m", State.READY)
        assert (await it.ask(target)).body == b"ok"
        return True
    assert answer.body == b"ok"
    return False


@pytest.mark.parametrize(
    ("rest", "ignored"),
    [
        ("/a.js", True),
        ("/deep/a.min.css", True),
        ("/favicon.ico", True),
        ("/robots.txt?x=1", True),
        ("/a%2Ejs", True),
        ("/a.%6As", True),
        ("/%61.json", True),
        ("/a.jsx", False),
        ("/a.JS", False),
        ("/js", False),
        ("/", False),
        ("/v1/models?a.js", False),
        ("/a.js/", False),
        ("/" + "a" * 2044 + ".js", True),
        ("/" + "a" * 2045 + ".js", False),
    ],
)
async def test_assets_load_no_model_by_default(rest: str, ignored: bool) -> None:
    async with house_of(fixed(OK)) as (it, _):
        assert await is_ignored(it, f"/upstream/m{rest}") is ignored


@pytest.mark.parametrize("state", [State.STARTING, State.STOPPING])
async def test_assets_wait_for_no_model(state: State) -> None:
    async with house_of(fixed(OK)) as (it, _):
        it.engine.become("m", state)
        assert (await it.ask("/upstream/m/a.js")).status == 409


async def test_a_list_of_ones_own_replaces_the_default() -> None:
    section = UpstreamSection(ignore_paths=(r"^/static/", r"\.wasm$", r"(?i)IMAGE"))
    async with house_of(fixed(OK), {"upstream": section}) as (it, _):
        for rest in ("/static/x", "/st%61tic/x", "/x.wasm", "/my/image/y"):
            assert await is_ignored(it, f"/upstream/m{rest}")
        for rest in ("/a.js", "/x/static/", "/static"):
            assert not await is_ignored(it, f"/upstream/m{rest}")


async def test_names_with_slashes_end_before_the_path_that_is_looked_at() -> None:
    section = UpstreamSection(ignore_paths=("^/b",))
    async with house_of(fixed(OK), {"upstream": section}, aliases=("a/b", "x.js")) as (it, _):
        assert not await is_ignored(it, "/upstream/a/b/c")
        assert await is_ignored(it, "/upstream/a/b/b")
        assert not await is_ignored(it, "/upstream/x.js/")


async def test_the_bare_model_is_redirected_even_if_it_looks_like_an_asset() -> None:
    async with house_of(fixed(OK), aliases=("x.js",)) as (it, _):
        assert (await it.ask("/upstream/x.js")).status == 301
