"""Names that become others on the way: profiles, selectors, aliases; and how all of them are listed and told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fake_model import OK, Call, chat, fixed, house_of, until
from standins import Answer, Engine, House, house, model
from test_events import Reader, watch

from llamaswapd.config.schema import (
    ActivityPage,
    Capabilities,
    Filters,
    Peer,
    Profile,
    Selector,
    SpilloverSettings,
    Ui,
)
from llamaswapd.core.lifecycle import State

PROFILES = {
    "work": Profile(description="at work", pins={"llm": "m", "off": "", "m": "n", "pick": "warm"}),
    "home": Profile(pins={"llm": "p/far"}),
}


def names(name: str) -> bytes:
    return b'{"model":"%b"}' % name.encode()


async def choose(it: House, body: bytes) -> Answer:
    client = await it.connect()
    await client.send("/api/profiles/active", f"Content-Length: {len(body)}", method="PUT")
    client.writer.write(body)
    return await client.answer()


async def test_a_choice_of_a_profile_may_not_be_a_long_story() -> None:
    async with house(Engine(model("m"), profiles=PROFILES)) as it:
        answer = await choose(it, b'{"name":"work","x":"' + bytes(1_100_000) + b'"}')
        assert (answer.status, it.engine.naming.active) == (413, None)
        assert "a profile request of more than 1048576 bytes" in answer.json()["error"]["message"]


async def ask(it: House, data: bytes) -> Answer:
    client = await it.connect()
    client.writer.write(data)
    return await client.answer()


# ---- the profiles' API


async def test_profiles_are_listed_by_id_with_all_their_pins() -> None:
    async with house(Engine(model("m"), profiles=PROFILES)) as it:
        answer = await it.ask("/api/profiles")
        assert (answer.status, answer.headers["content-type"], answer.body[-1:]) == (200, "application/json", b"\n")
        assert answer.json() == {
            "active": None,
            "profiles": [
                {"id": "home", "description": "", "pins": {"llm": "p/far"}},
                {"id": "work", "description": "at work", "pins": {"llm": "m", "off": "", "m": "n", "pick": "warm"}},
            ],
        }
        head = await it.ask("/api/profiles", method="HEAD")
        assert (head.status, head.headers["content-length"]) == (200, str(len(answer.body)))


async def test_a_profile_is_switched_and_switched_off() -> None:
    async with house(Engine(model("m"), profiles=PROFILES)) as it:
        for body, active in (
            (b'{"name":"work"}', "work"),
            (b' {"x":1,"name":"home"} ', "home"),
            (b'{"name":null}', None),
            (b'{"name":"work"}', "work"),
            (b'{"name":""}', None),
        ):
            answer = await choose(it, body)
            assert (answer.status, answer.json()) == (200, {"active": active})
            assert (await it.ask("/api/profiles")).json()["active"] == active


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "invalid profile request"),
        (b"nonsense", 400, "invalid profile request"),
        (b"\xff", 400, "invalid profile request"),
        (b"[]", 400, "invalid profile request"),
        (b"null", 400, "invalid profile request"),
        (b'"work"', 400, "invalid profile request"),
        (b"[" * 100_000, 400, "invalid profile request"),
        (b"{}", 400, "profile name is required"),
        (b'{"Name":"work"}', 400, "profile name is required"),
        (b'{"name":1}', 400, "profile name must be a string or null"),
        (b'{"name":["work"]}', 400, "profile name must be a string or null"),
        (b'{"name":false}', 400, "profile name must be a string or null"),
        (b'{"name":"x"}', 404, 'profile "x" not found'),
        (b'{"name":"Work"}', 404, 'profile "Work" not found'),
    ],
)
async def test_what_selects_no_profile_leaves_the_selection(body: bytes, status: int, message: str) -> None:
    async with house(Engine(model("m"), profiles=PROFILES)) as it:
        await choose(it, b'{"name":"home"}')
        answer = await choose(it, body)
        assert (answer.status, answer.json()["error"]["message"]) == (status, message)
        assert (await it.ask("/api/profiles")).json()["active"] == "home"


async def test_the_profiles_know_their_methods_and_need_a_key() -> None:
    async with house(Engine(model("m"), profiles=PROFILES, api_keys=("k",))) as it:
        assert (await it.ask("/api/profiles")).status == 401
        for method in ("GET", "HEAD", "POST"):
            refused = await it.ask("/api/profiles/active", "x-api-key: k", method=method)
            assert (refused.status, refused.headers["allow"]) == (405, "PUT")


# ---- pins


async def test_a_pin_rewrites_the_name_in_json_and_nothing_else() -> None:
    async with house_of(fixed(OK), {"profiles": PROFILES}, others=[model("n", proxy="")]) as (it, server):
        for active, sent in ((None, "m"), ("work", "n")):  # a pin hides a model, and does not chain
            it.engine.activate_profile(active)
            assert (await ask(it, chat(b'{ "a":1.0, "model" : "m" ,\n"b": [ ]}'))).status == 200
            assert server.calls[-1].body == b'{ "a":1.0, "model" : "%b" ,\n"b": [ ]}' % sent.encode()
            assert it.activity.ended[-1].model_id == sent


async def test_a_pin_rewrites_the_name_in_a_form_and_nothing_else() -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--b\r\nContent-Disposition: form-data;'
    form += b' name="f"; filename="a"\r\nContent-Type: audio/x\r\n\r\n\0\xff\r\n--b--\r\n'
    async with house_of(fixed(OK), {"profiles": PROFILES}) as (it, server):
        it.engine.activate_profile("work")
        body = form.replace(b"%b", b"llm")
        sent = chat(body, path="/v1/audio/transcriptions").replace(
            b"application/json", b"multipart/form-data; boundary=b"
        )
        assert (await ask(it, sent)).status == 200
    assert server.calls[0].body == form.replace(b"%b", b"m")


@pytest.mark.parametrize("large", [False, True])
async def test_the_models_own_name_and_filters_count_behind_a_pin(large: bool) -> None:
    filters = Filters(set_params_by_id={"m": {"by": "id"}, "llm": {"by": "pin"}}, set_params={"all": 1})
    pad = b',"pad":"' + b"x" * (400_000 if large else 1) + b'"'
    async with house_of(fixed(OK), {"profiles": PROFILES}, use_model_name="real", filters=filters) as (it, server):
        it.engine.activate_profile("work")
        assert (await ask(it, chat(b'{"model":"llm"' + pad + b"}"))).status == 200
    assert server.calls[0].body == b'{"model":"real"' + pad + b',"all":1,"by":"id"}'


async def test_a_pin_to_nothing_disables_a_name() -> None:
    async with house_of(fixed(OK), {"profiles": PROFILES}, aliases=("off",)) as (it, server):
        assert (await ask(it, chat(names("off")))).status == 200
        it.engine.activate_profile("work")
        for data in (chat(names("off")), b"GET /props?model=off HTTP/1.1\r\nHost: x\r\n\r\n"):
            answer = await ask(it, data)
            assert answer.status == 404
            assert answer.json()["error"]["message"].startswith("no model id could be identified")
        answer = await it.ask("/upstream/off/x")
        assert (answer.status, answer.json()["error"]["message"]) == (404, "model not found")
        assert len(it.activity.ended) == 1  # what names no model leaves no row
    assert len(server.calls) == 1


async def test_a_get_is_pinned_and_the_rest_of_its_query_stays() -> None:
    async with house_of(fixed(OK), {"profiles": PROFILES}) as (it, server):
        it.engine.activate_profile("work")
        assert (await it.ask("/props?y=%20&model=llm&x=1&model=z")).status == 200
    assert server.calls[0].request_line == "GET /props?y=%20&model=m&x=1&model=z HTTP/1.1"


async def test_a_get_tells_a_peer_its_own_name_of_the_model() -> None:
    async with house_of(fixed(OK)) as (it, server):
        peer = Peer(id="p", proxy=server.url, models=("far/x y",))
        it.engine.use(it.engine.config.having(peers={"p": peer}))
        assert (await it.ask("/v1/audio/voices?model=p/far/x%20y&z=1")).status == 200
        assert (await it.ask("/v1/audio/voices?model=far/x+y")).status == 200
    targets = [call.request_line.split()[1] for call in server.calls]
    assert targets == ["/v1/audio/voices?model=far/x%20y&z=1", "/v1/audio/voices?model=far/x+y"]


@pytest.mark.parametrize(
    ("query", "form", "sent"),
    [
        ("", "a=%20&model=p%2Ffar%2Fx+y&model=z", ("", "a=%20&model=far/x%20y&model=z")),
        ("", "model=p/far/x+y&a=\u00e9", ("", "model=far/x%20y&a=\u00e9")),
        ("?b=1&model=p/far/x+y", "a=1", ("?b=1&model=far/x%20y", "a=1")),
        ("?model=z", "model=far/x+y", ("?model=z", "model=far/x+y")),
    ],
)
async def test_a_form_that_is_urlencoded_tells_a_peer_its_own_name_of_the_model(
    query: str, form: str, sent: tuple[str, str]
) -> None:
    data = form.encode()
    async with house_of(fixed(OK)) as (it, server):
        peer = Peer(id="p", proxy=server.url, models=("far/x y",))
        it.engine.use(it.engine.config.having(peers={"p": peer}))
        head = f"POST /v1/audio/speech{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        assert (await ask(it, head.encode() + data)).status == 200
    [call] = server.calls
    assert (call.request_line.split()[1], call.body.decode()) == (f"/v1/audio/speech{sent[0]}", sent[1])
    assert call.headers["content-length"] == str(len(call.body))


async def test_a_pin_reaches_a_peer() -> None:
    async with house_of(fixed(OK), others=[model("n", proxy="")]) as (it, server):
        peer = Peer(id="p", proxy=server.url + "/api", models=("far",))
        it.engine.use(it.engine.config.having(peers={"p": peer}, profiles=PROFILES))
        it.engine.activate_profile("home")
        assert (await ask(it, chat(names("llm")))).status == 200
        assert (await it.ask("/upstream/llm/x")).status == 200
        assert [row.model_id for row in it.activity.ended] == ["p/far"]
    assert server.calls[0].body == names("far")
    assert [call.request_line.split()[1] for call in server.calls] == ["/api/v1/chat/completions", "/api/x"]


async def test_upstream_takes_the_longest_pin_before_any_model() -> None:
    profile = Profile(pins={"a": "n", "a/b": "m", "off": ""})
    others = [model("a/b/c", proxy=""), model("n", proxy="")]
    async with house_of(fixed(OK), {"profiles": {"x": profile}}, others=others) as (it, server):
        it.engine.activate_profile("x")
        targets = ("/upstream/a/b/c/v1/rerank", "/upstream/a%2Fb/v1/rerank", "/upstream/a/c/v1/rerank")
        for target in targets:
            assert (await ask(it, chat(names("kept"), path=target))).status == 200
        assert [(row.model_id, row.sent_path) for row in it.activity.ended] == [("m", "/v1/rerank")]
    assert [call.request_line.split()[1] for call in server.calls] == ["/c/v1/rerank", "/v1/rerank", "/c/v1/rerank"]
    assert {call.body for call in server.calls} == {names("kept")}  # on the path only


# ---- selectors


SELECTORS = {
    "first": Selector(strategy="pin", targets=("n", "m")),
    "warm": Selector(strategy="warm", targets=("m", "n", "o")),
    "spill": Selector(strategy="spillover", targets=("alias", "n"), settings=SpilloverSettings(spillover=2)),
}
OTHERS = [model("n", proxy=""), model("o", proxy="")]


async def test_pin_takes_the_first_target_and_rewrites_the_name() -> None:
    async with house_of(fixed(OK), {"selectors": SELECTORS}, others=OTHERS) as (it, server):
        assert (await ask(it, chat(names("first")))).status == 200
        (row,) = it.activity.ended
    assert server.calls[0].body == names("n")
    assert (row.model_id, row.about) == ("n", {"fifo_priority": "0", "selector": "first"})


async def test_warm_takes_the_first_that_is_ready_then_one_that_starts() -> None:
    async with house_of(fixed(OK), {"selectors": SELECTORS}, others=OTHERS) as (it, server):
        for states, expected in (
            ({}, "m"),
            ({"n": State.STOPPING}, "m"),
            ({"n": State.STARTING, "o": State.STARTING}, "n"),
            ({"n": State.STARTING, "o": State.READY}, "o"),
            ({"m": State.READY, "o": State.READY}, "m"),
        ):
            for id_ in ("m", "n", "o"):
                it.engine.become(id_, states.get(id_, State.STOPPED))
            assert (await ask(it, chat(names("warm")))).status == 200
            assert server.calls[-1].body == names(expected)


class Held:
    """A server that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        await call.read_body()
        await self.go_on.wait()
        await call.send(OK)


