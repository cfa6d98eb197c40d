"""swap.md §2: how a model is started, and when it may be sent requests."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest
from daemon_support import MARK, MODELS, alive, command, model
from live import Live, load, mirror, ready, told, upstream

pytestmark = pytest.mark.private


async def test_a_model_gets_the_daemons_environment_and_its_own_on_top(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(env=["OWN=1", "HOME=/nowhere", "OWN=2", "EMPTY="])}})
    environment = (await told(it, "a"))["env"]
    assert {name: environment.get(name) for name in ("OWN", "HOME", "EMPTY")} == {
        "OWN": "2",
        "HOME": "/nowhere",
        "EMPTY": "",
    }
    assert environment[MARK] == str(it.runtime_dir)  # which the daemon was given


async def test_entries_of_env_are_not_validated(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(env=["NOTHING", "1=2", "A=b=c"])}})
    assert (await told(it, "a"))["env"]["A"] == "b=c"


async def test_a_model_runs_in_the_daemons_directory_with_nothing_to_read_in_a_group_of_its_own(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    facts = await told(it, "a")
    assert facts["cwd"] == os.readlink(f"/proc/{it.process.pid}/cwd")
    assert facts["stdin"] == "/dev/null"
    assert facts["group"] == facts["pid"]


@pytest.mark.ours("the head of a log stream is sent at once")
async def test_what_a_model_writes_to_stdout_and_stderr_goes_to_its_log(live: Live) -> None:
    talkative = (
        f"sh -c 'echo to-stdout; echo to-stderr >&2; exec {sys.executable} -S {MODELS / 'instant.py'} ${{PORT}}'"
    )
    it = await live.configure({"models": {"talkative": command(talkative)}})
    async with it.lines("/logs/stream/talkative") as lines:
        await load(it, "talkative")
        assert {await anext(lines), await anext(lines)} == {"to-stdout", "to-stderr"}


@pytest.mark.ours("it does not notice while the child holds its output")
async def test_a_main_process_that_exits_is_a_failed_start_even_if_a_child_lives_on(live: Live) -> None:
    forking = command(f"sh -c '{sys.executable} -S {MODELS / 'instant.py'} ${{PORT}} & echo child $!'")
    it = await live.configure({"models": {"a": forking}})
    answer = await it.chat("a")
    assert answer.status == 500
    assert "unspecific error: upstream command exited prematurely" in answer.message
    assert await it.running() == {}
    child = int(answer.message.rpartition("child ")[2].split()[0])
    assert not alive([child])


async def test_without_a_check_a_model_is_ready_before_it_listens_and_may_give_502(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--listen-after", 60, checkEndpoint=" none ")}})
    answer = await it.chat("a")
    assert answer.status == 502
    assert await ready(it) == {"a"}


@pytest.mark.parametrize("status", [204, 301, 302, 401, 404, 500, 503])
async def test_any_other_status_than_200_is_not_yet(live: Live, status: int) -> None:
    it = await live.configure({"models": {"a": mirror(f"--health={status},{status}")}})
    facts = await told(it, "a")
    assert facts["probes"] == [f"GET /health {status}"] * 2 + ["GET /health 200"]
    assert facts["served"] == 1  # redirects were not followed, nothing was forwarded before


async def test_a_refused_connection_is_not_yet(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--listen-after", 0.3)}})
    assert (await it.chat("a")).status == 200


@pytest.mark.ours("the head of a log stream is sent at once")
async def test_no_request_is_forwarded_before_the_model_is_healthy(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": model("--ready-when", tmp_path / "go")}})
    async with it.lines("/logs/stream/a?no-history") as lines:
        waiting = asyncio.create_task(it.chat("a"))
        assert (await anext(lines)).startswith("listening on")
        assert await anext(lines) == "ready"  # which the server says of itself; its /health still answers 503
        await asyncio.sleep(0.3)
        (tmp_path / "go").touch()
        assert (await waiting).status == 200
        assert await anext(lines) == "received /v1/chat/completions"


async def test_a_process_that_exits_ends_the_wait_at_once(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--ready-after", 60, "--exit", "0.2:7")}})
    began = time.monotonic()
    answer = await it.chat("a")
    assert time.monotonic() - began < 5
    assert (answer.status, answer.json()["src"], answer.json()["error"]["type"]) == (500, "llama-swap", "server_error")
    assert answer.message.startswith("unspecific error: upstream command exited prematurely")


async def test_all_who_wait_for_a_load_are_forwarded(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": model("--ready-when", tmp_path / "go")}})
    async with it.events() as events:
        waiting = [asyncio.create_task(it.chat("a")) for _ in range(5)]
        await events.until_in_flight(5)
        (tmp_path / "go").touch()
        assert [(await each).status for each in waiting] == [200] * 5


async def test_all_who_wait_for_a_load_get_the_same_error(live: Live, tmp_path: Path) -> None:
    go = tmp_path / "go"
    it = await live.configure({"models": {"a": command(f"sh -c 'while ! [ -e {go} ]; do sleep 0.01; done; exit 3'")}})
    async with it.events() as events:
        waiting = [asyncio.create_task(it.chat("a")) for _ in range(5)]
        await events.until_in_flight(5)
        go.touch()
        answers = [await each for each in waiting]
    assert len({answer.body for answer in answers}) == 1
    assert {answer.status for answer in answers} == {500}


async def test_after_a_failure_the_next_request_tries_again_at_once(live: Live, tmp_path: Path) -> None:
    server = f"{sys.executable} -S {MODELS / 'instant.py'} ${{PORT}}"
    once = command(f"sh -c 'if ! [ -e {tmp_path}/there ]; then touch {tmp_path}/there; exit 1; fi; exec {server}'")
    it = await live.configure({"models": {"a": once}})
    assert (await it.chat("a")).status == 500
    assert await it.running() == {}
    assert (await it.ask("/upstream/a/")).status == 200


async def test_a_client_that_leaves_during_the_load_is_dropped_and_the_load_goes_on(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": model("--ready-when", tmp_path / "go")}})
    async with it.events() as events:
        waiting = asyncio.create_task(it.chat("a"))
        await events.until(lambda: events.states.get("a") == "starting" and len(events.in_flight) == 1)
        waiting.cancel()
        await events.until_in_flight(0)
        (tmp_path / "go").touch()
        await events.until(lambda: events.states.get("a") == "ready")
    assert (await upstream(it, "a", "stats"))["served"] == 0


@pytest.mark.ours("each check is bounded")
@pytest.mark.timeout(90)
async def test_health_checks_end_at_their_time_limit_answered_or_not(live: Live) -> None:
    """A server that accepts and never answers, one that says 503 for ever, and one that never listens."""
    models = {
        "hanging": model("--hang-health"),
        "loading": model("--ready-after", 3600),
        "silent": model("--listen-after", 3600),
    }
    group = {"swap": False, "members": [*models]}
    it = await live.configure({"healthCheckTimeout": 1, "models": models, "groups": {"all": group}})  # less than 15: 15

    async def failed_after(name: str) -> float:
        began = time.monotonic()
        answer = await it.chat(name)
        assert answer.status == 500
        assert "unspecific error: health check timed out after 15s" in answer.message
        return time.monotonic() - began

    for duration in await asyncio.gather(*map(failed_after, models)):
        assert 15 <= duration < 16.5
    assert await it.running() == {}
    assert it.units() == []


# ---- where a model is asked for its health


@pytest.mark.parametrize(
    ("proxy", "check", "asked"),
    [
        ("", "/health", "/health"),
        ("", "/v1/health?deep=1", "/v1/health?deep=1"),
        ("", "health", "/health"),
        ("", "http://elsewhere:1/my/health?x=y", "/my/health?x=y"),
        ("/base", "/health", "/base/health"),
        ("/base/", "health", "/base/health"),
    ],
)
async def test_the_check_is_joined_to_the_proxy_like_a_request(live: Live, proxy: str, check: str, asked: str) -> None:
    address = f"http://127.0.0.1:${{PORT}}{proxy}"
    it = await live.configure({"models": {"a": {**mirror(checkEndpoint=check), "proxy": address}}})
    facts = await told(it, "a")
    assert facts["probes"] == [f"GET {asked} 200"]
    assert facts["line"] == f"POST {proxy.rstrip('/')}/v1/chat/completions HTTP/1.1"


async def test_the_default_proxy_is_localhost_with_the_port(live: Live) -> None:
    definition = {key: value for key, value in mirror().items() if key != "proxy"}
    it = await live.configure({"models": {"a": definition}})
    await load(it, "a")
    [row] = (await it.ask("/running")).json()["running"]
    assert row["proxy"] == f"http://localhost:{live.first_port}"


async def test_a_model_without_command_or_proxy_loads_and_fails_when_it_is_used(live: Live) -> None:
    port = live.first_port
    it = await live.configure({"models": {"a": None, "b": {"cmd": "", "proxy": f"http://127.0.0.1:{port}"}}})
    for name in ("a", "b"):
        answer = await it.chat(name)
        assert answer.status == 500
        assert answer.message.startswith("unspecific error: ")
    assert "unable to get sanitized command: empty command" in (await it.chat("b")).message


async def test_an_empty_proxy_fails_when_the_model_is_used(live: Live) -> None:
    it = await live.configure({"models": {"a": {"cmd": "sleep 60", "proxy": ""}}})
    answer = await it.chat("a")
    assert answer.status == 500
    assert "unspecific error: upstream proxy missing" in answer.message


async def test_the_program_is_looked_up_in_path_and_its_absence_is_told(live: Live) -> None:
    it = await live.configure({"models": {"a": command("no-such-program --x ${PORT}")}})
    answer = await it.chat("a")
    assert answer.status == 500
    wanted = f"unspecific error: failed to start command 'no-such-program --x {live.first_port}': "
    assert answer.message.startswith(wanted)
