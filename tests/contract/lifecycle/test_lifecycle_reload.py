"""swap.md §16 and config.md §19: another configuration while everything goes on."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest
from daemon_support import Daemon, Json, daemon, model, write
from live import RELOADED, Live, held, load, mirror, ready, told

pytestmark = pytest.mark.private

TOGETHER = {"all": {"swap": False, "members": ["a", "b"]}}
BROKEN = {
    "no YAML": ("models: [", "failed to reload config: "),
    "no mapping": ("- a\n- b\n", "failed to reload config: "),
    "unknown macro": ("models: {a: {cmd: 'x ${nope} ${PORT}'}}", "unknown macro '${nope}' found in a.cmd"),
    "a wrong type": ("healthCheckTimeout: soon", "cannot unmarshal !!str `soon` into int"),
    "a missing variable": ("apiKeys: ['${env.LLAMASWAPD_NO_SUCH}']", "environment variable 'LLAMASWAPD_NO_SUCH' is"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
async def test_an_invalid_file_changes_nothing(live: Live, text: str, message: str) -> None:
    it = await live.configure({"models": {"a": mirror(aliases=["alias"])}})
    pid = (await told(it, "a"))["pid"]
    assert message in await live.refused(text)
    assert (await told(it, "alias"))["pid"] == pid


async def test_new_requests_use_the_new_configuration_at_once(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    assert (await it.chat("b")).status == 404
    await live.reload({"models": {"a": mirror(), "b": mirror()}})
    assert (await it.chat("b")).status == 200


async def test_no_connection_is_refused_meanwhile(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    done = asyncio.Event()
    statuses = []

    async def ask() -> None:
        while not done.is_set():
            statuses.append((await it.ask("/health")).status)

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        for number in range(4):
            await live.reload({"models": {"a": mirror(), f"b{number}": mirror()}})
        done.set()
    assert {*statuses} == {200}


@pytest.mark.ours("a reload leaves alone what it does not change")
async def test_unchanged_models_run_on_and_their_requests_too(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    pid = (await told(it, "a"))["pid"]
    async with it.events() as events, held(it, "a", tmp_path / "end", events) as holding:
        await live.reload({"models": {"a": mirror(), "b": mirror()}, "groups": TOGETHER})
        assert not holding.done()
        assert (await told(it, "a"))["pid"] == pid


CHANGES: dict[str, Json] = {
    "cmd": mirror("--other"),
    "env": mirror(env=["X=1"]),
    "proxy": {**mirror(), "proxy": "http://localhost:${PORT}"},
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
async def test_changed_models_do_not_survive(live: Live, changed: Json) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    pid = (await told(it, "a"))["pid"]
    await live.reload({"models": {"a": changed}})
    assert (await told(it, "a"))["pid"] != pid


@pytest.mark.ours("event streams go on during a reload")
async def test_removed_models_do_not_survive(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(), "b": mirror()}, "groups": TOGETHER})
    await load(it, "a", "b")
    async with it.events() as events:
        await live.reload({"models": {"a": mirror()}})
        await events.until(lambda: events.states == {"a": "ready"})
    assert it.units() == ["llamaswapd-it-model-a.service"]
    assert (await it.chat("b")).status == 404


async def test_a_removed_model_is_not_listed_although_it_takes_long_to_stop(live: Live) -> None:
    it = await live.configure({"models": {"a": model("--slow-stop", 0.5, cmdStop="kill -USR1 ${PID}")}})
    await it.chat("a")
    await live.reload({})
    assert (await it.ask("/v1/models")).json()["data"] == []


async def test_a_changed_model_starts_only_when_its_predecessor_is_gone(live: Live) -> None:
    """Both want the same port."""
    slow = {"cmdStop": "kill -USR1 ${PID}"}
    it = await live.configure({"models": {"a": model("--slow-stop", 0.5, **slow)}})
    first = (await it.chat("a")).json()["pid"]
    await live.reload({"models": {"a": model("--slow-stop", 0.4, **slow)}})
    answer = await it.chat("a")
    assert answer.status == 200
    assert answer.json()["pid"] != first


@pytest.mark.ours("nobody is refused because of a reload")
async def test_who_waits_for_a_load_of_a_changed_model_gets_its_successor(live: Live, tmp_path: Path) -> None:
    it = await live.configure({"models": {"a": model("--ready-when", tmp_path / "never")}})
    async with it.events() as events:
        waiting = asyncio.create_task(it.chat("a"))
        await events.until(lambda: events.states.get("a") == "starting" and len(events.in_flight) == 1)
        await live.reload({"models": {"a": mirror()}})
        assert (await waiting).status == 200


async def test_the_selection_of_a_profile_is_reset(live: Live) -> None:
    profiles = {"p": {"pins": {"llm": "a"}}}
    it = await live.configure({"models": {"a": mirror()}, "profiles": profiles})
    await it.ask("/api/profiles/active", {"name": "p"}, method="PUT")
    assert (await it.ask("/api/profiles")).json()["active"] == "p"
    await live.reload({"models": {"a": mirror()}, "profiles": profiles})
    assert (await it.ask("/api/profiles")).json()["active"] is None
    assert (await it.chat("llm")).status == 404


async def test_activity_stays_and_captures_are_lost(live: Live) -> None:
    it = await live.configure({"models": {"kept": mirror()}})
    await it.chat("kept")
    row = await row_of(it, "kept")
    assert (await it.ask(f"/api/captures/{row['id']}")).status == 200
    await live.reload({"models": {"kept": mirror("--changed")}})
    assert await row_of(it, "kept") == {**row, "has_capture": False}
    assert (await it.ask(f"/api/captures/{row['id']}")).status == 404


async def row_of(it: Daemon, name: str) -> Json:
    """Return the newest row of the activity, which is stored off the request's way."""
    async with asyncio.timeout(10):
        while not (rows := (await it.ask(f"/api/metrics/activity?model={name}")).json()["data"]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return dict(rows[0])


@pytest.mark.ours("a reload leaves alone what it does not change")
async def test_what_is_not_about_models_is_applied_at_once(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(aliases=["alias"])}})
    pid = (await told(it, "a"))["pid"]
    await live.reload({
        "includeAliasesInList": True,
        "ui": {"activity": {"session_id": ["X-Mine"]}},
        "upstream": {"ignorePaths": ["never"]},
        "models": {"a": mirror(aliases=["alias"])},
    })  # fmt: skip
    assert "alias" in [row["id"] for row in (await it.ask("/v1/models")).json()["data"]]
    assert (await told(it, "a"))["pid"] == pid
    await it.ask("/unload")
    assert (await it.ask("/upstream/a/x.png")).status == 200


