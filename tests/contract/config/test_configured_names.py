"""config.md §14 to §17: selectors, profiles, peers and the remaining sections."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from daemon_support import (
    COMMAND,
    PORTS_PER_DAEMON,
    Daemon,
    Json,
    daemon,
    free_ports,
    launched,
    model,
    surroundings,
    write,
)
from live import Live, held, load, mirror, ready, told, upstream

pytestmark = pytest.mark.private

TOGETHER = {"g": {"swap": False, "members": ["a", "b", "c"]}}
ABC = {name: mirror(name) for name in "abc"}


def selector(strategy: str, *targets: str, **settings: object) -> Json:
    return {"strategy": strategy, "targets": [*targets], **settings}


async def chosen(it: Daemon, name: str) -> str:
    return str((await told(it, name))["argv"][0])


# ---- §14 selectors


async def test_pin_is_always_the_first_target(live: Live) -> None:
    it = await live.configure({"models": ABC, "groups": TOGETHER, "selectors": {"s": selector("pin", "b", "a")}})
    await load(it, "a")
    assert await chosen(it, "s") == "b"


async def test_warm_is_the_first_ready_one_else_the_first(live: Live) -> None:
    it = await live.configure({"models": ABC, "groups": TOGETHER, "selectors": {"s": selector("warm", "a", "b", "c")}})
    await load(it, "c", "b")
    assert await chosen(it, "s") == "b"
    await it.ask("/unload")
    assert await chosen(it, "s") == "a"


async def test_warm_prefers_a_starting_model_to_a_stopped_one(live: Live, tmp_path: Path) -> None:
    models = {"a": mirror("a"), "b": model("--ready-when", tmp_path / "go")}
    it = await live.configure({"models": models, "selectors": {"s": selector("warm", "a", "b")}})
    async with it.events() as events:
        first = asyncio.create_task(it.chat("b"))
        await events.until(lambda: events.states.get("b") == "starting")
        second = asyncio.create_task(it.chat("s"))
        await events.until_in_flight(2)
        (tmp_path / "go").touch()
        assert (await first).json()["pid"] == (await second).json()["pid"]


async def test_spillover_takes_the_next_target_when_each_in_use_has_enough(live: Live, tmp_path: Path) -> None:
    chooser = selector("spillover", "a", "b", settings={"spillover": 2})
    it = await live.configure({"models": ABC, "groups": TOGETHER, "selectors": {"s": chooser}})
    waiting = []
    async with it.events() as events:
        for number in range(1, 5):
            waiting.append(asyncio.create_task(it.chat("s", until=str(tmp_path / "end"))))
            await events.until_in_flight(number)
        (tmp_path / "end").touch()
        assert [(await each).json()["argv"] for each in waiting] == [["a"], ["a"], ["b"], ["b"]]
        await events.until_in_flight(0)
    # Both are in use now; equally busy ones take turns.
    assert {await chosen(it, "s") for _ in range(4)} == {"a", "b"}


async def test_spillover_has_nothing_available_while_its_targets_stop(live: Live) -> None:
    slow = {name: model("--slow-stop", 0.5, cmdStop="kill -USR1 ${PID}") for name in "ab"}
    it = await live.configure({"models": slow, "groups": {"g": {"swap": False, "members": ["a", "b"]}},
                               "selectors": {"s": selector("spillover", "a", "b")}})  # fmt: skip
    await load(it, "a", "b")
    async with it.events() as events:
        unloading = asyncio.create_task(it.ask("/unload"))
        await events.until(lambda: events.states.get("a") == events.states.get("b") == "stopping")
        answer = await it.chat("s")
        assert (answer.status, answer.message) == (503, 'selector "s" has no available spillover targets')
        await unloading


async def test_targets_may_be_aliases_and_the_body_gets_the_targets_name(live: Live) -> None:
    models = {"a": mirror("a", aliases=["alias"])}
    it = await live.configure({"models": models, "selectors": {"s": selector("pin", "alias")}})
    assert json.loads((await told(it, "s"))["body"])["model"] == "alias"


async def test_a_selector_is_listed_unless_it_is_unlisted(live: Live) -> None:
    chooser = selector("spillover", "a", name=" S ", metadata={"k": 1}, settings={"spillover": 3})
    it = await live.configure({"models": {"a": mirror()}, "selectors": {
        "s": chooser, "t": selector("pin", "a", unlisted=True)}})  # fmt: skip
    rows = {row["id"]: row for row in (await it.ask("/v1/models")).json()["data"]}
    assert {*rows} == {"a", "s"}
    facts = {"k": 1, "type": "selector", "strategy": "spillover", "targets": ["a"], "spillover": 3}
    assert (rows["s"]["name"], rows["s"]["meta"]["llamaswap"]) == ("S", facts)
    assert rows["s"]["status"] == {"value": "unloaded"}
    await load(it, "a")
    rows = {row["id"]: row for row in (await it.ask("/v1/models")).json()["data"]}
    assert rows["s"]["status"] == {"value": "loaded"}
    assert (await it.chat("t")).status == 200


# ---- §15 profiles


async def test_profiles_are_switched_by_the_api_and_none_is_active_at_first(live: Live) -> None:
    profiles = {
        "coding": {"description": "text", "pins": {"llm": "a", "b": "a", "image": None, "off": ""}},
        "other": {"pins": {"llm": "b"}},
    }
    it = await live.configure({"models": ABC, "profiles": profiles})
    shown = (await it.ask("/api/profiles")).json()
    assert shown["active"] is None
    assert [each["id"] for each in shown["profiles"]] == ["coding", "other"]
    assert shown["profiles"][0]["pins"] == {"llm": "a", "b": "a", "image": "", "off": ""}
    assert (await it.chat("llm")).status == 404

    async def activate(name: object) -> Any:
        return (await it.ask("/api/profiles/active", {"name": name}, method="PUT")).json()

    assert await activate("coding") == {"active": "coding"}
    assert await chosen(it, "llm") == "a"
    assert await chosen(it, "b") == "a"  # a pin may hide a real model
    for name in ("image", "off"):
        answer = await it.chat(name)
        assert answer.status == 404
        assert answer.message.startswith("no model id could be identified")
        assert (await it.ask(f"/upstream/{name}/")).message == "model not found"
    assert (await upstream(it, "llm"))["argv"] == ["a"]
    assert await activate("other") == {"active": "other"}
    assert await chosen(it, "llm") == "b"
    assert await activate(None) == {"active": None}
    assert (await it.chat("llm")).status == 404


# ---- §16 peers


class Peer:
    """A server of somebody else's that answers with what it was sent."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.hangs = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.asked.append((line, headers, body))
        if self.hangs:
            await reader.read()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    it = Peer()
    async with await asyncio.start_server(it.serve, "127.0.0.1", 0) as server:
        it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield it
        server.close()