async def test_spillover_counts_requests_until_they_end_or_their_client_leaves() -> None:
    held = Held()
    async with house_of(held, {"selectors": SELECTORS}, aliases=("alias",), others=OTHERS) as (it, server):
        counts = it.engine.naming._selections["spill"]._counts

        async def send() -> Any:
            client, before = await it.connect(), len(server.calls)
            client.writer.write(chat(names("spill")))
            await until(lambda: len(server.calls) > before)
            await until(lambda: bool(server.calls[-1].body))
            return client

        clients = [await send() for _ in range(4)]
        sent = [json.loads(call.body)["model"] for call in server.calls]
        assert sent == ["alias", "alias", "n", "n"]
        shown = it.observer.inflight.snapshot().data["requests"]  # type: ignore[index]
        assert [entry["model"] for entry in shown] == ["m", "m", "n", "n"]
        assert {entry["metadata"]["selector"] for entry in shown} == {"spill"}
        clients[0].close()
        await until(lambda: counts["m"] == 1)
        clients.append(await send())
        assert json.loads(server.calls[-1].body)["model"] == "alias"
        held.go_on.set()
        for client in clients[1:]:
            assert (await client.answer()).status == 200
        assert (counts["m"], counts["n"]) == (0, 0)


async def test_spillover_counts_no_request_that_failed() -> None:
    dead = {"proxy": "http://127.0.0.1:1", "aliases": ("alias",)}
    async with house_of(fixed(OK), {"selectors": SELECTORS}, others=OTHERS, **dead) as (it, _):
        assert (await ask(it, chat(names("spill")))).status == 502
        assert not +it.engine.naming._selections["spill"]._counts


