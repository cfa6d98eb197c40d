"""The logs over HTTP: our own from memory, the models' from the journal."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from functools import partial

from aiohttp import web

from llamaswapd.config.schema import ModelConfig
from llamaswapd.core.routing import split_upstream
from llamaswapd.engine import Engine
from llamaswapd.errors import ModelNotFound, RequestError
from llamaswapd.http.answers import redirect, text_answer
from llamaswapd.http.streams import Streams, stream_response
from llamaswapd.observe.log import HISTORY_BYTES, LogRing

LogLines = AsyncIterator[tuple[str, str]]  # see Engine.logs


class Logs:
    """Handlers of `/logs` and what is below it. The log without a name holds what `logToStdout` selects."""

    def __init__(self, engine: Engine, own: LogRing, streams: Streams) -> None:
        self._engine = engine
        self._own = own
        self._streams = streams

    async def show(self, request: web.Request) -> web.StreamResponse:
        """Answer the history."""
        if "text/html" in request.headers.get("Accept", ""):
            return redirect(302, "/ui/")
        own, models = self._combined()
        text = ""
        if models:
            async with following(self._engine, None, HISTORY_BYTES) as lines:
                text = await history(lines)
        return text_answer(text + (self._own.history() if own else ""), headers={"Content-Type": "text/plain"})

    async def stream_combined(self, request: web.Request) -> web.StreamResponse:
        own, models = self._combined()
        return await self._stream(request, own=own, models=None if models else ())

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answer one log, `proxy`, `upstream` or a model's, without a name all: its history, then live lines."""
        name = request.match_info["name"]
        if not name:
            return await self.stream_combined(request)
        if name == "proxy":
            return await self._stream(request, own=True, models=())
        if name == "upstream":
            return await self._stream(request, own=False, models=None)
        rest = request.rel_url.raw_path.removeprefix("/logs/stream/")
        model = None
        with suppress(ModelNotFound):
            model, _ = split_upstream(self._engine.config, rest)
        if not isinstance(model, ModelConfig):
            raise RequestError("invalid logger. Use 'proxy', 'upstream' or a model's ID")
        return await self._stream(request, own=False, models=(model.id,))

    def _combined(self) -> tuple[bool, bool]:
        selected = self._engine.config.log_to_stdout
        return selected in ("proxy", "both"), selected in ("upstream", "both")

    async def _stream(self, request: web.Request, *, own: bool, models: Collection[str] | None) -> web.StreamResponse:
        """Stream our own log or not, and the logs of these models (None: all)."""
        history_bytes = 0 if "no-history" in request.query else HISTORY_BYTES
        writers = [partial(self._write_own, with_history=history_bytes > 0)] if own else []
        if models is None or models:
            writers.append(partial(self._write_models, models=models, history_bytes=history_bytes))

        def goodbye(why: str) -> bytes:
            return f"{why}\n".encode() if own else b""  # the log of a model has the model's lines only

        return await self._streams.run(request, stream_response("text/plain"), *writers, last_word=goodbye)

    async def _write_own(self, response: web.StreamResponse, *, with_history: bool) -> None:
        text, live = self._own.follow()
        with live:
            if with_history and text:
                await response.write(text.encode(errors="replace"))
            while True:
                await response.write("".join(await live.items()).encode(errors="replace"))

    async def _write_models(
        self, response: web.StreamResponse, *, models: Collection[str] | None, history_bytes: int
    ) -> None:
        async with following(self._engine, models, history_bytes) as lines:
            if text := await history(lines):
                await response.write(text.encode(errors="replace"))
            async for _, line in lines:
                await response.write(f"{line}\n".encode(errors="replace"))


@asynccontextmanager
async def following(engine: Engine, models: Collection[str] | None, history_bytes: int) -> AsyncIterator[LogLines]:
    """Follow the models' logs (see `Engine.logs`) for as long as the `async with` block lasts."""
    lines = engine.logs(models, history_bytes)
    try:
        yield lines
    finally:
        if isinstance(lines, AsyncGenerator):
            await lines.aclose()


async def history(lines: LogLines) -> str:
    """Read the lines of the past, up to where the live ones begin."""
    past = []
    async for model_id, line in lines:
        if not model_id:
            break
        past.append(f"{line}\n")
    return "".join(past)
