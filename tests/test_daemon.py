"""The whole program, from outside: a process, its configuration file, its clients, its signals, its systemd units."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from daemon_support import (
    COMMAND,
    ROOT,
    TELLING_TASKS,
    Daemon,
    alive,
    clear_away,
    command,
    daemon,
    free_ports,
    launched,
    model,
    surroundings,
    write,
)

from llamaswapd.source import Files

pytestmark = [pytest.mark.private, pytest.mark.usefixtures("private")]

A, B = "llamaswapd-it-model-a.service", "llamaswapd-it-model-b.service"
TOGETHER = {"together": {"swap": False, "members": ["a", "b"]}}
UNLOADED = "unspecific error: group: model unloaded"

CHURN_S = float(os.environ.get("LLAMASWAPD_TEST_CHURN_S", "5"))  # 60 before a release


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for sockets."""
    path = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
    yield path
    clear_away(path)
    shutil.rmtree(path)


# ---- serving


async def test_a_request_for_a_stopped_model_starts_it_as_a_unit_and_is_answered(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it:
        assert it.units() == []
        answer = await it.chat("a")
        assert (answer.status, answer.json()["path"]) == (200, "/v1/chat/completions")
        assert await it.running() == {"a": "ready"}
        assert it.units() == [A]
        assert it.pids(A) == [answer.json()["pid"]]
        assert it.left_behind()  # it would be seen


async def test_a_request_for_another_model_swaps(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model(), "b": model()}}) as it:
        await it.chat("a")
        assert (await it.chat("b")).status == 200
        assert await it.running() == {"b": "ready"}
        assert it.units() == [B]


async def test_requests_that_come_together_share_one_start(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model("--ready-after", 0.2)}}) as it:
        answers = await asyncio.gather(*(it.chat("a") for _ in range(10)))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.json()["pid"] for answer in answers}) == 1


async def test_queued_requests_are_served_model_by_model_in_the_order_they_came(folder: Path) -> None:
    config = {"models": {"a": model(), "b": model(), "c": model()}}
    served: list[str] = []

    async def ask(name: str) -> None:
        assert (await it.chat(name)).status == 200
        served.append(name)

    async with (
        daemon(folder, config) as it,
        it.events() as events,
        asyncio.TaskGroup() as group,
        it.stream("a", until=f"{folder}/end"),
    ):
        for number, name in enumerate(("b", "c", "b", "c"), 2):
            group.create_task(ask(name))
            await events.until_in_flight(number)
        (folder / "end").touch()
    assert served == ["b", "b", "c", "c"]


async def test_a_request_above_the_concurrency_limit_is_refused_at_once(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model(concurrencyLimit=1)}}) as it:
        async with it.stream("a", until=f"{folder}/end") as stream:
            await stream.next()
            answer = await it.chat("a")
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
            assert answer.json()["error"]["code"] == "concurrency_limit"
            (folder / "end").touch()
            await stream.rest()
        assert (await it.chat("a")).status == 200


async def test_an_unload_refuses_who_waits_for_the_model(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model("--ready-when", folder / "go")}}) as it, it.events() as events:
        waiting = asyncio.create_task(it.chat("a"))
        await events.until(lambda: events.states.get("a") == "starting" and len(events.in_flight) == 1)
        assert (await it.ask("/unload")).body == b"OK"
        answer = await waiting
        assert (answer.status, answer.message) == (500, UNLOADED)
        assert it.units() == []


async def test_an_unload_cuts_streams_and_their_clients_can_tell(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it, it.stream("a", until="/never") as stream:
        await stream.next()
        reading = asyncio.create_task(stream.rest())
        assert (await it.ask("/api/models/unload/a", method="POST")).status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await reading
        assert "the model was unloaded" in json.loads(stream.events[-1])["error"]["message"]
        assert it.units() == []


async def test_an_idle_model_is_unloaded_after_its_ttl(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model(ttl=1)}}) as it, it.events() as events:
        await it.chat("a")
        await events.until(lambda: events.states.get("a") == "ready")
        await events.until(lambda: events.states.get("a") == "stopped")
        await it.logged("<a> Unloading model, TTL of 1s reached")
        assert it.units() == []


