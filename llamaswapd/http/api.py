"""The management API: what is there, what runs, load it, unload it."""

from __future__ import annotations

import json
import time
from urllib.parse import unquote

from aiohttp import web

from llamaswapd import __version__
from llamaswapd.config.schema import ModelConfig
from llamaswapd.engine import Engine
from llamaswapd.errors import ModelNotFound, NotFound, RequestError, RequestTooLarge
from llamaswapd.http.answers import json_answer, redirect, text_answer
from llamaswapd.http.body import Body
from llamaswapd.http.listing import Record, model_records, running_records
from llamaswapd.http.server import cancelled_if_gone
from llamaswapd.observe.inflight import Inflight

PROFILE_LIMIT = 1024 * 1024  # bytes of a request for a profile


class Api:
    """Handlers that need nothing but the engine and the requests in flight."""

    def __init__(self, engine: Engine, inflight: Inflight) -> None:
        self._engine = engine
        self._inflight = inflight

    async def models(self, request: web.Request) -> web.Response:
        engine = self._engine
        rows = model_records(engine.config, engine.statuses(), engine.naming.pins(), int(time.time()))
        origin = request.headers.get("Origin", "")
        headers = {"Access-Control-Allow-Origin": origin} if origin.isascii() and origin else {}
        return json_answer({"object": "list", "data": rows}, headers)

    async def running(self, request: web.Request) -> web.Response:
        return json_answer({"running": running_records(self._engine.statuses(), self._resources)})

    def _resources(self, model_id: str) -> Record:
        used = self._engine.resources(model_id)
        return {"memory_bytes": used.memory_bytes if used else None, "cpu_s": used.cpu_s if used else None}

    async def unload_all(self, request: web.Request) -> web.Response:
        await self._engine.unload()
        return text_answer("OK")

    async def unload_all_for_json(self, request: web.Request) -> web.Response:
        await self._engine.unload()
        return json_answer({"msg": "ok"})

    async def unload(self, request: web.Request) -> web.Response:
        """Unload the model that the rest of the path names, slashes and escapes included."""
        await self._engine.unload([self._named(request, "/api/models/unload/").id])
        return text_answer("OK")

    async def load(self, request: web.Request) -> web.Response:
        """Load the model that the rest of the path names, even if it keeps failing; a client that leaves gives up."""
        with cancelled_if_gone(request):
            await self._engine.load(self._named(request, "/api/models/load/").id)
        return json_answer({"msg": "ok"})

    def _named(self, request: web.Request, prefix: str) -> ModelConfig:
        name = unquote(request.rel_url.raw_path.removeprefix(prefix))
        model = self._engine.config.resolve(name)
        if model is None:
            raise ModelNotFound
        return model

    async def profiles(self, request: web.Request) -> web.Response:
        profiles = [
            {"id": id_, "description": profile.description, "pins": dict(profile.pins)}
            for id_, profile in sorted(self._engine.config.profiles.items())
        ]
        return json_answer({"active": self._engine.naming.active, "profiles": profiles})

    async def activate_profile(self, request: web.Request) -> web.Response:
        with Body(request) as body:
            while await body.read_more():
                if body.size > PROFILE_LIMIT:
                    raise RequestTooLarge(f"a profile request of more than {PROFILE_LIMIT} bytes")
            text = body.in_memory()
        try:
            wanted = json.loads(text)
        except (ValueError, RecursionError):
            wanted = None
        if not isinstance(wanted, dict):
            raise RequestError("invalid profile request")
        if "name" not in wanted:
            raise RequestError("profile name is required")
        name = wanted["name"]
        if name is not None and not isinstance(name, str):
            raise RequestError("profile name must be a string or null")
        self._engine.activate_profile(name or None)
        return json_answer({"active": self._engine.naming.active})

    async def cancel(self, request: web.Request) -> web.Response:
        """End a request in flight; its client sees that."""
        if not self._inflight.cancel(request.match_info["id"]):
            raise NotFound("inflight request not found")
        return json_answer({"msg": "ok"})

    async def version(self, request: web.Request) -> web.Response:
        return json_answer({"version": __version__, "commit": "unknown", "build_date": "unknown"})


async def to_ui(request: web.Request) -> web.Response:
    return redirect(302, "/ui")


async def to_ui_folder(request: web.Request) -> web.Response:
    return redirect(307, "/ui/")


async def to_ui_models(request: web.Request) -> web.Response:
    return redirect(302, "/ui/models")