async def test_a_peer_is_reached_by_both_names_and_gets_its_own_spelling(live: Live) -> None:
    async with peer() as other:
        peers = {"p": {"proxy": f"{other.url}/api", "models": ["x/theirs", "x/theirs"]}}
        it = await live.configure({"models": {"a": mirror()}, "peers": peers})
        for name in ("x/theirs", "p/x/theirs"):
            assert (await it.chat(name, n=1)).status == 200
        assert (await it.ask("/upstream/p/x/theirs/v1/models?q=1")).status == 200
        assert await it.running() == {}
    assert [(line, json.loads(body or b"{}")) for line, _, body in other.asked] == [
        ("POST /api/v1/chat/completions HTTP/1.1", {"model": "x/theirs", "n": 1}),
        ("POST /api/v1/chat/completions HTTP/1.1", {"model": "x/theirs", "n": 1}),
        ("GET /api/v1/models?q=1 HTTP/1.1", {}),
    ]


async def test_a_bare_name_that_two_peers_have_or_a_model_of_ours_is_not_theirs(live: Live) -> None:
    async with peer() as other:
        peers = {name: {"proxy": other.url, "models": ["both", "a", "short"]} for name in ("p", "q")}
        it = await live.configure({"models": {"a": mirror("ours", aliases=["short"])}, "peers": peers})
        assert (await it.chat("both")).status == 404
        assert await chosen(it, "a") == "ours"
        assert await chosen(it, "short") == "ours"
        assert other.asked == []
        assert (await it.chat("q/both")).status == 200


