from __future__ import annotations

import asyncio
import time

import pytest
from standins import Engine, house, model

from llamaswapd import __version__
from llamaswapd.core.lifecycle import State
from llamaswapd.errors import StartError, UnitError
from llamaswapd.http.logs import following, history

# ---- listings


async def test_a_model_is_listed_with_all_that_is_known_of_it() -> None:
    facts = {
        "name": " Qwen ",
        "description": "small\n",
        "aliases": ("q", "gpt"),
        "filters": {"set_params_by_id": {"m:high": {}, "m": {}}},
        "metadata": {"size": 4, "type": "user's", "deep": {"list": [1, None]}},
    }
    before = int(time.time())
    async with house(Engine(model("m", **facts))) as it:
        answer = await it.ask("/v1/models")
        assert (await it.ask("/models")).json().keys() == answer.json().keys()
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.body.endswith(b"}\n")
    assert "access-control-allow-origin" not in answer.headers
    [row] = answer.json()["data"]
    assert before <= row.pop("created") <= time.time()
    assert row == {
        "id": "m",
        "object": "model",
        "owned_by": "llama-swap",
        "name": "Qwen",
        "description": "small",
        "meta": {
            "llamaswap": {
                "size": 4,
                "deep": {"list": [1, None]},
                "type": "model",
                "aliases": ["q", "gpt", "m:high"],
            }
        },
        "status": {"value": "unloaded"},
    }


async def test_a_plain_model_has_no_empty_fields_and_unlisted_ones_are_left_out() -> None:
    async with house(Engine(model("b", name=" "), model("B"), model("a"), model("hidden", unlisted=True))) as it:
        answer = (await it.ask("/v1/models")).json()
    assert answer["object"] == "list"
    assert [row["id"] for row in answer["data"]] == ["B", "a", "b"]
    for row in answer["data"]:
        assert row.keys() == {"id", "object", "created", "owned_by", "meta", "status"}
        assert row["meta"] == {"llamaswap": {"type": "model"}}


async def test_aliases_are_rows_of_their_own_when_asked_for() -> None:
    models = (
        model("m", aliases=(" z ", " ", "A"), name="N", metadata={"k": 1}),
        model("hidden", unlisted=True, aliases=("secret",)),
    )
    engine = Engine(*models, include_aliases_in_list=True)
    engine.become("m", State.READY)
    async with house(engine) as it:
        rows = (await it.ask("/v1/models")).json()["data"]
    assert [row["id"] for row in rows] == ["A", "m", "z"]
    for row in (rows[0], rows[2]):
        assert row["meta"]["llamaswap"] == {"k": 1, "type": "alias", "modelID": "m"}
        assert (row["name"], row["status"]) == ("N", {"value": "loaded"})


@pytest.mark.parametrize("state", State)
async def test_whatever_is_not_stopped_is_loaded_and_running(state: State) -> None:
    engine = Engine(model("m", cmd="serve --port 1", ttl=60, name=" N ", description="D"), model("other"))
    engine.become("m", state)
    async with house(engine) as it:
        row = (await it.ask("/v1/models")).json()["data"][0]
        running = await it.ask("/running")
    is_stopped = state is State.STOPPED
    assert row["status"] == {"value": "unloaded" if is_stopped else "loaded"}
    record = {
        "model": "m",
        "state": state.value,
        "cmd": "serve --port 1",
        "proxy": "http://127.0.0.1:1",
        "ttl": 60,
        "name": " N ",
        "description": "D",
    }
    rows = running.json()["running"]
    assert [{key: row[key] for key in record} for row in rows] == ([] if is_stopped else [record])
    assert (running.headers["content-type"], running.body[-1:]) == ("application/json", b"\n")


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_the_model_list_can_be_read_from_any_page(path: str) -> None:
    async with house(Engine()) as it:
        assert (await it.ask(path, "Origin: https://a.example")).headers[
            "access-control-allow-origin"
        ] == "https://a.example"
        hostile = await it.ask(path, "Origin: \udcff\udcfe")
        other = await it.ask("/running", "Origin: https://a.example")
    assert (hostile.status, "access-control-allow-origin" in hostile.headers) == (200, False)
    assert "access-control-allow-origin" not in other.headers


# ---- unloading


async def test_unload_stops_all_models() -> None:
    engine = Engine(model("a"), model("b"))
    async with house(engine) as it:
        for method, path in (("GET", "/unload"), ("POST", "/api/models/unload")):
            engine.become("a", State.READY)
            engine.become("b", State.STARTING)
            answer = await it.ask(path, method=method)
            assert answer.status == 200
            assert answer.body == (b"OK" if method == "GET" else b'{"msg":"ok"}\n')
            assert set(engine.states.values()) == {State.STOPPED}