async def test_a_selector_without_a_target_is_a_503_and_no_row() -> None:
    async with house_of(fixed(OK), {"selectors": SELECTORS}, aliases=("alias",), others=OTHERS) as (it, _):
        for id_ in ("m", "n"):
            it.engine.become(id_, State.STOPPING)
        answer = await ask(it, chat(names("spill")))
        assert (answer.status, answer.json()["error"]["code"]) == (503, "service_unavailable")
        assert answer.json()["error"]["message"] == 'selector "spill" has no available spillover targets'
        assert not it.activity.ended


async def test_a_pin_leads_to_a_selector_and_upstream_knows_none() -> None:
    async with house_of(fixed(OK), {"selectors": SELECTORS, "profiles": PROFILES}, others=OTHERS) as (it, server):
        it.engine.activate_profile("work")
        assert (await ask(it, chat(names("pick")))).status == 200
        assert server.calls[0].body == names("m")  # the target "m" is a pinned name too, which does not count
        assert it.activity.ended[0].about["selector"] == "warm"
        for name in ("pick", "first"):
            assert (await it.ask(f"/upstream/{name}/x")).status == 404


async def test_a_selector_hides_nothing_of_its_targets_settings() -> None:
    filters = Filters(set_params_by_id={"alias": {"by": "alias"}, "spill": {"by": "selector"}})
    async with house_of(
        fixed(OK), {"selectors": SELECTORS}, aliases=("alias",), filters=filters, use_model_name="real", others=OTHERS
    ) as (it, server):
        assert (await ask(it, chat(names("spill")))).status == 200
    assert server.calls[0].body == b'{"model":"real","by":"alias"}'