async def test_the_key_of_a_peer_replaces_the_clients_and_its_host_is_its_own(live: Live) -> None:
    async with peer() as other:
        peers = {
            "p": {"proxy": other.url, "models": ["x"], "apiKey": "theirs"},
            "q": {"proxy": other.url, "models": ["y"]},
        }
        it = await live.configure({"peers": peers})
        headers = {"Authorization": "Bearer mine", "x-api-key": "mine", "X-Forwarded-For": "1.2.3.4", "X-Other": "o"}
        for name in "xy":
            await it.ask("/v1/completions", {"model": name}, headers=headers)
    (_, first, _), (_, second, _) = other.asked
    assert (first["authorization"], first["x-api-key"]) == ("Bearer theirs", "theirs")
    assert (second["authorization"], second["x-api-key"]) == ("Bearer mine", "mine")
    for seen in (first, second):
        assert seen["host"] == other.url.removeprefix("http://")
        assert seen["x-other"] == "o"
        assert not {"x-forwarded-for", "forwarded"} & {*seen}


async def test_filters_of_a_peer_apply_and_its_set_params_by_id_are_no_aliases(live: Live) -> None:
    async with peer() as other:
        filters = {"stripParams": "t", "setParams": {"provider": {"zdr": True}}, "setParamsByID": {"no": {"z": 1}}}
        it = await live.configure({"peers": {"p": {"proxy": other.url, "models": ["x"], "filters": filters}}})
        await it.chat("x", t=1)
        assert (await it.chat("no")).status == 404
    assert json.loads(other.asked[0][2]) == {"model": "x", "provider": {"zdr": True}}


async def test_a_peer_that_cannot_be_reached_or_is_late_is_502(live: Live) -> None:
    async with peer() as other:
        other.hangs = True
        peers = {
            "p": {"proxy": "http://127.0.0.1:9", "models": ["gone"]},
            "q": {"proxy": other.url, "models": ["late"], "timeouts": {"responseHeader": 1}},
        }
        it = await live.configure({"peers": peers})
        for name in ("gone", "late"):
            answer = await it.chat(name)
            assert answer.status == 502
            assert answer.message.startswith("peer proxy error: ")


async def test_peers_pass_by_groups_and_limits_and_are_listed(live: Live, tmp_path: Path) -> None:
    async with peer() as other:
        it = await live.configure({"models": ABC, "peers": {"p": {"proxy": other.url, "models": ["x"]}}})
        async with it.events() as events, held(it, "a", tmp_path / "end", events):
            assert {answer.status for answer in await asyncio.gather(*(it.chat("x") for _ in range(15)))} == {200}
            assert await ready(it) == {"a"}
        rows = {row["id"]: row for row in (await it.ask("/v1/models")).json()["data"]}
    assert rows["p/x"]["name"] == "p: x"
    assert rows["p/x"]["meta"]["llamaswap"] == {"type": "peer", "peerID": "p"}
    assert rows["p/x"]["status"] == {"value": "unloaded"}


# ---- §17 the remaining sections


