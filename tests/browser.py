"""One page of a headless Chromium, driven over its DevTools protocol: a websocket that speaks JSON."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0")

# Resolves when CONDITION is true; it is looked at whenever something on the page has changed.
UNTIL = """new Promise((resolve) => {
  const look = () => { const found = CONDITION; if (found) { watcher.disconnect(); resolve(found); } };
  const watcher = new MutationObserver(look);
  watcher.observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
  look();
})"""


class Page:
    """A page. `mistakes` are exceptions that nobody caught, and what the page's security policy has kept it from."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._asked = 0
        self.mistakes: list[str] = []

    async def open(self, url: str) -> None:
        await self._ask("Page.navigate", url=url)
        await self._event("Page.loadEventFired")

    async def js(self, expression: str) -> Any:
        """Return the value of an expression, of a promise what it resolves to."""
        answer = await self._ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait until an expression is true; return its value."""
        return await self.js(UNTIL.replace("CONDITION", condition))

    async def click(self, selector: str) -> None:
        """Click on an element as soon as it is there."""
        await self.until(f"((node) => node && (node.click(), true))(document.querySelector({json.dumps(selector)}))")

    async def text(self, selector: str, *, holding: str) -> str:
        """Return what an element shows as soon as that holds something; of several elements, the first that does."""
        found = f".map((node) => node.textContent).find((text) => text.includes({json.dumps(holding)}))"
        return str(await self.until(f"[...document.querySelectorAll({json.dumps(selector)})]{found}"))

    async def enter(self, selector: str, value: str, event: str) -> None:
        """Give a field a value, as typing or choosing does."""
        field = f"document.querySelector({json.dumps(selector)})"
        await self.js(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('{event}'))")

    async def _ask(self, method: str, **parameters: object) -> Any:
        self._asked += 1
        await self._socket.send_json({"id": self._asked, "method": method, "params": parameters})
        while (message := await self._message()).get("id") != self._asked:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    async def _event(self, name: str) -> None:
        while (await self._message()).get("method") != name:
            pass

    async def _message(self) -> Any:
        message = await self._socket.receive_json()
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.mistakes.append(str(message["params"]["exceptionDetails"]))
            case "Log.entryAdded" if message["params"]["entry"]["source"] in ("security", "violation"):
                self.mistakes.append(message["params"]["entry"]["text"])
        return message


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """Start a browser that keeps its files in `folder`; skip the test where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no browser is installed: {', '.join(PROGRAMS)}")
    # Its sockets are there, which it leaves behind; `folder` may have too long a name for them.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as short:
        environ = {**os.environ, "TMPDIR": short}
        process = await asyncio.create_subprocess_exec(
            program, *FLAGS, f"--user-data-dir={folder}", "about:blank", stderr=asyncio.subprocess.PIPE, env=environ
        )
        try:
            assert process.stderr is not None
            said = b""
            while b"DevTools listening on ws://" not in said:
                said = await process.stderr.readline()
                assert said, f"{program} ended before it could be driven"
            address = said.decode().split("ws://")[1].partition("/")[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{address}/json/list") as listing:
                    [target] = [target for target in await listing.json(content_type=None) if target["type"] == "page"]
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    for domain in ("Page", "Runtime", "Log"):
                        await page._ask(f"{domain}.enable")
                    yield page
        finally:
            process.terminate()
            await process.communicate()