# ---- precedence


async def test_names_are_looked_for_in_their_order() -> None:
    async with house_of(fixed(OK), aliases=("x", "y"), others=[model("x", proxy="")]) as (it, server):
        peer = Peer(id="p", proxy=server.url + "/peer", models=("x", "y", "z"))
        config = it.engine.config.having(peers={"p": peer}, profiles={"w": Profile(pins={"x": "p/z"})})
        it.engine.use(config)
        for name, id_ in (("x", "x"), ("y", "m"), ("z", "p/z"), ("p/x", "p/x")):
            assert (await ask(it, chat(names(name)))).status == 200
            assert it.activity.ended[-1].model_id == id_
        it.engine.activate_profile("w")
        assert (await ask(it, chat(names("x")))).status == 200
        assert it.activity.ended[-1].model_id == "p/z"
        for name in ("X", "p/X", "p", "p/"):
            assert (await ask(it, chat(names(name)))).status == 404


# ---- events


async def test_a_profile_is_told_at_first_and_when_it_changes() -> None:
    ui = Ui(activity=ActivityPage(session_id=("X-Mine",)))
    async with house(Engine(model("m"), profiles=PROFILES, ui=ui)) as it:
        it.engine.activate_profile("home")
        reader = Reader(await it.stream("/api/events"))
        events = dict(await reader.events(6))
        assert events["uiConfig"] == {"activity": {"session_id": ["X-Mine"]}}
        assert events["profileChanged"] == {"active": "home"}
        await choose(it, b'{"name":"work"}')
        assert await reader.next_of("profileChanged") == {"active": "work"}
        await choose(it, b'{"name":null}')
        assert await reader.next_of("profileChanged") == {"active": None}