async def test_bodies_reach_the_model_with_names_and_parameters_as_configured(folder: Path) -> None:
    filters = {"stripParams": "top_k", "setParams": {"temperature": 0.5}}
    renamed = model(aliases=["short"], useModelName="real", filters=filters)
    async with daemon(folder, {"models": {"a": renamed, "b": model(aliases=["other"])}}) as it:
        sent = json.loads((await it.chat("short", top_k=4, seed=1)).json()["body"])
        assert sent == {"model": "real", "seed": 1, "temperature": 0.5}
        assert json.loads((await it.chat("other", top_k=4)).json()["body"]) == {"model": "other", "top_k": 4}


async def test_a_stream_can_show_the_loading_before_the_answer(folder: Path) -> None:
    config = {"sendLoadingState": True, "models": {"a": model("--ready-when", folder / "go")}}
    async with daemon(folder, config) as it, it.stream("a", n=2) as stream:
        assert stream.response.status == 200
        assert "llama-swap loading model: a" in await stream.next()
        (folder / "go").touch()
        events = await stream.rest()
    shown = "".join(json.loads(event)["choices"][0]["delta"].get("reasoning_content", "") for event in events[:-1])
    assert "Done! (" in shown
    assert [json.loads(event)["choices"][0]["delta"] for event in events[-3:-1]] == [
        {"content": "0 "},
        {"content": "1 "},
    ]
    assert events[-1] == "[DONE]"


async def test_the_failure_of_a_load_that_was_shown_comes_as_an_event(folder: Path) -> None:
    config = {"sendLoadingState": True, "models": {"a": command("sh -c 'exit 7'")}}
    async with daemon(folder, config) as it, it.stream("a") as stream:
        events = await stream.rest()
    assert "exit status 7" in json.loads(events[-1])["error"]["message"]


async def test_members_of_a_group_that_does_not_swap_run_side_by_side(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model(), "b": model()}, "groups": TOGETHER}) as it:
        answers = await asyncio.gather(it.chat("a"), it.chat("b"))
        assert await it.running() == {"a": "ready", "b": "ready"}
        assert [it.pids(unit) for unit in (A, B)] == [[answer.json()["pid"]] for answer in answers]


async def test_models_are_preloaded_and_a_failure_does_not_keep_the_next_from_it(folder: Path) -> None:
    config = {
        "models": {"a": command("/nonexistent/server"), "b": model()},
        "hooks": {"on_startup": {"preload": ["a", "b"]}},
    }
    async with daemon(folder, config) as it, it.events() as events:
        await events.until(lambda: events.states.get("b") == "ready")
        assert "failed to preload model a: status 500" in it.log


async def test_the_models_log_is_read_from_the_journal(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it, it.lines("/logs/stream/a") as log:
        await it.chat("a")
        assert (await anext(log)).startswith("listening on ")
        assert [await anext(log), await anext(log)] == ["ready", "received /v1/chat/completions"]


# ---- stopping a model


async def test_nothing_a_model_has_forked_outlives_its_unload(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model("--fork", unloadTimeout=1)}}) as it:
        await it.chat("a")
        pids = it.pids(A)
        assert len(pids) == 3  # a child that ignores SIGTERM and a grandchild in a session of its own among them
        await it.ask("/unload")
        assert it.units() == []
        assert not alive(pids)


async def test_a_model_that_ignores_sigterm_is_killed_when_its_time_is_over(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model("--deaf", unloadTimeout=1)}}) as it:
        pid = (await it.chat("a")).json()["pid"]
        began = time.monotonic()
        await it.ask("/unload")
        assert 1.0 <= time.monotonic() - began < 2.0
        assert it.units() == []
        assert not alive([pid])


async def test_cmd_stop_gets_the_pid_and_the_model_its_time_without_a_sigterm(folder: Path) -> None:
    stoppable = model("--slow-stop", 0.3, cmdStop="kill -USR1 ${PID}", unloadTimeout=10)
    async with daemon(folder, {"models": {"a": stoppable}}) as it:
        await it.chat("a")
        await it.ask("/unload")
        assert it.units() == []
        async with it.lines("/logs/stream/a") as lines:
            words = [await anext(lines) for _ in range(6)]
    assert words[4:] == ["SIGUSR1", "asked to end"]


async def test_a_model_whose_cmd_stop_does_nothing_is_killed_and_sees_no_sigterm(folder: Path) -> None:
    config = {"logToStdout": "both", "models": {"a": model("--slow-stop", 0, cmdStop="true", unloadTimeout=1)}}
    async with daemon(folder, config) as it:
        await it.chat("a")
        await it.ask("/unload")
        assert it.units() == []
        assert b"SIGTERM" not in (await it.ask("/logs")).body


