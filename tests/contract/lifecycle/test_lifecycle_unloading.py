"""swap.md §10 and §11: unloading on request, and how a process is stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import aiohttp
import pytest
from daemon_support import Answer, Daemon, alive, model
from live import Live, held, load, mirror, ready, told

pytestmark = pytest.mark.private

ALL = {"all": {"swap": False, "members": ["a", "b", "c"]}}
ROUTES = [
    ("GET", "/unload", b"OK"),
    ("POST", "/api/models/unload", {"msg": "ok"}),
    ("POST", "/api/models/unload/a", b"OK"),
]


async def unload(it: Daemon, name: str) -> Answer:
    return await it.ask(f"/api/models/unload/{name}", method="POST")


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_the_answer_is_sent_when_the_processes_are_gone(
    live: Live, method: str, path: str, body: bytes | dict[str, str]
) -> None:
    it = await live.configure({"models": {"a": model("--slow-stop", 0.3, cmdStop="kill -USR1 ${PID}")}})
    pid = (await told(it, "a"))["pid"]
    answer = await it.ask(path, method=method)
    assert answer.status == 200
    assert (answer.body if isinstance(body, bytes) else answer.json()) == body
    assert not alive([pid])
    assert await it.running() == {}


@pytest.mark.parametrize("name", ["x/y:1 z", "short", "x%2Fy:1%20z"])
async def test_ids_with_slashes_and_aliases_can_be_unloaded(live: Live, name: str) -> None:
    models = {"x/y:1 z": mirror(aliases=["short"]), "b": mirror()}
    it = await live.configure({"models": models, "groups": {"g": {"swap": False, "members": [*models]}}})
    await told(it, "short")
    await load(it, "b")
    assert (await unload(it, name)).body == b"OK"
    assert await ready(it) == {"b"}


async def test_what_is_stopped_already_is_fine_and_what_is_unknown_is_404(live: Live) -> None:
    peers = {"peer": {"proxy": "http://127.0.0.1:9", "models": ["theirs"]}}
    it = await live.configure({"models": {"a": mirror()}, "peers": peers})
    assert (await unload(it, "a")).status == 200
    for name in ("nobody", "theirs", "peer/theirs"):
        answer = await unload(it, name)
        assert (answer.status, answer.message) == (404, "model not found")


async def test_those_who_wait_for_its_load_or_are_queued_for_it_get_500(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": mirror(), "b": mirror(), "c": model("--ready-when", tmp_path / "go")}})
    async with it.events() as events:
        loading = asyncio.create_task(it.chat("c"))
        await events.until(lambda: events.states.get("c") == "starting" and len(events.in_flight) == 1)
        assert (await unload(it, "c")).status == 200
        assert ((await loading).status, (await loading).message) == (500, "unspecific error: group: model unloaded")
        await events.until_in_flight(0)
        async with held(it, "a", tmp_path / "end", events):
            queued = asyncio.create_task(it.chat("b"))
            await events.until_in_flight(2)
            assert (await unload(it, "b")).status == 200
            assert ((await queued).status, (await queued).message) == (500, "unspecific error: group: model unloaded")
    assert await ready(it) == {"a"}


@pytest.mark.ours("an answer that is cut is cut visibly")
async def test_requests_in_flight_are_not_waited_for_they_are_cut(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": model(), "b": mirror()}, "groups": {
        "g": {"swap": False, "members": ["a", "b"]}}})  # fmt: skip
    async with it.events() as events, it.stream("a", until="/never") as stream:
        await stream.next()
        await load(it, "b")
        waiting = asyncio.create_task(it.chat("b", until="/never"))
        await events.until_in_flight(2)
        reading = asyncio.create_task(stream.rest())
        assert (await it.ask("/unload")).status == 200
        assert (await waiting).status == 502
        with pytest.raises(aiohttp.ClientPayloadError):
            await reading
    assert json.loads(stream.events[-1])["src"] == "llama-swap"


async def test_a_load_is_aborted_and_the_model_may_be_requested_again_at_once(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": model("--ready-when", tmp_path / "go")}})
    async with it.events() as events:
        first = asyncio.create_task(it.chat("a"))
        await events.until(lambda: events.states.get("a") == "starting")
        unloading = asyncio.create_task(it.ask("/unload"))
        assert (await first).status == 500
        (tmp_path / "go").touch()
        assert (await it.chat("a")).status == 200
        assert (await unloading).status == 200


async def test_the_queue_is_walked_after_an_unload(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": mirror(), "b": mirror()}})
    await load(it, "a")
    async with it.events() as events:
        holding = asyncio.create_task(it.chat("a", until="/never"))
        await events.until_in_flight(1)
        waiting = asyncio.create_task(it.chat("b"))
        await events.until_in_flight(2)
        await unload(it, "a")
        assert (await holding).status == 502
        assert (await waiting).status == 200
    assert await ready(it) == {"b"}


# ---- stopping a process


@pytest.mark.ours("the head of a log stream is sent at once")
async def test_sigterm_goes_to_the_whole_process_group(live: Live) -> None:
    it = await live.configure({"logToStdout": "proxy", "models": {"a": model("--slow-stop", 0)}})
    async with it.lines("/logs/stream/a?no-history") as lines:
        await it.chat("a")
        await it.ask("/unload")
        while await anext(lines) != "SIGTERM":
            pass


@pytest.mark.parametrize(("globally", "own", "expected_s"), [(1, 0, 1), (60, 1, 1), (0, 2, 2)])
async def test_sigkill_follows_after_the_unload_timeout_of_the_model_or_the_global_one(
    live: Live, globally: int, own: int, expected_s: int
) -> None:
    it = await live.configure({"unloadTimeout": globally, "models": {"a": model("--deaf", unloadTimeout=own)}})
    pid = (await told(it, "a"))["pid"]
    began = time.monotonic()
    assert (await it.ask("/unload")).status == 200
    assert expected_s <= time.monotonic() - began < expected_s + 1.5
    assert not alive([pid])


async def test_models_of_different_timeouts_are_all_gone_when_the_answer_comes(live: Live) -> None:
    models = {"a": model("--deaf", unloadTimeout=1), "b": model("--deaf", unloadTimeout=2), "c": mirror()}
    it = await live.configure({"models": models, "groups": ALL})
    pids = [(await told(it, name))["pid"] for name in "abc"]
    began = time.monotonic()
    await it.ask("/unload")
    assert time.monotonic() - began < 4.5
    assert not alive(pids)


@pytest.mark.ours("the head of a log stream is sent at once")
async def test_an_aborted_start_gets_at_most_five_seconds(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--deaf", "--ready-after", 3600, unloadTimeout=60)}})
    async with it.events() as events, it.lines("/logs/stream/a?no-history") as lines:
        waiting = asyncio.create_task(it.chat("a"))
        assert (await anext(lines)).startswith("listening on")
        began = time.monotonic()
        assert (await it.ask("/unload")).status == 200
        assert 4.5 < time.monotonic() - began < 7
        assert (await waiting).status == 500
        await events.until(lambda: events.states.get("a") == "stopped")


@pytest.mark.ours("the head of a log stream is sent at once")
async def test_cmd_stop_is_run_with_the_pid_and_the_models_environment_in_place_of_sigterm(
    live: Live, tmp_path: Path
) -> None:
    told_to = tmp_path / "told"
    stop = f"sh -c 'echo ${{PID}} $OWN noise > {told_to}; kill -USR1 ${{PID}}'"
    definition = model("--slow-stop", 0.1, cmdStop=stop, env=["OWN=mine"])
    it = await live.configure({"models": {"a": definition}})
    async with it.lines("/logs/stream/a?no-history") as lines:
        pid = (await told(it, "a"))["pid"]
        await it.ask("/unload")
        while (line := await anext(lines)) != "SIGUSR1":
            assert line != "SIGTERM"
        assert await anext(lines) == "asked to end"
    assert told_to.read_text() == f"{pid} mine noise\n"


@pytest.mark.ours("the head of a log stream is sent at once")
async def test_a_cmd_stop_that_fails_or_does_nothing_leaves_the_model_its_grace_and_then_sigkill(live: Live) -> None:
    stops = {"nothing": "true", "failing": "false", "missing": "/nonexistent/program", "lasting": "sleep 60"}
    models = {name: model("--slow-stop", 0, cmdStop=stop, unloadTimeout=1) for name, stop in stops.items()}
    it = await live.configure({"models": models, "groups": {"g": {"swap": False, "members": [*models]}}})
    async with it.lines("/logs/stream/upstream?no-history") as lines:
        pids = [(await told(it, name))["pid"] for name in models]
        began = time.monotonic()
        await it.ask("/unload")
        assert 1 <= time.monotonic() - began < 3
        assert not alive(pids)
        await told(it, "nothing")
        said = []
        while sum(line.startswith("listening on") for line in said) < len(models) + 1:  # the last one after the stops
            said.append(await anext(lines))
    assert "SIGTERM" not in said


@pytest.mark.ours("models are units")
async def test_everything_the_model_started_is_killed_whatever_its_session(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--fork", unloadTimeout=1)}})
    await it.chat("a")
    pids = it.pids("llamaswapd-it-model-a.service")
    assert len(pids) == 3
    await it.ask("/unload")
    assert not alive(pids)


@pytest.mark.ours("unloadTimeout is the grace")
async def test_an_eviction_gives_the_unload_timeout(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--deaf", unloadTimeout=1), "b": mirror()}})
    await it.chat("a")
    began = time.monotonic()
    await load(it, "b")
    assert 1 <= time.monotonic() - began < 3.5


async def test_a_process_that_is_killed_while_it_stops_ends_the_wait(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--deaf", unloadTimeout=50)}})
    pid = (await told(it, "a"))["pid"]
    async with it.events() as events:
        unloading = asyncio.create_task(it.ask("/unload"))
        await events.until(lambda: events.states.get("a") == "stopping")
        os.kill(pid, signal.SIGKILL)
        assert (await unloading).status == 200
