"""The activity as clients read it: `/api/metrics` in its three spellings, `/api/captures/{id}`."""

from __future__ import annotations

import re

from aiohttp import web

from llamaswapd.activity import query
from llamaswapd.activity.activity import Activity
from llamaswapd.errors import RequestError
from llamaswapd.http.answers import json_answer

_ID = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)


class ActivityApi:
    """Handlers that need nothing but the activity."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity

    async def page(self, request: web.Request) -> web.Response:
        """`/api/metrics/activity`: some of the rows, in some order."""
        values: dict[str, list[str]] = {}
        for (
            name,
            value,
        ) in request.query.items():  # `getall` of each would be slow: some multidicts name a key each time
            values.setdefault(name, []).append(value)
        return json_answer(await self._activity.page(query.parse(values)))

    async def stats(self, request: web.Request) -> web.Response:
        """`/api/metrics/stats`: sums and speeds, of one model or all."""
        return json_answer(await self._activity.stats(query.model_of(request.query.get("model", ""))))

    async def all_rows(self, request: web.Request) -> web.Response:
        """`/api/metrics`, as llama-swap had it until v235: all rows that memory would hold, oldest first."""
        return json_answer(await self._activity.rows())

    async def capture(self, request: web.Request) -> web.Response:
        """`/api/captures/{id}`: what was said in one exchange."""
        text = request.match_info["id"]
        if not _ID.fullmatch(text):
            raise RequestError(f"invalid capture ID: {text[:40]!r} is not a number")
        return json_answer(await self._activity.capture(int(text)))