@pytest.mark.parametrize("name", ["org/m:q4", "org%2Fm%3Aq4", "nick%20name"])
async def test_one_model_is_unloaded_by_id_or_alias(name: str) -> None:
    engine = Engine(model("org/m:q4", aliases=("nick name",)), model("b"))
    for model_id in engine.states:
        engine.become(model_id, State.READY)
    async with house(engine) as it:
        answer = await it.ask(f"/api/models/unload/{name}", method="POST")
        again = await it.ask(f"/api/models/unload/{name}", method="POST")
    assert (answer.status, answer.body) == (again.status, again.body) == (200, b"OK")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert engine.states == {"org/m:q4": State.STOPPED, "b": State.READY}


@pytest.mark.parametrize("name", ["", "c", "org", "org/m/", "a%FF"])
async def test_unloading_an_unknown_model_is_not_found(name: str) -> None:
    async with house(Engine(model("org/m"))) as it:
        answer = await it.ask(f"/api/models/unload/{name}", method="POST")
    assert (answer.status, answer.json()["error"]["message"]) == (404, "model not found")


# ---- small things


@pytest.mark.parametrize("path", ["/health", "/wol-health"])
async def test_health_says_ok(path: str) -> None:
    async with house(Engine()) as it:
        answer = await it.ask(path)
    assert (answer.status, answer.body) == (200, b"OK")


async def test_the_version_is_three_texts() -> None:
    async with house(Engine()) as it:
        answer = (await it.ask("/api/version")).json()
    assert answer.keys() == {"version", "commit", "build_date"}
    assert answer["version"] == __version__
    assert all(isinstance(value, str) for value in answer.values())


# ---- logs


def log_house(selected: str) -> Engine:
    engine = Engine(model("org/m", aliases=("nick",)), model("b"), log_to_stdout=selected)
    engine.past = [("org/m", "loading"), ("b", "ready"), ("org/m", "f\udcffn")]
    return engine


@pytest.mark.parametrize(
    ("selected", "text"),
    [
        ("proxy", b"[INFO] own\n"),
        ("upstream", b"loading\nready\nf?n\n"),
        ("both", b"loading\nready\nf?n\n[INFO] own\n"),
        ("none", b""),
    ],
)
async def test_logs_answers_the_history_that_log_to_stdout_selects(selected: str, text: bytes) -> None:
    engine = log_house(selected)
    async with house(engine) as it:
        it.write_own_line("own")
        answer = await it.ask("/logs")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/plain", text)
    assert engine.followers == 0


async def test_a_browser_that_asks_for_logs_is_sent_to_the_web_interface() -> None:
    async with house(Engine()) as it:
        answer = await it.ask("/logs", "Accept: text/html,*/*")
    assert (answer.status, answer.headers["location"]) == (302, "/ui/")


async def test_a_streams_head_comes_before_any_line() -> None:
    async with house(Engine()) as it:
        client = await it.connect()
        await client.send("/logs/stream")
        head = await client.head()
    assert head.status == 200
    expected = {
        "content-type": "text/plain",
        "transfer-encoding": "chunked",
        "x-accel-buffering": "no",
        "x-content-type-options": "nosniff",
    }
    assert expected.items() <= head.headers.items()


async def test_our_own_log_is_streamed_history_first_then_live() -> None:
    async with house(log_house("none")) as it:
        it.write_own_line("one")
        client = await it.stream("/logs/stream/proxy")
        assert await client.text_until("one\n") == "[INFO] one\n"
        it.write_own_line("two")
        assert await client.text_until("two\n") == "[INFO] two\n"


async def test_a_live_stream_has_no_history() -> None:
    async with house(log_house("proxy")) as it:
        it.write_own_line("one")
        own = await it.stream("/logs/stream/proxy?no-history")
        models = await it.stream("/logs/stream/upstream?no-history=0")
        await it.until(lambda: it.observer.log.lines.members and it.engine.followers == 1)
        it.write_own_line("two")
        it.engine.live.put_nowait(("b", "three"))
        assert await own.text_until("two\n") == "[INFO] two\n"
        assert await models.text_until("three\n") == "three\n"
        assert it.engine.asked_logs == [(None, 0)]


