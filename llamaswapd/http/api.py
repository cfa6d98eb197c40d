"""The management API: what is there, what runs, unload it."""

from __future__ import annotations

import time
from urllib.parse import unquote

from aiohttp import web

from llamaswapd import __version__
from llamaswapd.engine import Engine
from llamaswapd.errors import ModelNotFound
from llamaswapd.http.answers import json_answer, redirect, text_answer
from llamaswapd.http.listing import model_records, running_records


class Api:
    """Handlers that need nothing but the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def models(self, request: web.Request) -> web.Response:
        with_aliases = self._engine.config.include_aliases_in_list
        rows = model_records(self._engine.statuses(), int(time.time()), with_aliases=with_aliases)
        origin = request.headers.get("Origin", "")
        headers = {"Access-Control-Allow-Origin": origin} if origin.isascii() and origin else {}
        return json_answer({"object": "list", "data": rows}, headers)

    async def running(self, request: web.Request) -> web.Response:
        return json_answer({"running": running_records(self._engine.statuses())})

    async def unload_all(self, request: web.Request) -> web.Response:
        await self._engine.unload()
        return text_answer("OK")

    async def unload_all_for_json(self, request: web.Request) -> web.Response:
        await self._engine.unload()
        return json_answer({"msg": "ok"})

    async def unload(self, request: web.Request) -> web.Response:
        """Unload the model that the rest of the path names, slashes and escapes included."""
        name = unquote(request.rel_url.raw_path.removeprefix("/api/models/unload/"))
        model = self._engine.config.resolve(name)
        if model is None:
            raise ModelNotFound
        await self._engine.unload([model.id])
        return text_answer("OK")

    async def version(self, request: web.Request) -> web.Response:
        return json_answer({"version": __version__, "commit": "unknown", "build_date": "unknown"})


async def health(request: web.Request) -> web.Response:
    """Say that the front end is up; no model is looked at."""
    return text_answer("OK")


async def to_ui(request: web.Request) -> web.Response:
    return redirect(302, "/ui")


async def to_ui_models(request: web.Request) -> web.Response:
    return redirect(302, "/ui/models")