# ---- starts that fail


# What runs instead of a server, and what its client is told.
EXITED = "upstream command exited prematurely: "
FAILING = {
    "missing": (command("/nonexistent/x ${PORT}"), "failed to start command '/nonexistent/x", "no such file"),
    "not-executable": (command(f"{ROOT}/README.md"), "failed to start command", "permission denied"),
    "not-in-path": (command("no-such-program"), "failed to start command", "executable file not found in $PATH"),
    "empty": (command(""), "unable to get sanitized command: empty command", ""),
    "at-once": (command("sh -c 'echo no weights; exit 3'"), EXITED + "exit status 3", "no weights"),
    "later": (model("--ready-after", 60, "--exit", "0.3:4"), EXITED + "exit status 4", "giving up"),
    "killed": (command("sh -c 'kill -SEGV $$'"), EXITED + "killed by SIGSEGV", ""),
    "finished": (command("true"), EXITED + "exit status 0", ""),
}  # fmt: skip


async def test_starts_that_fail_say_why_leave_no_unit_and_are_tried_again(folder: Path) -> None:
    models = {name: definition for name, (definition, _, _) in FAILING.items()}
    async with daemon(folder, {"models": {**models, "a": model()}}) as it:
        for name in (*FAILING, *FAILING):
            answer = await it.chat(name)
            assert (name, answer.status, answer.headers["content-type"]) == (name, 500, "application/json")
            _, what, detail = FAILING[name]
            assert answer.message.startswith(f"unspecific error: {what}")
            assert detail in answer.message
            assert it.units() == []
            assert await it.running() == {}
        assert (await it.chat("a")).status == 200


async def test_servers_that_never_become_healthy_are_given_up(folder: Path) -> None:
    models = {"a": model("--ready-after", 3600), "b": model("--hang-health")}
    async with daemon(folder, {"healthCheckTimeout": 15, "models": models, "groups": TOGETHER}) as it:
        for answer in await asyncio.gather(it.chat("a"), it.chat("b")):
            assert answer.status == 500
            assert "health check timed out after 15s; last lines of its log:\n  listening on" in answer.message
        assert it.units() == []


# ---- strangers and neighbours