@pytest.mark.parametrize(
    ("patterns", "ignored", "passed"),
    [
        (None, ["/favicon.ico", "/app/x.json", "/a.css"], ["/x.jsonl", "/js"]),
        ([], ["/favicon.ico"], ["/js"]),
        (["^/static/"], ["/static/x", "/static/"], ["/favicon.ico", "/x/static/"]),
    ],
)
async def test_ignored_paths_start_no_model(
    live: Live, patterns: list[str] | None, ignored: list[str], passed: list[str]
) -> None:
    section = {} if patterns is None else {"upstream": {"ignorePaths": patterns}}
    it = await live.configure({"models": {"a": mirror()}, **section})
    for path in ignored:
        answer = await it.ask(f"/upstream/a{path}")
        assert (answer.status, answer.message) == (409, "model a is not loaded; path matches upstream.ignorePaths")
    assert await it.running() == {}
    for path in passed:
        assert (await it.ask(f"/upstream/a{path}")).status == 200
        await it.ask("/unload")
    await load(it, "a")
    assert (await it.ask(f"/upstream/a{ignored[0]}")).status == 200


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({}, ["X-Session-ID", "X-Litellm-Session-Id"]),
        ({"ui": {"activity": {"session_id": [" X-A ", "", "x-a", "X-B"]}}}, ["X-A", "X-B"]),
        ({"ui": {"activity": {"session_id": []}}}, []),
    ],
)
async def test_the_names_of_session_headers_are_handed_to_the_ui(live: Live, section: Json, names: list[str]) -> None:
    it = await live.configure(section)
    async with it.lines("/api/events") as lines:
        async for line in lines:
            if line.startswith("data:") and json.loads(line[5:])["type"] == "uiConfig":
                assert json.loads(json.loads(line[5:])["data"]) == {"activity": {"session_id": names}}
                break


@pytest.mark.parametrize(("mib", "is_kept"), [(5, True), (0, False), (-1, False)])
async def test_captures_are_kept_if_there_is_room_for_them(live: Live, mib: int, is_kept: bool) -> None:
    it = await live.configure({"captureBuffer": mib, "models": {f"captured{mib}": mirror()}})
    await it.chat(f"captured{mib}")
    async with asyncio.timeout(10):
        while (row := (await activity(it))[0])["model"] != f"captured{mib}":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert row["has_capture"] is is_kept


async def test_performance_can_be_disabled(live: Live) -> None:
    it = await live.configure({"performance": {"disabled": True}})
    answer = await it.ask("/api/performance")
    assert (answer.status, answer.json()) == (503, {"enabled": False})
    await live.reload({"performance": {"every": "15s"}})


async def test_the_activity_survives_restarts_in_a_store(folder: Path) -> None:
    config = {"models": {"a": mirror()}, "store": {"path": str(folder / "activity.db")}}
    ids = []
    for _ in range(2):
        async with daemon(folder, config) as it:
            await it.chat("a")
            async with asyncio.timeout(10):
                while len(rows := (await it.ask("/api/metrics/activity")).json()["data"]) != len(ids) + 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            ids.append(rows[0]["id"])
    assert ids == [1, 2]
    with sqlite3.connect(folder / "activity.db") as store:
        assert store.execute("select 1").fetchone() == (1,)
    store.close()


