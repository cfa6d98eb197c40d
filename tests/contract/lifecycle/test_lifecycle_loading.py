"""swap.md §4: the loading stream."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import pytest
from daemon_support import Stream, client, command, model
from live import Live, held, load, mirror

pytestmark = pytest.mark.private

RULE = "━━━━━"
STREAMED = {"stream": True, "n": 2}


def reasoning(events: list[str]) -> str:
    """Return what a client shows, all events of which must have the one shape."""
    for event in events:
        [choice] = json.loads(event)["choices"]
        assert [*choice["delta"]] == ["reasoning_content"]
        assert isinstance(choice["delta"]["reasoning_content"], str)
    return "".join(json.loads(event)["choices"][0]["delta"]["reasoning_content"] for event in events)


async def test_the_stream_begins_at_once_and_shows_progress_until_the_models_own_follows_unchanged(
    live: Live, tmp_path: Path
) -> None:
    it = await live.configure({"models": {"a/b:c": model("--ready-when", tmp_path / "go", sendLoadingState=True)}})
    began = time.monotonic()
    async with it.stream("a/b:c", n=2) as stream:
        assert stream.response.status == 200
        assert stream.response.headers["Content-Type"].startswith("text/event-stream")
        assert stream.response.headers["Cache-Control"] == "no-cache"
        await stream.next()
        for _ in range(2):
            before = time.monotonic()
            await stream.next()
            assert time.monotonic() - before < 1.1
        (tmp_path / "go").touch()
        events = await stream.rest()
    shown = reasoning(events[:-3])
    assert shown.startswith(f"{RULE}\nllama-swap loading model: a/b:c\n\n")
    done = re.search(rf"Done! \((\d+\.\d\d)s\)\n{RULE}\n", shown)
    assert done is not None
    assert float(done[1]) <= time.monotonic() - began + 0.01  # it is rounded
    assert [json.loads(event)["choices"][0]["delta"]["content"] for event in events[-3:-1]] == ["0 ", "1 "]
    assert events[-1] == "[DONE]"


async def test_the_bytes_of_an_event_are_data_and_a_blank_line(live: Live) -> None:
    it = await live.configure({"sendLoadingState": True, "models": {"a": model()}})
    async with client() as session:
        question = {"model": "a", **STREAMED}
        async with session.post(f"{it.url}/v1/chat/completions", json=question) as response:
            blocks = (await response.text()).split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)


async def test_the_queue_position_is_shown(live: Live, tmp_path: Path) -> None:
    models = {"a": mirror(), "b": model(sendLoadingState=True)}
    it = await live.configure({"models": models})
    async with it.events() as events, held(it, "a", tmp_path / "end", events), it.stream("b", n=1) as stream:
        while "Queue position: #1" not in reasoning(stream.events):
            await stream.next()
        (tmp_path / "end").touch()
        assert (await stream.rest())[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"stream": False}),
        ("/v1/chat/completions", {}),
        ("/v1/completions", STREAMED),
        ("/v/chat/completions", STREAMED),
        ("/upstream/a/v1/chat/completions", STREAMED),
    ],
)
async def test_other_requests_get_nothing_until_the_model_answers(
    live: Live, path: str, body: dict[str, object]
) -> None:
    it = await live.configure({"sendLoadingState": True, "models": {"a": model()}})
    assert b"llama-swap loading model" not in (await it.ask(path, {"model": "a", **body})).body


async def test_a_model_that_is_ready_shows_no_loading(live: Live) -> None:
    it = await live.configure({"sendLoadingState": True, "models": {"a": model()}})
    await load(it, "a")
    async with it.stream("a", n=1) as stream:
        assert len(await stream.rest()) == 2


@pytest.mark.parametrize(("globally", "own", "shows"), [(True, False, False), (False, True, True), (True, None, True)])
async def test_the_models_own_setting_wins(live: Live, globally: bool, own: bool | None, shows: bool) -> None:
    it = await live.configure({"sendLoadingState": globally, "models": {"a": model(sendLoadingState=own)}})
    async with it.stream("a", n=1) as stream:
        assert (len(await stream.rest()) > 2) is shows


async def test_stream_may_be_the_text_true(live: Live) -> None:
    it = await live.configure({"sendLoadingState": True, "models": {"a": model()}})
    async with it.stream("a", stream="true", n=1) as stream:
        assert len(await stream.rest()) > 2


async def test_a_429_stays_a_429(live: Live, tmp_path: Path) -> None:
    models = {"a": mirror(sendLoadingState=True, concurrencyLimit=1), "b": mirror()}
    it = await live.configure({"models": models})
    async with it.events() as events, held(it, "b", tmp_path / "end", events):
        waiting = asyncio.create_task(it.chat("a"))
        await events.until_in_flight(2)
        assert (await it.chat("a", stream=True)).status == 429
        (tmp_path / "end").touch()
        assert (await waiting).status == 200


@pytest.mark.ours("the envelope is an event of the stream")
async def test_a_failure_after_the_stream_began_comes_as_an_event_of_a_stream_that_is_200(live: Live) -> None:
    it = await live.configure({"sendLoadingState": True, "models": {"a": command("sh -c 'exit 7'")}})
    async with it.stream("a") as stream:
        assert stream.response.status == 200
        error = json.loads((await stream.rest())[-1])
    assert error["src"] == "llama-swap"
    assert "upstream command exited prematurely" in error["error"]["message"]


async def test_a_reload_that_changes_the_setting_counts_for_the_next_load(live: Live) -> None:
    it = await live.configure({"models": {"a": model()}})
    assert not await shows_loading(it.stream("a", n=1))
    await live.configure({"sendLoadingState": True, "models": {"a": model()}})
    assert await shows_loading(it.stream("a", n=1))


async def shows_loading(asking: object) -> bool:
    async with asking as stream:  # type: ignore[attr-defined]
        assert isinstance(stream, Stream)
        return "reasoning_content" in (await stream.rest())[0]