async def test_a_models_status_is_told_field_by_field() -> None:
    can = Capabilities(in_=("text", "image"), out=("text",), tools=True, context=4096)
    peer = Peer(id="p", proxy="http://p", models=("z", "far"))
    engine = Engine(
        model("b", name=" B ", description="d", aliases=("x",), filters={"set_params_by_id": {"b:1": {}}},
              capabilities=can, unlisted=True),
        model("a"),
        peers={"p": peer},
    )  # fmt: skip
    async with house(engine) as it:
        reader = await watch(it)
        engine.become("a", State.STARTING)
        told = await reader.next_of("modelStatus")
    plain = {"name": "", "description": "", "unlisted": False, "peerID": ""}
    assert told == [
        {"id": "a", "state": "starting"} | plain,
        {
            "id": "b", "state": "stopped", "name": " B ", "description": "d", "unlisted": True, "peerID": "",
            "aliases": ["x", "b:1"], "capabilities": {"vision": True, "function_calling": True}, "context_length": 4096,
        },
        {"id": "p/far", "state": ""} | plain | {"peerID": "p"},
        {"id": "p/z", "state": ""} | plain | {"peerID": "p"},
    ]  # fmt: skip


# ---- listings


async def rows_of(it: House) -> dict[str, Any]:
    data = (await it.ask("/v1/models")).json()["data"]
    assert [row["id"] for row in data] == sorted(row["id"] for row in data)
    for row in data:
        assert (row.pop("object"), row.pop("owned_by"), type(row.pop("created"))) == ("model", "llama-swap", int)
    return {row.pop("id"): row for row in data}


async def test_capabilities_are_listed_field_by_field() -> None:
    metadata = {"architecture": 1, "capabilities": 2, "supported_parameters": 3, "context_length": 4, "mine": 5}
    can = {
        "all": Capabilities(in_=("text", "audio", "image"), out=("text", "audio", "image"), tools=True, reranker=True,
                            context=8192),
        "in": Capabilities(in_=("image",)),
        "out": Capabilities(out=("audio",)),
        "context": Capabilities(context=1),
        "none": Capabilities(),
    }  # fmt: skip
    async with house(Engine(*(model(id_, capabilities=each, metadata=metadata) for id_, each in can.items()))) as it:
        rows = await rows_of(it)
    meta = {"llamaswap": {"mine": 5, "type": "model"}}
    off = {"value": "unloaded"}
    assert rows["all"] == {
        "architecture": {
            "input_modalities": ["text", "audio", "image"],
            "output_modalities": ["text", "audio", "image"],
            "modality": "text+audio+image->text+audio+image",
        },
        "capabilities": {
            "vision": True, "audio_transcriptions": True, "audio_speech": True, "image_generation": True,
            "image_to_image": True, "function_calling": True, "reranker": True,
        },
        "supported_parameters": ["tools", "tool_choice"],
        "context_length": 8192,
        "meta": meta | {"n_ctx": 8192},
        "status": off,
    }  # fmt: skip
    assert rows["in"] == {
        "architecture": {"input_modalities": ["image"]}, "capabilities": {"vision": True}, "meta": meta, "status": off,
    }  # fmt: skip
    assert rows["out"] == {"architecture": {"output_modalities": ["audio"]}, "meta": meta, "status": off}
    assert rows["context"] == {"context_length": 1, "meta": meta | {"n_ctx": 1}, "status": off}
    assert rows["none"] == {"meta": {"llamaswap": metadata | {"type": "model"}}, "status": off}


