"""How the daemon is: alive, and on request whether all is well."""

from __future__ import annotations

from collections import Counter

from aiohttp import web

from llamaswapd import __version__
from llamaswapd.condition import Condition
from llamaswapd.core.lifecycle import State
from llamaswapd.engine import Engine
from llamaswapd.http.answers import json_answer, text_answer
from llamaswapd.http.auth import authorize


class Health:
    """Handlers of `/health` and `/wol-health`, which are open to everybody: load balancers have no key."""

    def __init__(self, engine: Engine, condition: Condition) -> None:
        self._engine = engine
        self._condition = condition

    async def health(self, request: web.Request) -> web.Response:
        """Say that the front end is up or, with `verbose` in the query, what an operator would want to know.

        503 when the daemon is stopping, so that nobody sends more; with trouble it still serves what runs: 200. What it
        says then may quote the configuration, so that takes a key if there are any; raises Unauthorized.
        """
        if "verbose" not in request.query:
            return text_answer("OK")
        if keys := self._engine.config.api_keys:
            authorize(request.headers, keys)
        condition, statuses = self._condition, self._engine.statuses()
        counts = Counter(status.state for status in statuses)
        report = {
            "status": "stopping" if condition.is_draining else "degraded" if condition.troubles else "ok",
            "version": __version__,
            "models": {
                "ready": counts[State.READY],
                "loading": counts[State.STARTING],
                "stopping": counts[State.STOPPING],
                "stopped": counts[State.STOPPED],
            },
            "queued": sum(status.waiting for status in statuses),
            "config": {"error": condition.config_error or None},
            "systemd": {"error": condition.bus_error or None},
            "state": {"error": condition.state_error or None},
        }
        return json_answer(report, status=503 if condition.is_draining else 200)

    async def wol_health(self, request: web.Request) -> web.Response:
        return text_answer("OK")
