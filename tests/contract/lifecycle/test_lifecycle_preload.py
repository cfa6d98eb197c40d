"""swap.md §12: models that are loaded before anybody asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon_support import Json, command, daemon, model
from live import Live, logged_after, mirror, upstream

pytestmark = pytest.mark.private


def preloading(*names: str) -> Json:
    return {"on_startup": {"preload": [*names]}}


async def test_after_start_they_are_loaded_one_after_the_other_by_a_get_that_counts(folder: Path) -> None:
    models = {"a": mirror(aliases=["first"]), "b": mirror()}
    config = {"models": models, "groups": {"g": {"swap": False, "members": ["a", "b"]}}}
    async with daemon(folder, {**config, "hooks": preloading(" first ", "b")}) as it, it.events() as events:
        await events.until(lambda: events.states.get("a") == events.states.get("b") == "ready")
        assert it.log.index("preloading model: a") < it.log.index("preloading model: b")
        # One request each, by the preload; this is the second.
        assert [(await upstream(it, name))["served"] for name in "ab"] == [2, 2]


async def test_the_listener_is_open_meanwhile(folder: Path) -> None:
    config = {"models": {"a": model("--ready-when", folder / "go")}, "hooks": preloading("a")}
    async with daemon(folder, config) as it:
        assert (await it.ask("/health")).body == b"OK"
        await it.logged("preloading model: a")
        (folder / "go").touch()


@pytest.mark.ours("event streams go on during a reload")
async def test_they_are_loaded_again_after_each_reload(live: Live) -> None:
    config = {"models": {"a": mirror()}, "hooks": preloading("a")}
    it = await live.configure(config)
    async with it.events() as events:
        await events.until(lambda: events.states.get("a") == "ready")
        await it.ask("/unload")
        await events.until(lambda: events.states.get("a") == "stopped")
        await live.reload(config)
        await events.until(lambda: events.states.get("a") == "ready")


@pytest.mark.ours("the line of a failure says why")
async def test_a_failure_is_logged_and_the_next_one_follows(live: Live) -> None:
    it = await live.configure({"models": {}})
    mark = len(it.log)
    await live.reload({"models": {"a": command("sh -c 'exit 3'"), "b": mirror()}, "hooks": preloading("a", "b")})
    async with it.events() as events:
        await events.until(lambda: events.states.get("b") == "ready")
    assert "upstream command exited prematurely" in await logged_after(
        it, mark, "failed to preload model a: status 500"
    )


async def test_blank_unknown_and_peer_names_are_dropped(live: Live) -> None:
    it = await live.configure({"models": {}})
    mark = len(it.log)
    peers = {"p": {"proxy": "http://127.0.0.1:9", "models": ["theirs"]}}
    names = ("", "  ", "nobody", "theirs", "p/theirs", "a")
    await live.reload({"models": {"a": mirror()}, "peers": peers, "hooks": preloading(*names)})
    async with it.events() as events:
        await events.until(lambda: events.states.get("a") == "ready")
    assert it.log[mark:].count("preloading model: ") == 1


@pytest.mark.ours("event streams go on during a reload")
async def test_without_a_suitable_group_they_swap_each_other_out(live: Live) -> None:
    it = await live.configure({"models": {}})
    async with it.events() as events:
        await live.reload({"models": {"a": mirror(), "b": mirror()}, "hooks": preloading("a", "b")})
        await events.until(lambda: events.states.get("a") == "ready")
        await events.until(lambda: events.states == {"a": "stopped", "b": "ready"})


async def test_a_preload_counts_as_use_for_ttl(live: Live) -> None:
    it = await live.configure({"models": {}})
    mark = len(it.log)
    await live.reload({"models": {"a": mirror(ttl=1)}, "hooks": preloading("a")})
    await logged_after(it, mark, "<a> Unloading model, TTL of 1s reached")
    async with it.events() as events:
        await events.until(lambda: events.states.get("a") == "stopped")