@contextmanager
def stranger(port: int) -> Iterator[None]:
    """A server that would answer for a model."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "8")
            self.end_headers()
            self.wfile.write(b"stranger")

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


async def test_a_port_that_is_taken_is_reported_with_its_holder(folder: Path) -> None:
    port = free_ports()
    async with daemon(folder, {"startPort": port, "models": {"a": model()}}) as it:
        with stranger(port):
            answer = await it.chat("a")
            assert answer.status == 500
            assert f"port {port} " in answer.message
            assert f"process {os.getpid()} " in answer.message
            assert it.units() == []
        assert (await it.chat("a")).status == 200


async def test_a_stranger_that_takes_the_port_of_a_loading_model_never_answers_for_it(folder: Path) -> None:
    port = free_ports()
    config = {"startPort": port, "models": {"a": model("--listen-after", 3600)}}
    async with daemon(folder, config) as it, it.events() as events:
        waiting = asyncio.create_task(it.chat("a"))
        await events.until(lambda: events.states.get("a") == "starting")
        await it.unit_runs(A)
        with stranger(port):
            answer = await waiting
        assert answer.status == 500
        assert f"port {port} " in answer.message
        assert f"process {os.getpid()} " in answer.message
        assert it.units() == []


async def test_a_second_daemon_of_an_instance_does_not_start(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it:
        pid = (await it.chat("a")).json()["pid"]
        second = run("-config", folder / "it.yaml", "-listen", "127.0.0.1:0", "-instance", "it", folder=folder)
        assert second.returncode == 1
        assert f"another llamaswapd of this instance is running, pid {it.process.pid} " in second.stderr
        assert (await it.chat("a")).json()["pid"] == pid


async def test_two_instances_run_side_by_side(folder: Path) -> None:
    config = {"models": {"a": model()}}
    async with daemon(folder, config) as it, daemon(folder, config, instance="other") as other:
        assert ((await it.chat("a")).status, (await other.chat("a")).status) == (200, 200)
        assert (it.units(), other.units()) == ([A], ["llamaswapd-other-model-a.service"])
        await it.ask("/unload")
        assert (it.units(), await other.running()) == ([], {"a": "ready"})


# ---- readiness


async def test_ready_1_is_a_reason_to_look_again_at_once(folder: Path) -> None:
    # The second look hangs as the first did, from its first to its third second, unless there is a reason to end it.
    patient = model("--hang-until-ready", "--ready-after", 1.3, "--notify")
    async with daemon(folder, {"models": {"a": patient}}) as it:
        began = time.monotonic()
        assert (await it.chat("a")).status == 200
        assert time.monotonic() - began < 2.5


async def test_a_line_of_the_log_is_a_reason_to_look_again_at_once(folder: Path) -> None:
    patient = model("--hang-until-ready", "--ready-after", 1.3, readyLog="^ready$")
    async with daemon(folder, {"models": {"a": patient}}) as it:
        began = time.monotonic()
        assert (await it.chat("a")).status == 200
        assert time.monotonic() - began < 2.5


async def test_without_a_check_the_line_alone_says_that_a_model_is_ready(folder: Path) -> None:
    silent = model("--listen-after", 0.3, readyLog="^listening on", checkEndpoint="none")
    async with daemon(folder, {"models": {"a": silent}}) as it:
        assert (await it.chat("a")).status == 200


# ---- bad input


async def test_requests_that_make_no_sense_are_refused_and_the_daemon_lives_on(folder: Path) -> None:
    async with daemon(folder, {"models": {"qwen": model()}}) as it:
        answer = await it.chat("qwem")
        assert (answer.status, answer.json()["src"]) == (404, "llama-swap")
        assert answer.message == 'no router for requested model: "qwem" is not configured, did you mean "qwen"?'
        as_json = {"Content-Type": "application/json"}
        for body in (b"", b"{}", b"{", b"[]", b"\xff\xfe", b'"' * 100_000, b"[" * 100_000):
            answer = await it.ask("/v1/chat/completions", method="POST", data=body, headers=as_json)
            assert (body, answer.status) == (body, 404)
            assert answer.message.startswith("no model id could be identified")
        assert (await it.ask("/upstream/none/x")).message == "model not found"
        assert (await it.ask("/api/models/unload/none", method="POST")).status == 404
        assert it.units() == []
        assert (await it.chat("qwen")).status == 200


HOSTILE = {
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\xfc\x03\x03\r\n\r\n", b"400"),
    "a header of 1 MB": (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 2**20 + b"\r\n\r\n", b"431"),
    "a path of 1 MB": (b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
    "a NUL in a header": (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Nul: a\0b\r\n\r\n", b"400"),
    "a blank before the colon": (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length : 0\r\n\r\n", b"400"),
    "two lengths": (b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400"),
    "length and chunks": (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"400",
    ),
    "a negative length": (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
    "a chunk that is none": (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"400",
    ),
}  # fmt: skip


async def test_what_is_not_quite_http_is_refused_and_the_daemon_lives_on(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it:
        statuses = {name: await status_of(it, request) for name, (request, _) in HOSTILE.items()}
        assert statuses == {name: status for name, (_, status) in HOSTILE.items()}
        assert (await it.chat("a")).status == 200
        assert "Traceback" not in it.log


async def status_of(it: Daemon, request: bytes) -> bytes:
    """Send bytes; return the status of the answer, which has to end the connection."""
    reader, writer = await it.connect()
    writer.write(request)
    async with asyncio.timeout(20):
        status = (await reader.readline())[9:12]
        await reader.read()
    writer.close()
    return status


async def test_a_body_that_never_ends_holds_up_nobody(folder: Path) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    async with daemon(folder, {"models": {"a": model()}}) as it, it.events() as events:
        _, nameless = await it.connect()
        nameless.write(head + b'{"mod')
        _, named = await it.connect()
        named.write(head + b'{"model": "a", "prompt": "Once upon')
        await events.until_in_flight(1)
        assert (await it.chat("a")).status == 200
        for writer in (nameless, named):
            writer.close()
        await events.until_in_flight(0)


# ---- answers that break off


async def test_a_client_that_leaves_a_stream_ends_it_at_the_model(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it, it.events() as events:
        async with it.stream("a", until="/never") as stream:
            await stream.next()
        assert (await it.ask("/upstream/a/stats?left=1")).json() == {"active": 0, "left": 1, "served": 1}
        await events.until_in_flight(0)


async def test_a_client_that_leaves_while_the_model_loads_leaves_the_queue(folder: Path) -> None:
    config = {"models": {"a": model("--ready-when", folder / "go", concurrencyLimit=1)}}
    async with daemon(folder, config) as it, it.events() as events:
        waiting = asyncio.create_task(it.chat("a"))
        await events.until_in_flight(1)
        waiting.cancel()
        await events.until_in_flight(0)
        (folder / "go").touch()
        assert (await it.chat("a")).status == 200  # it is the only one admitted
        assert (await it.ask("/upstream/a/stats")).json()["served"] == 0


async def test_a_model_that_dies_in_mid_stream_is_named_with_the_cause(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it:
        async with it.stream("a", n=5, die_after=2) as stream:
            with pytest.raises(aiohttp.ClientPayloadError):
                await stream.rest()
        assert len(stream.events) == 3
        error = json.loads(stream.events[-1])["error"]
        assert (error["code"], "killed by SIGKILL" in error["message"]) == ("bad_gateway", True)
        assert 'model "a"' in error["message"]
        assert (await it.chat("a")).status == 200
        assert it.units() == [A]


async def test_a_model_that_dies_before_it_answers_is_a_bad_gateway(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it:
        pid = (await it.chat("a")).json()["pid"]
        waiting = asyncio.create_task(it.chat("a", sleep=60))
        async with it.lines("/logs/stream/a") as log:
            while not (await anext(log)).startswith("received"):
                pass
        os.kill(pid, signal.SIGKILL)
        answer = await waiting
        assert (answer.status, answer.json()["error"]["code"]) == (502, "bad_gateway")
        assert "killed by SIGKILL" in answer.message


# ---- many clients that come and go


@pytest.mark.timeout(CHURN_S + 60)
async def test_clients_that_vanish_while_models_swap_leave_nothing_behind(folder: Path) -> None:
    seed = random.randrange(2**32)
    print("seed:", seed)
    dice = random.Random(seed)
    models = {name: model(concurrencyLimit=100) for name in ("a", "b", "c")}
    config = {"overtakeLimit": 1, "models": models}

    async def come_and_go(it: Daemon, until: float) -> None:
        while time.monotonic() < until:
            with suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(dice.expovariate(1 / 0.4)):
                    async with it.stream(dice.choice("abc"), n=dice.randrange(100), gap=0.01) as stream:
                        await stream.rest()

    async with daemon(folder, config, program=TELLING_TASKS) as it:
        await asyncio.gather(*(it.chat(name) for name in models))
        before = await resources(it)
        until = time.monotonic() + CHURN_S
        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(come_and_go(it, until))
        async with it.events() as events:
            await events.until(lambda: bool(events.states))
            await events.until_in_flight(0)
        assert (await it.chat("b")).status == 200
        assert await it.running() == {"b": "ready"}
        assert it.units() == [B]
        assert (await it.ask("/upstream/b/stats")).json()["active"] == 0
        assert await resources(it) == before
        assert "Traceback" not in it.log


async def resources(it: Daemon) -> tuple[str, int]:
    """Return which tasks and how many open files the daemon has when no model runs and nobody is connected."""
    await it.ask("/unload")
    async with asyncio.timeout(20):
        tasks = await it.tasks()
        while "RequestHandler" in tasks:  # it has yet to notice that we left
            tasks = await it.tasks()
    return tasks, it.open_files()


# ---- the command line


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, which it should find by itself."""
    argv = [*COMMAND, *map(str, arguments)]
    return subprocess.run(argv, cwd=ROOT, env=surroundings(folder), capture_output=True, text=True, timeout=20)