async def test_aliases_peers_selectors_and_pins_are_listed_field_by_field() -> None:
    can = Capabilities(tools=True, context=2)
    config = {
        "include_aliases_in_list": True,
        "peers": {"p": Peer(id="p", proxy="http://p", models=("far", "far", "a/b"))},
        "selectors": {
            "first": Selector(strategy="pin", targets=("n", "m"), name=" First ", description=" d ",
                              metadata={"x": 1, "type": "?"}),
            "warm": Selector(strategy="warm", targets=("n", "alias")),
            "spill": Selector(strategy="spillover", targets=("m", "p/far"), settings=SpilloverSettings(spillover=3)),
            "hidden": Selector(strategy="warm", targets=("m",), unlisted=True),
        },
        "profiles": {"w": Profile(pins={"llm": "m", "off": "", "m": "n", "far": "m", "hidden": "m", " alias ": "m"})},
    }  # fmt: skip
    own = {"metadata": {"k": "v"}, "name": "M", "description": "d", "capabilities": can}
    engine = Engine(
        model("m", aliases=(" alias ", "  ", "m"), filters={"set_params_by_id": {"m:hot": {}}}, **own),
        model("n"),
        model("secret", unlisted=True, aliases=("nick",)),
        **config,
    )
    async with house(engine) as it:
        engine.become("m", State.READY)
        before = await rows_of(it)
        engine.activate_profile("w")
        after = await rows_of(it)
    loaded, unloaded = {"status": {"value": "loaded"}}, {"status": {"value": "unloaded"}}
    copied = {
        "name": "M", "description": "d", "capabilities": {"function_calling": True},
        "supported_parameters": ["tools", "tool_choice"], "context_length": 2,
    }  # fmt: skip

    def row(n_ctx: bool = False, **facts: Any) -> dict[str, Any]:
        return {"meta": {"llamaswap": facts} | ({"n_ctx": 2} if n_ctx else {})}

    assert before == {
        "m": copied | loaded | row(True, k="v", type="model", aliases=[" alias ", "  ", "m", "m:hot"]),
        "alias": copied | loaded | row(True, k="v", type="alias", modelID="m"),
        "m:hot": copied | loaded | row(True, k="v", type="alias", modelID="m"),
        "n": unloaded | row(type="model"),
        "p/far": {"name": "p: far"} | unloaded | row(type="peer", peerID="p"),
        "p/a/b": {"name": "p: a/b"} | unloaded | row(type="peer", peerID="p"),
        "first": {"name": "First", "description": "d"} | unloaded
        | row(x=1, type="selector", strategy="pin", targets=["n", "m"]),
        "warm": unloaded | row(type="selector", strategy="warm", targets=["n", "alias"]),
        "spill": loaded | row(type="selector", strategy="spillover", targets=["m", "p/far"], spillover=3),
    }  # fmt: skip
    assert {id_: found for id_, found in after.items() if id_ not in before} == {"llm": unloaded | row(type="profile")}


@pytest.mark.parametrize(
    ("state", "loaded"), [(State.STARTING, True), (State.READY, True), (State.STOPPING, False), (State.STOPPED, False)]
)
async def test_a_selector_is_loaded_when_a_target_runs_or_is_about_to(state: State, loaded: bool) -> None:
    engine = Engine(model("m"), model("n"), selectors={"s": Selector(strategy="warm", targets=("m", "n"))})
    async with house(engine) as it:
        engine.become("n", state)
        assert ((await rows_of(it))["s"]["status"]["value"] == "loaded") is loaded


async def test_running_tells_more_than_llama_swap_does() -> None:
    engine = Engine(model("m", name=" M ", port=5801, ttl=7), model("idle"))
    engine.used["m"] = type("Used", (), {"memory_bytes": 5, "cpu_s": 1.5, "tasks": 3})()
    async with house(engine) as it:
        engine.become("m", State.READY)
        answer = await it.ask("/running")
    (row,) = answer.json()["running"]
    for key in ("since", "last_used", "idle_unload_in_s", "unit", "pid", "in_flight", "waiting"):
        row.pop(key)
    assert row == {
        "model": "m", "state": "ready", "cmd": "serve", "proxy": "http://127.0.0.1:1", "ttl": 7, "name": " M ",
        "description": "", "port": 5801, "memory_bytes": 5, "cpu_s": 1.5,
    }  # fmt: skip