async def test_aliases_filters_and_names_of_a_running_model_change(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror(aliases=["old"])}})
    await load(it, "a")
    await live.reload({"models": {"a": mirror(aliases=["new"], filters={"setParams": {"x": 1}})}})
    assert (await it.chat("old")).status == 404
    assert json.loads((await told(it, "new"))["body"])["x"] == 1


async def test_keys_come_and_go(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    await live.reload({"apiKeys": ["k"], "models": {"a": mirror()}})
    assert (await it.ask("/running")).status == 401
    assert (await it.ask("/running", headers={"x-api-key": "k"})).status == 200
    await live.reload({"models": {"a": mirror()}})
    assert (await it.ask("/running")).status == 200


async def test_a_reload_asked_for_during_a_reload_ends_in_the_newest_file(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    text = json.dumps({"startPort": live.first_port, "models": {"a": mirror(), "late": mirror()}})
    live.file.write_text(text)
    before = it.log.count(RELOADED)
    for _ in range(5):
        it.signal(signal.SIGHUP)
    await it.logged(RELOADED, before + 1)
    assert (await it.chat("late")).status == 200


# ---- -watch-config


async def test_watched_files_are_reloaded_when_they_change_come_return_or_point_elsewhere(folder: Path) -> None:
    """One daemon for all of it: looking takes two seconds each time."""
    more = folder / "more"
    more.mkdir()
    write(more / "b.yaml", {"models": {"b": mirror()}})
    async with daemon(folder, {"models": {"a": mirror()}}, "-watch-config", "-config-dir", str(more)) as it:
        port = json.loads((folder / "it.yaml").read_text())["startPort"]
        assert (await it.chat("b")).status == 200

        # A new file of the directory, behind a symlink
        write(folder / "target.yaml", {"models": {"c": mirror()}})
        (more / "c.yml").symlink_to(folder / "target.yaml")
        await it.logged(RELOADED)
        assert (await it.chat("c")).status == 200

        # The file itself vanishes, which triggers nothing, and returns as another; so changes what the symlink means
        (folder / "it.yaml").unlink()
        await asyncio.sleep(2.2)
        assert it.log.count("reloading configuration") == 1
        write(folder / "it.yaml", {"startPort": port, "models": {"a": mirror(), "e": mirror()}})
        await it.logged(RELOADED, 2)
        assert (await it.chat("e")).status == 200
        write(folder / "target.yaml", {"models": {"c": mirror(), "d": mirror()}})
        await it.logged(RELOADED, 3)
        assert (await it.chat("d")).status == 200

        # A broken one is refused, and the old configuration stays
        (more / "b.yaml").write_text("models: [")
        await it.logged("failed to reload config: ")
        assert (await it.chat("b")).status == 200
        assert await ready(it) == {"b"}


async def test_without_the_flag_nothing_is_watched(live: Live) -> None:
    it = await live.configure({"models": {"a": mirror()}})
    before = it.log.count("reloading configuration")
    write(live.file, {"models": {}})
    await asyncio.sleep(2.2)
    assert it.log.count("reloading configuration") == before