def test_version_and_help_are_printed(folder: Path) -> None:
    for flag, text in {"-version": "version: ", "--version=true": "version: ", "-h": "-watch-config"}.items():
        done = run(flag, folder=folder)
        assert (flag, done.returncode, text in done.stdout) == (flag, 0, True)


def test_an_unknown_flag_is_exit_status_2_with_the_usage(folder: Path) -> None:
    done = run("-confg", "x.yaml", folder=folder)
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert "-confg" in done.stderr


@pytest.mark.parametrize(
    ("flags", "text", "message"),
    [
        ((), "", "at least one of -config or -config-dir must be provided"),
        (("-config", "c.yaml", "-tls-cert-file", "x"), "", "both -tls-cert-file and -tls-key-file must be provided"),
        (("-config", "none.yaml"), "", "none.yaml: no such file"),
        (("-config", "c.yaml"), "models: {a: {cmd: 'x ${nope} ${PORT}'}}", "unknown macro '${nope}' found in a.cmd"),
        (("-config", "c.yaml"), "models: [", "c.yaml"),
        (("-config", "c.yaml", "-listen", "here"), "models: {}", '-listen "here" is not an address'),
        (("-config", "c.yaml", "-instance", "a/b"), "models: {}", "a/b"),
        (("-config", "c.yaml", "-tls-cert-file", "x", "-tls-key-file", "y"), "models: {}", "cannot use certificate x"),
    ],
)
def test_what_cannot_be_used_is_exit_status_1_with_the_reason(
    folder: Path, flags: tuple[str, ...], text: str, message: str
) -> None:
    (folder / "c.yaml").write_text(text)
    done = run(*(folder / flag if flag.endswith(".yaml") else flag for flag in flags), folder=folder)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(folder) == ["c.yaml"]