@pytest.mark.parametrize("name", ["org/m", "org%2Fm", "nick", "org/m/further/segments"])
async def test_one_models_log_is_streamed(name: str) -> None:
    engine = log_house("none")
    async with house(engine) as it:
        client = await it.stream(f"/logs/stream/{name}")
        assert await client.text_until("f?n\n") == "loading\nf?n\n"
        engine.live.put_nowait(("org/m", "more"))
        assert await client.text_until("more\n") == "more\n"
    assert engine.asked_logs == [(("org/m",), 100 * 1024)]


@pytest.mark.parametrize("name", ["nobody", "org", "Proxy"])
async def test_an_unknown_log_is_a_bad_request(name: str) -> None:
    async with house(log_house("both")) as it:
        answer = await it.ask(f"/logs/stream/{name}")
    assert answer.status == 400
    assert answer.json()["error"]["message"] == "invalid logger. Use 'proxy', 'upstream' or a model's ID"


async def test_the_combined_stream_mixes_what_log_to_stdout_selects() -> None:
    async with house(log_house("both")) as it:
        it.write_own_line("one")
        client = await it.stream("/logs/stream")
        await it.until(lambda: it.observer.log.lines.members)
        it.engine.live.put_nowait(("b", "live"))
        text = await client.text_until("live\n")
        it.write_own_line("two")
        text += await client.text_until("two\n")
    assert sorted(text.splitlines()) == ["[INFO] one", "[INFO] two", "f?n", "live", "loading", "ready"]


async def test_the_combined_stream_of_nothing_stays_open_until_shutdown() -> None:
    async with house(log_house("none")) as it:
        client = await it.stream("/logs/stream")
        it.write_own_line("one")
        it.front.drain()
        assert await client.chunk() == b""


async def test_a_stream_lets_go_of_the_journal_when_its_client_leaves() -> None:
    async with house(log_house("upstream")) as it:
        client = await it.stream("/logs/stream/upstream")
        await client.text_until("ready\n")
        assert it.engine.followers == 1
        client.close()
        await it.front.drained()
        assert it.engine.followers == 0


async def test_the_journal_is_let_go_wherever_reading_it_was_broken_off() -> None:
    engine = log_house("upstream")
    async with following(engine, None, 100) as lines:  # type: ignore[arg-type]
        assert await history(lines) == "loading\nready\nf\udcffn\n"
        assert engine.followers == 1
    assert engine.followers == 0


async def test_a_stream_ends_when_its_log_cannot_be_followed(caplog: pytest.LogCaptureFixture) -> None:
    async with house(log_house("upstream")) as it:
        client = await it.stream("/logs/stream/upstream?no-history")
        it.engine.live.put_nowait(UnitError("the journal is gone"))
        assert await client.chunk() == b""
    assert "stream /logs/stream/upstream ended: the journal is gone" in caplog.text


# ---- loading


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "alias", "al%69as"])
async def test_an_operator_loads_a_model_by_its_id_or_alias(name: str) -> None:
    async with house(Engine(model("a/b", aliases=("alias",)))) as it:
        answer = await it.ask(f"/api/models/load/{name}", method="POST")
        assert (answer.status, answer.json()) == (200, {"msg": "ok"})
        assert (it.engine.forgiven, it.engine.states) == (["a/b"], {"a/b": State.READY})


async def test_what_is_not_configured_cannot_be_loaded() -> None:
    async with house(Engine(model("m"))) as it:
        answer = await it.ask("/api/models/load/x", method="POST")
        assert (answer.status, answer.json()["error"]["message"]) == (404, "model not found")
        assert (await it.ask("/api/models/load/m")).status == 405


async def test_a_load_that_fails_says_why() -> None:
    class Failing(Engine):
        async def load(self, model_id: str) -> None:
            raise StartError("exit status 3")

    async with house(Failing(model("m"))) as it:
        answer = await it.ask("/api/models/load/m", method="POST")
    assert (answer.status, answer.json()["error"]["message"]) == (500, "unspecific error: exit status 3")


async def test_who_leaves_gives_a_load_up() -> None:
    began, given_up = asyncio.Event(), asyncio.Event()

    class Slow(Engine):
        async def load(self, model_id: str) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                given_up.set()

    async with house(Slow(model("m"))) as it:
        client = await it.connect()
        await client.send("/api/models/load/m", method="POST")
        await began.wait()
        client.close()
        await given_up.wait()


async def test_loading_takes_a_key() -> None:
    async with house(Engine(model("m"), api_keys=("k",))) as it:
        assert (await it.ask("/api/models/load/m", method="POST")).status == 401
        assert (await it.ask("/api/models/load/m", "x-api-key: k", method="POST")).status == 200
