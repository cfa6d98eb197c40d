"""The web interface as its users see it: a real browser in front of the whole program."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from browser import Page, browser
from daemon_support import Daemon, Json, clear_away, command, daemon, model

pytestmark = [pytest.mark.private, pytest.mark.usefixtures("private")]

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for sockets."""
    path = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
    yield path
    clear_away(path)
    shutil.rmtree(path, ignore_errors=True)  # the browser may still be writing to it


@asynccontextmanager
async def opened(folder: Path, config: Json, view: str) -> AsyncIterator[tuple[Daemon, Page]]:
    """Yield a daemon and a browser that shows a view of it; nothing may have gone wrong on the page by the end."""
    async with browser(folder / "browser") as page, daemon(folder, config) as it:
        await page.open(f"{it.url}/ui/{view}")
        await page.text("#link", holding="connected")
        yield it, page
        assert page.mistakes == []


async def test_a_model_is_loaded_and_unloaded_by_its_button(folder: Path) -> None:
    async with opened(folder, {"models": {"org/a": model(name=MARKUP)}}, "models") as (it, page):
        await page.click("[aria-label='Load org/a']")
        await page.text("#model-list .state", holding="ready")
        assert await it.running() == {"org/a": "ready"}
        assert MARKUP in await page.text("#model-list strong", holding="img")
        await page.click("[aria-label='Unload org/a']")
        await page.text("#model-list .state", holding="stopped")
        assert await it.running() == {}


async def test_a_model_that_cannot_be_loaded_says_why(folder: Path) -> None:
    async with opened(folder, {"models": {"a": command("/nonexistent ${PORT}")}}, "#/models") as (_, page):
        await page.click("[aria-label='Load a']")
        assert "no such file or directory" in await page.text(".failure", holding="failed to start command")


async def test_who_gives_up_a_load_leaves_the_queue(folder: Path) -> None:
    slow = model("--ready-when", folder / "go")
    async with opened(folder, {"models": {"a": slow, "b": model()}}, "#/models") as (it, page):
        await page.click("[aria-label='Load a']")
        await page.text("#model-list .state", holding="starting")
        await page.click("[aria-label='Load b']")
        await page.text("#model-list .state", holding="queued")
        await page.click("[aria-label='Give up b']")
        await page.click("[aria-label='Give up a']")
        await page.until("document.querySelector(\"[aria-label='Unload a']\") !== null")
        (folder / "go").touch()
        await page.text("#model-list .state", holding="ready")
        assert await it.running() == {"a": "ready"}


async def test_a_chat_is_shown_as_text_and_becomes_a_row_with_a_capture(folder: Path) -> None:
    config = {"models": {"a": model(), "b": model()}, "sendLoadingState": True}
    async with opened(folder, config, "#/chat/b") as (_, page):
        await page.until("document.querySelector('#chat-model').value === 'b'")
        await page.enter("#question", MARKUP, "input")
        await page.click("#send")
        await page.text("#talk .told", holding="llama-swap loading model: b")
        await page.text("#talk .said", holding="0 1 2 ")
        await page.text("#send", holding="Send")
        assert await page.js("document.querySelectorAll('#talk img').length") == 0
        await page.click("nav a[href='#/requests']")
        await page.click("#activity [aria-label='Open capture 1']")
        assert f'"content": "{MARKUP}"' in await page.text("#capture pre", holding="messages")
        assert await page.text("#capture pre", holding="0 1 2 ") == "0 1 2 "


async def test_a_request_in_flight_is_shown_and_cancelled_by_its_button(folder: Path) -> None:
    async with opened(folder, {"models": {"a": model()}}, "#/requests") as (it, page):
        async with it.stream("a", until=str(folder / "never")) as stream:
            await stream.next()
            await page.text("#inflight tr", holding="received")
            await page.click("[aria-label='Cancel the request to a']")
            await page.until("document.querySelectorAll('#inflight tr').length === 0")
        assert "cancelled" in await page.text("#activity tr", holding="/v1/chat/completions")


async def test_a_log_is_followed_filtered_and_paused(folder: Path) -> None:
    async with opened(folder, {"models": {"a": model()}}, "#/logs/a") as (it, page):
        await it.chat("a")
        await page.text("#log span", holding="received /v1/chat/completions")
        await page.enter("#log-filter", "LISTENING", "input")
        shown = await page.js("document.querySelector('#log').textContent")
        assert "listening on" in shown
        assert "received" not in shown
        await page.click("#log-pause")
        await page.enter("#log-filter", "", "input")
        before = await page.js("document.querySelectorAll('#log span').length")
        await it.ask("/v1/embeddings", {"model": "a"})
        await page.text("#log-state", holding="to come")
        assert await page.js("document.querySelectorAll('#log span').length") == before
        await page.click("#log-pause")
        await page.text("#log span", holding="received /v1/embeddings")


async def test_a_profile_is_chosen_from_the_list(folder: Path) -> None:
    config = {"models": {"a": model()}, "profiles": {"day": {"pins": {"gpt": "a"}}}}
    async with opened(folder, config, "#/models") as (it, page):
        await page.until("document.querySelector('#profile option[value=day]') !== null")
        await page.enter("#profile", "day", "change")
        await page.text("#pins", holding="gpt → a")
        assert (await it.ask("/api/profiles")).json()["active"] == "day"
        await page.text("#selector-list strong", holding="gpt")


async def test_the_page_finds_back_to_a_daemon_that_was_reloaded(folder: Path) -> None:
    async with opened(folder, {"models": {"a": model()}}, "#/models") as (it, page):
        file = folder / "it.yaml"
        file.write_text(file.read_text().replace('"a"', '"after"'))
        it.signal(1)
        await page.text("#model-list strong", holding="after")
        await page.text("#link", holding="connected")