def test_an_address_in_use_is_exit_status_1(folder: Path) -> None:
    write(folder / "c.yaml", {})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("--config", folder / "c.yaml", f"--listen={address}", folder=folder)
    assert done.returncode == 1
    assert f"cannot listen on {address}: Address already in use" in done.stderr
    assert "choose another address, by -listen or the socket unit" in done.stderr


@pytest.fixture
def certificate(folder: Path) -> tuple[str, ...]:
    """Return the flags for a certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout key -out cert"
    subprocess.run(make.split(), cwd=folder, check=True, capture_output=True)
    return (f"-tls-cert-file={folder}/cert", f"--tls-key-file={folder}/key")


async def test_tls_is_served_with_a_certificate_and_its_key(folder: Path, certificate: tuple[str, ...]) -> None:
    async with daemon(folder, {"models": {"a": model()}}, *certificate) as it:
        assert it.url.startswith("https://")
        async with it.stream("a", n=2) as stream:
            assert (await stream.rest())[-1] == "[DONE]"


# ---- signals


async def test_a_daemon_that_is_stopped_while_it_starts_leaves_nothing_behind(folder: Path) -> None:
    argv = [*COMMAND, "-config", f"{write(folder / 'it.yaml', {})}", "-listen", "127.0.0.1:0", "-instance", "it"]
    it = Daemon(folder, "it", launched(argv, surroundings(folder, "it")))
    async with asyncio.timeout(20):
        while not (it.runtime_dir / "private").exists():  # noqa: ASYNC110, nothing to await tells of its making
            await asyncio.sleep(0.001)
    it.signal(signal.SIGHUP)
    it.signal(signal.SIGTERM)
    assert await it.exited() == 0
    assert it.left_behind() == []


async def ask_on_and_on(it: Daemon) -> None:
    """Who has connected before a daemon stops listening is answered yet."""
    while True:
        await it.chat("a")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stream_in_flight_ends_before_the_daemon_does(folder: Path, number: int) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it:
        async with it.stream("a", until=f"{folder}/end") as stream:
            await stream.next()
            it.signal(number)
            await it.logged("stopping:")
            with pytest.raises(aiohttp.ClientOSError):
                await ask_on_and_on(it)
            it.signal(number)  # once is enough, and twice is no more
            write(folder / "it.yaml", {"models": {}})
            it.signal(signal.SIGHUP)  # comes too late
            await stream.next()
            (folder / "end").touch()
            assert (await stream.rest())[-1] == "[DONE]"
        assert await it.exited() == 0
        assert "reload" not in it.log


async def test_event_and_log_streams_do_not_hold_up_the_end(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it, it.events() as events, it.lines("/logs/stream") as log:
        await events.until(lambda: bool(events.states))
        await anext(log)
        it.signal(signal.SIGTERM)
        assert await it.exited() == 0


async def test_requests_that_wait_for_a_load_may_end_too(folder: Path) -> None:
    config = {"models": {"a": model("--ready-when", folder / "go")}}
    async with daemon(folder, config) as it, it.events() as events:
        waiting = asyncio.create_task(it.chat("a"))
        await events.until(lambda: events.states.get("a") == "starting")
        it.signal(signal.SIGTERM)
        await it.logged("stopping:")
        (folder / "go").touch()
        assert (await waiting).status == 200
        assert await it.exited() == 0


async def test_a_reload_replaces_what_changed_and_leaves_the_rest_alone(folder: Path) -> None:
    config = {"startPort": free_ports(), "models": {"a": model(), "b": model(), "c": model()}}
    group = {"together": {"swap": False, "members": ["a", "b", "c"]}}
    async with daemon(folder, {**config, "groups": group}) as it, it.events() as events:
        pids = {name: (await it.chat(name)).json()["pid"] for name in "abc"}
        changed = {**config, "models": {"a": model(), "b": model("--ready-after", 0.1)}, "groups": TOGETHER}
        write(folder / "it.yaml", changed)
        it.signal(signal.SIGHUP)
        await it.logged("configuration reloaded")
        await events.until(lambda: events.states == {"a": "ready", "b": "stopped"})
        assert it.units() == [A]
        assert (await it.chat("a")).json()["pid"] == pids["a"]
        assert (await it.chat("b")).json()["pid"] != pids["b"]
        assert (await it.chat("c")).status == 404


async def test_a_broken_file_is_refused_at_reload(folder: Path) -> None:
    async with daemon(folder, {"models": {"a": model()}}) as it:
        pid = (await it.chat("a")).json()["pid"]
        (folder / "it.yaml").write_text("models: {a: {cmd: 'x ${nope} ${PORT}'}}")
        it.signal(signal.SIGHUP)
        assert "${nope}" in await it.logged("failed to reload config: ")
        assert (await it.chat("a")).json()["pid"] == pid


async def test_a_refusal_is_told_until_a_reload_succeeds_and_does_not_quote_the_file_to_everybody(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with told:
        told.bind(str(folder / "notify"))
        told.settimeout(10)
        config = {"startPort": free_ports(), "models": {"a": model()}}
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        async with daemon(folder, config) as it:
            write(folder / "it.yaml", {**config, "apiKeys": {"sk-secret": 1}})
            it.signal(signal.SIGHUP)
            said = await asyncio.to_thread(heard, told, "refused")
            assert "secret" not in said
            assert "apiKeys" in said
            health = (await it.ask("/health?verbose")).json()
            assert health["status"] == "degraded"
            assert "apiKeys" in health["config"]["error"]
            write(folder / "it.yaml", config)
            it.signal(signal.SIGHUP)
            await it.logged("configuration reloaded")
            assert (await it.ask("/health?verbose")).json()["config"] == {"error": None}


def heard(told: socket.socket, text: str) -> str:
    """Return the first thing that a service tells its manager in which there is a text."""
    while text not in (said := told.recv(65536).decode()):
        pass
    return said


async def test_a_file_that_is_watched_is_reloaded_when_it_changes(folder: Path) -> None:
    config = {"startPort": free_ports(), "models": {"a": model()}}
    async with daemon(folder, config, "-watch-config") as it:
        assert (await it.chat("b")).status == 404
        write(folder / "new", {**config, "models": {"a": model(), "b": model()}}).replace(folder / "it.yaml")
        await it.logged("configuration reloaded")
        assert (await it.chat("b")).status == 200


def test_a_directory_that_is_watched_may_vanish_for_a_moment(folder: Path) -> None:
    source = Files((), folder / "conf.d")
    assert source.watched() == [folder / "conf.d"]
    (folder / "conf.d").mkdir()
    write(folder / "conf.d" / "a.yaml", {})
    assert source.watched() == [folder / "conf.d" / "a.yaml", folder / "conf.d"]


# ---- a daemon that was killed


async def test_what_a_killed_daemon_left_is_taken_over_by_the_next(folder: Path) -> None:
    config = {"startPort": free_ports(), "models": {"a": model()}}
    async with daemon(folder, config) as first:
        pid = (await first.chat("a")).json()["pid"]
        first.signal(signal.SIGKILL)
    async with daemon(folder, config) as second:
        assert (await second.chat("a")).json()["pid"] == pid
        assert second.units() == [A]


async def test_what_a_killed_daemon_left_is_stopped_by_the_next_if_it_would_be_another_unit(folder: Path) -> None:
    config = {"startPort": free_ports(), "models": {"a": model("--fork", unloadTimeout=1)}}
    async with daemon(folder, config) as first:
        pid = (await first.chat("a")).json()["pid"]
        left = first.pids(A)
        first.signal(signal.SIGKILL)
    assert alive([pid])
    config["models"] = {"a": model("--fork", unloadTimeout=2, env=["X=1"])}
    async with daemon(folder, config) as second:
        assert (await second.chat("a")).json()["pid"] not in left
        assert not alive(left)
        assert f"stopping {A}, which is not as the configuration has it" in second.log