async def test_so_many_rows_are_kept_in_memory_the_newest(live: Live) -> None:
    config = {"models": {"rows": mirror()}, "metricsMaxInMemory": 2}
    it = await live.configure(config)
    for number in range(3):
        await it.ask("/v1/completions" if number else "/completion", {"model": "rows"})
    async with asyncio.timeout(10):
        while len(rows := await activity(it)) != 2 or {row["req_path"] for row in rows} != {"/v1/completions"}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def activity(it: Daemon) -> list[Json]:
    return list((await it.ask("/api/metrics/activity")).json()["data"])


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("rfc3339", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)"),
        ("RFC3339Nano", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)"),
        ("ansic", r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}"),
        ("unixdate", r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \w+ \d{4}"),
        ("rubydate", r"\w{3} \w{3} \d\d \d\d:\d\d:\d\d [+-]\d{4} \d{4}"),
        ("rfc822", r"\d\d \w{3} \d\d \d\d:\d\d \w+"),
        ("rfc822z", r"\d\d \w{3} \d\d \d\d:\d\d [+-]\d{4}"),
        ("rfc850", r"\w+day, \d\d-\w{3}-\d\d \d\d:\d\d:\d\d \w+"),
        ("rfc1123", r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \w+"),
        ("rfc1123z", r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}"),
        ("kitchen", r"\d{1,2}:\d\d[AP]M"),
        ("stamp", r"\w{3} [ \d]\d \d\d:\d\d:\d\d"),
        ("stampmilli", r"\w{3} [ \d]\d \d\d:\d\d:\d\d\.\d{3}"),
        ("StampMicro", r"\w{3} [ \d]\d \d\d:\d\d:\d\d\.\d{6}"),
        ("stampnano", r"\w{3} [ \d]\d \d\d:\d\d:\d\d\.\d{9}"),
        ("nonsense", ""),
        ("", ""),
    ],
)
async def test_lines_of_the_log_begin_with_the_time_as_wanted(live: Live, name: str, pattern: str) -> None:
    it = await live.configure({"logTimeFormat": name})
    mark = len(it.log)
    await it.ask("/upstream/nobody/")
    line = await it.logged("/upstream/nobody/ HTTP", it.log[:mark].count("/upstream/nobody/ HTTP") + 1)
    assert re.match(rf"{pattern + ' ' if pattern else ''}\[INFO\] Request 127\.0\.0\.1 ", line), line


async def test_the_level_of_the_log_in_any_case_where_unknown_is_info(live: Live) -> None:
    it = await live.configure({"logLevel": " Debug "})
    mark = len(it.log)

    async def reload_to(level: str) -> None:
        times = it.log.count(f"nonsense-{level}")
        live.file.write_text(json.dumps({"logLevel": level, f"nonsense-{level}": 1}))  # worth a warning
        it.signal(signal.SIGHUP)
        await it.logged(f"nonsense-{level}", times + 1)

    await reload_to(" WARN ")
    await it.ask("/nothing-1")
    await reload_to("unknown")
    await it.ask("/nothing-2")
    await it.logged("/nothing-2")
    assert "/nothing-1" not in it.log[mark:]


@pytest.mark.parametrize(
    ("value", "has_own", "has_models"),
    [("proxy", True, False), ("upstream", False, True), ("both", True, True), ("none", False, False)],
)
async def test_what_goes_to_stdout_is_what_logs_holds(
    folder: Path, value: str, has_own: bool, has_models: bool
) -> None:
    write(folder / "it.yaml", {})
    port = free_ports()
    config = {"logToStdout": value, "models": {"a": model()}, "startPort": port}
    address = f"127.0.0.1:{port + PORTS_PER_DAEMON - 1}"
    file = write(folder / "it.yaml", config)
    argv = [*COMMAND, "-config", str(file), "-listen", address, "-instance", "it"]
    it = Daemon(folder, "it", launched(argv, surroundings(folder, "it")))
    it.url = f"http://{address}"
    try:
        async with asyncio.timeout(20):
            while not await answers(it):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with it.lines("/logs/stream/upstream") as lines:
            await it.chat("a")
            assert (await anext(lines)).startswith("listening on")
        shown = (await it.ask("/logs")).body.decode()
        assert ("[INFO] Request" in shown, "received /v1/chat" in shown) == (has_own, has_models)
        if has_models:
            await it.logged("received /v1/chat")
        if has_own:
            await it.logged("GET /logs")
    finally:
        it.signal(signal.SIGTERM)
        assert await it.exited() == 0
    assert ("[INFO] Request" in it.log, "received /v1/chat" in it.log) == (has_own, has_models)


async def answers(it: Daemon) -> bool:
    try:
        return (await it.ask("/health")).status == 200
    except aiohttp.ClientError:
        return False
